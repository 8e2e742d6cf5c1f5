"""CPU kernels of `regio.kernels.sample_grid` that go through the channels one by one.

They serve parts that read channels of their own, few channels, and few boxes.

For one output channel the parts read one channel of every group, often 49 planes of a few thousand cells, which stay in
the second-level cache while all boxes pass by. The cells and weights of all bins are found once, before. Maps are read
where they lie, in any order of groups and channels, as long as the cells of a channel follow each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regio.kernels.arguments import Reads, by_group
from regio.kernels.cpu import buffer_pool, layout, per_level, threads
from regio.kernels.cpu.axis_cells import axis_buffers, axis_cells
from regio.kernels.cpu.compile import compiled
from regio.kernels.cpu.inner_loops import WINDOW, add_window, sum_window

__all__ = ["backward_maps", "forward", "is_faster"]

Array = np.ndarray[Any, Any]
U = np.uintp

_BOXES = 64  # fewer are looked at before another thread has begun
_WORTH_A_COPY = 64  # cells a bin: a channel at a time takes some twenty times as long a bin as all together


@compiled
def _find_cells(
    box_index: Array, size: tuple[int, int], rows: Array, row_weight: Array, columns: Array, column_weight: Array,
    at: Array, row_cell_weights: Array, n_rows: Array, first: Array, column_cell_weights: Array, pieces: Array,
    begin: int, end: int
) -> None:  # fmt: skip
    """Where the bins of the boxes box_index[begin:end] read. Of each bin of rows: the offsets `at` [R, Kh, L] of its
    cells in a plane, their weights, and their number [R, Kh]. Of each bin of columns: the first cell [R, Kw], the
    weights [R, Kw, M] of the cells from there on, and how many pieces of WINDOW of them there are [R, Kw]."""
    height, width = size
    v = np.empty((rows.shape[1], at.shape[2]), np.int64)
    u, uw, nu = axis_buffers(columns.shape[1], max(1, min(2 * columns.shape[2], width)), column_cell_weights.dtype)
    for r in box_index[begin:end]:
        axis_cells(rows[r], row_weight[r], height, False, v, row_cell_weights[r], n_rows[r])
        for k in range(rows.shape[1]):
            for m in range(n_rows[r, k]):
                at[r, k, m] = U(v[k, m] * width)
        axis_cells(columns[r], column_weight[r], width, False, u, uw, nu)
        for k in range(columns.shape[1]):
            low, high = width, 0
            for m in range(nu[k]):
                low, high = min(low, u[k, m]), max(high, u[k, m] + 1)
            first[r, k], pieces[r, k] = low, max(0, high - low + WINDOW - 1) // WINDOW
            column_cell_weights[r, k, : pieces[r, k] * WINDOW] = 0
            for m in range(nu[k]):
                column_cell_weights[r, k, u[k, m] - low] = uw[k, m]


@compiled
def _sum(
    x: Array, steps: tuple[int, int, int], image: Array, box_index: Array, groups: Array, count: int, rows: Array,
    row_cell_weights: Array, n_rows: Array, first: Array, column_cell_weights: Array, pieces: Array, out: Array,
    begin: int, end: int
) -> None:  # fmt: skip
    """out[:, c, k] for the pairs (c, group of k) number [begin, end). out: [R, C, K]."""
    (boxes, kh), kw = n_rows.shape, first.shape[1]
    capacity, windows = rows.size // (boxes * kh), column_cell_weights.size // (boxes * kw)
    for c in range(begin // count, -(-end // count)):
        low, high = begin - c * count, end - c * count
        for r in box_index:
            origin = image[r] * steps[0] + c * steps[2]
            for i in range(kh):
                for j in range(kw):
                    g = groups[i * kw + j]
                    if low <= g < high:
                        at = U(origin + g * steps[1] + first[r, j])
                        out[r, c, i * kw + j] = sum_window(
                            x, at, rows, row_cell_weights, (r * kh + i) * capacity, n_rows[r, i], column_cell_weights,
                            (r * kw + j) * windows, pieces[r, j],
                        )  # fmt: skip


@compiled
def _add(
    grad_x: Array, steps: tuple[int, int, int], image: Array, box_index: Array, groups: Array, count: int, rows: Array,
    row_cell_weights: Array, n_rows: Array, first: Array, column_cell_weights: Array, pieces: Array, grad: Array,
    begin: int, end: int
) -> None:  # fmt: skip
    """Add to the planes (c, group) number [begin, end)."""
    (boxes, kh), kw = n_rows.shape, first.shape[1]
    capacity, windows = rows.size // (boxes * kh), column_cell_weights.size // (boxes * kw)
    for c in range(begin // count, -(-end // count)):
        low, high = begin - c * count, end - c * count
        for r in box_index:
            origin = image[r] * steps[0] + c * steps[2]
            for i in range(kh):
                for j in range(kw):
                    g = groups[i * kw + j]
                    if low <= g < high:
                        at = U(origin + g * steps[1] + first[r, j])
                        add_window(
                            grad_x, at, rows, row_cell_weights, (r * kh + i) * capacity, n_rows[r, i],
                            column_cell_weights, (r * kw + j) * windows, pieces[r, j], grad[r, c, i * kw + j],
                        )  # fmt: skip


def _cells_of_bins(arguments: Sequence[Array], height: int, width: int, box_index: Array) -> tuple[Array, ...]:
    """What `_find_cells` finds, the offsets and the weights of all bins one after the other."""
    rows, _, columns, _ = arguments
    (boxes, kh, samples), kw = rows.shape, columns.shape[1]
    shape = boxes, kh, max(1, min(2 * samples, height))
    at, row_cell_weights, n_rows = np.empty(shape, U), np.empty(shape, rows.dtype), np.empty((boxes, kh), np.int64)
    first, pieces = np.empty((boxes, kw), np.int64), np.empty((boxes, kw), np.int64)
    column_cell_weights = np.empty((boxes, kw, -(-width // WINDOW) * WINDOW), rows.dtype)
    found = at, row_cell_weights, n_rows, first, column_cell_weights, pieces
    threads.share(partial(_find_cells, box_index, (height, width), *arguments, *found), len(box_index), grain=_BOXES)
    return at.reshape(-1), row_cell_weights.reshape(-1), n_rows, first, column_cell_weights.reshape(-1), pieces


def is_faster(reads: Reads, parts: int, channels: int) -> bool:
    """Whether to go through the channels one by one although all `parts` read all of them.

    For at most so many `channels`, and for so few bins of all boxes that copying the maps into cells would take
    longer; not for maps that are stored as cells.
    """
    bins, cells = len(reads.image) * parts, sum(x.shape[-2:].numel() for x in reads.maps)
    few = reads.channels <= channels or _WORTH_A_COPY * bins < cells
    return few and all(layout.has_planes(by_group(x)) for x in reads.maps)


def _share(work: Callable[[int, int], object], channels: int, count: int, features: int) -> None:
    """Share the planes between threads, whole channels where there are enough. features: those of a plane."""
    unit = -(-count // -(-torch.get_num_threads() // max(1, channels)))
    threads.share(work, channels * count, grain=unit * -(-per_level.grain(features) // unit), shares=4)


def forward(reads: Reads, parts: int) -> Tensor:
    """Features [R, C, Kh * Kw] of maps [N, G, C, H, W], or [N, C, H, W] as one group."""
    dtype, (count, channels) = reads.dtype, by_group(reads.maps[0]).shape[1:3]
    out = buffer_pool.empty((len(reads.image), channels, parts), dtype)
    result, groups = out.numpy(), np.array(reads.groups or [0] * parts, np.int64)
    for x, boxes, ((_, h, w), image, _, _, *where) in per_level.levels(out, reads):
        if len(boxes):
            source = layout.planes(by_group(x), dtype)
            bins = _cells_of_bins(where, h, w, boxes)
            fixed = source.stride()[:3], image, boxes, groups, count, *bins, result
            _share(partial(_sum, layout.flat(source), *fixed), channels, count, len(boxes) * parts // count)
    return out.to(reads.maps[0].dtype)


def backward_maps(grad: Tensor, reads: Reads) -> list[Tensor]:
    """A gradient of each map. A thread has planes of its own, so the order of the sums is that of the boxes."""
    dtype, (count, channels), parts = reads.dtype, by_group(reads.maps[0]).shape[1:3], grad.shape[2]
    (g,) = layout.plain(grad.to(dtype))
    grads, groups = [], np.array(reads.groups or [0] * parts, np.int64)
    for x, boxes, ((_, h, w), image, _, _, *where) in per_level.levels(grad, reads):
        result = layout.empty_like_map(x, dtype)
        target = by_group(result)
        own = layout.planes_for(target).zero_()
        if len(boxes):
            bins = _cells_of_bins(where, h, w, boxes)
            fixed = own.stride()[:3], image, boxes, groups, count, *bins, g
            _share(partial(_add, layout.flat(own), *fixed), channels, count, len(boxes) * parts // count)
        layout.put_planes(own, target)
        grads.append(result.to(x.dtype))
    return grads
