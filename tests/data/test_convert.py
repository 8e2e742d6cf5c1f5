"""Each format written and read again, on small data by hand and on real data."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from regio.data import DetectionDataset, convert, open_dataset, write_coco, write_voc, write_yolo
from regio.data.convert import Writer
from regio.data.masks import decode_masks
from tests.data.small_datasets import coco_source, save_image, voc_object, voc_page
from tests.data.small_datasets import write_coco as save_coco
from tests.data.small_datasets import write_voc as save_voc


def _same(one: DetectionDataset, other: DetectionDataset, pixels: float = 1e-4) -> None:
    """Images and objects are equal, but for ids; classes by name."""
    assert len(one) == len(other)
    by_stem = {record.path.stem: record for record in other.records}
    for record in one.records:
        again = by_stem[record.path.stem]
        assert again.size == record.size
        assert [other.class_names[label - 1] for label in again.labels] == [
            one.class_names[label - 1] for label in record.labels
        ]
        np.testing.assert_allclose(again.boxes, record.boxes, atol=pixels)


def _source(folder: Path, **changes: object) -> Path:
    """A COCO data set of two images with one object each, the first changed by `changes`."""
    source = coco_source()
    source["annotations"] = [
        {"id": 1, "image_id": 11, "category_id": 7, "bbox": [1.25, 2, 10, 20.5]} | changes,
        {"id": 2, "image_id": 12, "category_id": 3, "bbox": [4, 5, 6, 7]},
    ]
    return save_coco(folder, source)


@pytest.mark.parametrize("write", [write_coco, write_yolo, write_voc])
@pytest.mark.parametrize("name", ["nuts", "voc2012_100", "voc2007_13"])
def test_real_data_written_and_read_again(tmp_path: Path, shared_data: Path, write: Writer, name: str) -> None:
    result = convert(shared_data / name, tmp_path / "t", write, link=True)
    for split in ("train", "val"):
        before, after = open_dataset(shared_data / name, split), open_dataset(tmp_path / "t", split, strict=True)
        polygons = write is write_yolo and name == "nuts"
        _same(before, after, pixels=1.0 if polygons else 1e-4)
        assert result.images[split] == len(before)
        assert result.objects[split] == sum(map(len, before.records))
        if write is not write_yolo:
            assert [r.difficult.tolist() for r in before.records] == [r.difficult.tolist() for r in after.records]
        torch.testing.assert_close(after[0].image, before[0].image, rtol=0, atol=0)
        assert after.records[0].path.is_symlink()


@pytest.mark.parametrize("write", [write_coco, write_yolo])
@pytest.mark.parametrize("name, count, unequal", [("nuclei", 20, 0.0), ("nuts", 4, 1e-4)])
@pytest.mark.slow
def test_real_masks_written_and_read_again(
    tmp_path: Path, shared_data: Path, write: Writer, name: str, count: int, unequal: float
) -> None:
    """Run lengths (nuclei) are equal. Corners of a polygon (nuts) are rounded to a fifth of a pixel to be drawn, so
    that a change in its ninth figure can move a pixel of the border."""
    before = open_dataset(shared_data / name, "val").subset(range(count))
    write({"val": before}, tmp_path, True)
    after = open_dataset(tmp_path, "all")
    by_stem = {record.path.stem: record for record in after.records}
    assert len(by_stem) == count
    for record in before.records:
        again = by_stem[record.path.stem]
        masks, others = (decode_masks(r.segmentations, r.size) for r in (record, again))
        assert masks.shape == others.shape
        assert (masks != others).sum() <= unequal * masks.sum()


def test_yolo_by_hand(tmp_path: Path) -> None:
    result = convert(_source(tmp_path / "s"), tmp_path / "t", write_yolo)
    page = yaml.safe_load((tmp_path / "t" / "data.yaml").read_text())
    assert page == {"train": "images/train", "val": "images/val", "names": {0: "cat", 1: "dog"}}
    files = {file.stem: file.read_text() for file in (tmp_path / "t" / "labels").rglob("*.txt")}
    assert set(files) == {"a", "b"}
    numbers = [float(word) for word in files["a"].split()]
    assert numbers == pytest.approx([1, 6.25 / 40, 12.25 / 60, 10 / 40, 20.5 / 60])
    assert result.losses == {}
    image = next((tmp_path / "t" / "images").rglob("a.png"))
    assert image.read_bytes() == (tmp_path / "s" / "a.png").read_bytes() and not image.is_symlink()


def test_what_a_format_cannot_hold_is_counted(tmp_path: Path) -> None:
    polygon = [[1, 2, 11, 2, 11, 22]]
    source = _source(tmp_path / "s", iscrowd=1, segmentation=polygon)
    crowd = "crowds (left out)"
    assert convert(source, tmp_path / "yolo", write_yolo).losses == {crowd: 1}
    assert convert(source, tmp_path / "voc", write_voc).losses == {
        crowd: 1,
        "class 'dog', of which there is no object": 1,
    }
    assert convert(source, tmp_path / "coco", write_coco).losses == {}
    source = _source(tmp_path / "s", difficult=1, segmentation=polygon)
    assert convert(source, tmp_path / "yolo2", write_yolo).losses == {
        "segmentations (not all objects have one, so boxes are written)": 1,
        "marks 'difficult' (the objects are kept)": 1,
    }
    assert convert(source, tmp_path / "voc2", write_voc).losses == {"segmentations": 1}
    again = [open_dataset(tmp_path / "voc2", split) for split in ("train", "val")]
    assert sorted(bool(record.difficult.any()) for data in again for record in data.records) == [False, True]


def test_polygons_that_change_are_counted(tmp_path: Path) -> None:
    source = json.loads(_source(tmp_path / "s", segmentation=[[-3, 2, 11, 2, 11, 22]]).read_text())
    source["annotations"][1]["segmentation"] = [[4, 5, 10, 5, 10, 12, 4, 12]]
    losses = convert(save_coco(tmp_path / "s", source), tmp_path / "t", write_yolo).losses
    assert losses == {
        "polygons that stuck out (their corners are moved to the border)": 1,
        "boxes (the bounds of the polygon differ by a pixel or more)": 1,
    }
    for split in ("train", "val"):
        open_dataset(tmp_path / "t", split, strict=True)


def test_several_polygons_become_one_of_the_same_mask(tmp_path: Path) -> None:
    parts = [[2, 2, 6, 2, 6, 6, 2, 6], [10, 20, 16, 20, 16, 30.4], [4, 4, 12, 4, 12, 9]]
    source = json.loads(_source(tmp_path / "s", segmentation=parts, bbox=[2, 2, 14, 28]).read_text())
    source["annotations"][1]["segmentation"] = [[4, 5, 10, 5, 10, 12, 4, 12]]
    convert(save_coco(tmp_path / "s", source), tmp_path / "t", write_yolo)
    records = [r for split in ("train", "val") for r in open_dataset(tmp_path / "t", split).records]
    record = next(r for r in records if r.path.stem == "a")
    assert isinstance(record.segmentations[0], list) and len(record.segmentations[0]) == 1
    assert torch.equal(decode_masks(record.segmentations, (60, 40)), decode_masks([parts], (60, 40)))


def test_files_of_one_name_are_numbered(tmp_path: Path) -> None:
    source = coco_source() | {"annotations": []}
    for image, name in zip(source["images"], ("x/a.png", "x_a.png"), strict=True):
        image["file_name"] = name
        save_image(tmp_path / "s" / name)
    (tmp_path / "s" / "data.json").write_text(json.dumps(source))
    convert(tmp_path / "s" / "data.json", tmp_path / "t", write_yolo)
    assert {file.name for file in (tmp_path / "t").rglob("*.png")} == {"x_a.png", "x_a-2.png"}
    assert {file.name for file in (tmp_path / "t").rglob("*.txt")} == {"x_a.txt", "x_a-2.txt"}


def test_a_turned_photo_fits_its_boxes_in_every_format(tmp_path: Path) -> None:
    """Annotated as it is stored, 40 x 60, though its EXIF block turns it: YOLO has no size that would tell."""
    source = _source(tmp_path / "s")
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(tmp_path / "s" / "a.png") as image:
        image.save(tmp_path / "s" / "a.png", exif=exif)
    convert(source, tmp_path / "t", write_yolo)
    records = [r for split in ("train", "val") for r in open_dataset(tmp_path / "t", split).records]
    assert {record.path.stem: record.size for record in records} == {"a": (60, 40), "b": (60, 40)}
    np.testing.assert_allclose(
        next(r for r in records if r.path.stem == "a").boxes, [[1.25, 2, 11.25, 22.5]], atol=1e-4
    )


def test_generated_scenes_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regio.data.open._SHAPES", {"train": (3, 0), "val": (2, 1), "test": (1, 2)})
    result = convert("shapes", tmp_path / "t", write_yolo)
    assert result.images == {"train": 3, "val": 2, "test": 1}
    before, after = open_dataset("shapes", "val"), open_dataset(tmp_path / "t", "val", strict=True)
    assert torch.equal(before[1].image, after[1].image)
    masks = [decode_masks(data.records[1].segmentations, data.records[1].size) for data in (before, after)]
    assert torch.equal(*masks)


def test_other_splits_are_counted_as_lost(tmp_path: Path) -> None:
    page = voc_page(voc_object("cat", (1, 1, 5, 5)))
    folder = save_voc(tmp_path / "s", {"a": page, "b": page, "c": page})
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    for name, stems in (("train", "a\n"), ("val", "b\n"), ("trainval", "a\nb\n"), ("more", "b\nc\n")):
        (folder / "ImageSets" / "Main" / f"{name}.txt").write_text(stems)
    result = convert(folder, tmp_path / "t", write_coco)
    assert result.images == {"train": 1, "val": 1}
    assert result.losses == {"images of split more": 1}  # those of trainval are written in train and val
    for name in ("train", "val"):
        (folder / "ImageSets" / "Main" / f"{name}.txt").rename(folder / "ImageSets" / "Main" / f"part{name}.txt")
    with pytest.raises(ValueError, match="no split train, val or test: it has more, parttrain, partval, trainval"):
        convert(folder, tmp_path / "u", write_coco)


def test_refusals(tmp_path: Path) -> None:
    source = _source(tmp_path / "s")
    with pytest.raises(ValueError, match="s: expected a new or an empty folder"):
        convert(source, tmp_path / "s", write_coco)


def test_a_bad_mask_is_named_and_its_box_written(tmp_path: Path) -> None:
    bad = _source(tmp_path / "bad", segmentation={"size": [60, 40], "counts": [3]}, area=5)
    page = json.loads(bad.read_text())
    page["annotations"][1]["segmentation"] = [[4, 5, 10, 5, 10, 12]]
    bad.write_text(json.dumps(page))
    result = convert(bad, tmp_path / "t", write_coco)
    assert "annotation 1 of image 11: segmentation: the counts sum to 3" in str(result.problems[0])
    rows = [
        row
        for split in ("train", "val")
        for record in open_dataset(tmp_path / "t", split, strict=True).records
        for row in zip(record.boxes.tolist(), record.segmentations, strict=True)
    ]
    assert sorted(rows) == [([1.25, 2, 11.25, 22.5], None), ([4, 5, 10, 12], [[4, 5, 10, 5, 10, 12]])]


def test_splits_of_different_classes_have_no_numbers_in_common(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    for split, name in (("train", "cat"), ("val", "dog")):
        source = coco_source()
        source |= {"images": source["images"][:1], "annotations": [], "categories": [{"id": 1, "name": name}]}
        source["images"][0]["file_name"] = f"{split}.png"
        save_image(folder / split / f"{split}.png")
        (folder / f"{split}.json").write_text(json.dumps(source))
    with pytest.raises(ValueError, match="expected the same classes in each split, got "):
        convert(folder, tmp_path / "t", write_yolo)
