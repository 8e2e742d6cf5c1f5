"""Launching the CUDA kernels of all map operations: grids, levels, and gradients of maps.

Every kernel begins with the arguments ``(x, image, level, group, images, levels, this, height, width, cell_stride)``: a
map as channels-last cells, `cell_stride` numbers from one to the next, and the image and the level of each box and the
channel group of each part. It is launched once for each map of a pyramid, over all boxes, and leaves those of other
levels alone: to sort the boxes by level first would make the CPU wait for the GPU. Kernels that add to the gradient of
a map get it as the first argument after these, as cells likewise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor

from regio.kernels.arguments import Reads, by_group, like_maps

__all__ = ["FUSED", "OWNED", "UNSPECIALIZED", "map_gradients", "programs", "run_by_box", "run_by_cell", "tile"]

# Numbers that kernels are not compiled anew for: neither that they are 1 nor that 16 divides them makes them faster.
UNSPECIALIZED = (
    "images", "levels", "this", "height", "width", "boxes", "parts", "samples", "bin_rows", "bin_columns",
    "row_samples", "column_samples",
)  # fmt: skip

# Sums of products may be fused; stated, since a version of Triton warns where it is not.
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


def run_by_box(
    kernel: Any, reads: Reads, parts: int, *arguments: Any, sums: Sequence[Tensor] = (), all_channels: bool = False,
    **constants: Any
) -> None:  # fmt: skip
    """Launch a kernel of which each program has some of the parts of a box and some channels, or, with `all_channels`,
    all of them one block after the other.

    sums: a tensor a level that the kernel adds to, or none. arguments, constants: those after what all kernels have.
    """
    block = tile(parts, reads.channels)
    channels = block["CHANNELS"] if all_channels else reads.channels
    grid = programs(len(reads.image), parts, channels, block)
    with torch.cuda.device_of(reads.image):
        for this, (_, fixed) in enumerate(each_level(reads)):
            kernel[grid](*fixed, *sums[this : this + 1], *arguments, GROUPED=bool(reads.groups), **constants, **block)


def run_by_cell(kernel: Any, reads: Reads, sums: Sequence[Tensor], *arguments: Any) -> None:
    """Launch a kernel of which each program owns a tile of a map and looks for the boxes that read it, so that numbers
    are added in the order of the boxes."""
    with torch.cuda.device_of(reads.image):
        for own, (x, fixed) in zip(sums, each_level(reads), strict=True):
            images, count, channels, height, width = by_group(x).shape
            tiles = triton.cdiv(height, OWNED["SIDE"]) * triton.cdiv(width, OWNED["SIDE"])
            grid = tiles, count * triton.cdiv(channels, OWNED["CHANNELS"]), images
            kernel[grid](*fixed, own, *arguments, GROUPED=bool(reads.groups), **OWNED)


def map_gradients(
    reads: Reads, add: Callable[[list[Tensor]], None], add_in_order: Callable[[list[Tensor]], None] | None
) -> list[Tensor]:
    """A gradient of each map, in the shape, dtype and order in memory of the map.

    add: adds to zeros [N, H, W, G, C], one tensor a level, with atomic operations. add_in_order: does the same in a
    fixed order, for `torch.use_deterministic_algorithms(True)`; None where there is nothing to add.
    """
    sums = []
    for x in reads.maps:
        images, groups, channels, height, width = by_group(x).shape
        sums.append(x.new_zeros((images, height, width, groups, channels), dtype=reads.dtype))
    if torch.are_deterministic_algorithms_enabled() and add_in_order is not None:
        add_in_order(sums)
    else:
        add(sums)
    return [_like_map(cells, x) for cells, x in zip(sums, reads.maps, strict=True)]


def each_level(reads: Reads) -> Iterator[tuple[Tensor, tuple[Any, ...]]]:
    """Of each map: the map, and the arguments that all kernels begin with."""
    image, level = reads.image.contiguous(), reads.level.contiguous()
    group = _group_index(tuple(reads.groups), image.device)
    for this, x in enumerate(reads.maps):
        cells = by_group(x.detach()).permute(0, 3, 4, 1, 2).contiguous()
        (images, height, width), cell_stride = cells.shape[:3], cells.shape[3:].numel()
        yield x, (cells, image, level, group, images, len(reads.maps), this, height, width, cell_stride)


def _like_map(cells: Tensor, x: Tensor) -> Tensor:
    """Channels-last `cells` [N, H, W, G, C] in the shape, dtype and order in memory of the map `x`."""
    cells = cells.permute(0, 3, 4, 1, 2) if x.ndim == 5 else cells.squeeze(3).permute(0, 3, 1, 2)
    (out,) = like_maps([x])
    return cells if cells.dtype == out.dtype and cells.stride() == out.stride() else out.copy_(cells)


@lru_cache(maxsize=64)
def _group_index(groups: tuple[int, ...], device: torch.device) -> Tensor:
    """The group of each part on the device; kept, since the copy makes the CPU wait for the GPU."""
    return torch.tensor(groups or (0,), dtype=torch.int32, device=device)
