"""The inner loops of the CPU kernels as ordinary loops: what each computes, to be read and to be tested against.

`regio.kernels.cpu.simd` has the same functions, with the same arguments, as vector instructions. Kernels call these
here where those cannot be built (`inner_loops`), and to add to the few channels that do not fill a vector.

What the arguments have in common:

* Arrays are flat, of one floating point dtype (float32 or float64), except for `rows`, `columns` and `offsets`, which
  are offsets (uintp). All offsets and steps count elements, not bytes. Offsets into arrays are unsigned: numba gives
  signed ones a check for negative indices.
* A *cell* is a place of the map with all its channels, which lie one after the other: the block of `width` channels
  of the cell at offset q is ``x[q : q + width]``.
* A *tile* is a small array in which a kernel collects the features of one box, ``tile[to : to + width]`` for a part.
* Lists for the rows and columns of all bins lie in one array, those of a bin from element `row` (or `column`) on: a
  slice of an array would cost compiled code two atomic operations on its reference count.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from regio.kernels.cpu.bfloat16 import number, to_bfloat16
from regio.kernels.cpu.compile import compiled, strict

__all__ = [
    "NARROW",
    "SIDE",
    "WIDE",
    "WINDOW",
    "add_grid",
    "add_list",
    "add_logits_of_row",
    "add_to_maximum",
    "add_window",
    "dot_map",
    "keep_weights_of_row",
    "largest",
    "maximum",
    "span_not_below",
    "sum_grid",
    "sum_list",
    "sum_window",
    "transpose_block",
    "weigh_map",
]

Array = np.ndarray[Any, Any]
U = np.uintp

WIDE = 64  # channels of a block: four registers of 512 bits in float32
NARROW = 16  # of a block of the channels that are left over
SIDE = 16  # of a square that is transposed
WINDOW = 8  # neighbouring cells of a bin that are read at once; more than most bins are wide


@compiled
def sum_list(x: Array, offsets: Array, weights: Array, shift: int, n: int, tile: Array, to: int, width: int) -> None:
    """``tile[to + c] = sum over i < n of weights[i] * x[offsets[i] + shift + c]`` for c < width."""
    for c in range(width):
        tile[to + U(c)] = 0
    for i in range(n):
        at, weight = offsets[i] + shift, weights[i]
        for c in range(width):
            tile[to + U(c)] += weight * x[at + U(c)]


@compiled
def add_list(x: Array, offsets: Array, weights: Array, shift: int, n: int, tile: Array, at: int, width: int) -> None:
    """``x[offsets[i] + shift + c] += weights[i] * tile[at + c]`` for i < n and c < width: the transpose of `sum_list`.
    An offset may occur more than once."""
    for i in range(n):
        to, weight = offsets[i] + shift, weights[i]
        for c in range(width):
            x[to + U(c)] += weight * tile[at + U(c)]


@compiled
def sum_grid(
    x: Array, rows: Array, row_weights: Array, row: int, n_rows: int, columns: Array, column_weights: Array,
    column: int, n_columns: int, shift: int, tile: Array, to: int, width: int
) -> None:  # fmt: skip
    """``tile[to + c] = sum over row <= i < row + n_rows and column <= j < column + n_columns of
    row_weights[i] * column_weights[j] * x[rows[i] + columns[j] + shift + c]`` for c < width."""
    for c in range(width):
        tile[to + U(c)] = 0
    for i in range(row, row + n_rows):
        for j in range(column, column + n_columns):
            at, weight = rows[i] + columns[j] + shift, row_weights[i] * column_weights[j]
            for c in range(width):
                tile[to + U(c)] += weight * x[at + U(c)]


@compiled
def add_grid(
    x: Array, rows: Array, row_weights: Array, row: int, n_rows: int, columns: Array, column_weights: Array,
    column: int, n_columns: int, shift: int, tile: Array, at: int, width: int
) -> None:  # fmt: skip
    """Add their weight times ``tile[at + c]`` to the cells that `sum_grid` reads: its transpose."""
    for i in range(row, row + n_rows):
        for j in range(column, column + n_columns):
            to, weight = rows[i] + columns[j] + shift, row_weights[i] * column_weights[j]
            for c in range(width):
                x[to + U(c)] += weight * tile[at + U(c)]


@strict
def maximum(
    x: Array, at: int, row_step: int, step: int, rows: int, columns: int, tile: Array, to: int, width: int
) -> None:
    """``tile[to + c] = max over i < rows and j < columns of x[at + i * row_step + j * step + c]`` for c < width; NaN
    where one of them is NaN. rows, columns: at least 1. Of -0 and +0 the first is the maximum."""
    for c in range(width):
        tile[to + U(c)] = x[at + U(c)]
    for i in range(rows):
        for j in range(columns):
            cell = at + U(i * row_step + j * step)
            for c in range(width):
                value, best = x[cell + U(c)], tile[to + U(c)]
                tile[to + U(c)] = value if value > best or value != value else best


@compiled
def add_to_maximum(
    x: Array, at: int, row_step: int, step: int, rows: int, columns: int, grad_x: Array, grad_at: int,
    grad_row_step: int, grad_step: int, tile: Array, to: int, width: int
) -> None:  # fmt: skip
    """Add ``tile[to + c]`` to `grad_x` at the place of the maximum, for c < width: the transpose of `maximum`.

    Where several cells are the maximum, or NaN, it is added to the first, row by row. The gradient of the cell
    ``x[at + i * row_step + j * step + c]`` is ``grad_x[grad_at + i * grad_row_step + j * grad_step + c]``.
    """
    for c in range(width):
        best, place = x[at + U(c)], 0
        for i in range(rows):
            for j in range(columns):
                value = x[at + U(i * row_step + j * step + c)]
                if value > best or (value != value and best == best):
                    best, place = value, i * grad_row_step + j * grad_step
        grad_x[grad_at + U(place + c)] += tile[to + U(c)]


@compiled
def transpose_block(source: Array, at: int, step: int, target: Array, to: int, target_step: int) -> None:
    """``target[to + j * target_step + i] = source[at + i * step + j]`` for i, j < SIDE."""
    for i in range(SIDE):
        for j in range(SIDE):
            target[to + U(j) * target_step + U(i)] = source[at + U(i) * step + U(j)]


@compiled
def sum_window(
    x: Array, at: int, rows: Array, row_weights: Array, row: int, n_rows: int, weights: Array, column: int, pieces: int
) -> float:
    """Returns ``sum over j < pieces * WINDOW and row <= i < row + n_rows of
    weights[column + j] * row_weights[i] * x[at + rows[i] + j]``: the cells of one channel, whose rows are contiguous.

    Where ``weights[column + j]`` is zero, x is not read (the place may lie outside the array, or hold NaN).
    """
    total = x.dtype.type(0)
    for j in range(pieces * WINDOW):
        weight = weights[column + j]
        if weight != 0:
            for i in range(row, row + n_rows):
                total += weight * row_weights[i] * x[at + rows[i] + U(j)]
    return total


@compiled
def add_window(
    x: Array, at: int, rows: Array, row_weights: Array, row: int, n_rows: int, weights: Array, column: int,
    pieces: int, value: float
) -> None:  # fmt: skip
    """Add their weight times `value` to the cells that `sum_window` reads: its transpose."""
    for j in range(pieces * WINDOW):
        weight = weights[column + j]
        if weight != 0:
            for i in range(row, row + n_rows):
                x[at + rows[i] + U(j)] += weight * row_weights[i] * value


@compiled
def weigh_map(
    column: Array, at: int, rows: Array, row_at: int, appearance: Array, appearance_at: int, out: Array, to: int,
    height: int, width: int
) -> float:  # fmt: skip
    """``out[to + p] = rows[row_at + v] * column[at + u] * appearance[appearance_at + p]`` for all cells
    p = v * width + u of a map; returns their sum, of the products before they are rounded to bfloat16.

    out: of the dtype of the others, or uint16, which then holds bfloat16 numbers.
    """
    total = column.dtype.type(0)
    for v in range(height):
        for u in range(width):
            p = U(v * width + u)
            weight = rows[row_at + U(v)] * column[at + U(u)] * appearance[appearance_at + p]
            if out.itemsize == 2:
                out[to + p] = to_bfloat16(np.float32(weight))
            else:
                out[to + p] = weight
            total += weight
    return total


@compiled
def dot_map(
    column: Array, at: int, rows: Array, row_at: int, appearance: Array, appearance_at: int, products: Array,
    products_at: int, height: int, width: int
) -> float:  # fmt: skip
    """Returns the inner product of the weights of `weigh_map` with ``products[products_at + p]``, which may be bfloat16
    numbers in uint16."""
    total = column.dtype.type(0)
    for v in range(height):
        for u in range(width):
            p = U(v * width + u)
            weight = rows[row_at + U(v)] * column[at + U(u)] * appearance[appearance_at + p]
            total += weight * number(products, products_at + p)
    return total


@compiled
def add_logits_of_row(
    column: Array, at: int, factor: float, appearance: Array, appearance_at: int, products: Array, products_at: int,
    mean: float, to_column: Array, to_appearance: Array, width: int
) -> float:  # fmt: skip
    """Add ``factor * column[at + u] * appearance[appearance_at + u] * (products[products_at + u] - mean)``, the
    gradients of the logits of a row of cells, to ``to_column[at + u]`` and to ``to_appearance[appearance_at + u]`` for
    u < width; returns their sum. products: may be bfloat16 numbers in uint16."""
    total = column.dtype.type(0)
    for u in range(width):
        here, there = at + U(u), appearance_at + U(u)
        logit = factor * (column[here] * appearance[there]) * (number(products, products_at + U(u)) - mean)
        to_column[here] += logit
        to_appearance[there] += logit
        total += logit
    return total


@compiled
def largest(x: Array, at: int, count: int) -> float:
    """Returns the largest of ``x[at : at + count]``, NaN not counted; -inf for none."""
    best = x.dtype.type(-np.inf)
    for i in range(count):
        if x[at + U(i)] > best:
            best = x[at + U(i)]
    return best


@compiled
def span_not_below(x: Array, at: int, count: int, limit: float) -> tuple[int, int]:
    """Returns the smallest range (first, stop) that has all i < count for which ``x[at + i]`` is not below `limit`, NaN
    among them; (count, 0) for none."""
    first, stop = count, 0
    for i in range(count):
        if not x[at + U(i)] < limit:
            first, stop = min(first, i), i + 1
    return first, stop


@compiled
def keep_weights_of_row(
    column: Array, at: int, factor: float, appearance: Array, appearance_at: int, least: float, count: int, cell: int,
    weights: Array, cells: Array, to: int
) -> int:  # fmt: skip
    """Write the weights ``factor * column[at + u] * appearance[appearance_at + u]`` for u < count, and the numbers
    ``cell + u``, to weights and cells (int32) from `to` on; of each SIDE neighbours only those from the first to the
    last that is not below `least`. Returns where what was written ends."""
    end: Any = to
    for piece in range(0, count, SIDE):
        first, stop = count, piece
        for u in range(piece, min(piece + SIDE, count)):
            if not factor * column[at + U(u)] * appearance[appearance_at + U(u)] < least:
                first, stop = min(first, u), u + 1
        for u in range(first, stop):
            weights[end + U(u - first)] = factor * column[at + U(u)] * appearance[appearance_at + U(u)]
            cells[end + U(u - first)] = cell + u
        end += U(max(stop - first, 0))
    return end
