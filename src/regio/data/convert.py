"""Writing a data set in another format, and saying what that format cannot hold.

======================  ===========  ==========================================  ================================
what                    COCO         YOLO                                        Pascal VOC
======================  ===========  ==========================================  ================================
boxes                   kept         kept; with polygons, the polygon's bounds   kept, with decimals where needed
segmentations           kept         one polygon an object, if all have one      lost
crowds                  kept         left out                                    left out
``difficult``           kept         lost                                        kept
classes without object  kept         kept                                        lost
ids of categories       kept         numbered from 0                             lost
class maps of VOC       lost         lost                                        lost
======================  ===========  ==========================================  ================================

Several polygons and run lengths become one polygon, the outline of their pixels: the mask of it is the same.
"""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from regio.data.dataset import DetectionDataset
from regio.data.images import IMAGE_SUFFIXES, image_size
from regio.data.layout import find_layout, same_split
from regio.data.masks import decode_masks, is_polygon
from regio.data.open import open_dataset, open_split
from regio.data.outlines import mask_outline
from regio.data.records import Problem, Record

__all__ = ["Conversion", "Writer", "convert", "write_coco", "write_voc", "write_yolo"]

Losses = Counter[str]
Writer = Callable[[Mapping[str, DetectionDataset], Path, bool], Losses]
"""Writes data sets by split into an empty folder, with images linked or copied; returns what is lost, counted."""


@dataclass(frozen=True)
class Conversion:
    """What `convert` did. images, objects: read, by split. losses: what the format cannot hold, each with a count.
    problems, notes: those of the data set that was read."""

    images: Mapping[str, int]
    objects: Mapping[str, int]
    losses: Mapping[str, int]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]


def convert(source: str | Path, target: str | Path, write: Writer, *, link: bool = False) -> Conversion:
    """Write the data set at `source` (see `open_dataset`) into the folder `target` with `write`: `write_coco`,
    `write_yolo` or `write_voc`.

    The splits train, val and test are written; an undivided data set is written as the two parts of `divide`. Images
    are copied, or with `link` linked by their absolute paths. An image that has no file (generated scenes), or whose
    file is turned against its annotations, is written as PNG.

    Raises ValueError when `target` is not empty, and as `open_dataset` and the images do.
    """
    target = Path(target)
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise ValueError(f"{target}: expected a new or an empty folder")
    splits, unnamed = _splits(source)
    target.mkdir(parents=True, exist_ok=True)
    losses = Counter({f"images of split {name}": count for name, count in unnamed.items()})
    losses += write(splits, target, link)
    class_maps = [each for data in splits.values() for each in data.records if each.label_image is not None]
    losses += Counter({"class maps": len(class_maps)})
    return Conversion(
        {split: len(data) for split, data in splits.items()},
        {split: sum(map(len, data.records)) for split, data in splits.items()},
        dict(losses),
        tuple(dict.fromkeys(problem for data in splits.values() for problem in data.problems)),
        tuple(dict.fromkeys(note for data in splits.values() for note in data.notes)),
    )


def _splits(source: str | Path) -> tuple[dict[str, DetectionDataset], dict[str, int]]:
    """The data sets of train, val and test, and by each other split the number of images that are in none of these."""
    names = ("train", "val", "test")
    if str(source) == "shapes":
        return {split: open_dataset(source, split) for split in names}, {}
    layout = find_layout(Path(source))
    if len(layout.splits) == 1:
        return {split: open_split(layout, split) for split in ("train", "val")}, {}
    splits = {split: open_split(layout, split) for split in names if same_split(layout.splits, split)}
    if not splits:
        raise ValueError(f"{source}: no split train, val or test: it has {', '.join(layout.splits)}")
    others = [name for name in layout.splits if not any(name in same_split(layout.splits, split) for split in names)]
    written = {record.path for data in splits.values() for record in data.records}
    lost = {name: sum(record.path not in written for record in open_split(layout, name).records) for name in others}
    return splits, {name: count for name, count in lost.items() if count}


def write_coco(splits: Mapping[str, DetectionDataset], folder: Path, link: bool) -> Losses:
    """``annotations/instances_SPLIT.json`` and ``SPLIT/``."""
    (folder / "annotations").mkdir()
    for split, data in splits.items():
        page = data.to_coco()
        for index, (image, stem) in enumerate(zip(page["images"], _stems(splits)[split], strict=True)):
            image["file_name"] = _write_image(data, index, folder / split, stem, link)
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(page))
    return Counter()


def write_yolo(splits: Mapping[str, DetectionDataset], folder: Path, link: bool) -> Losses:
    """``data.yaml``, ``images/SPLIT/`` and ``labels/SPLIT/``, as Ultralytics' trainer reads them. See `Writer`.

    Raises ValueError when the splits differ in their classes.
    """
    losses: Losses = Counter()
    names = {data.class_names for data in splits.values()}
    if len(names) > 1:
        raise ValueError(f"expected the same classes in each split, got {' and '.join(map(str, names))}")
    (class_names,) = names
    rows = [(record, row) for data in splits.values() for record in data.records for row in range(len(record))]
    rows = [(record, row) for record, row in rows if not record.crowd[row]]
    with_polygons = bool(rows) and all(record.segmentations[row] is not None for record, row in rows)
    if not with_polygons:
        losses["segmentations (not all objects have one, so boxes are written)"] = sum(
            record.segmentations[row] is not None for record, row in rows
        )
    for split, data in splits.items():
        (folder / "labels" / split).mkdir(parents=True)
        for index, (record, stem) in enumerate(zip(data.records, _stems(splits)[split], strict=True)):
            _write_image(data, index, folder / "images" / split, stem, link)
            lines = [_yolo_line(record, row, with_polygons, losses) for row in range(len(record))]
            (folder / "labels" / split / f"{stem}.txt").write_text("".join(f"{line}\n" for line in lines if line))
    page = {split: f"images/{split}" for split in splits} | {"names": dict(enumerate(class_names))}
    (folder / "data.yaml").write_text(yaml.safe_dump(page, sort_keys=False, allow_unicode=True))
    return +losses


def write_voc(splits: Mapping[str, DetectionDataset], folder: Path, link: bool) -> Losses:
    """``Annotations/``, ``JPEGImages/`` and ``ImageSets/Main/SPLIT.txt``. See `Writer`."""
    losses: Losses = Counter()
    (folder / "Annotations").mkdir()
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    used: set[str] = set()
    for split, data in splits.items():
        stems = _stems(splits)[split]
        for index, (record, stem) in enumerate(zip(data.records, stems, strict=True)):
            name = _write_image(data, index, folder / "JPEGImages", stem, link)
            page = _voc_page(record, name, data.class_names, losses)
            used |= {str(each.text) for each in page.findall("object/name")}
            ET.indent(page)
            (folder / "Annotations" / f"{stem}.xml").write_text(ET.tostring(page, encoding="unicode") + "\n")
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems))
    for unused in sorted({name for data in splits.values() for name in data.class_names} - used):
        losses[f"class {unused!r}, of which there is no object"] = 1
    return +losses


def _stems(splits: Mapping[str, DetectionDataset]) -> dict[str, list[str]]:
    """A file name without suffix for each image, its own where no other image of any split has it."""
    taken: set[str] = set()
    stems: dict[str, list[str]] = {split: [] for split in splits}
    for split, data in splits.items():
        for record in data.records:
            own = "_".join(Path(record.name).with_suffix("").parts).lstrip("/._") or "image"
            own = "_".join(own.split())  # lists of VOC end a name at a space
            stem, number = own, 1
            while stem.lower() in taken:
                number += 1
                stem = f"{own}-{number}"
            taken.add(stem.lower())
            stems[split].append(stem)
    return stems


def _write_image(dataset: DetectionDataset, index: int, folder: Path, stem: str, link: bool) -> str:
    """Link or copy the image of record `index` into `folder`; returns its name there."""
    record = dataset.records[index]
    folder.mkdir(parents=True, exist_ok=True)
    usual = record.path.suffix.lower() in IMAGE_SUFFIXES and record.path.is_file()
    if usual and image_size(record.path) == record.size:
        name = f"{stem}{record.path.suffix}"
        if link:
            (folder / name).symlink_to(record.path.resolve())
        else:
            shutil.copyfile(record.path, folder / name)
    else:
        name = f"{stem}.png"
        Image.fromarray(np.ascontiguousarray(dataset[index].image.permute(1, 2, 0).numpy())).save(folder / name)
    return name


def _yolo_line(record: Record, row: int, with_polygons: bool, losses: Losses) -> str | None:
    """The line of an object; None for one that is left out."""
    if record.crowd[row]:
        losses["crowds (left out)"] += 1
        return None
    if record.difficult[row]:
        losses["marks 'difficult' (the objects are kept)"] += 1
    height, width = record.size
    if with_polygons:
        polygon = _one_polygon(record, row, losses)
        xs, ys = np.array(polygon[::2]), np.array(polygon[1::2])
        if xs.size and np.ptp(xs) > 0 and np.ptp(ys) > 0:
            bounds = np.array([xs.min(), ys.min(), xs.max(), ys.max()])
            if np.abs(bounds - record.boxes[row]).max() >= 1:
                losses["boxes (the bounds of the polygon differ by a pixel or more)"] += 1
            return _line(record, row, np.stack([xs / width, ys / height], axis=1).ravel())
        losses["segmentations without a pixel (the box is written as a polygon)"] += 1
        x1, y1, x2, y2 = record.boxes[row]
        return _line(record, row, np.array([x1, y1, x2, y1, x2, y2, x1, y2]) / np.array([width, height] * 4))
    x1, y1, x2, y2 = record.boxes[row]
    size = np.array([width, height, width, height])
    return _line(record, row, np.array([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]) / size)


def _line(record: Record, row: int, numbers: np.ndarray) -> str:
    return " ".join([str(record.labels[row] - 1), *(f"{value:.9g}" for value in numbers)])


def _one_polygon(record: Record, row: int, losses: Losses) -> list[float]:
    """The segmentation as one polygon inside the image."""
    segmentation = record.segmentations[row]
    assert segmentation is not None
    height, width = record.size
    if isinstance(segmentation, list) and len(segmentation) == 1 and is_polygon(segmentation[0]):
        corners = np.array(segmentation[0], dtype=np.float64).reshape(-1, 2)
        inside = corners.clip(0, [width, height])
        if np.abs(corners - inside).max() >= 1:
            losses["polygons that stuck out (their corners are moved to the border)"] += 1
        return [float(value) for value in inside.ravel()]
    try:
        mask = decode_masks([segmentation], record.size)[0].numpy()
    except ValueError as error:
        raise ValueError(f"{record.path}: annotation {record.annotation_ids[row]}: {error}") from error
    return mask_outline(mask)


def _voc_page(record: Record, image_name: str, class_names: tuple[str, ...], losses: Losses) -> ET.Element:
    page = ET.Element("annotation")
    ET.SubElement(page, "filename").text = image_name
    size = ET.SubElement(page, "size")
    for side, value in zip(("width", "height", "depth"), (record.size[1], record.size[0], 3), strict=True):
        ET.SubElement(size, side).text = str(value)
    for row, (x1, y1, x2, y2) in enumerate(record.boxes.tolist()):
        if record.crowd[row]:
            losses["crowds (left out)"] += 1
            continue
        losses["segmentations"] += record.segmentations[row] is not None
        entry = ET.SubElement(page, "object")
        ET.SubElement(entry, "name").text = class_names[record.labels[row] - 1]
        ET.SubElement(entry, "difficult").text = str(int(record.difficult[row]))
        box = ET.SubElement(entry, "bndbox")
        for side, value in zip(("xmin", "ymin", "xmax", "ymax"), (x1 + 1, y1 + 1, x2, y2), strict=True):
            ET.SubElement(box, side).text = f"{value:.9g}"  # counted from 1, the last pixel included
    return page
