"""The COCO reader: values by hand, real files, and every rule for doubtful input."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

from regio.data import DetectionDataset, open_dataset, read_coco
from tests.data.small_datasets import coco_source, write_coco


def _read(folder: Path, source: Any, strict: bool = False) -> DetectionDataset:
    return read_coco(write_coco(folder, source), [folder], strict=strict)


def test_values_by_hand(tmp_path: Path) -> None:
    data = _read(tmp_path, coco_source())
    assert data.class_names == ("cat", "dog")  # ascending ids, whatever the order in the file
    assert data.category_ids == (3, 7)
    assert data.problems == ()
    record = data.records[0]
    assert (record.id, record.name, record.path, record.size) == (11, "a.png", tmp_path / "a.png", (60, 40))
    assert record.boxes.tolist() == [[1, 2, 11, 22], [5.5, 6.25, 9.5, 14.25]]
    assert record.labels.tolist() == [2, 1]
    assert record.crowd.tolist() == [False, True]
    assert record.area.tolist() == [150.5, 32.0]  # given; that of the box
    assert record.annotation_ids.tolist() == [1, 2]


def test_sample_by_hand(tmp_path: Path) -> None:
    sample = _read(tmp_path, coco_source())[0]
    assert (sample.id, sample.name, sample.size) == (11, "a.png", (60, 40))
    assert sample.image.shape == (3, 60, 40)
    assert sample.targets.boxes.dtype == torch.float32
    assert sample.targets.boxes[1].tolist() == [5.5, 6.25, 9.5, 14.25]
    assert sample.targets.labels.tolist() == [2, 1]
    assert sample.targets.crowd.tolist() == [False, True]
    assert sample.targets.masks is None


def test_image_without_objects_is_background(tmp_path: Path) -> None:
    source = coco_source() | {"annotations": []}
    data = _read(tmp_path, source)
    assert len(data) == 2
    assert data.problems == ()
    assert data[1].targets.boxes.shape == (0, 4)


@pytest.mark.parametrize(
    "change, kept, message",
    [
        ({"bbox": [1, 2, 0, 20]}, None, r"annotation 1 of image 11: box \(1, 2, 1, 22\) has width 0"),
        ({"bbox": [1, 2, 10, -3]}, None, "annotation 1 of image 11: box .* height -3"),
        ({"bbox": [float("nan"), 2, 10, 20]}, None, "annotation 1 of image 11: box .* not finite"),
        ({"bbox": [1, 2, float("inf"), 20]}, None, "annotation 1 of image 11: box .* not finite"),
        ({"bbox": [50, 2, 10, 20]}, None, "annotation 1 of image 11: box .* outside its image of 40 x 60"),
        ({"bbox": [35, 50, 10, 20]}, [35, 50, 40, 60], "annotation 1 of image 11: box .* sticks out"),
        ({"bbox": [-1, 2, 10, 20]}, [0, 2, 9, 22], "annotation 1 of image 11: box .* sticks out"),
        ({"bbox": [1, 2, 10]}, None, r"annotation 1 of image 11: expected bbox \[x, y, width, height\]"),
        ({"bbox": ["1", 2, 3, 4]}, None, r"annotation 1 of image 11: expected bbox"),
        ({"bbox": None}, None, r"annotation 1 of image 11: expected bbox .* got None"),
        ({"bbox": [10**400, 2, 10, 20]}, None, r"annotation 1 of image 11: expected bbox .*, got \[10000"),
        ({"bbox": [10**308, 2, 10**308, 20]}, None, "annotation 1 of image 11: box .* not finite"),
        ({"bbox": [1, 2, 10**308, 17 * 10**307]}, [1, 2, 40, 60], "annotation 1 of image 11: box .* sticks out"),
        ({"iscrowd": "0"}, None, "annotation 1 of image 11: expected iscrowd 0 or 1, got '0'; left out"),
        ({"iscrowd": 2}, None, "annotation 1 of image 11: expected iscrowd 0 or 1, got 2; left out"),
        ({"ignore": "no"}, None, "annotation 1 of image 11: expected ignore 0 or 1, got 'no'; left out"),
        ({"id": 2**63}, [1, 2, 11, 22], "annotation 9223372036854775808: id of more than 64 bits; kept without it"),
        ({"category_id": 99}, None, "annotation 1 of image 11: of unknown category 99"),
        ({"category_id": None}, None, "annotation 1 of image 11: without a category_id"),
        ({"category_id": [7]}, None, r"annotation 1 of image 11: of unknown category \[7\]"),
        ({"image_id": 99}, None, "annotation 1: of unknown image 99"),
        ({"image_id": None}, None, "annotation 1: without an image_id"),
    ],
)
def test_doubtful_annotation(tmp_path: Path, change: dict[str, Any], kept: list[float] | None, message: str) -> None:
    source = coco_source()
    source["annotations"][0] |= change
    data = _read(tmp_path, source)
    assert len(data.problems) == 1
    assert data.records[0].boxes.tolist()[:-1] == ([] if kept is None else [kept])
    file = str(tmp_path / "trainval.json")
    assert str(data.problems[0]).startswith(f"{file}: annotation {source['annotations'][0]['id']}")
    with pytest.raises(ValueError, match=message) as error:
        _read(tmp_path, source, strict=True)
    assert str(error.value) == str(data.problems[0])


@pytest.mark.parametrize("mark", [0, 1, False, True, 0.0, None])
def test_marks_of_a_crowd(tmp_path: Path, mark: object) -> None:
    source = coco_source()
    source["annotations"][0]["iscrowd"] = mark
    assert _read(tmp_path, source, strict=True).records[0].crowd.tolist() == [bool(mark), True]


def test_less_than_a_pixel_outside_is_rounding(tmp_path: Path) -> None:
    source = coco_source()
    source["annotations"][0]["bbox"] = [-0.5, 2, 40.99, 20]
    data = _read(tmp_path, source, strict=True)
    assert data.records[0].boxes[0].tolist() == [0, 2, 40, 22]


def test_annotation_id_used_twice_keeps_both(tmp_path: Path) -> None:
    source = coco_source()
    source["annotations"][1]["id"] = 1
    data = _read(tmp_path, source)
    assert len(data.records[0]) == 2
    assert "annotation 1: id used more than once" in str(data.problems[0])
    assert [a["id"] for a in data.to_coco()["annotations"]] == [1, 2]


def test_missing_image_is_left_out_and_listed(tmp_path: Path) -> None:
    file = write_coco(tmp_path, coco_source())
    (tmp_path / "b.png").unlink()
    data = read_coco(file, [tmp_path])
    assert [record.name for record in data.records] == ["a.png"]
    assert str(data.problems[0]) == f"{file}: image 12: no such file: {tmp_path / 'b.png'}; left out"
    with pytest.raises(ValueError, match=r"image 12: no such file"):
        read_coco(file, [tmp_path], strict=True)


def test_no_image_at_all_names_the_folders_searched(tmp_path: Path) -> None:
    file = write_coco(tmp_path, coco_source())
    with pytest.raises(ValueError, match=r"trainval\.json: none of its 2 images \(a\.png, \.\.\.\) in .*elsewhere"):
        read_coco(file, [tmp_path / "elsewhere"])


def test_damaged_image_is_named_when_read(tmp_path: Path) -> None:
    data = _read(tmp_path, coco_source())
    path = tmp_path / "a.png"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"a\.png: cannot be read as an image"):
        data[0]


def test_other_size_in_json_is_named_when_read(tmp_path: Path) -> None:
    source = coco_source()
    source["images"][0]["width"] = 41
    with pytest.raises(ValueError, match=r"a\.png: the image is 40 x 60 .* says 41 x 60"):
        _read(tmp_path, source)[0]


def test_size_comes_from_the_file_where_json_has_none(tmp_path: Path) -> None:
    source = coco_source()
    del source["images"][0]["width"]
    assert _read(tmp_path, source).records[0].size == (60, 40)


@pytest.mark.parametrize(
    "key, entry, message",
    [
        ("images", {"id": 11, "file_name": "b.png", "width": 40, "height": 60}, "image id 11 is used twice"),
        ("images", {"id": 2**64, "file_name": "c.png"}, f"image id {2**64}: expected a number of 64 bits"),
        ("categories", {"id": 3, "name": "cow"}, "category id 3 is used twice"),
        ("categories", {"id": 9, "name": "cat"}, "category name 'cat' is used twice"),
        ("images", {"file_name": "c.png"}, "expected int 'id' in each of 'images'"),
        ("images", {"id": 13}, "expected str 'file_name' in each of 'images'"),
        ("images", {"id": 13, "file_name": "a.png", "width": 0, "height": 5}, "image 13: expected a whole width"),
        ("images", {"id": 13, "file_name": "a.png", "width": 4, "height": float("inf")}, "image 13: .* got 4 x inf"),
        ("images", {"id": 13, "file_name": "a.png", "width": 4, "height": 10**400}, "image 13: .* got 4 x 1000"),
        ("categories", {"id": 9}, "expected str 'name' in each of 'categories'"),
        ("annotations", 5, "expected objects in 'annotations', got 5"),
    ],
)
def test_ambiguous_or_incomplete_file(tmp_path: Path, key: str, entry: Any, message: str) -> None:
    source = coco_source()
    source[key].append(entry)
    with pytest.raises(ValueError, match=f"trainval.json: .*{message}"):
        _read(tmp_path, source)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "not JSON"),
        ("\x00\x01", "not JSON"),
        ("[1, 2]", "not COCO: expected a list under 'images', got a list"),
        ('{"images": []}', r"not COCO: expected a list under 'annotations', got the keys \['images'\]"),
        ('{"images": {}, "annotations": [], "categories": []}', "not COCO: expected a list under 'images'"),
        ('{"images": [], "annotations": [], "categories": []}', "no categories"),
    ],
)
def test_file_that_is_not_coco(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"x.json: {message}"):
        read_coco(file, [tmp_path])


def test_missing_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.json: cannot be read: No such file"):
        read_coco(tmp_path / "gone.json", [tmp_path])


def test_area_from_the_mask(tmp_path: Path) -> None:
    source = coco_source()
    del source["annotations"][0]["area"]
    source["annotations"][0]["segmentation"] = [[1, 2, 6, 2, 6, 22, 1, 22]]
    assert _read(tmp_path, source).records[0].area[0] == 100
    source["annotations"][0]["segmentation"] = "what"
    assert _read(tmp_path, source).records[0].area[0] == 200  # of the box: the mask is left out


def test_masks_on_request(tmp_path: Path) -> None:
    source = coco_source()
    source["annotations"][0]["segmentation"] = [[1, 2, 6, 2, 6, 22, 1, 22]]
    data = _read(tmp_path, source)
    with pytest.raises(ValueError, match=r"1 objects have no segmentation, the first is annotation 2 of a\.png"):
        data.with_masks()
    source["annotations"][1]["segmentation"] = {"size": [60, 40], "counts": [360, 60, 1980]}
    masks = _read(tmp_path, source).with_masks()[0].targets.masks
    assert masks is not None
    assert masks.dtype == torch.bool
    assert masks.sum((1, 2)).tolist() == [100, 60]


LEFT_OUT = "; its mask is left out, its box is used"
INSIDE = [1, 2, 6, 2, 6, 22, 1, 22]  # of the box (1, 2, 11, 22) in an image of 40 x 60 pixels


@pytest.mark.parametrize(
    "segmentation, message",
    [
        ("what", "segmentation: expected polygons or a run-length encoding, got what"),
        (7, "segmentation: expected polygons or a run-length encoding, got 7"),
        ({}, "segmentation: expected polygons or a run-length encoding, got {}"),
        ([], None),
        ([[]], None),
        (INSIDE, "expected polygons of at least three x, y pairs of finite numbers, got 1"),
        ([[1, 2, 6, 22]], "expected polygons of at least three x, y pairs .*, got [1, 2, 6, 22], 4 numbers"),
        ([[*INSIDE, 5]], "of finite numbers, got [1, 2, 6, 2, 6, 22, 1, 22, 5], 9 numbers"),
        ([[1, 2, float("nan"), 2, 6, 22]], "of finite numbers, got [1, 2, nan, 2, 6, 22], 6 numbers"),
        ([[1, 2, float("inf"), 2, 6, 22]], "of finite numbers, got [1, 2, inf, 2, 6, 22], 6 numbers"),
        ([[1, 2, 10**400, 2, 6, 22]], "of finite numbers, got"),
        ([[1, 2, True, 2, 6, 22]], "of finite numbers, got [1, 2, True, 2, 6, 22], 6 numbers"),
        (
            [[1, 2, 1e9, 2, 6, 22]],
            "(1, 2, 1e+09, 22) leaves its image of 40 x 60 pixels by more than a side",
        ),
        ([[1, -61, 6, 2, 6, 22]], "the mask in (1, -61, 6, 22) leaves its image of 40 x 60 pixels by more than a side"),
        ([[20, 2, 30, 2, 30, 22]], "the mask in (20, 2, 30, 22) is outside its box (1, 2, 11, 22)"),
        ([[1, 2, 6, 2, 3, 2]], "the mask has no pixel"),
        ({"size": [40, 60], "counts": [2400]}, "segmentation: expected size [60, 40], that of the image, got [40, 60]"),
        ({"size": [60, 40], "counts": [2399]}, "the counts sum to 2399, expected height x width = 2400"),
        ({"size": [60, 40], "counts": "04"}, "the counts sum to 4, expected height x width = 2400"),
        ({"size": [60, 40], "counts": "4d"}, "segmentation: the encoding ends within a number"),
        ({"size": [60, 40], "counts": "4é"}, "is no character of an encoding"),
        ({"size": [60, 40], "counts": [2400]}, "the mask has no pixel"),
        ({"size": [60, 40], "counts": [0, 60, 2340]}, None),
        (
            {"size": [60, 40], "counts": [1200, 60, 1140]},
            "mask in (20, 0, 21, 60) is outside its box (1, 2, 11, 22)",
        ),
    ],
)
@pytest.mark.parametrize("crowd", [0, 1])
def test_a_bad_mask_leaves_its_box(tmp_path: Path, segmentation: Any, message: str | None, crowd: int) -> None:
    source = coco_source()
    source["annotations"][0] |= {"segmentation": segmentation, "iscrowd": crowd}
    source["annotations"][1]["segmentation"] = [[6, 7, 9, 7, 9, 14, 6, 14]]
    data = _read(tmp_path, source)
    assert data.records[0].boxes[0].tolist() == [1, 2, 11, 22]
    masks = data.with_known_masks()[0].targets.masks
    assert masks is not None
    assert masks.any(2).any(1).tolist() == [segmentation not in ([], [[]]) and message is None, True]
    if message is None:
        assert data.problems == ()
        return
    (problem,) = data.problems
    assert str(problem).startswith(f"{tmp_path / 'trainval.json'}: annotation 1 of image 11: ")
    for part in message.split(".*"):
        assert part in str(problem)
    assert str(problem).endswith(LEFT_OUT)
    with pytest.raises(ValueError, match="annotation 1 of image 11"):
        _read(tmp_path, source, strict=True)


def test_lines_and_points_beside_polygons_enclose_nothing(tmp_path: Path) -> None:
    """The mask is that of the polygons, and the reader says what it left out."""
    source = coco_source()
    source["annotations"][0]["segmentation"] = [INSIDE, [1, 2, 3, 4], [], [5, 6]]
    data = _read(tmp_path, source)
    assert data.records[0].segmentations[0] == [INSIDE]
    message = "annotation 1 of image 11: polygon [1, 2, 3, 4] of fewer than three points; that polygon is left out"
    assert str(data.problems[0]).endswith(message)


def test_a_mask_may_leave_image_and_box_a_little(tmp_path: Path) -> None:
    source = coco_source()
    for polygon in ([-3, 2, 6, 2, 6, 22], [11.5, 2, 13, 2, 13, 22], [1, 2, 6, 2, 6, 119]):
        source["annotations"][0]["segmentation"] = [polygon]
        data = _read(tmp_path, source)
        assert data.problems == ()
        assert data.records[0].segmentations[0] == [polygon]


def test_to_coco_gives_back_what_was_read(tmp_path: Path) -> None:
    source = coco_source()
    written = _read(tmp_path, source).to_coco()
    assert written["images"] == source["images"]
    assert written["categories"] == [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    assert written["annotations"][0] == source["annotations"][0] | {"ignore": 0, "difficult": 0}
    again = _read(tmp_path, json.loads(json.dumps(written)))
    assert again.to_coco() == written


@pytest.mark.slow
def test_real_coco(shared_data: Path) -> None:
    train = open_dataset(shared_data / "coco_s320", "train")
    val = open_dataset(shared_data / "coco_s320", "val")
    assert (len(train), len(val)) == (2357, 706)
    # One of the 22,328 boxes has no height; it is left out, and said to be.
    assert sum(map(len, train.records)) == 22327
    assert [p.item for p in train.problems] == ["annotation 14421 of image 361919"]
    assert sum(map(len, val.records)) == 6476
    assert val.problems == ()
    assert sum(int(record.crowd.sum()) for record in train.records) == 263
    assert train.class_names == val.class_names
    assert len(train.class_names) == 80
    assert (train.category_ids[0], train.category_ids[-1]) == (1, 90)  # ids have gaps
    assert len(train.without_empty()) == len(train) - 3


def test_real_boxes_as_in_the_coco_api(shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = open_dataset(shared_data / "coco_s320", "val")
    reference = COCO(shared_data / "coco_s320/annotations/instances_val.json")
    for record in data.records[::20]:
        rows = reference.loadAnns(reference.getAnnIds(record.id))
        assert record.annotation_ids.tolist() == [row["id"] for row in rows]
        assert [data.category_ids[label - 1] for label in record.labels] == [row["category_id"] for row in rows]
        corners = np.array([row["bbox"] for row in rows]).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        assert np.abs(record.boxes - corners).max(initial=0) < 0.011  # clipping takes off rounding only


def test_real_masks_of_run_lengths(shared_data: Path) -> None:
    data = open_dataset(shared_data / "nuclei", "val").with_masks()
    for index in range(0, len(data), 30):
        sample, record = data[index], data.records[index]
        assert sample.targets.masks is not None
        assert sample.targets.masks.sum((1, 2)).tolist() == record.area.tolist()
        for mask, box in zip(sample.targets.masks, record.boxes, strict=True):
            y, x = torch.nonzero(mask, as_tuple=True)
            assert [x.min(), y.min(), x.max() + 1, y.max() + 1] == box.tolist()
