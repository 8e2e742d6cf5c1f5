"""Over-segmentation of an image.

Felzenszwalb and Huttenlocher: Efficient graph-based image segmentation, IJCV 2004.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from regio.kernels.cpu.compile import compiled, strict

__all__ = ["along_columns", "along_rows", "differences", "merged"]

Array = np.ndarray[Any, Any]


@compiled
def along_rows(padded: Array, weight: Array, step: int, out: Array) -> None:
    """out[y, i] = sum over t of weight[t] padded[y, i + t step]."""
    for y in range(out.shape[0]):
        row = out[y]
        row[:] = 0
        for t in range(weight.shape[0]):
            w, shifted = weight[t], padded[y, t * step :]
            for i in range(row.shape[0]):
                row[i] += w * shifted[i]


@compiled
def along_columns(padded: Array, weight: Array, out: Array) -> None:
    """out[y, i] = sum over t of weight[t] padded[y + t, i]."""
    for y in range(out.shape[0]):
        row = out[y]
        row[:] = 0
        for t in range(weight.shape[0]):
            w, other = weight[t], padded[y + t]
            for i in range(row.shape[0]):
                row[i] += w * other[i]


@strict
def differences(image: Array, found: Array, edge: Array) -> int:
    """The edges between the pixels of image [H, W, C] and their eight neighbours, each edge once.

    found, edge: [4 H W], the Euclidean distance of colours, and which edge it is, 4 pixel + direction with the
    directions right, below, below right, below left. Returns the number of edges.
    """
    height, width, channels = image.shape
    count = 0
    for y in range(height):
        for x in range(width):
            for direction in range(4):
                dy, dx = (
                    (0, 1) if direction == 0 else (1, 0) if direction == 1 else (1, 1) if direction == 2 else (1, -1)
                )
                if y + dy < height and 0 <= x + dx < width:
                    total = np.float32(0)
                    for c in range(channels):
                        difference = image[y, x, c] - image[y + dy, x + dx, c]
                        total += difference * difference
                    found[count] = np.sqrt(total)
                    edge[count] = 4 * (y * width + x) + direction
                    count += 1
    return count


@strict
def merged(distance: Array, edge: Array, height: int, width: int, k: float, min_size: int, labels: Array) -> int:
    """The segments, as labels [H W] in 0 .. R - 1 in the order of their first pixels; returns R.

    distance, edge: those of `differences`, by increasing distance. Two segments merge along an edge that is no longer
    than the longest edge inside each of them plus k / (its pixels); then those under `min_size` pixels are merged along
    the shortest edge to another.
    """
    pixels = height * width
    parent = np.arange(pixels).astype(np.int32)
    size = np.ones(pixels, np.int32)
    limit = np.full(pixels, np.float32(k))
    across = np.empty(edge.shape[0], np.int64)
    rejected = 0
    for i in range(edge.shape[0]):
        first, second = _ends(edge[i], width)
        a, b = _find(parent, first), _find(parent, second)
        if a == b:
            continue
        if distance[i] <= limit[a] and distance[i] <= limit[b]:
            a = _join(parent, size, a, b)
            limit[a] = distance[i] + np.float32(k) / np.float32(size[a])
        else:
            across[rejected] = edge[i]
            rejected += 1
    for i in range(rejected):
        first, second = _ends(across[i], width)
        a, b = _find(parent, first), _find(parent, second)
        if a != b and (size[a] < min_size or size[b] < min_size):
            _join(parent, size, a, b)
    number = np.full(pixels, -1, np.int32)
    count = 0
    for p in range(pixels):
        root = _find(parent, p)
        if number[root] < 0:
            number[root] = count
            count += 1
        labels[p] = number[root]
    return count


@strict
def _ends(edge: int, width: int) -> tuple[int, int]:
    """The two pixels of an edge of `differences`."""
    pixel, direction = edge >> 2, edge & 3
    if direction == 0:
        return pixel, pixel + 1
    return pixel, pixel + width + (direction - 1 if direction < 3 else -1)


@strict
def _find(parent: Array, x: int) -> int:
    while parent[x] != x:
        parent[x] = parent[parent[x]]
        x = parent[x]
    return x


@strict
def _join(parent: Array, size: Array, a: int, b: int) -> int:
    if size[a] < size[b]:
        a, b = b, a
    parent[b] = a
    size[a] += size[b]
    return a
