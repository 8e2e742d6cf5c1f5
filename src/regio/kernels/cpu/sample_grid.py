"""CPU kernels of `regio.kernels.sample_grid`: a box reads each bin's distinct cells once, all channels together.

A bin reads the product of its row cells and its column cells. Where each part has channels of its own there are few to
take together, and `per_channel` goes through them one by one; so it does for few boxes and few channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from regio.kernels.arguments import Reads
from regio.kernels.cpu import buffer_pool, per_channel, per_level
from regio.kernels.cpu.axis_cells import axis_buffers, axis_cells, offsets
from regio.kernels.cpu.channels_last import BLOCK, add_grid, cell_product, sum_grid, transpose
from regio.kernels.cpu.compile import compiled
from regio.kernels.cpu.inner_loops import SIDE

__all__ = ["backward_arguments", "backward_maps", "forward"]

Array = np.ndarray[Any, Any]
U = np.uintp


@compiled
def _forward(
    x: Array, shape: tuple[int, int, int], image: Array, box_index: Array, channel_offset: Array, rows: Array,
    row_weight: Array, columns: Array, column_weight: Array, out: Array, begin: int, end: int
) -> None:  # fmt: skip
    """out[r] for r in box_index[begin:end]. out: [R, C, Kh * Kw]."""
    cell_stride, height, width = shape
    channels, parts = out.shape[1:]
    kh, kw = rows.shape[1], columns.shape[1]
    u, uw, nu = axis_buffers(kh, min(2 * rows.shape[2], height), x.dtype)
    v, vw, nv = axis_buffers(kw, min(2 * columns.shape[2], width), x.dtype)
    row_at, column_at, row_w, column_w = np.empty(u.size, U), np.empty(v.size, U), uw.reshape(-1), vw.reshape(-1)
    l, m = u.shape[1], v.shape[1]
    row_stride = min(BLOCK, channels) + SIDE  # not a power of two: the transposition would fall on few cache sets
    tile, flat = np.empty(parts * row_stride, x.dtype), out.reshape(-1)
    for r in box_index[begin:end]:
        axis_cells(rows[r], row_weight[r], height, False, u, uw, nu)
        axis_cells(columns[r], column_weight[r], width, False, v, vw, nv)
        offsets(u, nu, width * cell_stride, row_at)
        offsets(v, nv, cell_stride, column_at)
        for first in range(0, channels, BLOCK):
            size = min(BLOCK, channels - first)
            for i in range(kh):
                for j in range(kw):
                    shift = U(image[r] * height * width * cell_stride + channel_offset[i * kw + j] + first)
                    to = U((i * kw + j) * row_stride)
                    sum_grid(x, row_at, row_w, i * l, nu[i], column_at, column_w, j * m, nv[j], shift, tile, to, size)
            transpose(tile, U(0), row_stride, parts, size, flat, U((r * channels + first) * parts), parts)


@compiled
def _backward_map(
    grad_x: Array, shape: tuple[int, int, int], image: Array, box_index: Array, channel_offset: Array, rows: Array,
    row_weight: Array, columns: Array, column_weight: Array, grad: Array, begin: int, end: int
) -> None:  # fmt: skip
    """Add the gradient of the channels [begin, end) of every group to grad_x."""
    cell_stride, height, width = shape
    channels, parts = grad.shape[1:]
    kh, kw = rows.shape[1], columns.shape[1]
    u, uw, nu = axis_buffers(kh, min(2 * rows.shape[2], height), grad_x.dtype)
    v, vw, nv = axis_buffers(kw, min(2 * columns.shape[2], width), grad_x.dtype)
    row_at, column_at, row_w, column_w = np.empty(u.size, U), np.empty(v.size, U), uw.reshape(-1), vw.reshape(-1)
    l, m = u.shape[1], v.shape[1]
    row_stride = min(BLOCK, end - begin) + SIDE
    tile, flat = np.empty(parts * row_stride, grad_x.dtype), grad.reshape(-1)
    for r in box_index:
        axis_cells(rows[r], row_weight[r], height, False, u, uw, nu)
        axis_cells(columns[r], column_weight[r], width, False, v, vw, nv)
        offsets(u, nu, width * cell_stride, row_at)
        offsets(v, nv, cell_stride, column_at)
        for first in range(begin, end, BLOCK):
            size = min(BLOCK, end - first)
            transpose(flat, U((r * channels + first) * parts), parts, size, parts, tile, U(0), row_stride)
            for i in range(kh):
                for j in range(kw):
                    shift = U(image[r] * height * width * cell_stride + channel_offset[i * kw + j] + first)
                    at = U((i * kw + j) * row_stride)
                    add_grid(
                        grad_x, row_at, row_w, i * l, nu[i], column_at, column_w, j * m, nv[j], shift, tile, at, size
                    )


@compiled
def _axis_gradients(
    positions: Array, weight: Array, cells: Array, n: Array, slope: Array, grad_positions: Array, grad_weight: Array
) -> None:
    """From the gradients `slope` [K, 2 S] of the merged weights to those of positions and weight [K, S]."""
    for k in range(positions.shape[0]):
        for s in range(positions.shape[1]):
            p = positions[k, s]
            for m in range(n[k]):
                distance = cells[k, m] - p
                if not -1 < distance <= 1:  # nor where it is not a number
                    continue
                grad_weight[k, s] += slope[k, m] * (1 - abs(distance))
                if distance > 0:
                    grad_positions[k, s] += slope[k, m] * weight[k, s]
                else:
                    grad_positions[k, s] -= slope[k, m] * weight[k, s]


@compiled
def _backward_axes(
    x: Array, shape: tuple[int, int, int], image: Array, box_index: Array, channel_offset: Array, rows: Array,
    row_weight: Array, columns: Array, column_weight: Array, grad: Array, grad_rows: Array, grad_row_weight: Array,
    grad_columns: Array, grad_column_weight: Array, begin: int, end: int
) -> None:  # fmt: skip
    """Gradients of the positions and weights of the boxes box_index[begin:end]; the four outputs start at zero."""
    cell_stride, height, width = shape
    channels = grad.shape[1]
    kh, kw = rows.shape[1], columns.shape[1]
    u, uw, nu = axis_buffers(kh, min(2 * rows.shape[2], height), x.dtype)
    v, vw, nv = axis_buffers(kw, min(2 * columns.shape[2], width), x.dtype)
    row_slope, column_slope = np.empty(u.shape, x.dtype), np.empty(v.shape, x.dtype)
    parts, row_stride = kh * kw, channels + SIDE
    tile, flat = np.empty(parts * row_stride, x.dtype), grad.reshape(-1)
    for r in box_index[begin:end]:
        axis_cells(rows[r], row_weight[r], height, True, u, uw, nu)
        axis_cells(columns[r], column_weight[r], width, True, v, vw, nv)
        row_slope[:] = 0
        column_slope[:] = 0
        transpose(flat, U(r * channels * parts), parts, channels, parts, tile, U(0), row_stride)
        for i in range(kh):
            for j in range(kw):
                for a in range(nu[i]):
                    for b in range(nv[j]):
                        q = ((image[r] * height + u[i, a]) * width + v[j, b]) * cell_stride + channel_offset[i * kw + j]
                        product = cell_product(x, U(q), tile, U((i * kw + j) * row_stride), channels)
                        row_slope[i, a] += vw[j, b] * product
                        column_slope[j, b] += uw[i, a] * product
        _axis_gradients(rows[r], row_weight[r], u, nu, row_slope, grad_rows[r], grad_row_weight[r])
        _axis_gradients(columns[r], column_weight[r], v, nv, column_slope, grad_columns[r], grad_column_weight[r])


def forward(reads: Reads) -> Tensor:
    """Features [R, C, Kh * Kw]; see `regio.kernels.registration`."""
    rows, _, columns, _ = reads.arguments
    parts = rows.shape[1] * columns.shape[1]
    if reads.groups or per_channel.is_faster(reads, parts, channels=2):
        return per_channel.forward(reads, parts)
    out = buffer_pool.empty((len(rows), reads.channels, parts), rows.dtype)
    return per_level.features(_forward, out, reads)


def backward_maps(grad: Tensor, reads: Reads) -> list[Tensor]:
    """A gradient of each map."""
    if reads.groups or per_channel.is_faster(reads, grad.shape[2], channels=16):
        return per_channel.backward_maps(grad, reads)
    return per_level.map_gradients(_backward_map, grad, reads)


def backward_arguments(grad: Tensor, reads: Reads) -> list[Tensor]:
    """The gradients of rows, row_weight, columns and column_weight."""
    return per_level.argument_gradients(_backward_axes, grad, reads)
