"""Weighted sums of cells over all their channels, and the like, which the sampling and pooling kernels share.

A map is a flat array of channels-last cells: cell `q` is ``x[q * C : (q + 1) * C]``. Channels are taken in wide blocks,
then in narrow ones; of what is left over, sums and maxima are taken channel by channel, which suits the three channels
of an image. Offsets are unsigned: numba gives signed ones a check for negative indices.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from regio.kernels.cpu import inner_loops, simd_plain
from regio.kernels.cpu.compile import compiled
from regio.kernels.cpu.inner_loops import NARROW, SIDE, WIDE

__all__ = [
    "BLOCK",
    "add_cells",
    "add_grid",
    "add_to_maximum",
    "cell_product",
    "maximum",
    "sum_cells",
    "sum_grid",
    "transpose",
]

Array = np.ndarray[Any, Any]
U = np.uintp

# Channels that a box is worked on at once. As many as cells commonly have: reading only part of each cell defeats the
# processor's prefetching and costs more than the tile of 49 bins gains from a smaller cache.
BLOCK = 256


@compiled
def sum_cells(x: Array, offsets: Array, weights: Array, n: int, tile: Array, to: int, size: int) -> None:
    """``tile[to + c] = sum over i < n of weights[i] * x[offsets[i] + c]`` for c < size."""
    c = 0
    while c + WIDE <= size:
        inner_loops.sum_list(x, offsets, weights, U(c), n, tile, to + U(c), WIDE)
        c += WIDE
    while c + NARROW <= size:
        inner_loops.sum_list(x, offsets, weights, U(c), n, tile, to + U(c), NARROW)
        c += NARROW
    while c < size:
        total = x.dtype.type(0)
        for i in range(n):
            total += weights[i] * x[offsets[i] + U(c)]
        tile[to + U(c)] = total
        c += 1


@compiled
def add_cells(x: Array, offsets: Array, weights: Array, n: int, tile: Array, at: int, size: int) -> None:
    """``x[offsets[i] + c] += weights[i] * tile[at + c]`` for i < n and c < size: the transpose of `sum_cells`."""
    c = 0
    while c + WIDE <= size:
        inner_loops.add_list(x, offsets, weights, U(c), n, tile, at + U(c), WIDE)
        c += WIDE
    while c + NARROW <= size:
        inner_loops.add_list(x, offsets, weights, U(c), n, tile, at + U(c), NARROW)
        c += NARROW
    if c < size:
        simd_plain.add_list(x, offsets, weights, U(c), n, tile, at + U(c), size - c)


@compiled
def sum_grid(
    x: Array, rows: Array, row_weights: Array, row: int, n_rows: int, columns: Array, column_weights: Array,
    column: int, n_columns: int, shift: int, tile: Array, to: int, size: int
) -> None:  # fmt: skip
    """``tile[to + c] = sum over row <= i < row + n_rows, column <= j < column + n_columns of row_weights[i]
    column_weights[j] x[rows[i] + columns[j] + shift + c]`` for c < size."""
    c = 0
    while c + WIDE <= size:
        inner_loops.sum_grid(
            x, rows, row_weights, row, n_rows, columns, column_weights, column, n_columns, shift + U(c), tile,
            to + U(c), WIDE
        )  # fmt: skip
        c += WIDE
    while c + NARROW <= size:
        inner_loops.sum_grid(
            x, rows, row_weights, row, n_rows, columns, column_weights, column, n_columns, shift + U(c), tile,
            to + U(c), NARROW
        )  # fmt: skip
        c += NARROW
    while c < size:
        total = x.dtype.type(0)
        for i in range(row, row + n_rows):
            for j in range(column, column + n_columns):
                total += row_weights[i] * column_weights[j] * x[rows[i] + columns[j] + shift + U(c)]
        tile[to + U(c)] = total
        c += 1


@compiled
def add_grid(
    x: Array, rows: Array, row_weights: Array, row: int, n_rows: int, columns: Array, column_weights: Array,
    column: int, n_columns: int, shift: int, tile: Array, at: int, size: int
) -> None:  # fmt: skip
    """Add to those cells of x their weight times ``tile[at + c]``: the transpose of `sum_grid`."""
    c = 0
    while c + WIDE <= size:
        inner_loops.add_grid(
            x, rows, row_weights, row, n_rows, columns, column_weights, column, n_columns, shift + U(c), tile,
            at + U(c), WIDE
        )  # fmt: skip
        c += WIDE
    while c + NARROW <= size:
        inner_loops.add_grid(
            x, rows, row_weights, row, n_rows, columns, column_weights, column, n_columns, shift + U(c), tile,
            at + U(c), NARROW
        )  # fmt: skip
        c += NARROW
    if c < size:
        simd_plain.add_grid(
            x, rows, row_weights, row, n_rows, columns, column_weights, column, n_columns, shift + U(c), tile,
            at + U(c), size - c
        )  # fmt: skip


@compiled
def maximum(
    x: Array, at: int, row_step: int, step: int, rows: int, columns: int, tile: Array, to: int, size: int
) -> None:
    """``tile[to + c]`` = the maximum of rows x columns cells from ``x[at + c]`` on, for c < size; 0 for no cells, NaN
    where one is NaN."""
    if rows <= 0 or columns <= 0:
        for c in range(size):
            tile[to + U(c)] = 0
        return
    c = 0
    while c + WIDE <= size:
        inner_loops.maximum(x, at + U(c), row_step, step, rows, columns, tile, to + U(c), WIDE)
        c += WIDE
    while c + NARROW <= size:
        inner_loops.maximum(x, at + U(c), row_step, step, rows, columns, tile, to + U(c), NARROW)
        c += NARROW
    while c < size:
        best = x[at + U(c)]
        for i in range(rows):
            for j in range(columns):
                value = x[at + U(i * row_step + j * step + c)]
                if value > best or value != value:
                    best = value
        tile[to + U(c)] = best
        c += 1


@compiled
def add_to_maximum(
    x: Array, at: int, row_step: int, step: int, rows: int, columns: int, grad_x: Array, grad_at: int,
    grad_row_step: int, grad_step: int, tile: Array, to: int, size: int
) -> None:  # fmt: skip
    """Add ``tile[to + c]`` to `grad_x` where the first, row by row, of the largest of rows x columns cells lies.

    Cell (i, j) is read at ``x[at + i * row_step + j * step + c]``, and its gradient added to in `grad_x` likewise.
    """
    c = 0
    while c + WIDE <= size:
        inner_loops.add_to_maximum(
            x, at + U(c), row_step, step, rows, columns, grad_x, grad_at + U(c), grad_row_step, grad_step, tile,
            to + U(c), WIDE
        )  # fmt: skip
        c += WIDE
    while c + NARROW <= size:
        inner_loops.add_to_maximum(
            x, at + U(c), row_step, step, rows, columns, grad_x, grad_at + U(c), grad_row_step, grad_step, tile,
            to + U(c), NARROW
        )  # fmt: skip
        c += NARROW
    while c < size:
        best, where = x[at + U(c)], 0
        for i in range(rows):
            for j in range(columns):
                value = x[at + U(i * row_step + j * step + c)]
                if value > best or (value != value and best == best):
                    best, where = value, i * grad_row_step + j * grad_step
        grad_x[grad_at + U(where + c)] += tile[to + U(c)]
        c += 1


@compiled
def cell_product(x: Array, start: int, tile: Array, at: int, size: int) -> float:
    """The inner product of the cell at `start` with ``tile[at : at + size]``."""
    total = x.dtype.type(0)
    for c in range(size):
        total += x[start + U(c)] * tile[at + U(c)]
    return total


@compiled
def transpose(
    source: Array, at: int, row_stride: int, rows: int, columns: int, target: Array, to: int, target_stride: int
) -> None:
    """``target[to + j * target_stride + i] = source[at + i * row_stride + j]`` for i < rows and j < columns."""
    whole_rows, whole_columns = rows - rows % SIDE, columns - columns % SIDE
    for i in range(0, whole_rows, SIDE):
        for j in range(0, whole_columns, SIDE):
            inner_loops.transpose_block(
                source, at + U(i * row_stride + j), U(row_stride), target, to + U(j * target_stride + i),
                U(target_stride),
            )  # fmt: skip
    for i in range(rows):
        for j in range(whole_columns if i < whole_rows else 0, columns):
            target[to + U(j * target_stride + i)] = source[at + U(i * row_stride + j)]
