"""The columns of a deformable convolution: what its taps read, ready for the product with the weights, and back.

Columns are [groups, P, taps, C / groups], those of bfloat16 maps as uint16. Cells and weights are those of
`deformable_taps`, [P, M, 4]; the M taps are those of one offset group after the other.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from regio.kernels.cpu.bfloat16 import number, put
from regio.kernels.cpu.channels_last import add_cells, cell_product, sum_cells
from regio.kernels.cpu.compile import compiled

__all__ = ["add_columns", "write_columns"]

Array = np.ndarray[Any, Any]
U = np.uintp


@compiled
def write_columns(
    x: Array, cells: Array, weights: Array, first_cell: int, columns: Array, begin: int, end: int
) -> None:  # fmt: skip
    """Write columns[:, begin:end], those of the output cells from ``first_cell + begin`` on. x: flat cells."""
    groups, count, taps, in_group = columns.shape
    in_offset_group = groups * in_group * taps // cells.shape[1]
    flat = columns.reshape(-1)
    at, w, tile = np.empty(4, U), np.empty(4, x.dtype), np.empty(in_offset_group, x.dtype)
    for p in range(begin, end):
        cell = first_cell + p
        for m in range(cells.shape[1]):
            first = m // taps * in_offset_group
            n = 0
            for q in range(4):
                if cells[cell, m, q] >= 0 and weights[cell, m, q] != 0:
                    at[n] = U(cells[cell, m, q] * groups * in_group + first)
                    w[n] = weights[cell, m, q]
                    n += 1
            sum_cells(x, at, w, n, tile, U(0), in_offset_group)
            c = first
            while c < first + in_offset_group:  # the channels of one group of the convolution at a time
                g = c // in_group
                stop = min((g + 1) * in_group, first + in_offset_group)
                to, source = U(((g * count + p) * taps + m % taps) * in_group + c - g * in_group), U(c - first)
                for i in range(stop - c):
                    put(flat, to + U(i), tile[source + U(i)])
                c = stop


@compiled
def add_columns(
    x: Array, cells: Array, weights: Array, first_cell: int, columns: Array, block: int, sums: Array,
    products: Array, begin: int, end: int
) -> None:  # fmt: skip
    """The transpose of `write_columns`, for the blocks [begin, end) of channels: add the gradient of the map to
    sums, and write the products of columns, a gradient, with the cells that they were read from.

    The channels of each offset group are cut into blocks of `block`, the last of which may be smaller. sums: [blocks,
    cells of the map * block], where cells have only the channels that the block has. products: [blocks of an offset
    group, P, M, 4].
    """
    groups, count, taps, in_group = columns.shape
    channels = groups * in_group
    in_offset_group = channels * taps // cells.shape[1]
    blocks, flat, to_map = products.shape[0], columns.reshape(-1), sums.reshape(-1)
    at, w, tile = np.empty(4, U), np.empty(4, x.dtype), np.empty(block, x.dtype)
    for b in range(begin, end):
        offset_group, part = b // blocks, b % blocks
        first = offset_group * in_offset_group + part * block
        size = min(block, in_offset_group - part * block)
        for p in range(count):
            out = first_cell + p
            for tap in range(taps):
                c = first
                while c < first + size:
                    g = c // in_group
                    stop = min((g + 1) * in_group, first + size)
                    source, to = U(((g * count + p) * taps + tap) * in_group + c - g * in_group), U(c - first)
                    for i in range(stop - c):
                        tile[to + U(i)] = number(flat, source + U(i))
                    c = stop
                m, n = offset_group * taps + tap, 0
                for q in range(4):
                    products[part, out, m, q] = 0
                    if cells[out, m, q] >= 0:
                        cell = U(cells[out, m, q] * channels + first)
                        products[part, out, m, q] = cell_product(x, cell, tile, U(0), size)
                    if cells[out, m, q] >= 0 and weights[out, m, q] != 0:
                        at[n] = U(b * sums.shape[1] + cells[out, m, q] * size)
                        w[n] = weights[out, m, q]
                        n += 1
                add_cells(to_map, at, w, n, tile, U(0), size)
