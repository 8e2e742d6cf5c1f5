"""Choosing classes and images from a dataset."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from regio.data import DetectionDataset, Shapes, read_coco
from tests.data.small_datasets import coco_source, write_coco


@pytest.fixture
def data(tmp_path: Path) -> DetectionDataset:
    """Image 11 with a dog and a crowd of cats, image 12 with nothing."""
    return read_coco(write_coco(tmp_path, coco_source()), [tmp_path])


def test_keep_classes_renumbers_in_the_order_given(data: DetectionDataset) -> None:
    swapped = data.keep_classes(["dog", "cat"])
    assert swapped.class_names == ("dog", "cat")
    assert swapped.category_ids == (7, 3)
    assert swapped.records[0].labels.tolist() == [1, 2]
    assert swapped.to_coco()["annotations"] == data.to_coco()["annotations"]


def test_keep_classes_drops_objects_and_keeps_images(data: DetectionDataset) -> None:
    dogs = data.keep_classes(["dog"])
    assert len(dogs) == 2
    record = dogs.records[0]
    assert record.labels.tolist() == [1]
    assert record.boxes.tolist() == [[1, 2, 11, 22]]
    assert record.annotation_ids.tolist() == [1]
    assert (len(record.segmentations), record.crowd.tolist(), record.area.tolist()) == (1, [False], [150.5])
    assert len(data.records[0]) == 2  # the original is as it was


def test_unknown_class_is_named_with_the_closest(data: DetectionDataset) -> None:
    with pytest.raises(ValueError, match="unknown class 'Dogs'; did you mean dog"):
        data.keep_classes(["cat", "Dogs"])
    with pytest.raises(ValueError, match="unknown class 'xylophone'; the dataset has 2: cat, dog"):
        data.keep_classes(["xylophone"])


def test_bad_class_lists(data: DetectionDataset) -> None:
    with pytest.raises(ValueError, match="at least one class"):
        data.keep_classes([])
    with pytest.raises(ValueError, match="names: 'dog' occurs twice"):
        data.keep_classes(["dog", "dog"])
    with pytest.raises(TypeError, match="got the string 'dog'"):
        data.keep_classes("dog")


def test_without_empty_counts_a_crowd_as_nothing(data: DetectionDataset) -> None:
    assert [r.id for r in data.without_empty().records] == [11]
    assert len(data.keep_classes(["cat"]).without_empty()) == 0


def test_subset_keeps_the_order_given() -> None:
    scenes = Shapes(4)
    part = scenes.subset([3, 1])
    assert [r.id for r in part.records] == [4, 2]
    assert (part[0].image == scenes[3].image).all()
    with pytest.raises(ValueError, match="image ids: 2 occurs twice"):
        DetectionDataset(scenes.class_names, scenes.category_ids, [scenes.records[1]] * 2)


def test_names_and_ids_must_fit() -> None:
    with pytest.raises(ValueError, match="category_ids: expected 2, one a class, got 1"):
        DetectionDataset(["a", "b"], [1], [])
    with pytest.raises(ValueError, match="class_names: 'a' occurs twice"):
        DetectionDataset(["a", "a"], [1, 2], [])


def test_targets_do_not_share_memory_with_the_record(data: DetectionDataset) -> None:
    targets = data[0].targets
    targets.labels.zero_()
    targets.boxes.zero_()
    targets.crowd.zero_()
    assert data[0].targets.labels.tolist() == [2, 1]
    assert data[0].targets.boxes[0].tolist() == [1, 2, 11, 22]
    assert data[0].targets.crowd.tolist() == [False, True]


def test_identity_is_that_of_the_content(tmp_path: Path) -> None:
    source = coco_source()

    def identity(folder: str, change: Callable[[dict[str, Any]], None] = lambda source: None) -> dict[str, str]:
        changed = copy.deepcopy(source)
        change(changed)
        return read_coco(write_coco(tmp_path / folder, changed), [tmp_path / folder]).identity()

    first = identity("a")
    assert first["images"] == "2" and first["classes"] == "3 cat, 7 dog"
    assert identity("b") == first  # another folder, another time
    for number, change in enumerate(
        [
            lambda s: s["annotations"][0]["bbox"].__setitem__(0, 2),
            lambda s: s["annotations"][0].update(category_id=3),
            lambda s: s["annotations"][1].update(iscrowd=0),
            lambda s: s["images"][1].update(id=13),
            lambda s: s["annotations"].pop(),
        ]
    ):
        other = identity(f"c{number}", change)
        assert other["annotations"] != first["annotations"] and other["files"] == first["files"], number
    photo = tmp_path / "b" / "b.png"
    photo.write_bytes(photo.read_bytes() + b"x")
    other = read_coco(tmp_path / "b" / "trainval.json", [tmp_path / "b"]).identity()
    assert other["files"] != first["files"] and other["annotations"] == first["annotations"]
    assert Shapes(4).identity() == Shapes(4).identity() != Shapes(4, seed=1).identity()
    assert Shapes(4).with_masks().identity()["annotations"] != Shapes(4).identity()["annotations"]


def test_difficult_objects_can_be_left_out(data: DetectionDataset) -> None:
    assert data.without_difficult() is data
    records = [replace(record, difficult=np.arange(len(record)) == 0) for record in data.records]
    marked = DetectionDataset(data.class_names, data.category_ids, records)
    assert marked[0].targets.difficult.tolist() == [True, False]
    kept = marked.without_difficult()
    assert [len(record) for record in kept.records] == [1, 0]  # the image stays
    assert torch.equal(kept[0].targets.boxes, marked[0].targets.boxes[1:])
    assert kept.notes == ("1 difficult objects are not trained on (difficult=true trains on them)",)
