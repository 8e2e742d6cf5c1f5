"""All channels of weighted cells, which the sampling and pooling kernels share.

A map is a flat array of channels-last cells: cell `q` is ``x[q * C : (q + 1) * C]``. Channels are taken in wide blocks,
then in narrow ones, then one by one. Offsets are unsigned: numba gives signed ones a check for negative indices.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from regio.kernels.cpu.compile import compiled
from regio.kernels.cpu.vectors import SIDE, narrow, transpose_block, wide

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

# Functions under names of their own, since compiled code cannot look them up in an object.
_WIDE, _NARROW = wide.width, narrow.width
_wide_sum, _narrow_sum = wide.sum_list, narrow.sum_list
_wide_add, _narrow_add = wide.add_list, narrow.add_list
_wide_sum_grid, _narrow_sum_grid = wide.sum_grid, narrow.sum_grid
_wide_add_grid, _narrow_add_grid = wide.add_grid, narrow.add_grid
_wide_maximum, _narrow_maximum = wide.maximum, narrow.maximum
_wide_add_to_maximum, _narrow_add_to_maximum = wide.add_to_maximum, narrow.add_to_maximum


@compiled
def sum_cells(x: Array, starts: Array, weights: Array, n: int, tile: Array, to: int, size: int) -> None:
    """``tile[to + c] = sum over i < n of weights[i] * x[starts[i] + c]`` for c < size."""
    c = 0
    while c + _WIDE <= size:
        _wide_sum(x, starts, weights, U(c), n, tile, to + U(c))
        c += _WIDE
    while c + _NARROW <= size:
        _narrow_sum(x, starts, weights, U(c), n, tile, to + U(c))
        c += _NARROW
    while c < size:
        total = x.dtype.type(0)
        for i in range(n):
            total += weights[i] * x[starts[i] + U(c)]
        tile[to + U(c)] = total
        c += 1


@compiled
def add_cells(x: Array, starts: Array, weights: Array, n: int, tile: Array, at: int, size: int) -> None:
    """``x[starts[i] + c] += weights[i] * tile[at + c]`` for i < n and c < size: the transpose of `sum_cells`."""
    c = 0
    while c + _WIDE <= size:
        _wide_add(x, starts, weights, U(c), n, tile, at + U(c))
        c += _WIDE
    while c + _NARROW <= size:
        _narrow_add(x, starts, weights, U(c), n, tile, at + U(c))
        c += _NARROW
    while c < size:
        for i in range(n):
            x[starts[i] + U(c)] += weights[i] * tile[at + U(c)]
        c += 1


@compiled
def sum_grid(
    x: Array, rows: Array, row_weights: Array, row: int, n_rows: int, columns: Array, column_weights: Array,
    column: int, n_columns: int, shift: int, tile: Array, to: int, size: int
) -> None:  # fmt: skip
    """``tile[to + c] = sum over row <= i < row + n_rows, column <= j < column + n_columns of row_weights[i]
    column_weights[j] x[rows[i] + columns[j] + shift + c]`` for c < size."""
    c = 0
    while c + _WIDE <= size:
        at, put = shift + U(c), to + U(c)
        _wide_sum_grid(x, rows, row_weights, row, n_rows, columns, column_weights, column, n_columns, at, tile, put)
        c += _WIDE
    while c + _NARROW <= size:
        at, put = shift + U(c), to + U(c)
        _narrow_sum_grid(x, rows, row_weights, row, n_rows, columns, column_weights, column, n_columns, at, tile, put)
        c += _NARROW
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
    column: int, n_columns: int, shift: int, tile: Array, to: int, size: int
) -> None:  # fmt: skip
    """Add to those cells of x their weight times ``tile[to + c]``: the transpose of `sum_grid`."""
    c = 0
    while c + _WIDE <= size:
        at, take = shift + U(c), to + U(c)
        _wide_add_grid(x, rows, row_weights, row, n_rows, columns, column_weights, column, n_columns, at, tile, take)
        c += _WIDE
    while c + _NARROW <= size:
        at, take = shift + U(c), to + U(c)
        _narrow_add_grid(x, rows, row_weights, row, n_rows, columns, column_weights, column, n_columns, at, tile, take)
        c += _NARROW
    while c < size:
        for i in range(row, row + n_rows):
            for j in range(column, column + n_columns):
                x[rows[i] + columns[j] + shift + U(c)] += row_weights[i] * column_weights[j] * tile[to + U(c)]
        c += 1


@compiled
def maximum(
    x: Array, at: int, row_step: int, step: int, rows: int, columns: int, tile: Array, to: int, size: int
) -> None:
    """``tile[to + c]`` = the largest of rows x columns cells from ``x[at + c]`` on, for c < size; 0 for no cells, NaN
    where there is one."""
    if rows <= 0 or columns <= 0:
        for c in range(size):
            tile[to + U(c)] = 0
        return
    c = 0
    while c + _WIDE <= size:
        _wide_maximum(x, at + U(c), row_step, step, rows, columns, tile, to + U(c))
        c += _WIDE
    while c + _NARROW <= size:
        _narrow_maximum(x, at + U(c), row_step, step, rows, columns, tile, to + U(c))
        c += _NARROW
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
    while c + _WIDE <= size:
        a, g, t = at + U(c), grad_at + U(c), to + U(c)
        _wide_add_to_maximum(x, a, row_step, step, rows, columns, grad_x, g, grad_row_step, grad_step, tile, t)
        c += _WIDE
    while c + _NARROW <= size:
        a, g, t = at + U(c), grad_at + U(c), to + U(c)
        _narrow_add_to_maximum(x, a, row_step, step, rows, columns, grad_x, g, grad_row_step, grad_step, tile, t)
        c += _NARROW
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
    total = x[start] * tile[at]
    for c in range(1, size):
        total += x[start + U(c)] * tile[at + U(c)]
    return total


@compiled
def transpose(source: Array, at: int, step: int, rows: int, columns: int, target: Array, to: int, pitch: int) -> None:
    """``target[to + j * pitch + i] = source[at + i * step + j]`` for i < rows and j < columns."""
    whole_rows, whole_columns = rows - rows % SIDE, columns - columns % SIDE
    for i in range(0, whole_rows, SIDE):
        for j in range(0, whole_columns, SIDE):
            transpose_block(source, at + U(i * step + j), U(step), target, to + U(j * pitch + i), U(pitch))
    for i in range(rows):
        for j in range(whole_columns if i < whole_rows else 0, columns):
            target[to + U(j * pitch + i)] = source[at + U(i * step + j)]
