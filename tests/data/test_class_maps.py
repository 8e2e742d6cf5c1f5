"""Class maps: painted from masks, read from Pascal VOC's files, and moved with their photos."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from regio.data import (
    DetectionDataset,
    HorizontalFlip,
    RandomCrop,
    Resize,
    Shapes,
    Transform,
    convert,
    encode_mask,
    examine,
    open_dataset,
    read_coco,
    read_voc,
)
from regio.data.class_maps import LabelImage, paint_class_map, read_label_image
from regio.data.convert import write_coco as as_coco
from regio.data.doctor import BAD_CLASS_MAP
from regio.types import IGNORED
from tests.data.small_datasets import coco_source, voc_object, voc_page, write_coco, write_png_header, write_voc

SIZE = (60, 40)


def rectangle(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros(SIZE, dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def test_the_smallest_object_is_in_front_and_crowds_are_behind_all() -> None:
    """Pixel by pixel, against the rule in words."""
    generator = np.random.default_rng(0)
    masks, labels, crowds = [], [], []
    for _ in range(12):
        top, left = generator.integers(0, 50), generator.integers(0, 30)
        masks.append(rectangle(top, left, top + generator.integers(1, 30), left + generator.integers(1, 30)))
        labels.append(int(generator.integers(1, 6)))
        crowds.append(bool(generator.random() < 0.2))
    masks.append(masks[0])  # as large as the first, which stays in front of it
    labels.append(labels[0] % 5 + 1)
    crowds.append(crowds[0])
    assert 0 < sum(crowds) < len(crowds)
    expected = np.zeros(SIZE, dtype=np.uint8)
    for place in np.ndindex(*SIZE):
        over = [i for i, mask in enumerate(masks) if mask[place]]
        objects = [i for i in over if not crowds[i]]
        if objects:
            expected[place] = labels[min(objects, key=lambda i: (masks[i].sum(), i))]
        elif over:
            expected[place] = IGNORED
    painted = paint_class_map([encode_mask(mask) for mask in masks], labels, crowds, SIZE)
    assert painted.dtype == torch.uint8
    assert np.array_equal(painted.numpy(), expected)
    assert set(np.unique(expected)) >= {0, IGNORED}


def test_no_object_is_all_background() -> None:
    assert not paint_class_map([], [], [], SIZE).any()
    with pytest.raises(ValueError, match="object 1: segmentation: expected polygons"):
        paint_class_map([encode_mask(rectangle(0, 0, 2, 2)), "no"], [1, 1], [False, False], SIZE)  # type: ignore[list-item]


def coco(folder: Path, *segmented: int, **changes: Any) -> DetectionDataset:
    """The images of `coco_source`, whose annotations number `segmented` have their boxes as masks."""
    source = coco_source()
    for i in segmented:
        x, y, w, h = (round(v) for v in source["annotations"][i]["bbox"])
        source["annotations"][i]["segmentation"] = encode_mask(rectangle(y, x, y + h, x + w))
    return read_coco(write_coco(folder, source | changes), [folder])


def test_samples_have_class_maps(tmp_path: Path) -> None:
    dataset = coco(tmp_path, 0, 1).with_class_maps()
    dog, cat = (dataset.class_names.index(name) + 1 for name in ("dog", "cat"))
    assert dataset[0].targets.masks is None
    expected = np.where(rectangle(6, 6, 14, 10), IGNORED, 0)  # the crowd of cats
    expected[rectangle(2, 1, 22, 11)] = dog
    assert np.array_equal(dataset[0].targets.class_map, expected)
    assert not dataset[1].targets.class_map.any()  # type: ignore[union-attr]
    assert dataset.notes == ()
    cats = coco(tmp_path, 0, 1).keep_classes(["cat"]).with_class_maps()[0].targets.class_map
    assert cat and cats is not None and np.array_equal(cats, np.where(rectangle(6, 6, 14, 10), IGNORED, 0))
    moved = dataset[0].targets.to("cpu").class_map
    assert moved is not None and torch.equal(moved, dataset[0].targets.class_map)


def test_images_with_objects_without_masks_are_left_out(tmp_path: Path) -> None:
    some = coco(tmp_path, 0).with_class_maps()
    assert [record.id for record in some.records] == [12]
    assert some.notes == ("1 of 2 images have an object without a segmentation and are left out",)
    with pytest.raises(ValueError, match=r"class maps: expected segmentations, or files .* none of 2 objects in 2 im"):
        coco(tmp_path).with_class_maps()
    with pytest.raises(ValueError, match="class maps: each of the 1 images has an object without a segmentation"):
        coco(tmp_path, 0).subset([0]).with_class_maps()
    names = [f"c{i}" for i in range(255)]
    with pytest.raises(ValueError, match="class maps: expected at most 254 classes, got 255"):
        DetectionDataset(names, range(255), ()).with_class_maps()


def test_class_maps_are_part_of_what_a_data_set_is(tmp_path: Path) -> None:
    plain, other = coco(tmp_path, 0, 1), coco(tmp_path, 0, 1)
    assert plain.with_class_maps().identity() != plain.identity()
    changed = replace(other.records[0], segmentations=other.records[0].segmentations[::-1])
    changed_set = other._with(records=(changed, other.records[1]))
    assert changed_set.with_class_maps().identity() != plain.with_class_maps().identity()


@pytest.mark.parametrize("transform", [HorizontalFlip(1.0), Resize(40, 80), RandomCrop((0.3, 0.6))])
def test_class_maps_follow_the_masks(transform: Transform) -> None:
    """Painted before or after the change, but for objects that the change leaves out."""
    scenes = Shapes(6, seed=4)
    both = scenes.with_class_maps().with_masks()
    for i in range(len(both)):
        sample = both[i]
        changed = transform(sample, torch.Generator().manual_seed(i)).targets
        assert changed.class_map is not None and changed.masks is not None
        assert changed.class_map.dtype == torch.uint8 and changed.class_map.shape == changed.masks.shape[1:]
        expected = torch.zeros_like(changed.class_map)
        for mask, label in zip(changed.masks, changed.labels, strict=True):  # shapes do not overlap
            expected[mask] = int(label)
        assert torch.equal(changed.class_map, expected)
        assert sample.targets.class_map is not None and bool(sample.targets.class_map.any())


def voc(folder: Path, kind: str, pixels: np.ndarray, mode: str = "P") -> DetectionDataset:
    """Two photos, of which the first has a class map or a map of objects."""
    objects = [voc_object(name, (1, 1, 20, 20)) for name in ("dog", "aeroplane", "dog")]
    write_voc(folder, {"a": voc_page(*objects), "b": voc_page(objects[0])})
    (folder / kind).mkdir()
    Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(folder / kind / "a.png")
    return read_voc(folder / "Annotations", folder / "JPEGImages")


def test_classes_of_voc(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 21, SIZE)
    pixels[:4] = IGNORED
    dataset = voc(tmp_path, "SegmentationClass", pixels, "L")
    made = dataset.with_class_maps()
    assert made.notes == ("1 of 2 images have no class map and are left out",)
    assert np.array_equal(made[0].targets.class_map, pixels)
    kept = dataset.keep_classes(["dog", "cat"]).with_class_maps()[0].targets.class_map  # classes 12 and 8
    new = np.select([pixels == 12, pixels == 8, pixels == IGNORED], [1, 2, IGNORED], 0)
    assert np.array_equal(kept, new)


def test_objects_of_voc(tmp_path: Path) -> None:
    """Value i is the i-th object of the XML file: dog, aeroplane, dog."""
    pixels = np.random.default_rng(0).integers(0, 4, SIZE)
    pixels[:4] = IGNORED
    found = voc(tmp_path, "SegmentationObject", pixels, "L").with_class_maps()[0].targets.class_map
    assert np.array_equal(found, np.select([pixels == 2, pixels == IGNORED, pixels > 0], [1, IGNORED, 12], 0))


def test_a_palette_is_not_looked_up(tmp_path: Path) -> None:
    image = Image.fromarray(np.full(SIZE, 3, dtype=np.uint8))
    image.putpalette([7] * 768)
    image.save(tmp_path / "a.png")
    assert read_label_image(LabelImage.of(tmp_path / "a.png", range(1, 5)), SIZE).unique().tolist() == [3]


def cut_after_its_header(file: Path) -> None:
    Image.new("L", (90, 90)).save(file)
    file.write_bytes(file.read_bytes()[:45])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: Image.fromarray(np.full(SIZE, 21, dtype=np.uint8)).save(file), r"0 \.\. 20 or 255, got 21"),
        (lambda file: Image.new("L", (60, 40)).save(file), r"its photo, 40 x 60 pixels \(width x h.*, got 60 x 40"),
        (lambda file: Image.new("RGB", (40, 60)).save(file), "a palette or grey of 8 bits; got mode RGB"),
        (lambda file: Image.new("I;16", (40, 60)).save(file), "a palette or grey of 8 bits; got mode I;16"),
        (lambda file: write_png_header(file, 30_000, 30_000), "too large to be read: Image size .900000000 pixels"),
        (cut_after_its_header, "got 90 x 90"),
        (lambda file: file.write_bytes(b"none"), "cannot be read as an image"),
        (lambda file: file.unlink(), "no such image file"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    dataset = voc(tmp_path, "SegmentationClass", np.zeros(SIZE)).with_class_maps()
    damage(tmp_path / "SegmentationClass" / "a.png")
    with pytest.raises(ValueError, match=rf"SegmentationClass/a\.png: .*{message}"):
        dataset[0]


def test_a_bad_file_is_found_and_files_that_are_not_written_are_counted(tmp_path: Path) -> None:
    voc(tmp_path / "voc", "SegmentationClass", np.full(SIZE, 21))
    (finding,) = examine(tmp_path / "voc").of(BAD_CLASS_MAP)
    assert str(finding).endswith("SegmentationClass/a.png: expected pixels of 0 .. 20 or 255, got 21")
    assert convert(tmp_path / "voc", tmp_path / "coco", as_coco).losses == {"class maps": 1}


def test_no_class_is_called_as_other_pixels_are() -> None:
    with pytest.raises(ValueError, match="class maps: expected no class 'background'"):
        DetectionDataset(("background", "cat"), (1, 2), ()).with_class_maps()


def test_the_lists_of_segmented_images(tmp_path: Path) -> None:
    voc(tmp_path, "SegmentationClass", np.zeros(SIZE))
    for name, text in {"Main/train": "b", "Segmentation/train": "a", "Segmentation/val": "b"}.items():
        (tmp_path / "ImageSets" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "ImageSets" / f"{name}.txt").write_text(text)
    assert [r.name for r in open_dataset(tmp_path, "all").records] == ["b.png"]
    lists = tmp_path / "ImageSets" / "Segmentation"
    assert [[r.name for r in open_dataset(lists, split).records] for split in ("train", "val")] == [
        ["a.png"],
        ["b.png"],
    ]


def test_real_files_of_voc(shared_data: Path) -> None:
    """Image 000032 has two aeroplanes and two persons in the order of its XML file."""
    dataset = open_dataset(shared_data / "voc2007_13", "all").with_class_maps()
    assert [record.name for record in dataset.records] == ["000032.jpg", "000033.jpg", "000039.jpg"]
    assert dataset.notes == ("10 of 13 images have no class map and are left out",)
    class_map = dataset[0].targets.class_map
    assert class_map is not None
    counts = dict(zip(*(each.tolist() for each in class_map.unique(return_counts=True)), strict=True))
    assert counts == {0: 129545, 1: 4083 + 651, 15: 417 + 449, IGNORED: 5355}
