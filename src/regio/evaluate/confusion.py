"""Which class is taken for which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regio.evaluate.overlap import overlapping_pairs

__all__ = ["confusion_matrix"]


def confusion_matrix(
    ground_truth: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    score_threshold: float = 0.5,
    iou_threshold: float = 0.5,
) -> NDArray[np.int64]:
    """Counts [C + 1, C + 1]: row = class of the object, column = class it was detected as; 0 is the background.

    Detections of at least `score_threshold` are matched to objects whatever their classes: in the order of their
    scores, each takes the object still free that it overlaps most, if IoU is at least `iou_threshold`. Column 0 counts
    the objects that nothing took, row 0 the detections that took nothing. So row c sums to the objects of class c, and
    column c to the detections of class c; entry (0, 0) is 0.

    Crowds and difficult objects are in no row. A detection that took nothing and has its IoU with such an object, or
    the share of its box inside it, at `iou_threshold` or above is not counted.

    ground_truth is in COCO form, detections in COCO results form; classes are in the order of "categories". Raises
    ValueError when an annotation or a detection names an image or a category that is not there, or lacks its box, and
    for a detection without a score.
    """
    weak = [isinstance(d.get("score"), Real) and d["score"] < score_threshold for d in detections]
    strong = [d for d, each in zip(detections, weak, strict=True) if not each]  # what has no score is named below
    pairs = overlapping_pairs(ground_truth, strong)
    order = np.lexsort((pairs.truth, -pairs.iou, pairs.detection, -pairs.score[pairs.detection]))
    order = order[(pairs.iou[order] >= iou_threshold) & ~pairs.ignored[pairs.truth[order]]]
    detection, truth = _greedy(pairs.detection[order], pairs.truth[order])

    missed = ~pairs.ignored
    missed[truth] = False
    wrong = np.ones(len(pairs.score), dtype=bool)
    wrong[detection] = False
    excused = pairs.ignored[pairs.truth] & (np.maximum(pairs.iou, pairs.covered) >= iou_threshold)
    wrong[pairs.detection[excused]] = False

    classes = len(pairs.class_names) + 1
    rows = np.concatenate([pairs.truth_class[truth] + 1, pairs.truth_class[missed] + 1, np.zeros(wrong.sum(), int)])
    columns = np.concatenate(
        [pairs.detection_class[detection] + 1, np.zeros(missed.sum(), int), pairs.detection_class[wrong] + 1]
    )
    return np.bincount(rows * classes + columns, minlength=classes**2).reshape(classes, classes)


def _greedy(left: NDArray[np.int64], right: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The pairs (left, right) that a greedy one-to-one matching takes, going through the pairs in order.

    In each round all pairs are taken that come first for both of their ends, which is what going through them one by
    one would do; pairs with a taken end are dropped. A few rounds suffice, since chains of rivals are short.
    """
    taken: list[NDArray[np.int64]] = []
    pairs = np.stack([left, right])
    while pairs.shape[1]:
        position = np.arange(pairs.shape[1])
        first = np.zeros((2, pairs.shape[1]), dtype=bool)
        for side in (0, 1):
            first[side, np.unique(pairs[side], return_index=True)[1]] = True
        both = position[first.all(axis=0)]
        taken.append(pairs[:, both])
        rival = np.isin(pairs[0], pairs[0, both]) | np.isin(pairs[1], pairs[1, both])
        pairs = pairs[:, ~rival]
    chosen = np.concatenate([pairs, *taken], axis=1)
    return chosen[0], chosen[1]
