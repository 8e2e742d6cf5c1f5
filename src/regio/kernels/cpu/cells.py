"""Vector loops over the channels of weighted cells, which the sampling kernels share.

A map is a flat array of channels-last cells: cell `q` is ``x[q * C : (q + 1) * C]``. Offsets are unsigned: numba gives
signed ones a check for negative indices, which keeps a loop from being vectorised.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from regio.kernels.cpu.compile import compiled

__all__ = ["BLOCK", "add_cells", "cell_product", "put_transposed", "sum_cells", "take_transposed"]

Array = np.ndarray[Any, Any]
U = np.uintp

# Channels that are worked on at once: a tile of 49 bins stays in the second-level cache.
BLOCK = 256


@compiled
def sum_cells(x: Array, starts: Array, weights: Array, n: int, tile: Array, to: int, size: int) -> None:
    """``tile[to + c] = sum over i < n of weights[i] * x[starts[i] + c]`` for c < size."""
    if n == 0:
        for c in range(size):
            tile[to + U(c)] = 0
        return
    # Four cells a pass, so that the tile is written once for four reads; the first pass takes what is left over.
    first = (n - 1) % 4 + 1
    a, u = starts[0], weights[0]
    if first == 1:
        for c in range(size):
            tile[to + U(c)] = u * x[a + U(c)]
    elif first == 2:
        b, v = starts[1], weights[1]
        for c in range(size):
            tile[to + U(c)] = u * x[a + U(c)] + v * x[b + U(c)]
    elif first == 3:
        b, v, d, w = starts[1], weights[1], starts[2], weights[2]
        for c in range(size):
            tile[to + U(c)] = u * x[a + U(c)] + v * x[b + U(c)] + w * x[d + U(c)]
    else:
        b, v, d, w, e, z = starts[1], weights[1], starts[2], weights[2], starts[3], weights[3]
        for c in range(size):
            tile[to + U(c)] = u * x[a + U(c)] + v * x[b + U(c)] + w * x[d + U(c)] + z * x[e + U(c)]
    for i in range(first, n, 4):
        a, u, b, v = starts[i], weights[i], starts[i + 1], weights[i + 1]
        d, w, e, z = starts[i + 2], weights[i + 2], starts[i + 3], weights[i + 3]
        for c in range(size):
            tile[to + U(c)] += u * x[a + U(c)] + v * x[b + U(c)] + w * x[d + U(c)] + z * x[e + U(c)]


@compiled
def add_cells(x: Array, starts: Array, weights: Array, n: int, tile: Array, at: int, size: int) -> None:
    """``x[starts[i] + c] += weights[i] * tile[at + c]`` for i < n and c < size: the transpose of `sum_cells`."""
    for i in range(n):
        a, u = starts[i], weights[i]
        for c in range(size):
            x[a + U(c)] += u * tile[at + U(c)]


@compiled
def cell_product(x: Array, start: int, tile: Array, at: int, size: int) -> float:
    """The inner product of the cell at `start` with ``tile[at : at + size]``."""
    total = x[start] * tile[at]
    for c in range(1, size):
        total += x[start + U(c)] * tile[at + U(c)]
    return total


@compiled
def put_transposed(tile: Array, pitch: int, out: Array) -> None:
    """``out[c, k] = tile[k * pitch + c]``."""
    step = U(pitch)
    for c in range(out.shape[0]):
        row = out[c]
        for k in range(out.shape[1]):
            row[k] = tile[U(k) * step + U(c)]


@compiled
def take_transposed(tile: Array, pitch: int, grad: Array) -> None:
    """``tile[k * pitch + c] = grad[c, k]``."""
    step = U(pitch)
    for c in range(grad.shape[0]):
        row = grad[c]
        for k in range(grad.shape[1]):
            tile[U(k) * step + U(c)] = row[k]
