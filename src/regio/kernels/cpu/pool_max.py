"""CPU kernels of `regio.kernels.pool_max`: a bin reads its block of cells in row-major order, all channels together.

The backward kernel finds the largest cells again: that is cheaper than writing and reading as many indices as there
are results.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from regio.kernels.cpu import launch, memory
from regio.kernels.cpu.cells import BLOCK, put_transposed, take_transposed
from regio.kernels.cpu.compile import compiled
from regio.kernels.maps import coordinate_dtype, group_count

__all__ = ["backward_maps", "forward"]

Array = np.ndarray[Any, Any]
U = np.uintp


@compiled
def _maximum(
    x: Array, at: int, row_step: int, step: int, rows: int, columns: int, tile: Array, to: int, n: int
) -> None:
    """``tile[to + c]`` = the largest of rows x columns cells from offset `at`, for c < n; 0 for no cells."""
    if rows <= 0 or columns <= 0:
        for c in range(n):
            tile[to + U(c)] = 0
        return
    for c in range(n):
        tile[to + U(c)] = x[at + U(c)]
    for i in range(rows):
        for j in range(columns):
            q = at + U(i * row_step + j * step)
            for c in range(n):
                value, best = x[q + U(c)], tile[to + U(c)]
                tile[to + U(c)] = value if value > best or value != value else best


@compiled
def _forward(
    x: Array, shape: tuple[int, int, int], image: Array, which: Array, starts: Array, top: Array, bottom: Array,
    left: Array, right: Array, out: Array, begin: int, end: int
) -> None:  # fmt: skip
    """out[r] for r in which[begin:end]. out: [R, C, Kh * Kw]."""
    cell, height, width = shape
    channels = out.shape[1]
    kh, kw = top.shape[1], left.shape[1]
    pitch = min(BLOCK, channels) + 16  # not a power of two: the transposition would fall on few cache sets
    tile = np.empty(kh * kw * pitch, x.dtype)
    for r in which[begin:end]:
        for first in range(0, channels, BLOCK):
            n = min(BLOCK, channels - first)
            for i in range(kh):
                v0, v1 = max(top[r, i], 0), min(bottom[r, i], height)
                for j in range(kw):
                    u0, u1 = max(left[r, j], 0), min(right[r, j], width)
                    at = U(((image[r] * height + v0) * width + u0) * cell + starts[i * kw + j] + first)
                    to = U((i * kw + j) * pitch)
                    _maximum(x, at, width * cell, cell, v1 - v0, u1 - u0, tile, to, n)
            put_transposed(tile, pitch, out[r, first : first + n])


@compiled
def _arg_maximum(
    x: Array, at: int, width: int, step: int, rows: int, columns: int, best: Array, where: Array, n: int
) -> None:
    """The first of the largest cells, in row-major order: how many cells it lies after `at`, for each channel c < n."""
    for c in range(n):
        best[c] = x[at + U(c)]
        where[c] = 0
    for i in range(rows):
        for j in range(columns):
            cell = np.int32(i * width + j)  # 32 bits, as wide as the features: wider ones halve the speed
            q = at + U((i * width + j) * step)
            for c in range(n):
                value = x[q + U(c)]
                larger = (value > best[U(c)]) | (value != value)
                best[U(c)] = value if larger else best[U(c)]
                where[U(c)] = cell if larger else where[U(c)]


@compiled
def _backward_map(
    x: Array, grad_x: Array, shape: tuple[int, int, int], image: Array, which: Array, starts: Array, top: Array,
    bottom: Array, left: Array, right: Array, grad: Array, begin: int, end: int
) -> None:  # fmt: skip
    """Add the gradient of the channels [begin, end) of every group to grad_x."""
    cell, height, width = shape
    kh, kw = top.shape[1], left.shape[1]
    block = min(BLOCK, end - begin)
    pitch = block + 16
    tile = np.empty(kh * kw * pitch, x.dtype)
    best, where = np.empty(block, x.dtype), np.empty(block, np.int32)
    for r in which:
        for first in range(begin, end, BLOCK):
            n = min(BLOCK, end - first)
            take_transposed(tile, pitch, grad[r, first : first + n])
            for i in range(kh):
                v0, v1 = max(top[r, i], 0), min(bottom[r, i], height)
                for j in range(kw):
                    u0, u1 = max(left[r, j], 0), min(right[r, j], width)
                    if v0 >= v1 or u0 >= u1:
                        continue
                    at = U(((image[r] * height + v0) * width + u0) * cell + starts[i * kw + j] + first)
                    _arg_maximum(x, at, width, cell, v1 - v0, u1 - u0, best, where, n)
                    to = U((i * kw + j) * pitch)
                    for c in range(n):
                        grad_x[at + U(where[U(c)]) * U(cell) + U(c)] += tile[to + U(c)]


def forward(
    maps: Sequence[Tensor], image: Tensor, level: Tensor, arguments: Sequence[Tensor], groups: Sequence[int]
) -> Tensor:
    """Features [R, C, Kh * Kw]; see `regio.kernels.operation`."""
    top, _, left, _ = arguments
    parts = top.shape[1] * left.shape[1]
    out = memory.empty((len(top), maps[0].shape[1] // group_count(groups), parts), coordinate_dtype(maps[0]))
    return launch.features(_forward, out, maps, image, level, arguments, groups)


def backward_maps(
    grad: Tensor,
    maps: Sequence[Tensor],
    image: Tensor,
    level: Tensor,
    arguments: Sequence[Tensor],
    groups: Sequence[int],
) -> list[Tensor]:
    """A gradient of each map."""
    return launch.map_gradients(_backward_map, grad, maps, image, level, arguments, groups, reads_map=True)
