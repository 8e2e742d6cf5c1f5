"""Pieces of the CUDA kernels: for which boxes a launch writes the result, bilinear weights, and tiles of a map that
look for the boxes which read them."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

__all__ = [
    "bilinear_weight",
    "box_tile",
    "first_channel",
    "map_tile",
    "owned_tile",
    "store_owned",
    "touches",
    "writes_result",
]


@triton.jit
def writes_result(level: tl.tensor, this: tl.tensor, levels: tl.tensor) -> Any:
    """Whether the launch for the map `this` writes the result of a box; the first also does so for levels that are
    not there."""
    return (level == this) | ((this == 0) & ((level < 0) | (level >= levels)))


@triton.jit
def box_tile(parts: tl.tensor, channels: tl.tensor, PARTS: tl.constexpr, CHANNELS: tl.constexpr) -> Any:
    """The box of this program, and the parts and the channels that it works on."""
    blocks, program = tl.cdiv(channels, CHANNELS), tl.program_id(0)
    part_block = program // blocks
    r, part_block = part_block // tl.cdiv(parts, PARTS), part_block % tl.cdiv(parts, PARTS)
    k = part_block * PARTS + tl.arange(0, PARTS)
    return r.to(tl.int64), k, program % blocks * CHANNELS + tl.arange(0, CHANNELS)


@triton.jit
def first_channel(group: tl.tensor, k: tl.tensor, real: tl.tensor, channels: tl.tensor, GROUPED: tl.constexpr) -> Any:
    """The first channel that each part reads."""
    if GROUPED:
        start = tl.load(group + k, mask=real, other=0) * channels
    else:
        start = k * 0
    return start


@triton.jit
def bilinear_weight(position: tl.tensor, cell: tl.tensor) -> Any:
    """The weight of a cell in a linear interpolation, max(0, 1 - |position - cell|); 0 for NaN."""
    height = 1 - tl.abs(position - cell)
    return tl.where(height > 0, height, 0)


@triton.jit
def map_tile(index: tl.tensor, width: tl.tensor, SIDE: tl.constexpr) -> Any:
    """The tile number `index` of a map: its first row and column, and the row and column of all its cells."""
    across = tl.cdiv(width, SIDE)
    top, left = (index // across) * SIDE, (index % across) * SIDE
    cell = tl.arange(0, SIDE * SIDE)
    return top, left, top + cell // SIDE, left + cell % SIDE


@triton.jit
def owned_tile(channels: tl.tensor, width: tl.tensor, SIDE: tl.constexpr, CHANNELS: tl.constexpr) -> Any:
    """What a program of `launch.run_by_cell` owns: the image, the group and its channels; the first row and column of
    the tile, and the row and column of all its cells."""
    n, blocks = tl.program_id(2).to(tl.int64), tl.cdiv(channels, CHANNELS)
    q, c = tl.program_id(1) // blocks, tl.program_id(1) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    top, left, v, u = map_tile(tl.program_id(0), width, SIDE)
    return n, q, c, top, left, v, u


@triton.jit
def store_owned(
    sums: tl.tensor, acc: tl.tensor, n: tl.tensor, q: tl.tensor, c: tl.tensor, v: tl.tensor, u: tl.tensor,
    height: tl.tensor, width: tl.tensor, cell_stride: tl.tensor, channels: tl.tensor
) -> None:  # fmt: skip
    """Write the sums [SIDE * SIDE, CHANNELS] of an `owned_tile`."""
    to = ((n * height + v) * width + u) * cell_stride + q * channels
    mine = ((v < height) & (u < width))[:, None] & (c < channels)[None, :]
    tl.store(sums + to[:, None] + c[None, :], acc, mask=mine)


@triton.jit
def touches(
    bounds: tl.tensor, image: tl.tensor, level: tl.tensor, r: tl.tensor, real: tl.tensor, n: tl.tensor,
    this: tl.tensor, top: tl.tensor, left: tl.tensor, SIDE: tl.constexpr
) -> Any:  # fmt: skip
    """Whether the boxes r can read a tile of image n. bounds: [R, 4], the least row and column and the greatest."""
    mine = real & (tl.load(image + r, mask=real, other=-1) == n) & (tl.load(level + r, mask=real, other=-1) == this)
    v0 = tl.load(bounds + 4 * r, mask=mine, other=0.0)
    u0 = tl.load(bounds + 4 * r + 1, mask=mine, other=0.0)
    v1 = tl.load(bounds + 4 * r + 2, mask=mine, other=0.0)
    u1 = tl.load(bounds + 4 * r + 3, mask=mine, other=0.0)
    # Written so that a box with a coordinate that is not a number is looked at.
    outside = (v1 <= top - 1) | (v0 >= top + SIDE) | (u1 <= left - 1) | (u0 >= left + SIDE)
    return mine & (outside == 0)
