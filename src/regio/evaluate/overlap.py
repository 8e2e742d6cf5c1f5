"""All pairs of a detection and an object of one image that overlap, as flat arrays over a whole data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regio.evaluate.coco_format import check_rows, class_numbers, require

__all__ = ["Pairs", "overlapping_pairs"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Pairs:
    """P pairs that share pixels, among D detections and G objects.

    class_names: C names. detection_class [D], truth_class [G]: 0 .. C - 1. score [D]. ignored [G]: crowds and difficult
    objects, which are neither to be found nor wrong to find. detection [P], truth [P]: the two of a pair. iou [P]: of
    half-open boxes. covered [P]: the share of the detection's box that is inside the object's.
    """

    class_names: list[str]
    detection_class: Ints
    truth_class: Ints
    score: Floats
    ignored: NDArray[np.bool_]
    detection: Ints
    truth: Ints
    iou: Floats
    covered: Floats


def overlapping_pairs(ground_truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]]) -> Pairs:
    """Pairs of `ground_truth` (COCO form) and `detections` (COCO results form), of equal classes and of different ones.

    Classes are in the order of "categories". Raises as `check_rows`, and for a row without a box.
    """
    class_of = class_numbers(ground_truth)
    image_of = {image["id"]: i for i, image in enumerate(ground_truth["images"])}
    annotations = ground_truth["annotations"]
    truth_boxes, truth_class, truth_image = _columns("annotation", annotations, class_of, image_of)
    boxes, detection_class, detection_image = _columns("detection", detections, class_of, image_of)
    detection, truth = _same(detection_image, truth_image)

    a, b = boxes[detection], truth_boxes[truth]
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    inner = sides.clip(min=0).prod(axis=1)
    meet = inner > 0
    detection, truth, inner = detection[meet], truth[meet], inner[meet]
    area, truth_area = (
        (boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
        (truth_boxes[:, 2:] - truth_boxes[:, :2]).prod(axis=1),
    )
    return Pairs(
        class_names=[str(c["name"]) for c in ground_truth["categories"]],
        detection_class=detection_class,
        truth_class=truth_class,
        score=np.array([d["score"] for d in detections], dtype=np.float64),
        ignored=np.array([bool(t.get("difficult") or t.get("iscrowd")) for t in annotations], dtype=bool),
        detection=detection,
        truth=truth,
        iou=inner / (area[detection] + truth_area[truth] - inner),
        covered=inner / area[detection],
    )


def _columns(
    kind: str, rows: Sequence[Mapping[str, Any]], class_of: Mapping[Any, int], image_of: Mapping[Any, int]
) -> tuple[Floats, Ints, Ints]:
    """Boxes [R, 4] as corners, classes [R] and images [R]."""
    check_rows(kind, rows, image_of, class_of)
    require(kind, rows, "bbox")
    boxes = np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    classes = np.array([class_of[row["category_id"]] for row in rows], dtype=np.int64)
    return boxes, classes, np.array([image_of[row["image_id"]] for row in rows], dtype=np.int64)


def _same(a: Ints, b: Ints) -> tuple[Ints, Ints]:
    """All (i, j) with a[i] == b[j], by i and then j."""
    order = np.argsort(b, kind="stable")
    start = np.searchsorted(b[order], a, side="left")
    count = np.searchsorted(b[order], a, side="right") - start
    i = np.repeat(np.arange(len(a)), count)
    within = np.arange(len(i)) - np.repeat(np.cumsum(count) - count, count)
    return i, order[start[i] + within]
