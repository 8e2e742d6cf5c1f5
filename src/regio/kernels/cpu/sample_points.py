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
def _part_cells(points: Array, coef: Array, height: int, width: int, keep: bool, cells: Array, weights: Array) -> int:
    """Merge samples [S, 2] of weight coef [S] into distinct cells and their weights; returns their number.

    Cells of zero weight are left out unless `keep`: a derivative needs them.
    """
    n = 0
    for s in range(points.shape[0]):
        u, v = points[s]
        if not (u >= -1 and u < width and v >= -1 and v < height) or (coef[s] == 0 and not keep):
            continue
        left, top = int(np.floor(u)), int(np.floor(v))
        for row in range(max(top, 0), min(top + 2, height)):
            for column in range(max(left, 0), min(left + 2, width)):
                w = coef[s] * (1 - abs(v - row)) * (1 - abs(u - column))
                if w == 0 and not keep:
                    continue
                cell = row * width + column
                m = 0
                while m < n and cells[m] != cell:
                    m += 1
                if m == n:
                    cells[m] = cell
                    weights[m] = w
                    n += 1
                else:
                    weights[m] += w
    return n


@compiled
def _forward(
    x: Array, shape: tuple[int, int, int], image: Array, which: Array, starts: Array, points: Array, coef: Array,
    out: Array, begin: int, end: int
) -> None:  # fmt: skip
    """out[r] for r in which[begin:end]. out: [R, K, C]."""
    pitch, height, width = shape
    parts, room = points.shape[1], 4 * points.shape[2]
    channels = out.shape[2]
    cells, at, w = np.empty(room, np.int64), np.empty(room, U), np.empty(room, x.dtype)
    flat = out.reshape(-1)
    for r in which[begin:end]:
        origin = image[r] * height * width
        for k in range(parts):
            n = _part_cells(points[r, k], coef[r, k], height, width, False, cells, w)
            for m in range(n):
                at[m] = U((origin + cells[m]) * pitch + starts[k])
            sum_cells(x, at, w, n, flat, U((r * parts + k) * channels), channels)


@compiled
def _backward_map(
    grad_x: Array, shape: tuple[int, int, int], image: Array, which: Array, starts: Array, points: Array, coef: Array,
    grad: Array, begin: int, end: int
) -> None:  # fmt: skip
    """Add the gradient of the channels [begin, end) of every group to grad_x. grad: [R, K, C]."""
    pitch, height, width = shape
    parts, room = points.shape[1], 4 * points.shape[2]
    channels = grad.shape[2]
    cells, at, w = np.empty(room, np.int64), np.empty(room, U), np.empty(room, grad_x.dtype)
    flat = grad.reshape(-1)
    for r in which:
        origin = image[r] * height * width
        for k in range(parts):
            n = _part_cells(points[r, k], coef[r, k], height, width, False, cells, w)
            for m in range(n):
                at[m] = U((origin + cells[m]) * pitch + starts[k] + begin)
            add_cells(grad_x, at, w, n, flat, U((r * parts + k) * channels + begin), end - begin)


@compiled
def _sample_gradient(
    point: Array, weight: float, cells: Array, product: Array, n: int, height: int, width: int, grad_point: Array
) -> float:
    """Write the gradient of one sample's position; return that of its coef. product: <gradient, cell> of each cell."""
    u, v = point
    du, dv, value = weight * 0, weight * 0, weight * 0
    if u >= -1 and u < width and v >= -1 and v < height:
        left, top = int(np.floor(u)), int(np.floor(v))
        for row in range(max(top, 0), min(top + 2, height)):
            for column in range(max(left, 0), min(left + 2, width)):
                m = 0
                while cells[m] != row * width + column:
                    m += 1
                row_hat, column_hat = 1 - abs(v - row), 1 - abs(u - column)
                value += row_hat * column_hat * product[m]
                du += row_hat * product[m] * (1 if column > left else -1)
                dv += column_hat * product[m] * (1 if row > top else -1)
    grad_point[0] = du * weight
    grad_point[1] = dv * weight
    return value


@compiled
def _backward_samples(
    x: Array, shape: tuple[int, int, int], image: Array, which: Array, starts: Array, points: Array, coef: Array,
    grad: Array, grad_points: Array, grad_coef: Array, begin: int, end: int
) -> None:  # fmt: skip
    """Gradients of the points and coefs of the boxes which[begin:end]. grad: [R, K, C]."""
    pitch, height, width = shape
    parts, room = points.shape[1], 4 * points.shape[2]
    channels = grad.shape[2]
    cells, w, product = np.empty(room, np.int64), np.empty(room, x.dtype), np.empty(room, x.dtype)
    flat = grad.reshape(-1)
    for r in which[begin:end]:
        origin = image[r] * height * width
        for k in range(parts):
            n = _part_cells(points[r, k], coef[r, k], height, width, True, cells, w)
            for m in range(n):
                q = U((origin + cells[m]) * pitch + starts[k])
                product[m] = cell_product(x, q, flat, U((r * parts + k) * channels), channels)
            for s in range(points.shape[2]):
                grad_coef[r, k, s] = _sample_gradient(
                    points[r, k, s], coef[r, k, s], cells, product, n, height, width, grad_points[r, k, s]
                )


def forward(reads: Reads) -> Tensor:
    """Features [R, C, K], a view of [R, K, C]; see `regio.kernels.registration`."""
    boxes, parts = reads.arguments[1].shape[:2]
    out = buffer_pool.empty((boxes, parts, reads.channels), reads.dtype)
    return per_level.features(_forward, out, reads).transpose(1, 2)


def backward_maps(grad: Tensor, reads: Reads) -> list[Tensor]:
    """A gradient of each map."""
    return per_level.map_gradients(_backward_map, grad.transpose(1, 2), reads)


def backward_arguments(grad: Tensor, reads: Reads) -> list[Tensor]:
    """The gradients of points and coef."""
    by_part = grad.transpose(1, 2)
    return per_level.argument_gradients(_backward_samples, by_part, reads)
