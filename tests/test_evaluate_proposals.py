"""Recall of proposals: by hand, and beside pycocotools."""

import contextlib
import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from regio.data import DetectionDataset, Record
from regio.data.records import Annotation
from regio.evaluate import ProposalRecall, detections_to_coco, evaluate
from regio.run_report import ProposalResults
from regio.types import Detections


def dataset(*images: list[Annotation]) -> DetectionDataset:
    """Images of 100 x 100 pixels; the first pixel of image i is i."""
    records = [Record.of(i, Path(f"{i}.jpg"), f"{i}.jpg", (100, 100), rows) for i, rows in enumerate(images)]
    return DetectionDataset(["a", "b"], [1, 2], records, read=lambda r: torch.full((3, 100, 100), r.id).byte())


def proposals(*rows: tuple[float, ...]) -> Detections:
    """From rows x1, y1, x2, y2, score."""
    table = torch.tensor(rows).reshape(-1, 5)
    return Detections(table[:, :4], torch.ones(len(table), dtype=torch.int64), table[:, 4])


def numbers(recall: ProposalRecall, *found: Detections) -> dict[str, float]:
    return evaluate(lambda images: [found[int(image[0, 0, 0])] for image in images], recall).numbers


def test_by_hand() -> None:
    """Three objects, two classes. A is covered to 0.8 by the second proposal, B to 0.6 by the first; a crowd is covered
    fully and does not count; C, in the second image, is covered to 1 by the third best of its image."""
    first = [
        Annotation(1, (0, 0, 10, 10), 1, 100.0),
        Annotation(2, (20, 0, 30, 10), 2, 100.0),
        Annotation(3, (50, 50, 90, 90), 1, 1600.0, crowd=True),
    ]
    second = [Annotation(4, (0, 0, 40, 40), 2, 1600.0)]
    recall = ProposalRecall(dataset(first, second, []), limits=(1, 2, 3))
    found = (
        proposals((20, 0, 26, 10, 0.9), (0, 0, 8, 10, 0.8), (50, 50, 90, 90, 0.7)),
        proposals((0, 0, 40, 40, 0.1), (60, 60, 70, 70, 0.9), (70, 60, 80, 70, 0.8)),  # not sorted
        proposals((1, 1, 2, 2, 0.5)),
    )
    # B is found at 0.5, 0.55, 0.6 from one proposal on; A at 0.5 .. 0.8 (seven) from two; C at all ten from three.
    # The largest overlaps are 0, 0.6, 0, then 0.8, 0.6, 0, then 0.8, 0.6, 1.
    expected = {
        "ar_1": 3 / 30, "recall50_1": 1 / 3, "recall70_1": 0.0, "abo_1": 0.2,
        "ar_2": 10 / 30, "recall50_2": 2 / 3, "recall70_2": 1 / 3, "abo_2": 1.4 / 3,
        "ar_3": 20 / 30, "recall50_3": 1.0, "recall70_3": 2 / 3, "abo_3": 0.8,
    }  # fmt: skip
    assert numbers(recall, *found) == pytest.approx(expected)
    assert recall.names == tuple(expected) and recall.selects == "ar_3"


def test_a_proposal_finds_one_object_and_an_object_is_found_once() -> None:
    """Two objects of IoU 0.8 under one proposal that is both, almost; then a second proposal finds the other."""
    objects = [Annotation(1, (0, 0, 10, 10), 1, 100.0), Annotation(2, (0, 0, 10, 8), 1, 80.0)]
    recall = ProposalRecall(dataset(objects), limits=(1, 2))
    found = numbers(recall, proposals((0, 0, 10, 9, 0.9), (0, 0, 10, 10, 0.8)))
    assert (found["recall50_1"], found["recall50_2"]) == (0.5, 1.0)
    twice = numbers(recall, proposals((0, 0, 10, 10, 0.9), (0, 0, 10, 10, 0.8)))
    assert (twice["recall70_1"], twice["recall70_2"]) == (0.5, 1.0)


def test_labels_and_signs_of_scores_do_not_count() -> None:
    recall = ProposalRecall(dataset([Annotation(1, (0.0, 0.0, 10.0, 10.0), 1, 100.0)]), limits=(2,))
    named = proposals((0, 0, 10, 10, -0.5), (50, 50, 60, 60, -2.0))
    named = Detections(named.boxes, torch.tensor([2, 7]), named.scores)
    records = evaluate(lambda images: [named], recall).records
    assert recall.measure(records)["ar_2"] == 1
    assert np.asarray(ProposalResults(recall, records)._pictures()).std() > 10


def test_no_objects_and_no_proposals() -> None:
    empty = ProposalRecall(dataset([]))
    assert all(math.isnan(value) for value in numbers(empty, proposals((0, 0, 1, 1, 1.0))).values())
    one = ProposalRecall(dataset([Annotation(1, (0, 0, 10, 10), 1, 100.0)]))
    assert set(numbers(one, proposals()).values()) == {0.0}


def test_equal_to_pycocotools_without_classes() -> None:
    generator = np.random.default_rng(0)

    def boxes(count: int) -> np.ndarray:
        corner = generator.uniform(0, 70, (count, 2))
        return np.concatenate([corner, corner + generator.uniform(5, 30, (count, 2))], axis=1)

    images, found, number = [], [], 0
    for _ in range(6):
        truth = boxes(8)
        rows = []
        for box, crowd in zip(truth.tolist(), generator.random(8) < 0.2, strict=True):
            number += 1
            rows.append(Annotation(number, tuple(box), int(generator.integers(1, 3)), 50.0, crowd=bool(crowd)))
        images.append(rows)
        near = (truth[:, None] + generator.normal(0, 2.5, (8, 40, 4))).reshape(-1, 4)
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        found.append(proposals(*np.concatenate([near, generator.random((320, 1))], axis=1).tolist()))
    data = dataset(*images)
    recall = ProposalRecall(data, limits=(10, 100, 300))
    ours = numbers(recall, *found)

    rows = [row for i, one in enumerate(found) for row in detections_to_coco(one, i, data.category_ids)]
    with contextlib.redirect_stdout(io.StringIO()):
        truth_set = COCO()
        truth_set.dataset = data.to_coco() | {"info": {}}
        truth_set.createIndex()
        theirs = COCOeval(truth_set, truth_set.loadRes(rows), "bbox")
        theirs.params.useCats, theirs.params.maxDets = 0, [10, 100, 300]
        theirs.evaluate()
        theirs.accumulate()
    recalls: Tensor = torch.from_numpy(theirs.eval["recall"])[:, 0, 0]  # [IoU, limit]
    expected = {}
    for i, limit in enumerate((10, 100, 300)):
        expected[f"ar_{limit}"] = float(recalls[:, i].mean())
        expected |= {f"recall50_{limit}": float(recalls[0, i]), f"recall70_{limit}": float(recalls[4, i])}
    overlaps = {name: ours.pop(name) for name in recall.names if name.startswith("abo")}
    assert ours == pytest.approx(expected, abs=1e-12)
    assert sorted(overlaps.values()) == [*overlaps.values()]
    assert 0.1 < ours["ar_10"] < ours["ar_300"] < 0.95
