"""CPU kernels of `regio.kernels.pool_max`: a bin reads its block of cells in row-major order, all channels together.

The backward kernel finds the largest cells again: that is cheaper than writing and reading as many indices as there
are results.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from regio.kernels.arguments import Reads
from regio.kernels.cpu import buffer_pool, per_level
from regio.kernels.cpu.channels_last import BLOCK, add_to_maximum, maximum, transpose
from regio.kernels.cpu.compile import compiled
from regio.kernels.cpu.inner_loops import SIDE

__all__ = ["backward_maps", "forward"]

Array = np.ndarray[Any, Any]
U = np.uintp


@compiled
def _forward(
    x: Array, shape: tuple[int, int, int], image: Array, box_index: Array, channel_offset: Array, top: Array,
    bottom: Array, left: Array, right: Array, out: Array, begin: int, end: int
) -> None:  # fmt: skip
    """out[r] for r in box_index[begin:end]. out: [R, C, Kh * Kw]."""
    cell_stride, height, width = shape
    channels, parts = out.shape[1:]
    kh, kw = top.shape[1], left.shape[1]
    row_stride = min(BLOCK, channels) + SIDE  # not a power of two: the transposition would fall on few cache sets
    tile, flat = np.empty(parts * row_stride, x.dtype), out.reshape(-1)
    for r in box_index[begin:end]:
        for first in range(0, channels, BLOCK):
            size = min(BLOCK, channels - first)
            for i in range(kh):
                v0, v1 = max(top[r, i], 0), min(bottom[r, i], height)
                for j in range(kw):
                    u0, u1 = max(left[r, j], 0), min(right[r, j], width)
                    at = U(((image[r] * height + v0) * width + u0) * cell_stride + channel_offset[i * kw + j] + first)
                    to = U((i * kw + j) * row_stride)
                    maximum(x, at, width * cell_stride, cell_stride, v1 - v0, u1 - u0, tile, to, size)
            transpose(tile, U(0), row_stride, parts, size, flat, U((r * channels + first) * parts), parts)


@compiled
def _backward_map(
    x: Array, step: int, channel_offset_in_x: Array, grad_x: Array, shape: tuple[int, int, int], image: Array,
    box_index: Array, channel_offset: Array, top: Array, bottom: Array, left: Array, right: Array, grad: Array,
    begin: int, end: int
) -> None:  # fmt: skip
    """Add the gradient of the channels [begin, end) of every group to grad_x."""
    cell_stride, height, width = shape
    channels, parts = grad.shape[1:]
    kh, kw = top.shape[1], left.shape[1]
    row_stride = min(BLOCK, end - begin) + SIDE
    tile, flat = np.empty(parts * row_stride, x.dtype), grad.reshape(-1)
    for r in box_index:
        for first in range(begin, end, BLOCK):
            size = min(BLOCK, end - first)
            transpose(flat, U((r * channels + first) * parts), parts, size, parts, tile, U(0), row_stride)
            for i in range(kh):
                v0, v1 = max(top[r, i], 0), min(bottom[r, i], height)
                for j in range(kw):
                    u0, u1 = max(left[r, j], 0), min(right[r, j], width)
                    if v0 >= v1 or u0 >= u1:
                        continue
                    k, corner = i * kw + j, (image[r] * height + v0) * width + u0
                    at = U(corner * step + channel_offset_in_x[k] + first)
                    to = U(corner * cell_stride + channel_offset[k] + first)
                    add_to_maximum(
                        x, at, width * step, step, v1 - v0, u1 - u0, grad_x, to, width * cell_stride, cell_stride, tile,
                        U(k * row_stride), size
                    )  # fmt: skip


def forward(reads: Reads) -> Tensor:
    """Features [R, C, Kh * Kw]; see `regio.kernels.registration`."""
    top, _, left, _ = reads.arguments
    parts = top.shape[1] * left.shape[1]
    out = buffer_pool.empty((len(top), reads.channels, parts), reads.dtype)
    return per_level.features(_forward, out, reads)


def backward_maps(grad: Tensor, reads: Reads) -> list[Tensor]:
    """A gradient of each map."""
    return per_level.map_gradients(_backward_map, grad, reads, reads_map=True)
