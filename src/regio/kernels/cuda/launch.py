"""From tensors to what the CUDA kernels read, which all map operations share.

Every kernel begins with the arguments ``(x, image, level, group, images, levels, this, height, width, pitch)``: a map
as channels-last cells of `pitch` channels, and the image and the level of each box and the channel group of each part.
It is launched once for each map of a pyramid, over all boxes, and leaves those of other levels alone: to sort the boxes
by level first would make the CPU wait for the GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor

from regio.kernels.arguments import by_group, coordinate_dtype, like_maps

__all__ = ["FUSED", "OWNED", "UNSPECIALIZED", "each_level", "map_gradient", "owners", "programs", "tile", "zero_sums"]

# Numbers that kernels are not compiled anew for: neither that they are 1 nor that 16 divides them makes them faster.
UNSPECIALIZED = (
    "images", "levels", "this", "height", "width", "boxes", "parts", "samples", "bin_rows", "bin_columns",
    "row_samples", "column_samples",
)  # fmt: skip

# Sums of products may be fused; said in words, since a version of Triton warns where it is not.
FUSED = {"enable_fp_fusion": True}

# How kernels that own a tile of the map work: cells along its sides, channels, and boxes that are tested at once.
OWNED = {"SIDE": 8, "CHANNELS": 64, "BOXES": 64, **FUSED}


def tile(parts: int, channels: int) -> dict[str, int]:
    """How many parts of a box and how many channels one program works on, powers of two, and its warps.

    A tile [PARTS, CHANNELS] has 8 numbers for each thread: two vector loads a cell. With four times as many, the
    registers that they take leave room for two programs on a multiprocessor instead of nine.
    """
    part_block = min(triton.next_power_of_2(max(parts, 1)), 16)
    channel_block = min(triton.next_power_of_2(max(channels, 1)), 1024 // part_block)
    return {
        "PARTS": part_block, "CHANNELS": channel_block, "num_warps": max(1, part_block * channel_block // 256), **FUSED
    }  # fmt: skip


def programs(boxes: int, parts: int, channels: int, block: dict[str, int]) -> tuple[int]:
    """How many programs the tiles of all boxes take; those of a box follow each other."""
    return (boxes * triton.cdiv(parts, block["PARTS"]) * triton.cdiv(channels, block["CHANNELS"]),)


def owners(x: Tensor) -> tuple[int, int, int]:
    """Programs for the tiles of a map, the channel blocks of every group, and the images."""
    images, count, channels, height, width = by_group(x).shape
    tiles = triton.cdiv(height, OWNED["SIDE"]) * triton.cdiv(width, OWNED["SIDE"])
    return tiles, count * triton.cdiv(channels, OWNED["CHANNELS"]), images


def each_level(
    maps: Sequence[Tensor], image: Tensor, level: Tensor, groups: Sequence[int]
) -> Iterator[tuple[Tensor, tuple[Any, ...]]]:
    """Of each map: the map, and the arguments that all kernels begin with."""
    image, level = image.contiguous(), level.contiguous()
    group = _group_index(tuple(groups), image.device)
    for this, x in enumerate(maps):
        cells = by_group(x.detach()).permute(0, 3, 4, 1, 2).contiguous()
        (images, height, width), pitch = cells.shape[:3], cells.shape[3:].numel()
        yield x, (cells, image, level, group, images, len(maps), this, height, width, pitch)


def zero_sums(x: Tensor) -> Tensor:
    """Zeros [N, H, W, G, C] to sum the gradient of a map in."""
    images, groups, channels, height, width = by_group(x).shape
    return x.new_zeros((images, height, width, groups, channels), dtype=coordinate_dtype(x))


def map_gradient(sums: Tensor, x: Tensor) -> Tensor:
    """Channels-last `sums` [N, H, W, G, C] in the shape, dtype and order in memory of the map `x`."""
    sums = sums.permute(0, 3, 4, 1, 2) if x.ndim == 5 else sums.squeeze(3).permute(0, 3, 1, 2)
    (out,) = like_maps([x])
    return sums if sums.dtype == out.dtype and sums.stride() == out.stride() else out.copy_(sums)


@lru_cache(maxsize=64)
def _group_index(groups: tuple[int, ...], device: torch.device) -> Tensor:
    """The group of each part on the device; kept, since the copy makes the CPU wait for the GPU."""
    return torch.tensor(groups or (0,), dtype=torch.int32, device=device)
