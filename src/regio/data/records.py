"""What is known of an image before it is read, and the rules for doubtful annotations.

The rules, the same for every format. Nothing is left out or changed in silence: "listed" means that the dataset's
`problems` hold a line with the file and the annotation, and that `strict=True` raises that line as ValueError instead.

==========================================================  ===========================================================
found                                                       rule
==========================================================  ===========================================================
image without annotations                                   kept: a background image
box of zero area, or with x2 < x1 or y2 < y1                left out, listed
box with a coordinate that is no finite number              left out, listed
box fully outside its image                                 left out, listed
box that sticks out by a pixel or more                      clipped to the image, listed
box that sticks out by less than a pixel                    clipped: the rounding of annotation tools
mask that is neither polygons nor a sound run-length code   the object has no mask, listed; its box is used
run-length code of another size than its image              the object has no mask, listed; its box is used
mask without a pixel, or more than a pixel outside its box  the object has no mask, listed; its box is used
polygon that leaves its image by more than a side of it     the object has no mask, listed; its box is used
polygon of one or two points beside sound ones              that polygon is left out, listed: nothing is inside it
object without a segmentation (or with `[]`, `[[]]`)        kept: its box is trained, and no mask
annotation of an unknown category or an unknown image       left out, listed
annotation that lacks its box, category or image            left out, listed
annotation id used more than once                           all kept, each listed (written ids are numbered afresh)
annotation id of more than 64 bits                          kept without it, listed
``iscrowd`` or ``difficult`` that is not 0 or 1 (COCO)      left out, listed; true and false are 1 and 0
image file missing                                          image left out, listed; ValueError when all are missing
image without an annotation file (VOC)                      image left out, listed; ValueError when all lack one
image id used twice, category id or name used twice         ValueError: which is meant cannot be known
file that is no JSON, no COCO, no XML, no VOC               ValueError
line of a YOLO file that is neither a box nor a polygon     ValueError that names file and line
no image with a label file (YOLO split)                     ValueError
image that only its file gives a size, and that has none    image left out, listed
image damaged, or of another size than its annotation says  ValueError when it is read
==========================================================  ===========================================================

A ValueError about damaged files names the first and counts the others; `regio doctor` lists all.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from regio.data.class_maps import LabelImage
from regio.data.images import image_size
from regio.data.masks import Segmentation, mask_bounds

__all__ = ["Annotation", "Problem", "Problems", "Record", "repeated", "size_in_file", "sound_box", "sound_segmentation"]

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Problem:
    """One thing that a reader left out or changed: `file`, the `item` in it ("annotation 17"), and what was wrong."""

    file: Path
    item: str
    what: str

    def __str__(self) -> str:
        return ": ".join(filter(None, (str(self.file), self.item, self.what)))


@dataclass
class Problems:
    """Collects what is wrong while a dataset is read.

    strict: raise the first doubtful annotation as ValueError. found: doubtful images and annotations, which do not keep
    the rest from being read. damaged: files and lines that cannot be read; whoever wants the dataset calls
    `raise_damage` when all files have been looked at.
    """

    strict: bool
    found: list[Problem] = field(default_factory=list)
    damaged: list[Problem] = field(default_factory=list)

    def add_damage(self, file: Path, item: str, what: str) -> None:
        """List one file, or one line of it, that cannot be read."""
        self.damaged.append(Problem(file, item, what))

    def raise_damage(self) -> None:
        """Raise ValueError with the first of `damaged`, and how many more there are."""
        if self.damaged:
            more = len(self.damaged) - 1
            hint = f"; and {more} more like this (regio doctor lists all)" if more else ""
            raise ValueError(f"{self.damaged[0]}{hint}")

    def add(self, file: Path, item: str, what: str) -> None:
        """List one problem."""
        problem = Problem(file, item, what)
        if self.strict:
            raise ValueError(str(problem))
        self.found.append(problem)


@dataclass(frozen=True)
class Annotation:
    """One object while it is read. box: (x1, y1, x2, y2), half-open pixels. label: 1 .. C. area: square pixels."""

    id: int
    box: Box
    label: int
    area: float
    crowd: bool = False
    difficult: bool = False
    segmentation: Segmentation | None = None


@dataclass(frozen=True, eq=False)
class Record:
    """One image and its G objects.

    id: unique in the dataset. name: the file name as the annotations give it. size: (height, width) in pixels.
    boxes: [G, 4] float64, half-open pixels inside the image. labels: [G] int64 in 1 .. C. crowd, difficult: [G] bool.
    area: [G] float64, square pixels, of the mask where there is one. annotation_ids: [G] int64. segmentations: G
    entries as in the source (polygons or run lengths), None where there is none. label_image: the file that has the
    class of every pixel, None where there is none.

    The columns are NumPy arrays: a hundred thousand of them cost a worker process nothing to share or to pickle.
    """

    id: int
    path: Path
    name: str
    size: tuple[int, int]
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray
    area: np.ndarray
    annotation_ids: np.ndarray
    segmentations: tuple[Segmentation | None, ...]
    label_image: LabelImage | None = None

    @staticmethod
    def of(
        id: int,
        path: Path,
        name: str,
        size: tuple[int, int],
        annotations: list[Annotation],
        label_image: LabelImage | None = None,
    ) -> Record:
        """A record of these annotations, in their order."""
        return Record(
            id,
            path,
            name,
            size,
            boxes=np.array([a.box for a in annotations], dtype=np.float64).reshape(-1, 4),
            labels=np.array([a.label for a in annotations], dtype=np.int64),
            crowd=np.array([a.crowd for a in annotations], dtype=bool),
            difficult=np.array([a.difficult for a in annotations], dtype=bool),
            area=np.array([a.area for a in annotations], dtype=np.float64),
            annotation_ids=np.array([a.id for a in annotations], dtype=np.int64),
            segmentations=tuple(a.segmentation for a in annotations),
            label_image=label_image,
        )

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: np.ndarray, labels: np.ndarray) -> Record:
        """The objects at `rows` (int64 indices) under new `labels`, one for each row."""
        return replace(
            self,
            boxes=self.boxes[rows],
            labels=labels.astype(np.int64),
            crowd=self.crowd[rows],
            difficult=self.difficult[rows],
            area=self.area[rows],
            annotation_ids=self.annotation_ids[rows],
            segmentations=tuple(self.segmentations[row] for row in rows),
        )


def repeated(values: Iterable[Any]) -> Any:
    """A value that occurs more than once in `values`; there must be one."""
    return next(value for value, count in Counter(values).items() if count > 1)


def text_lines(file: Path) -> list[str]:
    """The lines of a text file in UTF-8, with a byte order mark or without. Raises ValueError naming the file."""
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: cannot be read as text: {error}") from error


def size_in_file(path: Path, problems: Problems) -> tuple[int, int] | None:
    """(height, width) of an image of which nothing else gives the size; None, listed, where it cannot be read."""
    try:
        return image_size(path)
    except ValueError as error:
        problems.add(path, "image", f"{str(error).removeprefix(f'{path}: ')}; left out")
        return None


def sound_box(box: Box, size: tuple[int, int], file: Path, item: str, problems: Problems) -> Box | None:
    """`box` (x1, y1, x2, y2) cut to an image of `size` (height, width), or None where the rules above leave it out."""
    height, width = size
    x1, y1, x2, y2 = box
    if 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height:
        return box
    shown = f"box ({x1:g}, {y1:g}, {x2:g}, {y2:g})"
    if not all(map(math.isfinite, box)):
        problems.add(file, item, f"{shown} is not finite; left out")
        return None
    if not (x2 > x1 and y2 > y1):
        problems.add(file, item, f"{shown} has width {x2 - x1:g} and height {y2 - y1:g}; left out")
        return None
    inside = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
    if not (inside[2] > inside[0] and inside[3] > inside[1]):
        problems.add(file, item, f"{shown} is outside its image of {width} x {height} pixels; left out")
        return None
    if max(abs(a - b) for a, b in zip(box, inside, strict=True)) >= 1:
        problems.add(file, item, f"{shown} sticks out of its image of {width} x {height} pixels; clipped")
    return inside


def sound_segmentation(
    segmentation: Any, box: Box, size: tuple[int, int], file: Path, item: str, problems: Problems
) -> Segmentation | None:
    """`segmentation`, of an object with the sound `box` in an image of `size` (height, width), as it is used; None
    where there is none, or where the rules above leave it out."""
    if segmentation is None or segmentation == [] or segmentation == [[]]:
        return None
    if isinstance(segmentation, list):
        lines = [each for each in segmentation if isinstance(each, list) and len(each) in (0, 2, 4)]
        if 0 < len(lines) < len(segmentation):
            problems.add(file, item, f"polygon {lines[0]} of fewer than three points; that polygon is left out")
            segmentation = [each for each in segmentation if each not in lines]
    try:
        bounds = mask_bounds(segmentation, size)
    except ValueError as error:
        wrong: str | None = str(error)
    else:
        wrong = _misplaced(bounds, box, size)
    if wrong is None:
        kept: Segmentation = segmentation
        return kept
    problems.add(file, item, f"{wrong}; its mask is left out, its box is used")
    return None


def _misplaced(bounds: Box | None, box: Box, size: tuple[int, int]) -> str | None:
    """What is wrong with where the mask in `bounds` lies, if anything."""
    if bounds is None or bounds[0] == bounds[2] or bounds[1] == bounds[3]:
        return "the mask has no pixel"
    shown = "the mask in ({:g}, {:g}, {:g}, {:g})".format(*bounds)
    height, width = size
    if bounds[0] < -width or bounds[1] < -height or bounds[2] > 2 * width or bounds[3] > 2 * height:
        return f"{shown} leaves its image of {width} x {height} pixels by more than a side of it"
    x1, y1, x2, y2 = box
    if bounds[2] <= x1 - 1 or bounds[3] <= y1 - 1 or bounds[0] >= x2 + 1 or bounds[1] >= y2 + 1:
        return f"{shown} is outside its box ({x1:g}, {y1:g}, {x2:g}, {y2:g})"
    return None
