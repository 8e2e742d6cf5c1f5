"""Everything that is wrong with a data set on disk, with what to do about it.

Readers stop at the first damaged file and training at the first damaged image. `examine` goes on: it reads each split,
decodes each image, segmentation and class map, and compares the images by their content.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regio.data.class_maps import read_label_image
from regio.data.dataset import DetectionDataset, read_record
from regio.data.layout import find_layout, same_split
from regio.data.masks import decode_masks
from regio.data.records import Problems, Record

__all__ = ["Check", "Examination", "Finding", "SplitSummary", "examine"]

TINY = 3.0  # pixels
SAME_BOX = 0.5  # IoU of a box and the bounds of its mask, below which they are reported


@dataclass(frozen=True)
class Check:
    """One thing looked for. name: what was found. advice: what to do. is_fault: whether it must be mended; the rest is
    worth a look."""

    name: str
    advice: str
    is_fault: bool = True


DAMAGED = Check("cannot be read", "restore the file or write the line anew; the data set cannot be opened until then")
DOUBTFUL = Check("doubtful", "correct it in the file, or remove it there; until then it is left out or changed as said")
BAD_IMAGE = Check("bad image", "replace the file, or remove it with its annotations; training stops at it")
BAD_CLASS_MAP = Check("bad class map", "mend the PNG file, or remove it; a training of segmentation stops at it")
NO_PIXEL = Check("mask without a pixel", "draw it again, or remove it; its box is used, and no mask", is_fault=False)
OTHER_MASK = Check("mask and box differ", "see which of them is right: both are used as they are", is_fault=False)
SHARED = Check("image in two splits", "remove it from one of them; else validation is of images that were trained on")
CLASSES = Check("classes differ", "give all splits the same classes in the same order, also those without objects")
REPEATED = Check("image repeated", "remove the copies: they count twice in training and in metrics", is_fault=False)
TWICE = Check("object annotated twice", "remove one of the two", is_fault=False)
TINY_BOX = Check(f"box under {TINY:g} pixels", "see whether it is a slip of the mouse", is_fault=False)
UNUSED = Check("class without objects", "remove the class, or annotate it: it cannot be learned or measured", False)
EMPTY = Check("image without objects", "see whether it is background or was forgotten; it trains as background", False)


@dataclass(frozen=True)
class Finding:
    """One thing found. where: the file, and the annotation in it. what: what is wrong there."""

    check: Check
    split: str
    where: str
    what: str

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.where, self.what)))


@dataclass(frozen=True)
class SplitSummary:
    """A split in numbers. empty: images without objects. per_class: objects by class name."""

    images: int
    objects: int
    empty: int
    crowds: int
    difficult: int
    per_class: Mapping[str, int]


@dataclass(frozen=True)
class Examination:
    """What `examine` found. splits: those that can be read. note: how the data set was found, if unusual."""

    path: str
    format: str
    splits: Mapping[str, SplitSummary]
    findings: tuple[Finding, ...]
    note: str | None = None

    @property
    def sound(self) -> bool:
        """Whether nothing must be mended."""
        return not any(finding.check.is_fault for finding in self.findings)

    def of(self, check: Check) -> list[Finding]:
        """The findings of one check."""
        return [finding for finding in self.findings if finding.check is check]

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "path": self.path,
            "format": self.format,
            "note": self.note,
            "sound": self.sound,
            "splits": {
                name: {**vars(split), "per_class": dict(split.per_class)} for name, split in self.splits.items()
            },
            "findings": [
                {
                    "check": each.check.name,
                    "fault": each.check.is_fault,
                    "split": each.split,
                    "where": each.where,
                    "what": each.what,
                    "advice": each.check.advice,
                }
                for each in self.findings
            ],
        }


def examine(path: str | Path, *, progress: Callable[[int, int], None] = lambda done, images: None) -> Examination:
    """Look at every file of the data set at `path` (see `open_dataset`), in all of its splits.

    progress: called with the number of images read, and of all. Raises ValueError when there is no data set at `path`.
    """
    if str(path) == "shapes":
        raise ValueError("shapes: generated scenes have no files; expected a folder or a file")
    layout = find_layout(Path(path))
    findings: list[Finding] = []
    splits: dict[str, DetectionDataset] = {}
    for name, read in layout.splits.items():
        problems = Problems(strict=False)
        try:
            splits[name] = read(problems)
        except ValueError as error:
            if not problems.damaged:
                findings.append(Finding(DAMAGED, name, "", str(error)))
        for check, found in ((DAMAGED, problems.damaged), (DOUBTFUL, problems.found)):
            where = ((": ".join(filter(None, (str(each.file), each.item))), each.what) for each in found)
            findings += [Finding(check, name, place, what) for place, what in where]
    total = sum(map(len, splits.values()))
    contents: dict[str, dict[bytes, list[Record]]] = {}
    done = 0
    for name, data in splits.items():
        contents[name], unread = defaultdict(list), set[int]()
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            for record, (digest, wrong) in zip(data.records, pool.map(_image, data.records), strict=True):
                if wrong:
                    findings.append(Finding(BAD_IMAGE, name, str(record.path), wrong))
                    unread.add(record.id)
                if digest:
                    contents[name][digest].append(record)
                done += 1
                progress(done, total)
        for record in data.records:
            findings += _annotations(name, record, data.class_names, masks=record.id not in unread)
        findings += _unused(name, data)
    findings += _repeated(contents)
    findings += _different_classes(splits)
    summaries = {name: _summary(data) for name, data in splits.items()}
    return Examination(str(path), layout.format, summaries, tuple(dict.fromkeys(findings)), layout.note)


def _image(record: Record) -> tuple[bytes, str]:
    """A hash of the file's content, and what is wrong with the image in it; each may be empty."""
    try:
        digest = hashlib.blake2b(record.path.read_bytes(), digest_size=16).digest()
    except OSError as error:
        return b"", f"cannot be read: {error.strerror}"
    try:
        read_record(record)
    except ValueError as error:
        return digest, str(error).removeprefix(f"{record.path}: ")
    return digest, ""


def _annotations(split: str, record: Record, names: tuple[str, ...], *, masks: bool) -> Iterable[Finding]:
    """masks: whether to decode them and class maps, which takes as many bytes as the image is said to have pixels."""
    seen: set[tuple[float, ...]] = set()
    for row, (x1, y1, x2, y2) in enumerate(record.boxes.tolist()):
        name = names[record.labels[row] - 1]
        where = f"{record.path}: annotation {record.annotation_ids[row]} ({name})"
        shown = f"box ({x1:g}, {y1:g}, {x2:g}, {y2:g})"
        if min(x2 - x1, y2 - y1) < TINY:
            yield Finding(TINY_BOX, split, where, f"{shown} is {x2 - x1:g} x {y2 - y1:g} pixels")
        box = (x1, y1, x2, y2, float(record.labels[row]))
        if box in seen:
            yield Finding(TWICE, split, where, f"{shown} is that of another annotation of the same class")
        seen.add(box)
        segmentation = record.segmentations[row]
        if segmentation is not None and masks:
            yield from _mask(split, where, shown, decode_masks([segmentation], record.size)[0], record.boxes[row])
    if record.label_image is not None and masks:
        path = record.label_image.path
        try:
            read_label_image(record.label_image, record.size)
        except ValueError as error:
            yield Finding(BAD_CLASS_MAP, split, str(path), str(error).removeprefix(f"{path}: "))
    if not len(record):
        yield Finding(EMPTY, split, str(record.path), "")


def _mask(split: str, where: str, shown: str, mask: Tensor, box: np.ndarray) -> Iterable[Finding]:
    ys, xs = (mask.any(axis).nonzero()[:, 0] for axis in (1, 0))
    if not len(xs):
        yield Finding(NO_PIXEL, split, where, "it lies between the centres of pixels")
        return
    bounds = np.array([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1], dtype=np.float64)
    sides = (np.minimum(bounds[2:], box[2:]) - np.maximum(bounds[:2], box[:2])).clip(min=0)
    areas = [np.prod(each[2:] - each[:2]) for each in (bounds, box)]
    iou = np.prod(sides) / (sum(areas) - np.prod(sides))
    if iou < SAME_BOX:
        yield Finding(OTHER_MASK, split, where, f"{shown}, and its mask is in ({', '.join(f'{v:g}' for v in bounds)})")


def _unused(split: str, data: DetectionDataset) -> Iterable[Finding]:
    per_class = _summary(data).per_class
    for name, count in per_class.items():
        if not count:
            yield Finding(UNUSED, split, name, "")


def _repeated(contents: Mapping[str, Mapping[bytes, list[Record]]]) -> Iterable[Finding]:
    for split, images in contents.items():
        for records in images.values():
            for record in records[1:]:
                yield Finding(REPEATED, split, str(record.path), f"the same image as {records[0].path}")
    parts = [name for split in ("train", "val", "test") for name in same_split(contents, split)]
    for i, one in enumerate(parts):
        for other in parts[i + 1 :]:
            for digest in contents[one].keys() & contents[other].keys():
                first, second = contents[one][digest][0].path, contents[other][digest][0].path
                yield Finding(SHARED, f"{one}, {other}", str(first), f"the same image as {second}")


def _different_classes(splits: Mapping[str, DetectionDataset]) -> Iterable[Finding]:
    if len({data.class_names for data in splits.values()}) > 1:
        for name, data in splits.items():
            yield Finding(CLASSES, name, name, f"{len(data.class_names)} classes: {', '.join(data.class_names)}")


def _summary(data: DetectionDataset) -> SplitSummary:
    counts = Counter(label for record in data.records for label in record.labels.tolist())
    return SplitSummary(
        len(data),
        sum(map(len, data.records)),
        sum(not len(record) for record in data.records),
        sum(int(record.crowd.sum()) for record in data.records),
        sum(int(record.difficult.sum()) for record in data.records),
        {name: counts[label] for label, name in enumerate(data.class_names, start=1)},
    )
