"""Pascal VOC's average precision, by the rules of its development kit.

Detections of a class are taken in the order of their scores. Each belongs to the object of that class in its image
which it overlaps most. If that overlap reaches the threshold, the first detection of an object is right and every later
one is wrong; those of a `difficult` object count neither way, and the object is not among those to be found. All
others are wrong.

The kit counts pixels inclusively (width = x2 - x1 + 1, from 1). In the half-open boxes of this library the same
rectangle has width x2 - x1, so overlaps agree once a VOC file is read as (xmin - 1, ymin - 1, xmax, ymax).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regio.evaluate.overlap import Pairs, overlapping_pairs

__all__ = ["VocClass", "VocMetrics", "all_point_ap", "eleven_point_ap", "voc_metrics"]


@dataclass(frozen=True)
class VocClass:
    """One class: AP by eleven points (VOC 2007 to 2009), AP as area under the curve (since 2010), and the curve.

    recall, precision: [D], after each of the detections that count, best first. objects: those to be found. Without
    objects recall and both APs are NaN.
    """

    ap_11_points: float
    ap_area: float
    recall: NDArray[np.float64]
    precision: NDArray[np.float64]
    objects: int


@dataclass(frozen=True)
class VocMetrics:
    """Means over the classes that have objects to be found (NaN if none has), and each class by name."""

    map_11_points: float
    map_area: float
    per_class: Mapping[str, VocClass]


def eleven_point_ap(recall: NDArray[np.float64], precision: NDArray[np.float64]) -> float:
    """Mean over r = 0, .1, ..., 1 of the largest precision at a recall of at least r (VOC 2007).

    recall, precision: [D], recall not decreasing. The points are correctly rounded tenths: 3 objects found of 10 do
    reach the recall 0.3, which a sum of tenths (0.30000000000000004) would deny.
    """
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)  # 0 where the recall is never reached
    return float(best[np.searchsorted(recall, np.arange(11) / 10, side="left")].mean())


def all_point_ap(recall: NDArray[np.float64], precision: NDArray[np.float64]) -> float:
    """Area under the precision-recall curve made non-increasing from the right (VOC 2010).

    recall, precision: [D], recall not decreasing.
    """
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0.0) * best).sum())


def voc_metrics(
    ground_truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]], iou_threshold: float = 0.5
) -> VocMetrics:
    """VOC's metrics of `detections` (COCO results form) against `ground_truth` (COCO form).

    An annotation may have `difficult` true; `iscrowd`, which VOC does not know, is read as difficult. The rest is as
    for `coco_metrics`. Detections of equal score are taken in their order.

    Raises ValueError when an annotation or a detection names an image or a category that is not there.
    """
    pairs = overlapping_pairs(ground_truth, detections)
    correct, counted = _judge(pairs, iou_threshold)
    rank = np.argsort(-pairs.score, kind="stable")
    per_class = {}
    for label, name in enumerate(pairs.class_names):
        objects = int(((pairs.truth_class == label) & ~pairs.ignored).sum())
        mine = rank[(pairs.detection_class[rank] == label) & counted[rank]]
        found = np.cumsum(correct[mine], dtype=np.float64)
        precision = found / np.arange(1, len(mine) + 1)
        if objects:
            recall = found / objects
            scores = eleven_point_ap(recall, precision), all_point_ap(recall, precision)
        else:
            recall, scores = np.full(len(mine), np.nan), (np.nan, np.nan)
        per_class[name] = VocClass(*scores, recall, precision, objects)
    defined = [c for c in per_class.values() if c.objects]
    return VocMetrics(
        map_11_points=float(np.mean([c.ap_11_points for c in defined])) if defined else np.nan,
        map_area=float(np.mean([c.ap_area for c in defined])) if defined else np.nan,
        per_class=per_class,
    )


def _judge(pairs: Pairs, iou_threshold: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """For each detection [D]: whether it is right, and whether it counts at all."""
    same = pairs.truth_class[pairs.truth] == pairs.detection_class[pairs.detection]
    detection, truth, iou = pairs.detection[same], pairs.truth[same], pairs.iou[same]
    # The object that each detection overlaps most, the earlier one where overlaps are equal.
    order = np.lexsort((truth, -iou, detection))
    owner, first = np.unique(detection[order], return_index=True)
    best = order[first]
    hit = iou[best] >= iou_threshold
    owner, target = owner[hit], truth[best][hit]
    # The first detection of each object, by falling score.
    by_score = np.argsort(-pairs.score[owner], kind="stable")
    winner = owner[by_score][np.unique(target[by_score], return_index=True)[1]]
    counted = np.ones(len(pairs.score), dtype=bool)
    counted[owner[pairs.ignored[target]]] = False
    correct = np.zeros(len(pairs.score), dtype=bool)
    correct[winner] = True
    return correct & counted, counted
