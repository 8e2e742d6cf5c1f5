"""CUDA kernels of `regio.kernels.pool_max`: a program has some bins of a box and some channels, and goes through the
cells of the bins in row-major order, with vectors of channels.

The backward kernel finds the largest cells again: that takes less memory than to keep as many indices as there are
results. Gradients are added with atomic operations, in no fixed order; under
`torch.use_deterministic_algorithms(True)` the indices are written out, and each tile of a map looks for the boxes that
read it, and sums in their order. An index of an image or a level out of range gives NaN: to look for one would make
the CPU wait for the GPU.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from regio.kernels.arguments import Reads
from regio.kernels.cuda import launch
from regio.kernels.cuda.cells import box_tile, first_channel, owned_tile, store_owned, touches, writes_result

__all__ = ["backward_maps", "forward"]


def forward(reads: Reads) -> Tensor:
    """Features [R, C, Kh * Kw]."""
    sides, (boxes, kh, kw) = _sides(reads)
    out = reads.maps[0].new_empty((boxes, reads.channels, kh * kw))
    launch.run_by_box(_forward, reads, kh * kw, *sides, out, reads.channels, kh, kw)
    return out


def backward_maps(grad: Tensor, reads: Reads) -> list[Tensor]:
    """A gradient of each map."""
    sides, (boxes, kh, kw) = _sides(reads)
    parts = kh * kw

    def add(sums: list[Tensor]) -> None:
        arguments = (*sides, grad, *grad.stride(), reads.channels, kh, kw)
        launch.run_by_box(_scatter, reads, parts, *arguments, sums=sums)

    def add_in_order(sums: list[Tensor]) -> None:
        top, bottom, left, right = sides
        bounds = torch.stack([top.amin(1), left.amin(1), bottom.amax(1) - 1, right.amax(1) - 1], 1).float()
        by_part = grad.transpose(1, 2).contiguous()
        largest = torch.empty((boxes, parts, reads.channels), dtype=torch.int32, device=grad.device)
        launch.run_by_box(_largest_cells, reads, parts, *sides, largest, reads.channels, kh, kw)
        launch.run_by_cell(_gather, reads, sums, bounds, largest, by_part, reads.channels, boxes, parts)

    return launch.map_gradients(reads, add, add_in_order if parts else None)


def _sides(reads: Reads) -> tuple[list[Tensor], tuple[int, int, int]]:
    """top, bottom, left and right, and the numbers of boxes and of rows and columns of bins."""
    top, _, left, _ = sides = [a.contiguous() for a in reads.arguments]
    return sides, (*top.shape, left.shape[1])


@triton.jit
def _range(low: tl.tensor, high: tl.tensor, at: tl.tensor, real: tl.tensor, size: tl.tensor) -> Any:
    """The first cell of each bin along an axis, and how many there are in the map."""
    first = tl.maximum(tl.load(low + at, mask=real, other=0), 0)
    last = tl.minimum(tl.load(high + at, mask=real, other=0), size)
    count = tl.maximum(last - first, 0).to(tl.int32)
    return tl.where(count > 0, first, 0).to(tl.int32), count


@triton.jit
def _largest(
    start: tl.tensor, height: tl.tensor, width: tl.tensor, cell_stride: tl.tensor, r: tl.tensor, k: tl.tensor,
    c: tl.tensor, top: tl.tensor, bottom: tl.tensor, left: tl.tensor, right: tl.tensor, channels: tl.tensor,
    bin_rows: tl.tensor, bin_columns: tl.tensor, readable: tl.tensor
) -> Any:  # fmt: skip
    """The largest cell of each bin and channel, and its number in the map, -1 for a bin without cells.

    start: where each part's channels begin in cell 0."""
    SUM: tl.constexpr = tl.float64 if start.dtype.scalar.element_ty == tl.float64 else tl.float32
    row, column = r * bin_rows + k // bin_columns, r * bin_columns + k % bin_columns
    v, rows = _range(top, bottom, row, k < readable, height)
    u, columns = _range(left, right, column, k < readable, width)
    best = tl.zeros((k.shape[0], c.shape[0]), SUM)
    where = tl.full((k.shape[0], c.shape[0]), -1, tl.int32)
    for a in range(tl.max(rows, 0)):
        for b in range(tl.max(columns, 0)):
            cell = (v + a) * width + u + b
            reads = ((a < rows) & (b < columns))[:, None] & (c < channels)[None, :]
            at = start + cell.to(tl.int64) * cell_stride
            value = tl.load(at[:, None] + c[None, :], mask=reads, other=0.0).to(SUM)
            larger = reads & ((where < 0) | (value > best) | (value != value))
            best, where = tl.where(larger, value, best), tl.where(larger, cell[:, None], where)
    return best, where


@triton.jit(do_not_specialize=launch.UNSPECIALIZED)
def _forward(
    x: tl.tensor, image: tl.tensor, level: tl.tensor, group: tl.tensor, images: tl.tensor, levels: tl.tensor,
    this: tl.tensor, height: tl.tensor, width: tl.tensor, cell_stride: tl.tensor, top: tl.tensor, bottom: tl.tensor,
    left: tl.tensor, right: tl.tensor, out: tl.tensor, channels: tl.tensor, bin_rows: tl.tensor,
    bin_columns: tl.tensor, GROUPED: tl.constexpr, PARTS: tl.constexpr, CHANNELS: tl.constexpr
) -> None:  # fmt: skip
    parts = bin_rows * bin_columns
    r, k, c = box_tile(parts, channels, PARTS, CHANNELS)
    n, where = tl.load(image + r), tl.load(level + r)
    if writes_result(where, this, levels):
        known = (n >= 0) & (n < images) & (where == this)
        start = x + n * height * width * cell_stride + first_channel(group, k, k < parts, channels, GROUPED)
        best, _ = _largest(
            start, height, width, cell_stride, r, k, c, top, bottom, left, right, channels, bin_rows, bin_columns,
            tl.where(known, parts, 0),
        )  # fmt: skip
        result = tl.where(known, best, float("nan")).to(out.dtype.element_ty)
        to = out + (r * channels + c)[None, :] * parts + k[:, None]
        tl.store(to, result, mask=(k < parts)[:, None] & (c < channels)[None, :])


@triton.jit(do_not_specialize=launch.UNSPECIALIZED)
def _scatter(
    x: tl.tensor, image: tl.tensor, level: tl.tensor, group: tl.tensor, images: tl.tensor, levels: tl.tensor,
    this: tl.tensor, height: tl.tensor, width: tl.tensor, cell_stride: tl.tensor, sums: tl.tensor, top: tl.tensor,
    bottom: tl.tensor, left: tl.tensor, right: tl.tensor, grad: tl.tensor, grad_r: tl.tensor, grad_c: tl.tensor,
    grad_k: tl.tensor, channels: tl.tensor, bin_rows: tl.tensor, bin_columns: tl.tensor, GROUPED: tl.constexpr,
    PARTS: tl.constexpr, CHANNELS: tl.constexpr
) -> None:  # fmt: skip
    parts = bin_rows * bin_columns
    r, k, c = box_tile(parts, channels, PARTS, CHANNELS)
    n = tl.load(image + r)
    if (n >= 0) & (n < images) & (tl.load(level + r) == this):
        origin = n * height * width * cell_stride + first_channel(group, k, k < parts, channels, GROUPED)
        _, cell = _largest(
            x + origin, height, width, cell_stride, r, k, c, top, bottom, left, right, channels, bin_rows, bin_columns,
            parts,
        )  # fmt: skip
        real = (k < parts)[:, None] & (c < channels)[None, :]
        g = tl.load(grad + r * grad_r + (k * grad_k)[:, None] + (c * grad_c)[None, :], mask=real, other=0.0)
        to = sums + origin[:, None] + cell.to(tl.int64) * cell_stride + c[None, :]
        tl.atomic_add(to, g.to(sums.dtype.element_ty), mask=real & (cell >= 0), sem="relaxed")


@triton.jit(do_not_specialize=launch.UNSPECIALIZED)
def _largest_cells(
    x: tl.tensor, image: tl.tensor, level: tl.tensor, group: tl.tensor, images: tl.tensor, levels: tl.tensor,
    this: tl.tensor, height: tl.tensor, width: tl.tensor, cell_stride: tl.tensor, top: tl.tensor, bottom: tl.tensor,
    left: tl.tensor, right: tl.tensor, largest: tl.tensor, channels: tl.tensor, bin_rows: tl.tensor,
    bin_columns: tl.tensor, GROUPED: tl.constexpr, PARTS: tl.constexpr, CHANNELS: tl.constexpr
) -> None:  # fmt: skip
    """largest: [R, K, C]."""
    parts = bin_rows * bin_columns
    r, k, c = box_tile(parts, channels, PARTS, CHANNELS)
    n = tl.load(image + r)
    if (n >= 0) & (n < images) & (tl.load(level + r) == this):
        start = x + n * height * width * cell_stride + first_channel(group, k, k < parts, channels, GROUPED)
        _, cell = _largest(
            start, height, width, cell_stride, r, k, c, top, bottom, left, right, channels, bin_rows, bin_columns,
            parts,
        )  # fmt: skip
        to = largest + ((r * parts + k) * channels)[:, None] + c[None, :]
        tl.store(to, cell, mask=(k < parts)[:, None] & (c < channels)[None, :])


@triton.jit(do_not_specialize=launch.UNSPECIALIZED)
def _gather(
    x: tl.tensor, image: tl.tensor, level: tl.tensor, group: tl.tensor, images: tl.tensor, levels: tl.tensor,
    this: tl.tensor, height: tl.tensor, width: tl.tensor, cell_stride: tl.tensor, sums: tl.tensor, bounds: tl.tensor,
    largest: tl.tensor, grad: tl.tensor, channels: tl.tensor, boxes: tl.tensor, parts: tl.tensor, GROUPED: tl.constexpr,
    SIDE: tl.constexpr, CHANNELS: tl.constexpr, BOXES: tl.constexpr
) -> None:  # fmt: skip
    """largest, grad: [R, K, C], contiguous."""
    n, q, c, top, left, v, u = owned_tile(channels, width, SIDE, CHANNELS)
    mine = ((v < height) & (u < width))[:, None] & (c < channels)[None, :]
    acc = tl.zeros((SIDE * SIDE, CHANNELS), sums.dtype.element_ty)
    for first in range(0, boxes, BOXES):
        some = first + tl.arange(0, BOXES).to(tl.int64)
        near = touches(bounds, image, level, some, some < boxes, n, this, top, left, SIDE)
        if tl.sum(near.to(tl.int32), 0) > 0:
            for box in range(first, tl.minimum(first + BOXES, boxes)):
                r = tl.full((), 0, tl.int64) + box
                if touches(bounds, image, level, r, r < boxes, n, this, top, left, SIDE):
                    for k in range(parts):
                        if q == first_channel(group, k, k < parts, 1, GROUPED):
                            at = (r * parts + k) * channels + c
                            cell = tl.load(largest + at, mask=c < channels, other=-1)
                            g = tl.load(grad + at, mask=c < channels, other=0.0).to(acc.dtype)
                            acc += tl.where(mine & ((v * width + u)[:, None] == cell[None, :]), g[None, :], 0)
    store_owned(sums, acc, n, q, c, v, u, height, width, cell_stride, channels)
