"""`examine` finds what was put there, and nothing in sound data."""

import json
from pathlib import Path

import pytest

from regio.data import examine
from regio.data.doctor import (
    BAD_IMAGE,
    CLASSES,
    DAMAGED,
    DOUBTFUL,
    EMPTY,
    NO_PIXEL,
    OTHER_MASK,
    REPEATED,
    SHARED,
    TINY_BOX,
    TWICE,
    UNUSED,
    Check,
    Examination,
)
from tests.data.small_datasets import (
    coco_source,
    save_image,
    voc_object,
    voc_page,
    write_coco,
    write_voc,
    write_yolo_folder,
)

BOX = "1 0.5 0.5 0.25 0.1\n"


def _found(result: Examination, check: Check) -> list[str]:
    return [str(finding) for finding in result.of(check)]


@pytest.mark.parametrize(
    "name, splits",
    [("nuts", {"trainval": (18, 165)}), ("voc2012_100", {"all": (100, 273)}), ("voc2007_13", {"all": (13, 41)})],
)
def test_real_data_is_sound(shared_data: Path, name: str, splits: dict[str, tuple[int, int]]) -> None:
    seen: list[tuple[int, int]] = []
    result = examine(shared_data / name, progress=lambda done, images: seen.append((done, images)))
    assert result.sound
    assert not {finding.check for finding in result.findings} - {TINY_BOX, TWICE, UNUSED}
    assert {name: (split.images, split.objects) for name, split in result.splits.items()} == splits
    images = sum(count for count, _ in splits.values())
    assert seen == [(done, images) for done in range(1, images + 1)]


def test_every_damaged_file_and_line_is_named(tmp_path: Path) -> None:
    file = write_yolo_folder(tmp_path, {"a": "0 1 2\nx\n" + BOX, "b": "0 0\n", "c": BOX + "9 0.5 0.5 0.1 0.1\n"})
    result = examine(file)
    assert not result.sound
    lines = [line.rsplit("/", 1)[1] for line in _found(result, DAMAGED) if line]
    starts = ["a.txt: line 1: expected", "a.txt: line 2: expected", "b.txt: line 1: expected"]
    assert [any(line.startswith(start) for start in starts) for line in lines] == [True] * 6  # of train and of val
    assert len(_found(result, DOUBTFUL)) == 2
    assert "c.txt: line 2: of unknown class 9" in _found(result, DOUBTFUL)[0]


def test_every_damaged_xml_file_is_named(tmp_path: Path) -> None:
    sound = voc_page(voc_object("cat", (1, 1, 5, 5)))
    folder = write_voc(tmp_path, {"a": sound, "b": "<annotation>", "c": "<annotation><object/></annotation>"})
    result = examine(folder)
    assert [Path(line.split(": ")[0]).name for line in _found(result, DAMAGED)] == ["b.xml", "c.xml"]
    assert result.splits["all"].images == 1


def test_damaged_json_is_named(tmp_path: Path) -> None:
    file = write_coco(tmp_path, coco_source())
    file.write_text(file.read_text()[:-10])
    result = examine(file)
    assert "not JSON" in _found(result, DAMAGED)[0]
    assert (result.splits, result.sound) == ({}, False)


def test_every_bad_image_is_named(tmp_path: Path) -> None:
    page = voc_page(voc_object("cat", (1, 1, 9, 9)))
    folder = write_voc(tmp_path, dict.fromkeys("abcde", page))
    images = folder / "JPEGImages"
    whole = (images / "a.png").read_bytes()
    (images / "a.png").write_bytes(whole[: len(whole) // 2])
    (images / "b.png").write_bytes(b"")
    (images / "c.png").unlink()
    (folder / "Annotations" / "d.xml").write_text(
        voc_page(voc_object("cat", (1, 1, 9, 9)), size="<width>9</width><height>9</height>")
    )
    result = examine(folder)
    assert [line.split(": ")[0] for line in _found(result, BAD_IMAGE)] == [str(images / f"{s}.png") for s in "abd"]
    assert "the image is 40 x 60 pixels (width x height), but its annotation says 9 x 9" in _found(result, BAD_IMAGE)[2]
    assert "c.xml: image: no such file" in _found(result, DOUBTFUL)[0]
    assert not result.sound


def test_images_are_compared_by_content(tmp_path: Path) -> None:
    seeds = {"train/a": 1, "train/b": 2, "train/c": 2, "val/d": 1, "val/e": 3}
    for name, seed in seeds.items():
        save_image(tmp_path / "images" / f"{name}.png", seed)
        (tmp_path / "labels" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "labels" / f"{name}.txt").write_text(BOX)
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat, dog]\n")
    result = examine(tmp_path)
    assert _found(result, SHARED) == [
        f"{tmp_path / 'images/train/a.png'}: the same image as {tmp_path / 'images/val/d.png'}"
    ]
    assert _found(result, REPEATED) == [
        f"{tmp_path / 'images/train/c.png'}: the same image as {tmp_path / 'images/train/b.png'}"
    ]
    assert not result.sound


def test_what_is_worth_a_look_is_no_fault(tmp_path: Path) -> None:
    source = coco_source()
    source["annotations"] = [
        {"id": 1, "image_id": 11, "category_id": 7, "bbox": [1, 2, 2.5, 20]},
        {"id": 2, "image_id": 11, "category_id": 7, "bbox": [1, 2, 2.5, 20]},
    ]
    result = examine(write_coco(tmp_path, source))
    assert result.sound
    assert {finding.check for finding in result.findings} == {TINY_BOX, TWICE, EMPTY, UNUSED}
    assert "annotation 2 (dog): box (1, 2, 3.5, 22) is that of another" in _found(result, TWICE)[0]
    assert _found(result, UNUSED) == ["cat"]
    assert _found(result, EMPTY) == [str(tmp_path / "b.png")]
    assert result.splits["trainval"].per_class == {"cat": 0, "dog": 2}
    assert json.loads(json.dumps(result.to_json()))["splits"]["trainval"]["empty"] == 1


def test_bad_masks_are_named(tmp_path: Path) -> None:
    source = coco_source()
    source["annotations"][0]["segmentation"] = {"size": [60, 40], "counts": [3]}
    result = examine(write_coco(tmp_path, source))
    assert "annotation 1 of image 11: segmentation: the counts sum to 3, expected" in _found(result, DOUBTFUL)[0]
    assert not result.sound


def test_masks_are_compared_with_their_boxes(tmp_path: Path) -> None:
    """Boxes are (1, 2, 11, 22) and (5.5, 6.25, 9.5, 14.25)."""
    source = coco_source()
    source["annotations"][0]["segmentation"] = [[1, 2, 11, 2, 11, 11, 1, 11]]  # less than half of the box
    source["annotations"][1]["segmentation"] = [[6.6, 7.6, 6.9, 7.6, 6.6, 7.9]]  # no centre of a pixel in it
    result = examine(write_coco(tmp_path, source))
    assert result.sound  # worth a look
    found = _found(result, OTHER_MASK)
    assert len(found) == 1
    assert found[0].endswith("annotation 1 (dog): box (1, 2, 11, 22), and its mask is in (1, 2, 11, 11)")
    assert [line.split(": ")[1] for line in _found(result, NO_PIXEL)] == ["annotation 2 (cat)"]
    source["annotations"][0]["segmentation"] = [[1, 2, 11, 2, 11, 13, 1, 13]]
    source["annotations"][1]["segmentation"] = {"size": [60, 40], "counts": [5 * 60 + 7, 7, 53, 7, 53, 7, 1973]}
    assert not _found(examine(write_coco(tmp_path, source)), OTHER_MASK)


def test_classes_of_the_splits_are_compared(tmp_path: Path) -> None:
    for split, name in (("train", "cat"), ("val", "Cat")):
        source = coco_source()
        source |= {"images": source["images"][:1], "annotations": [], "categories": [{"id": 1, "name": name}]}
        source["images"][0]["file_name"] = f"{split}.png"
        save_image(tmp_path / split / f"{split}.png", len(split))
        (tmp_path / f"{split}.json").write_text(json.dumps(source))
    assert _found(examine(tmp_path), CLASSES) == ["train: 1 classes: cat", "val: 1 classes: Cat"]


def test_nothing_to_examine(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no dataset found"):
        examine(tmp_path)
    with pytest.raises(ValueError, match="shapes: generated scenes have no files"):
        examine("shapes")
