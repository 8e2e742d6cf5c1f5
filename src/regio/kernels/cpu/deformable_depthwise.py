"""Deformable convolution in which every channel has its own weights: sums over taps, channels last, without columns.

Cells and weights of taps are those of `deformable_taps`, [P, M, 4]. The weight of the convolution is [taps, C].
"""

from __future__ import annotations

from typing import Any

import numpy as np

from regio.kernels.cpu.channels_last import add_cells, cell_product, sum_cells
from regio.kernels.cpu.compile import compiled

__all__ = ["add_gradients", "sum_taps"]

Array = np.ndarray[Any, Any]
U = np.uintp


@compiled
def sum_taps(x: Array, cells: Array, weights: Array, weight: Array, out: Array, begin: int, end: int) -> None:
    """``out[p, c] = sum over taps n of weight[n, c] sample_n(p, c)`` for p in [begin, end). x: flat cells of the map.
    out: [P, C], zeros."""
    taps, channels = weight.shape
    size = channels * taps // cells.shape[1]
    flat, to_flat = weight.reshape(-1), out.reshape(-1)
    at, w, tile = np.empty(4, U), np.empty(4, x.dtype), np.empty(size, x.dtype)
    for p in range(begin, end):
        for m in range(cells.shape[1]):
            first, n = m // taps * size, 0
            for q in range(4):
                if cells[p, m, q] >= 0 and weights[p, m, q] != 0:
                    at[n] = U(cells[p, m, q] * channels + first)
                    w[n] = weights[p, m, q]
                    n += 1
            if n == 0:
                continue
            sum_cells(x, at, w, n, tile, U(0), size)
            to, factor = U(p * channels + first), U(m % taps * channels + first)
            for c in range(size):
                to_flat[to + U(c)] += flat[factor + U(c)] * tile[U(c)]


@compiled
def add_gradients(
    x: Array, cells: Array, weights: Array, weight: Array, grad: Array, block: int, sums: Array,
    grad_weight: Array, products: Array, begin: int, end: int
) -> None:  # fmt: skip
    """Add the gradients of map and weight for the blocks [begin, end) of channels, and write the products of cells with
    the gradient of what is read from them.

    The channels of each offset group are cut into blocks of `block`, the last of which may be smaller. grad: [P, C].
    sums: [blocks, cells of the map * block], where cells have only the channels that the block has. grad_weight:
    [taps, C]. products: [blocks of an offset group, P, M, 4].
    """
    taps, channels = weight.shape
    in_group = channels * taps // cells.shape[1]
    blocks = products.shape[0]
    flat, of_out = weight.reshape(-1), grad.reshape(-1)
    to_map, to_weight = sums.reshape(-1), grad_weight.reshape(-1)
    read, at, w, tile = np.empty(4, U), np.empty(4, U), np.empty(4, x.dtype), np.empty(block, x.dtype)
    for b in range(begin, end):
        first = b // blocks * in_group + b % blocks * block
        size = min(block, in_group - b % blocks * block)
        for p in range(grad.shape[0]):
            out = U(p * channels + first)
            for tap in range(taps):
                m, n = b // blocks * taps + tap, 0
                factor = U(tap * channels + first)
                for c in range(size):
                    tile[U(c)] = flat[factor + U(c)] * of_out[out + U(c)]
                for q in range(4):
                    products[b % blocks, p, m, q] = 0
                    if cells[p, m, q] >= 0:
                        cell = U(cells[p, m, q] * channels + first)
                        products[b % blocks, p, m, q] = cell_product(x, cell, tile, U(0), size)
                    if cells[p, m, q] >= 0 and weights[p, m, q] != 0:
                        read[n] = U(cells[p, m, q] * channels + first)
                        at[n] = U(b * sums.shape[1] + cells[p, m, q] * size)
                        w[n] = weights[p, m, q]
                        n += 1
                if n == 0:
                    continue
                add_cells(to_map, at, w, n, tile, U(0), size)
                sum_cells(x, read, w, n, tile, U(0), size)
                for c in range(size):
                    to_weight[factor + U(c)] += of_out[out + U(c)] * tile[U(c)]
