"""The outline of a mask as one polygon, for formats that hold one polygon an object.

The outline runs along the edges of pixels, so it is exact: rasterised, it is the mask again. Parts that do not touch,
and holes, are joined to it by bridges: lines of no width that are walked forth and back, and so enclose nothing.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np

__all__ = ["mask_outline"]

Point = tuple[int, int]


def mask_outline(mask: np.ndarray) -> list[float]:
    """The polygon [x, y, x, y, ...], in pixels, around the pixels of `mask` [H, W] bool; empty for an empty mask.

    A point belongs to it when a ray from there crosses the polygon an odd number of times (the even-odd rule).
    """
    loops = _loops(mask)
    if not loops:
        return []
    outline = loops[0]
    for loop in loops[1:]:
        outline = _bridged(outline, loop)
    return [float(value) for value in outline.ravel()]


def _loops(mask: np.ndarray) -> list[np.ndarray]:
    """The closed lines [V, 2] (x, y) between pixels inside and outside, of which only the corners are kept."""
    onward: defaultdict[Point, list[Point]] = defaultdict(list)
    padded = np.pad(mask.astype(np.int8), 1)
    across, down = np.diff(padded[:, 1:-1], axis=0), np.diff(padded[1:-1], axis=1)
    for (y, x), change in ((place, across[tuple(place)]) for place in np.argwhere(across).tolist()):
        begin, end = ((x, y), (x + 1, y)) if change > 0 else ((x + 1, y), (x, y))
        onward[begin].append(end)
    for (y, x), change in ((place, down[tuple(place)]) for place in np.argwhere(down).tolist()):
        begin, end = ((x, y + 1), (x, y)) if change > 0 else ((x, y), (x, y + 1))
        onward[begin].append(end)
    loops = []
    while onward:
        first = here = next(iter(onward))
        points: list[Point] = []
        while not points or here != first:
            points.append(here)
            ends = onward[here]
            here = ends.pop()
            if not ends:
                del onward[points[-1]]
        line = np.array(points)
        turns = ((line - np.roll(line, 1, axis=0)) != (np.roll(line, -1, axis=0) - line)).any(axis=1)
        loops.append(line[turns])
    return loops


def _bridged(outline: np.ndarray, loop: np.ndarray) -> np.ndarray:
    """`outline` that goes over to `loop` where a corner of it is nearest, walks it once, and comes back."""
    distances = ((outline[:, None] - loop[None]) ** 2).sum(axis=2)
    i, j = np.unravel_index(distances.argmin(), distances.shape)
    return np.concatenate([outline[: i + 1], loop[j:], loop[: j + 1], outline[i:]])
