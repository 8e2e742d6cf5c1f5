"""CPU kernels of `regio.kernels.sample_points`: the samples of a part are merged into distinct cells, then summed.

Features are written with the channels last, as they are summed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from regio.kernels.arguments import Reads
from regio.kernels.cpu import buffer_pool, per_level
from regio.kernels.cpu.channels_last import add_cells, cell_product, sum_cells
from regio.kernels.cpu.compile import compiled

__all__ = ["backward_arguments", "backward_maps", "forward"]

Array = np.ndarray[Any, Any]
U = np.uintp


@compiled
def _part_cells(
    points: Array, weight: Array, height: int, width: int, keep_zeros: bool, cells: Array, cell_weights: Array
) -> int:
    """Merge samples [S, 2] with their weight [S] into distinct cells and their weights; returns their number.

    Cells of zero weight are left out unless `keep_zeros`: a derivative needs them.
    """
    n = 0
    for s in range(points.shape[0]):
        u, v = points[s]
        if not (u >= -1 and u < width and v >= -1 and v < height) or (weight[s] == 0 and not keep_zeros):
            continue
        left, top = int(np.floor(u)), int(np.floor(v))
        for row in range(max(top, 0), min(top + 2, height)):
            for column in range(max(left, 0), min(left + 2, width)):
                w = weight[s] * (1 - abs(v - row)) * (1 - abs(u - column))
                if w == 0 and not keep_zeros:
                    continue
                cell = row * width + column
                m = 0
                while m < n and cells[m] != cell:
                    m += 1
                if m == n:
                    cells[m] = cell
                    cell_weights[m] = w
                    n += 1
                else:
                    cell_weights[m] += w
    return n


@compiled
def _forward(
    x: Array, shape: tuple[int, int, int], image: Array, box_index: Array, channel_offset: Array, points: Array,
    weight: Array, out: Array, begin: int, end: int
) -> None:  # fmt: skip
    """out[r] for r in box_index[begin:end]. out: [R, K, C]."""
    cell_stride, height, width = shape
    parts, capacity = points.shape[1], 4 * points.shape[2]
    channels = out.shape[2]
    cells, at, w = np.empty(capacity, np.int64), np.empty(capacity, U), np.empty(capacity, x.dtype)
    flat = out.reshape(-1)
    for r in box_index[begin:end]:
        origin = image[r] * height * width
        for k in range(parts):
            n = _part_cells(points[r, k], weight[r, k], height, width, False, cells, w)
            for m in range(n):
                at[m] = U((origin + cells[m]) * cell_stride + channel_offset[k])
            sum_cells(x, at, w, n, flat, U((r * parts + k) * channels), channels)


@compiled
def _backward_map(
    grad_x: Array, shape: tuple[int, int, int], image: Array, box_index: Array, channel_offset: Array, points: Array,
    weight: Array, grad: Array, begin: int, end: int
) -> None:  # fmt: skip
    """Add the gradient of the channels [begin, end) of every group to grad_x. grad: [R, K, C]."""
    cell_stride, height, width = shape
    parts, capacity = points.shape[1], 4 * points.shape[2]
    channels = grad.shape[2]
    cells, at, w = np.empty(capacity, np.int64), np.empty(capacity, U), np.empty(capacity, grad_x.dtype)
    flat = grad.reshape(-1)
    for r in box_index:
        origin = image[r] * height * width
        for k in range(parts):
            n = _part_cells(points[r, k], weight[r, k], height, width, False, cells, w)
            for m in range(n):
                at[m] = U((origin + cells[m]) * cell_stride + channel_offset[k] + begin)
            add_cells(grad_x, at, w, n, flat, U((r * parts + k) * channels + begin), end - begin)


@compiled
def _sample_gradient(
    point: Array, weight: float, cells: Array, product: Array, n: int, height: int, width: int, grad_point: Array
) -> float:
    """Write the gradient of one sample's position; return that of its weight. product: <gradient, cell> of each
    cell."""
    u, v = point
    du, dv, value = weight * 0, weight * 0, weight * 0
    if u >= -1 and u < width and v >= -1 and v < height:
        left, top = int(np.floor(u)), int(np.floor(v))
        for row in range(max(top, 0), min(top + 2, height)):
            for column in range(max(left, 0), min(left + 2, width)):
                m = 0
                while cells[m] != row * width + column:
                    m += 1
                row_weight, column_weight = 1 - abs(v - row), 1 - abs(u - column)
                value += row_weight * column_weight * product[m]
                du += row_weight * product[m] * (1 if column > left else -1)
                dv += column_weight * product[m] * (1 if row > top else -1)
    grad_point[0] = du * weight
    grad_point[1] = dv * weight
    return value


@compiled
def _backward_samples(
    x: Array, shape: tuple[int, int, int], image: Array, box_index: Array, channel_offset: Array, points: Array,
    weight: Array, grad: Array, grad_points: Array, grad_weight: Array, begin: int, end: int
) -> None:  # fmt: skip
    """Gradients of the points and weights of the boxes box_index[begin:end]. grad: [R, K, C]."""
    cell_stride, height, width = shape
    parts, capacity = points.shape[1], 4 * points.shape[2]
    channels = grad.shape[2]
    cells, w, product = np.empty(capacity, np.int64), np.empty(capacity, x.dtype), np.empty(capacity, x.dtype)
    flat = grad.reshape(-1)
    for r in box_index[begin:end]:
        origin = image[r] * height * width
        for k in range(parts):
            n = _part_cells(points[r, k], weight[r, k], height, width, True, cells, w)
            for m in range(n):
                q = U((origin + cells[m]) * cell_stride + channel_offset[k])
                product[m] = cell_product(x, q, flat, U((r * parts + k) * channels), channels)
            for s in range(points.shape[2]):
                grad_weight[r, k, s] = _sample_gradient(
                    points[r, k, s], weight[r, k, s], cells, product, n, height, width, grad_points[r, k, s]
                )


def forward(reads: Reads) -> Tensor:
    """Features [R, C, K], in memory as [R, K, C]; see `regio.kernels.registration`."""
    boxes, parts = reads.arguments[1].shape[:2]
    out = buffer_pool.empty((boxes, parts, reads.channels), reads.dtype)
    return per_level.features(_forward, out, reads).transpose(1, 2)


def backward_maps(grad: Tensor, reads: Reads) -> list[Tensor]:
    """A gradient of each map."""
    return per_level.map_gradients(_backward_map, grad.transpose(1, 2), reads)


def backward_arguments(grad: Tensor, reads: Reads) -> list[Tensor]:
    """The gradients of points and weight."""
    by_part = grad.transpose(1, 2)
    return per_level.argument_gradients(_backward_samples, by_part, reads)
