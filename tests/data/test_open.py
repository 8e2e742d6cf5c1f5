"""Which folder is read as what, and which images are of which split."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from regio.config import RunConfig
from regio.config.systems import DeepLab, MaskRCNN
from regio.data import DetectionDataset, Shapes, divide, open_dataset, open_undivided
from regio.run import open_splits
from tests.data.small_datasets import coco_source, save_image, voc_object, voc_page, write_coco, write_voc

_CAT = voc_page(voc_object("cat", (1, 1, 5, 5)))


def _names(data: DetectionDataset) -> list[str]:
    return [record.name for record in data.records]


def _write_split(json_file: Path, images: Path, name: str) -> None:
    """A COCO file of one image `name`, and the image."""
    source = coco_source()
    source["images"] = [source["images"][0] | {"file_name": name}]
    json_file.parent.mkdir(parents=True, exist_ok=True)
    json_file.write_text(json.dumps(source))
    save_image(images / name)


@pytest.mark.parametrize(
    "file, images",
    [
        ("annotations/instances_{}2017.json", "{}2017"),
        ("annotations/instances_{}2017.json", "images/{}2017"),
        ("annotations/instances_{}2017.json", "images"),
        ("annotations/instances_{}.json", "{}"),
        ("annotations/{}.json", "images/{}"),
        ("{}.json", "images"),
        ("{}.json", "."),
        ("fruit_{}.json", "{}"),
        ("{}/_annotations.coco.json", "{}"),
    ],
)
def test_coco_layouts(tmp_path: Path, file: str, images: str) -> None:
    for split in ("train", "val"):
        _write_split(tmp_path / file.format(split), tmp_path / images.format(split), f"{split}.png")
    for split in ("train", "val"):
        data = open_dataset(tmp_path, split)
        assert _names(data) == [f"{split}.png"]
        assert data[0].name == f"{split}.png"
        assert data.notes == ()


def test_other_json_files_beside_instances_are_not_splits(tmp_path: Path) -> None:
    for split in ("train2017", "val2017"):
        _write_split(tmp_path / f"annotations/instances_{split}.json", tmp_path / split, f"{split}.png")
        (tmp_path / f"annotations/captions_{split}.json").write_text("{}")
    assert _names(open_dataset(tmp_path, "val")) == ["val2017.png"]


def test_ambiguous_split_is_asked_for(tmp_path: Path) -> None:
    for split in ("train2014", "train2017", "val2017"):
        _write_split(tmp_path / f"annotations/instances_{split}.json", tmp_path / split, f"{split}.png")
    with pytest.raises(ValueError, match="split 'train' may be train2014 or train2017: name one"):
        open_dataset(tmp_path)
    assert _names(open_dataset(tmp_path, "train2014")) == ["train2014.png"]


def test_absent_split_names_those_there_are(tmp_path: Path) -> None:
    for split in ("train", "test"):
        _write_split(tmp_path / f"annotations/instances_{split}.json", tmp_path / split, f"{split}.png")
    with pytest.raises(ValueError, match="no split 'val': it has test, train"):
        open_dataset(tmp_path, "val")


def test_roboflow_from_real_data(tmp_path: Path, shared_data: Path) -> None:
    source: dict[str, Any] = json.loads((shared_data / "nuts" / "trainval.json").read_text())
    source["categories"] = [{"id": 0, "name": "nuts", "supercategory": "none"}] + [
        category | {"supercategory": "nuts"} for category in source["categories"]
    ]
    for split, ids in (("train", range(12)), ("valid", range(12, 18))):
        folder = tmp_path / split
        folder.mkdir()
        part = source | {
            "images": [image for image in source["images"] if image["id"] in ids],
            "annotations": [a for a in source["annotations"] if a["image_id"] in ids],
        }
        for image in part["images"]:
            shutil.copy(shared_data / "nuts" / "images" / image["file_name"], folder)
        (folder / "_annotations.coco.json").write_text(json.dumps(part))
    train, val = open_dataset(tmp_path, "train"), open_dataset(tmp_path, "val")
    assert (len(train), len(val)) == (12, 6)
    assert train.class_names == val.class_names == ("date", "fig", "hazelnut")  # without the unused parent
    assert sum(map(len, (*train.records, *val.records))) == 165
    assert val[0].image.shape[1:] == val.records[0].size


def test_voc_lists(tmp_path: Path) -> None:
    folder = write_voc(tmp_path, {"a": _CAT, "b": _CAT, "c": _CAT})
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    for name, stems in (("train", "a\nc\n"), ("val", "b\n"), ("cat_train", "a 1\nc -1\n")):
        (folder / "ImageSets" / "Main" / f"{name}.txt").write_text(stems)
    assert _names(open_dataset(folder, "train")) == ["a.png", "c.png"]
    assert _names(open_dataset(folder, "val")) == ["b.png"]
    with pytest.raises(ValueError, match=r"ImageSets/Main: no split 'test': it has train, val"):
        open_dataset(folder, "test")


def test_voc_with_images_elsewhere(tmp_path: Path) -> None:
    folder = write_voc(tmp_path, {"a": _CAT, "b": _CAT})
    (folder / "JPEGImages").rename(folder / "images")
    assert len(open_dataset(folder, "train")) == 1
    for image in (folder / "images").iterdir():
        image.rename(folder / "Annotations" / image.name)
    assert len(open_dataset(folder, "train")) == 1
    for image in (folder / "Annotations").glob("*.png"):
        image.unlink()
    with pytest.raises(ValueError, match=r"no images: expected them in .*JPEGImages or .*images"):
        open_dataset(folder)


@pytest.mark.parametrize("name, images, held_out", [("nuts", 18, 4), ("voc2012_100", 100, 20), ("voc2007_13", 13, 3)])
def test_undivided_data_is_divided_and_says_so(
    shared_data: Path, caplog: pytest.LogCaptureFixture, name: str, images: int, held_out: int
) -> None:
    with caplog.at_level(logging.INFO, logger="regio.data"):
        train, val = open_dataset(shared_data / name, "train"), open_dataset(shared_data / name, "val")
    assert (len(train), len(val)) == (images - held_out, held_out)
    assert not set(_names(train)) & set(_names(val))
    assert train.class_names == val.class_names
    assert f"val is {held_out} of its {images} images" in val.notes[0]
    assert caplog.messages == [*train.notes, *val.notes]
    assert sorted(_names(open_dataset(shared_data / name, "all"))) == sorted(_names(train) + _names(val))
    with pytest.raises(ValueError, match="no split 'test'"):
        open_dataset(shared_data / name, "test")


def test_division_is_the_same_for_ever(shared_data: Path) -> None:
    # A change of these names would mix validation images of earlier trainings into the training images of later ones.
    assert _names(open_dataset(shared_data / "nuts", "val")) == ["1.jpg", "11.jpg", "12.jpg", "15.jpg"]


def test_division_needs_two_images() -> None:
    assert [len(divide(Shapes(2), split)) for split in ("train", "val")] == [1, 1]
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        divide(Shapes(1), "train")


def test_path_of_a_json_file(tmp_path: Path) -> None:
    file = write_coco(tmp_path, coco_source())
    assert len(open_dataset(file, "train")) == len(open_dataset(file, "val")) == 1
    _write_split(tmp_path / "d/annotations/instances_val2017.json", tmp_path / "d/val2017", "v.png")
    with pytest.raises(ValueError, match="cannot be divided"):
        open_dataset(tmp_path / "d/annotations/instances_val2017.json")


def _splits(data: Path, validation: Path | None) -> list[list[str]]:
    config = RunConfig(str(data), None if validation is None else str(validation))
    return [_names(each) for each in open_splits(config, Console(quiet=True))]


def test_two_data_sets_without_splits_are_not_divided(tmp_path: Path) -> None:
    """As `regio train one.json --validation other.json`: all images of both. One data set, named twice, is divided."""
    one, other = (write_coco(tmp_path / name, coco_source()) for name in ("one", "other"))
    assert _splits(one, other) == [["a.png", "b.png"], ["a.png", "b.png"]]
    assert open_undivided(one).notes == ()
    divided = _splits(one, None)
    assert sorted(divided) == [["a.png"], ["b.png"]]
    assert _splits(one, one.parent / ".." / "one" / one.name) == divided


def test_the_data_set_without_what_the_system_needs_is_named(tmp_path: Path) -> None:
    source = coco_source()
    for row in source["annotations"]:
        row["segmentation"] = [[6, 7, 9, 7, 9, 14, 6, 14]]
    masks, boxes = write_coco(tmp_path / "masks", source), write_coco(tmp_path / "boxes", coco_source())
    for data, validation in ((masks, boxes), (boxes, masks)):
        config = RunConfig(str(data), str(validation), model=MaskRCNN())
        with pytest.raises(ValueError, match=r"boxes/trainval\.json: masks: expected segmentations, and none of 2"):
            open_splits(config, Console(quiet=True))


def test_data_without_images_to_evaluate_on(tmp_path: Path) -> None:
    one, other = (write_coco(tmp_path / name, coco_source()) for name in ("one", "other"))
    other.write_text(json.dumps({**coco_source(), "images": [], "annotations": []}))
    with pytest.raises(ValueError, match=r"other/trainval\.json: no images to evaluate on"):
        _splits(one, other)


def test_difficult_objects_are_a_part_of_class_maps(tmp_path: Path) -> None:
    """And no part of what detectors are trained on."""
    source = coco_source()
    for row in source["annotations"]:
        row["segmentation"] = [[6, 7, 9, 7, 9, 14, 6, 14]]
    source["annotations"] = [row | {"ignore": 1} for row in source["annotations"] if not row["iscrowd"]]
    one, other = (write_coco(tmp_path / name, source) for name in ("one", "other"))
    train, _ = open_splits(RunConfig(str(one), str(other), model=DeepLab()), Console(quiet=True))
    class_map = train[0].targets.class_map
    assert class_map is not None and int((class_map == 2).sum()) > 10
    boxes, _ = open_splits(RunConfig(str(one), str(other)), Console(quiet=True))
    assert [len(record) for record in boxes.records] == [0, 0]


def test_of_two_data_sets_with_splits_one_gives_train_and_the_other_val(tmp_path: Path) -> None:
    for folder in ("one", "other"):
        for split in ("train", "val", "test"):
            file = tmp_path / folder / f"annotations/instances_{split}.json"
            _write_split(file, tmp_path / folder / split, f"{folder}-{split}.png")
    alone = write_coco(tmp_path / "alone", coco_source())
    assert _splits(tmp_path / "one", tmp_path / "other") == [["one-train.png"], ["other-val.png"]]
    assert _splits(tmp_path / "one", alone) == [["one-train.png"], ["a.png", "b.png"]]
    assert _splits(alone, tmp_path / "other") == [["a.png", "b.png"], ["other-val.png"]]
    assert len(open_undivided("shapes", "val")) == len(open_dataset("shapes", "val"))


def test_shapes_by_name() -> None:
    train, val = open_dataset("shapes"), open_dataset("shapes", "val")
    assert train.class_names == val.class_names
    assert not set(_names(train)) & set(_names(val))
    assert (train[0].image.shape != val[0].image.shape) or (train[0].image != val[0].image).any()
    with pytest.raises(ValueError, match="shapes: no split 'dev': it has train, val, test"):
        open_dataset("shapes", "dev")


def test_nothing_to_open(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gone: no such dataset: expected a folder"):
        open_dataset(tmp_path / "gone")
    (tmp_path / "photo.JPG").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"photo\.JPG: no dataset: expected a folder or a COCO JSON file, got a single"
    ):
        open_dataset(tmp_path / "photo.JPG")
    with pytest.raises(ValueError, match=r"no dataset found: expected COCO .* Pascal VOC .* YOLO"):
        open_dataset(tmp_path)
    (tmp_path / "package.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no dataset found.*; .*package.json lacks images, annotations or categories"):
        open_dataset(tmp_path)


def test_the_one_data_set_in_a_folder_is_opened_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    inner = write_voc(tmp_path / "data" / "VOC2007", {"a": _CAT, "b": _CAT})
    (tmp_path / "package.json").write_text('{"images": "none"}')
    (tmp_path / "pom.xml").write_text("<project/>")
    (tmp_path / "data" / "config.yaml").write_text("names: a word\n")
    hidden = write_voc(tmp_path / ".cache", {"a": _CAT, "b": _CAT})
    assert hidden.is_dir()
    with caplog.at_level(logging.INFO, logger="regio.data"):
        data = open_dataset(tmp_path, "all")
    assert _names(data) == ["a.png", "b.png"]
    assert data.notes == (f"{tmp_path}: the data set in it is {inner} (Pascal VOC)",)
    assert caplog.messages == [*data.notes]
    assert "divided by a hash" in open_dataset(tmp_path, "val").notes[1]


def test_of_several_data_sets_in_a_folder_one_must_be_named(tmp_path: Path) -> None:
    voc = write_voc(tmp_path / "x" / "VOC2007", {"a": _CAT, "b": _CAT})
    _write_split(tmp_path / "y" / "annotations/instances_train.json", tmp_path / "y" / "train", "t.png")
    with pytest.raises(ValueError, match=f"2 data sets in it: {voc}, {tmp_path / 'y'}; name one of them") as error:
        open_dataset(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("annotations", "images"), [("annots", "images"), ("xml", "photos"), (".", "."), (".", "img"), ("labels", ".")]
)
def test_xml_files_in_any_folder_near_their_images(tmp_path: Path, annotations: str, images: str) -> None:
    folder = write_voc(tmp_path / "written", {"a": _CAT, "b": voc_page(filename="b.png")})
    for ending, place in (("xml", annotations), ("png", images)):
        (tmp_path / "data" / place).mkdir(parents=True, exist_ok=True)
        for file in sorted(folder.rglob(f"*.{ending}")):
            shutil.copy(file, tmp_path / "data" / place)
    (tmp_path / "data" / "other").mkdir()
    save_image(tmp_path / "data" / "other" / "logo.png")
    data = open_dataset(tmp_path / "data", "all")
    assert _names(data) == ["a.png", "b.png"]
    assert {record.path.parent for record in data.records} == {tmp_path / "data" / images}


def test_pets_masks_are_not_taken_for_images(tmp_path: Path) -> None:
    """The layout of Oxford's pets: XML files two folders down, beside masks of the same names."""
    for stem in ("a", "b"):
        page = voc_page(voc_object("cat", (1, 1, 5, 5)), filename=f"{stem}.jpg")
        (tmp_path / "annotations" / "xmls").mkdir(parents=True, exist_ok=True)
        (tmp_path / "annotations" / "xmls" / f"{stem}.xml").write_text(page)
        save_image(tmp_path / "annotations" / "trimaps" / f"{stem}.png")
        save_image(tmp_path / "images" / f"{stem}.jpg")
    data = open_dataset(tmp_path, "all")
    assert {record.path for record in data.records} == {tmp_path / "images" / f"{stem}.jpg" for stem in "ab"}


def test_voc_with_a_folder_for_each_split(tmp_path: Path) -> None:
    for split, name in (("train", "cat"), ("valid", "eel"), ("test", "bat")):
        written = write_voc(tmp_path / "w" / split, {split: voc_page(voc_object(name, (1, 1, 5, 5)))})
        (tmp_path / "d" / split).mkdir(parents=True)
        for file in [*written.rglob("*.xml"), *written.rglob("*.png")]:
            shutil.copy(file, tmp_path / "d" / split)
    for split, label in (("train", 2), ("val", 3), ("test", 1)):
        data = open_dataset(tmp_path / "d", split)
        assert data.class_names == ("bat", "cat", "eel")
        assert [record.labels.tolist() for record in data.records] == [[label]]


def test_all_damaged_files_are_counted(tmp_path: Path) -> None:
    folder = write_voc(tmp_path, {"a": _CAT, "b": "<annotation>", "c": "<annotation><object/></annotation>"})
    with pytest.raises(ValueError, match=r"b\.xml: not XML: .*; and 1 more like this \(regio doctor lists all\)"):
        open_dataset(folder)


def test_strict_reaches_the_reader(tmp_path: Path) -> None:
    folder = write_voc(tmp_path, {"a": voc_page(voc_object("cat", (5, 1, 4, 5))), "b": _CAT})
    assert len(open_dataset(folder).problems) == 1
    with pytest.raises(ValueError, match="has width 0"):
        open_dataset(folder, strict=True)


@pytest.mark.slow
def test_a_number_of_images_is_spread_over_the_data() -> None:
    whole = [_names(open_dataset("shapes", split)) for split in ("train", "val")]
    few = [
        _names(each) for each in open_splits(RunConfig("shapes", images=3, validation_images=200), Console(quiet=True))
    ]
    assert few == [[whole[0][i] for i in (0, 133, 266)], whole[1]]  # of 400, and of 100
