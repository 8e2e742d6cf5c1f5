"""Which regions an image has, and what they overlap."""

from pathlib import Path

import numpy as np
import pytest
import torch

from regio.data import DetectionDataset
from regio.data.records import Annotation, Record
from regio.fitting import label_regions
from regio.fitting.labels import count_regions

OBJECTS = [
    Annotation(1, (0.0, 0.0, 10.0, 10.0), 2, 100.0),
    Annotation(2, (50.0, 0.0, 90.0, 40.0), 1, 1600.0, crowd=True),
    Annotation(3, (0.0, 0.0, 10.0, 20.0), 1, 200.0),
]
PROPOSALS = np.array([[0, 0, 10, 10], [0, 10, 10, 20], [50, 0, 60, 10], [45, 0, 55, 10], [30, 60, 40, 70]], np.float32)


def dataset() -> DetectionDataset:
    records = [
        Record.of(7, Path("a.jpg"), "a.jpg", (80, 100), OBJECTS),
        Record.of(8, Path("b.jpg"), "b.jpg", (80, 100), []),
    ]
    plain = DetectionDataset(("cat", "dog"), (1, 2), records)
    return plain.with_proposals({7: PROPOSALS, 8: PROPOSALS[:0]})


def test_objects_come_first_and_groups_are_none() -> None:
    of_image = label_regions(dataset(), 0)
    assert of_image.boxes.tolist() == [[0, 0, 10, 10], [0, 0, 10, 20], *PROPOSALS.tolist()]
    assert of_image.labels.tolist() == [2, 1]
    expected = torch.tensor([[0.5, 1], [1, 0.5], [0.5, 1], [0.5, 0], [0, 0], [0, 0], [0, 0]])
    torch.testing.assert_close(of_image.overlap, expected)
    assert of_image.crowd.tolist() == [[False, False]] * 4 + [[True, False]] + [[False, False]] * 2
    best, index = of_image.best_object()
    torch.testing.assert_close(best, torch.tensor([1, 1, 1, 0.5, 0, 0, 0]))
    assert index[:4].tolist() == [0, 1, 0, 1]


def test_an_image_without_regions() -> None:
    of_image = label_regions(dataset(), 1)
    assert of_image.boxes.shape == (0, 4)
    assert of_image.overlap.shape == of_image.crowd.shape == (0, 2)
    assert [len(each) for each in of_image.best_object()] == [0, 0]
    assert count_regions(dataset()) == [7, 0]


def test_an_image_with_proposals_alone() -> None:
    without = DetectionDataset(("cat",), (1,), [dataset().records[1]]).with_proposals({8: PROPOSALS})
    of_image = label_regions(without, 0)
    assert not of_image.overlap.any()
    assert [each.tolist() for each in of_image.best_object()] == [[0.0] * 5, [0] * 5]


def test_a_data_set_without_proposals_raises() -> None:
    plain = DetectionDataset(("cat",), (1,), [dataset().records[1]])
    with pytest.raises(ValueError, match="dataset: expected one with proposals, got one without"):
        label_regions(plain, 0)
