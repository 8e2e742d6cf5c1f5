"""CPU kernel of `regio.kernels.nms`."""

from __future__ import annotations

from typing import Any

import numpy as np

from regio.kernels.cpu.compile import strict

__all__ = ["suppress"]

Array = np.ndarray[Any, Any]
U = np.uintp
_CHUNK = 64


@strict
def _overlaps(x1: float, y1: float, x2: float, y2: float, kept: Array, begin: int, end: int, threshold: float) -> bool:
    """Whether a box overlaps one of the columns [begin, end) of kept [5, n] by more than `threshold`."""
    zero = x1 - x1
    size = (x2 - x1) * (y2 - y1)
    left, top, right, bottom, area = (
        kept[0, begin:end],
        kept[1, begin:end],
        kept[2, begin:end],
        kept[3, begin:end],
        kept[4, begin:end],
    )
    hits = 0
    for i in range(end - begin):
        width = max(min(x2, right[i]) - max(x1, left[i]), zero)
        height = max(min(y2, bottom[i]) - max(y1, top[i]), zero)
        inner = width * height
        hits += inner / (area[i] + size - inner) > threshold
    return hits > 0


@strict
def suppress(boxes: Array, begins: Array, threshold: float, keep: Array) -> None:
    """keep[i] for boxes [R, 4] in runs that start at `begins` and end at the next, each by decreasing score."""
    kept = np.empty((5, boxes.shape[0]), boxes.dtype)
    for run in range(begins.shape[0] - 1):
        n = 0
        for i in range(begins[run], begins[run + 1]):
            x1, y1, x2, y2 = boxes[i]
            alone = True
            for begin in range(0, n, _CHUNK):
                if _overlaps(x1, y1, x2, y2, kept, begin, min(begin + _CHUNK, n), threshold):
                    alone = False
                    break
            keep[i] = alone
            if alone:
                kept[0, n], kept[1, n], kept[2, n], kept[3, n] = x1, y1, x2, y2
                kept[4, n] = (x2 - x1) * (y2 - y1)
                n += 1
