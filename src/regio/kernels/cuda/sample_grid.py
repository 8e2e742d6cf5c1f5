"""CUDA kernels of `regio.kernels.sample_grid`: a program has some bins of a box and some channels, and goes through the
rows and columns of cells that the bins read, with vectors of channels.

The samples of a bin along one axis fall on few distinct cells (3 for two samples a cell apart), so a first kernel
merges their bilinear weights: a bin then reads the product of its row cells and its column cells, each once.

Gradients of the maps are added with atomic operations, in no fixed order; under
`torch.use_deterministic_algorithms(True)` each tile of a map looks for the boxes that read it, and sums in their order.
An index of an image or a level out of range gives NaN: to look for one would make the CPU wait for the GPU.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from regio.kernels.arguments import Reads
from regio.kernels.cuda import launch
from regio.kernels.cuda.cells import (
    bilinear_weight,
    box_tile,
    first_channel,
    owned_tile,
    store_owned,
    touches,
    writes_result,
)

__all__ = ["backward_arguments", "backward_maps", "forward"]


def forward(reads: Reads) -> Tensor:
    """Features [R, C, Kh * Kw]."""
    rows, _, columns, _ = axes = _contiguous(reads)
    (boxes, kh), kw = rows.shape[:2], columns.shape[1]
    out = reads.maps[0].new_empty((boxes, reads.channels, kh * kw))
    launch.run_by_box(_forward, reads, kh * kw, *_merged(*axes), out, reads.channels, kh, kw)
    return out


def backward_maps(grad: Tensor, reads: Reads) -> list[Tensor]:
    """A gradient of each map."""
    rows, _, columns, _ = axes = _contiguous(reads)
    (boxes, kh, s), (kw, t) = rows.shape, columns.shape[1:]

    def add(sums: list[Tensor]) -> None:
        arguments = (*_merged(*axes), grad, *grad.stride(), reads.channels, kh, kw)
        launch.run_by_box(_scatter, reads, kh * kw, *arguments, sums=sums)

    def add_in_order(sums: list[Tensor]) -> None:
        v, u = rows.flatten(1), columns.flatten(1)
        bounds = torch.stack([v.amin(1), u.amin(1), v.amax(1), u.amax(1)], 1)
        by_part = grad.transpose(1, 2).contiguous()
        launch.run_by_cell(_gather, reads, sums, *axes, bounds, by_part, reads.channels, boxes, kh, kw, s, t)

    return launch.map_gradients(reads, add, add_in_order if rows.numel() and columns.numel() else None)


def backward_arguments(grad: Tensor, reads: Reads) -> list[Tensor]:
    """The gradients of rows, row_weight, columns and column_weight; no two programs write to one place.

    The kernel gives those of the weights of the two cells about each sample of every bin, [R, Kh, Kw, S, 2]; the bins
    of a row share its samples.
    """
    rows, row_weights, columns, column_weights = axes = _contiguous(reads)
    (boxes, kh, s), (kw, t) = rows.shape, columns.shape[1:]
    row_slope, column_slope = rows.new_empty((boxes, kh, kw, s, 2)), rows.new_empty((boxes, kh, kw, t, 2))
    arguments = (*axes, grad, *grad.stride(), row_slope, column_slope, reads.channels, kh, kw, s, t)
    column_cells = triton.next_power_of_2(max(1, 2 * t))
    launch.run_by_box(_slopes, reads, kh * kw, *arguments, all_channels=True, COLUMN_CELLS=column_cells)
    return [
        *_axis_gradients(rows, row_weights, row_slope.sum(2)),
        *_axis_gradients(columns, column_weights, column_slope.sum(1)),
    ]


def _contiguous(reads: Reads) -> list[Tensor]:
    return [a.detach().contiguous() for a in reads.arguments]


def _axis_gradients(positions: Tensor, sample_weights: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """From the gradients [R, K, S, 2] of the weights a * (1 - f) and a * f of the cells about each sample, with a its
    weight and f the fraction of its position, to those of positions and weights."""
    low, high = slope.unbind(-1)
    fraction = (positions - positions.floor()).where(positions.isfinite(), 0)
    return sample_weights * (high - low), low * (1 - fraction) + high * fraction


def _merged(rows: Tensor, row_weights: Tensor, columns: Tensor, column_weights: Tensor) -> tuple[Any, ...]:
    """The distinct cells [R, Kh + Kw, L] which each row and each column of bins reads, their weights and, [R, Kh + Kw],
    their number; and L."""
    (boxes, kh, s), (kw, t) = rows.shape, columns.shape[1:]
    capacity = triton.next_power_of_2(max(1, 2 * s, 2 * t))
    cells = torch.empty((boxes, kh + kw, capacity), dtype=torch.int32, device=rows.device)
    weights, count = cells.new_empty(cells.shape, dtype=rows.dtype), cells.new_empty(cells.shape[:2])
    with torch.cuda.device_of(rows):
        _merge[boxes * (kh + kw),](
            rows, row_weights, columns, column_weights, cells, weights, count, kh, kw, s, t, CAPACITY=capacity,
            num_warps=1 if capacity <= 32 else 4, **launch.FUSED,
        )  # fmt: skip
    return cells, weights, count, capacity


@triton.jit
def _one_cell(position: tl.tensor, sample_weights: tl.tensor, upper: tl.tensor) -> Any:
    """The cell below a sample, or above it if `upper` is 1, and its weight, which is 0 for a position without one."""
    some = tl.abs(position) < 1.0e9
    position = tl.where(some, position, 0)
    low = tl.floor(position)
    weight = sample_weights * tl.where(upper == 1, position - low, 1 - (position - low))
    return low.to(tl.int32) + upper, tl.where(some, weight, 0)


@triton.jit(do_not_specialize=launch.UNSPECIALIZED)
def _merge(
    rows: tl.tensor, row_weights: tl.tensor, columns: tl.tensor, column_weights: tl.tensor, cells: tl.tensor,
    weights: tl.tensor, count: tl.tensor, bin_rows: tl.tensor, bin_columns: tl.tensor, row_samples: tl.tensor,
    column_samples: tl.tensor, CAPACITY: tl.constexpr
) -> None:  # fmt: skip
    """One row or column of bins: distinct cells of non-zero weight, those of the first sample first."""
    program = tl.program_id(0).to(tl.int64)
    r, b = program // (bin_rows + bin_columns), program % (bin_rows + bin_columns)
    if b < bin_rows:
        samples, at = row_samples, (r * bin_rows + b) * row_samples
        position, sample_weights = rows + at, row_weights + at
    else:
        samples, at = column_samples, (r * bin_columns + b - bin_rows) * column_samples
        position, sample_weights = columns + at, column_weights + at
    e = tl.arange(0, CAPACITY)
    real = e < 2 * samples
    p, a = tl.load(position + e // 2, mask=real, other=0.0), tl.load(sample_weights + e // 2, mask=real, other=0.0)
    cell, _ = _one_cell(p, a, e % 2)
    total = tl.zeros((CAPACITY,), weights.dtype.element_ty)
    first = tl.full((CAPACITY,), 2**30, tl.int32)
    for f in range(2 * samples):
        other, weight = _one_cell(tl.load(position + f // 2), tl.load(sample_weights + f // 2), f % 2)
        total += tl.where(cell == other, weight, 0)
        first = tl.minimum(first, tl.where(cell == other, f, 2**30))
    kept = real & (first == e) & (total != 0)
    to = program * CAPACITY + tl.cumsum(kept.to(tl.int32), 0) - 1
    tl.store(cells + to, cell, mask=kept)
    tl.store(weights + to, total, mask=kept)
    tl.store(count + program, tl.sum(kept.to(tl.int32)))


@triton.jit
def _cells_of(
    cells: tl.tensor, weights: tl.tensor, at: tl.tensor, found: tl.tensor, index: tl.tensor, capacity: tl.tensor,
    size: tl.tensor
) -> Any:  # fmt: skip
    """The cell number `index` of each bin along an axis, its weight, and whether there is one in the map."""
    cell = tl.load(cells + at * capacity + index, mask=index < found, other=-1)
    inside = (cell >= 0) & (cell < size)
    return cell, tl.load(weights + at * capacity + index, mask=inside, other=0.0), inside


@triton.jit(do_not_specialize=launch.UNSPECIALIZED)
def _forward(
    x: tl.tensor, image: tl.tensor, level: tl.tensor, group: tl.tensor, images: tl.tensor, levels: tl.tensor,
    this: tl.tensor, height: tl.tensor, width: tl.tensor, cell_stride: tl.tensor, cells: tl.tensor, weights: tl.tensor,
    count: tl.tensor, capacity: tl.tensor, out: tl.tensor, channels: tl.tensor, bin_rows: tl.tensor,
    bin_columns: tl.tensor, GROUPED: tl.constexpr, PARTS: tl.constexpr, CHANNELS: tl.constexpr
) -> None:  # fmt: skip
    parts = bin_rows * bin_columns
    r, k, c = box_tile(parts, channels, PARTS, CHANNELS)
    n, where = tl.load(image + r), tl.load(level + r)
    if writes_result(where, this, levels):
        known = (n >= 0) & (n < images) & (where == this)
        readable = tl.where(known, parts, 0)
        start = x + n * height * width * cell_stride + first_channel(group, k, k < parts, channels, GROUPED)
        row = r * (bin_rows + bin_columns) + k // bin_columns
        column = r * (bin_rows + bin_columns) + bin_rows + k % bin_columns
        row_count = tl.load(count + row, mask=k < readable, other=0)
        column_count = tl.load(count + column, mask=k < readable, other=0)
        acc = tl.zeros((PARTS, CHANNELS), weights.dtype.element_ty)
        for a in range(tl.max(row_count, 0)):
            v, row_weight, in_row = _cells_of(cells, weights, row, row_count, a, capacity, height)
            for b in range(tl.max(column_count, 0)):
                u, column_weight, in_column = _cells_of(cells, weights, column, column_count, b, capacity, width)
                cell = start + (v * width + u).to(tl.int64) * cell_stride
                reads = (in_row & in_column)[:, None] & (c < channels)[None, :]
                value = tl.load(cell[:, None] + c[None, :], mask=reads, other=0.0)
                acc += (row_weight * column_weight)[:, None] * value.to(acc.dtype)
        result = tl.where(known, acc, float("nan"))
        to = out + (r * channels + c)[None, :] * parts + k[:, None]
        tl.store(to, result.to(out.dtype.element_ty), mask=(k < parts)[:, None] & (c < channels)[None, :])


@triton.jit(do_not_specialize=launch.UNSPECIALIZED)
def _scatter(
    x: tl.tensor, image: tl.tensor, level: tl.tensor, group: tl.tensor, images: tl.tensor, levels: tl.tensor,
    this: tl.tensor, height: tl.tensor, width: tl.tensor, cell_stride: tl.tensor, sums: tl.tensor, cells: tl.tensor,
    weights: tl.tensor, count: tl.tensor, capacity: tl.tensor, grad: tl.tensor, grad_r: tl.tensor, grad_c: tl.tensor,
    grad_k: tl.tensor, channels: tl.tensor, bin_rows: tl.tensor, bin_columns: tl.tensor, GROUPED: tl.constexpr,
    PARTS: tl.constexpr, CHANNELS: tl.constexpr
) -> None:  # fmt: skip
    parts = bin_rows * bin_columns
    r, k, c = box_tile(parts, channels, PARTS, CHANNELS)
    n = tl.load(image + r)
    if (n >= 0) & (n < images) & (tl.load(level + r) == this):
        start = sums + n * height * width * cell_stride + first_channel(group, k, k < parts, channels, GROUPED)
        real = (k < parts)[:, None] & (c < channels)[None, :]
        g = tl.load(grad + r * grad_r + (k * grad_k)[:, None] + (c * grad_c)[None, :], mask=real, other=0.0)
        g = g.to(weights.dtype.element_ty)
        row = r * (bin_rows + bin_columns) + k // bin_columns
        column = r * (bin_rows + bin_columns) + bin_rows + k % bin_columns
        row_count = tl.load(count + row, mask=k < parts, other=0)
        column_count = tl.load(count + column, mask=k < parts, other=0)
        for a in range(tl.max(row_count, 0)):
            v, row_weight, in_row = _cells_of(cells, weights, row, row_count, a, capacity, height)
            for b in range(tl.max(column_count, 0)):
                u, column_weight, in_column = _cells_of(cells, weights, column, column_count, b, capacity, width)
                cell = start + (v * width + u).to(tl.int64) * cell_stride
                added = (row_weight * column_weight)[:, None] * g
                reads = (in_row & in_column)[:, None] & (c < channels)[None, :]
                tl.atomic_add(cell[:, None] + c[None, :], added, mask=reads, sem="relaxed")


@triton.jit
def _bilinear_weights(position: tl.tensor, sample_weights: tl.tensor, samples: tl.tensor, cell: tl.tensor) -> Any:
    """The weights of cells along an axis in one bin."""
    total = tl.zeros(cell.shape, sample_weights.dtype.element_ty)
    for s in range(samples):
        h = bilinear_weight(tl.load(position + s), cell)
        total += tl.where(h > 0, h * tl.load(sample_weights + s), 0)
    return total


@triton.jit(do_not_specialize=launch.UNSPECIALIZED)
def _gather(
    x: tl.tensor, image: tl.tensor, level: tl.tensor, group: tl.tensor, images: tl.tensor, levels: tl.tensor,
    this: tl.tensor, height: tl.tensor, width: tl.tensor, cell_stride: tl.tensor, sums: tl.tensor, rows: tl.tensor,
    row_weights: tl.tensor, columns: tl.tensor, column_weights: tl.tensor, bounds: tl.tensor, grad: tl.tensor,
    channels: tl.tensor, boxes: tl.tensor, bin_rows: tl.tensor, bin_columns: tl.tensor, row_samples: tl.tensor,
    column_samples: tl.tensor, GROUPED: tl.constexpr, SIDE: tl.constexpr, CHANNELS: tl.constexpr, BOXES: tl.constexpr
) -> None:  # fmt: skip
    """grad: [R, K, C], contiguous."""
    n, q, c, top, left, v, u = owned_tile(channels, width, SIDE, CHANNELS)
    acc = tl.zeros((SIDE * SIDE, CHANNELS), rows.dtype.element_ty)
    for first in range(0, boxes, BOXES):
        some = first + tl.arange(0, BOXES).to(tl.int64)
        near = touches(bounds, image, level, some, some < boxes, n, this, top, left, SIDE)
        if tl.sum(near.to(tl.int32), 0) > 0:
            for box in range(first, tl.minimum(first + BOXES, boxes)):
                r = tl.full((), 0, tl.int64) + box
                if touches(bounds, image, level, r, r < boxes, n, this, top, left, SIDE):
                    for i in range(bin_rows):
                        at = (r * bin_rows + i) * row_samples
                        row = _bilinear_weights(rows + at, row_weights + at, row_samples, v)
                        if tl.sum((row != 0).to(tl.int32), 0) > 0:
                            for j in range(bin_columns):
                                k = i * bin_columns + j
                                if q == first_channel(group, k, k >= 0, 1, GROUPED):
                                    at = (r * bin_columns + j) * column_samples
                                    w = row * _bilinear_weights(columns + at, column_weights + at, column_samples, u)
                                    to = (r * bin_rows * bin_columns + k) * channels
                                    g = tl.load(grad + to + c, mask=c < channels, other=0.0).to(acc.dtype)
                                    acc += tl.where((w != 0)[:, None], w[:, None] * g[None, :], 0)
    store_owned(sums, acc, n, q, c, v, u, height, width, cell_stride, channels)


@triton.jit(do_not_specialize=launch.UNSPECIALIZED)
def _slopes(
    x: tl.tensor, image: tl.tensor, level: tl.tensor, group: tl.tensor, images: tl.tensor, levels: tl.tensor,
    this: tl.tensor, height: tl.tensor, width: tl.tensor, cell_stride: tl.tensor, rows: tl.tensor,
    row_weights: tl.tensor, columns: tl.tensor, column_weights: tl.tensor, grad: tl.tensor, grad_r: tl.tensor,
    grad_c: tl.tensor, grad_k: tl.tensor, row_slope: tl.tensor, column_slope: tl.tensor, channels: tl.tensor,
    bin_rows: tl.tensor, bin_columns: tl.tensor, row_samples: tl.tensor, column_samples: tl.tensor,
    GROUPED: tl.constexpr, COLUMN_CELLS: tl.constexpr, PARTS: tl.constexpr, CHANNELS: tl.constexpr
) -> None:  # fmt: skip
    """Gradients of the weights of the cells below and above each sample, [R, Kh * Kw, 2 * samples] along both axes."""
    parts = bin_rows * bin_columns
    r, k, _ = box_tile(parts, CHANNELS, PARTS, CHANNELS)
    n, where = tl.load(image + r), tl.load(level + r)
    if writes_result(where, this, levels):
        readable = tl.where((n >= 0) & (n < images) & (where == this), parts, 0)
        start = x + n * height * width * cell_stride + first_channel(group, k, k < parts, channels, GROUPED)
        row = (r * bin_rows + k // bin_columns) * row_samples
        column = (r * bin_columns + k % bin_columns) * column_samples
        e = tl.arange(0, COLUMN_CELLS)
        by_column = tl.zeros((PARTS, COLUMN_CELLS), rows.dtype.element_ty)
        for a in range(2 * row_samples):
            p = tl.load(rows + row + a // 2, mask=k < readable, other=float("nan"))
            v, row_weight = _one_cell(p, tl.load(row_weights + row + a // 2, mask=k < readable, other=0.0), a % 2)
            in_row = (p >= -1) & (p < height) & (v >= 0) & (v < height)
            by_row = tl.zeros((PARTS,), rows.dtype.element_ty)
            for b in range(2 * column_samples):
                p = tl.load(columns + column + b // 2, mask=k < readable, other=float("nan"))
                sample_weights = tl.load(column_weights + column + b // 2, mask=k < readable, other=0.0)
                u, column_weight = _one_cell(p, sample_weights, b % 2)
                inside = in_row & (p >= -1) & (p < width) & (u >= 0) & (u < width)
                cell = start + (v * width + u).to(tl.int64) * cell_stride
                product = tl.zeros((PARTS,), rows.dtype.element_ty)
                for first in range(0, channels, CHANNELS):
                    c = first + tl.arange(0, CHANNELS)
                    reads = inside[:, None] & (c < channels)[None, :]
                    at = grad + r * grad_r + (k * grad_k)[:, None] + (c * grad_c)[None, :]
                    g = tl.load(at, mask=reads, other=0.0).to(product.dtype)
                    product += tl.sum(g * tl.load(cell[:, None] + c[None, :], mask=reads, other=0.0).to(g.dtype), 1)
                by_row += column_weight * product
                by_column += tl.where(e[None, :] == b, (row_weight * product)[:, None], 0)
            tl.store(row_slope + (r * parts + k) * 2 * row_samples + a, by_row, mask=k < parts)
        to = column_slope + ((r * parts + k) * 2 * column_samples)[:, None] + e[None, :]
        tl.store(to, by_column, mask=(k < parts)[:, None] & (e < 2 * column_samples)[None, :])
