"""From tensors to the arrays that the CPU kernels read."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regio.kernels.cpu import memory, threads
from regio.kernels.cpu.cells import transpose
from regio.kernels.cpu.compile import compiled
from regio.kernels.cpu.vectors import SIDE
from regio.kernels.maps import is_channels_last

__all__ = ["boxes_of_each_level", "cells", "plain", "put_channels", "room_like"]

Array = np.ndarray[Any, Any]
U = np.uintp

_LEAST = 1 << 17  # numbers: fewer are copied before another thread has begun


def cells(x: Tensor, dtype: torch.dtype) -> Array:
    """A map [N, C, H, W] as the flat array of its channels-last cells; no copy where it is stored like that."""
    x = x.detach()
    stored = x.permute(0, 2, 3, 1)
    if x.dtype != dtype or not stored.is_contiguous():
        n, h, w, c = stored.shape
        stored = memory.empty((n, h, w, c), dtype)
        if x.is_contiguous():
            _transpose(x.to(dtype), stored, (n, c, h * w))
        else:
            stored.copy_(x.permute(0, 2, 3, 1))
    return stored.numpy().reshape(-1)


def room_like(x: Tensor, dtype: torch.dtype) -> Tensor:
    """An empty tensor for the gradient of the map `x`, in the memory format of `maps.like_maps`."""
    n, c, h, w = x.shape
    if is_channels_last(x):
        return memory.empty((n, h, w, c), dtype).permute(0, 3, 1, 2)
    return memory.empty((n, c, h, w), dtype)


def put_channels(own: Array, target: Tensor, groups: int, begin: int, end: int) -> None:
    """Write the channels [begin, end) of every group into `target`, a tensor as from `room_like`.

    own: flat cells [N, H, W, groups, end - begin].
    """
    n, c, h, w = target.shape
    if is_channels_last(target):
        _put_cells(own, target.permute(0, 2, 3, 1).numpy().reshape(-1), n * h * w, c, groups, begin, end)
    else:
        _put_planes(own, target.numpy().reshape(-1), (n, h * w), c, groups, begin, end)


@compiled
def _put_cells(own: Array, target: Array, cells: int, channels: int, groups: int, begin: int, end: int) -> None:
    size, each = end - begin, channels // groups
    for i in range(cells * groups):
        at, to = U(i * size), U(i // groups * channels + i % groups * each + begin)
        for j in range(size):
            target[to + U(j)] = own[at + U(j)]


@compiled
def _put_planes(
    own: Array, target: Array, shape: tuple[int, int], channels: int, groups: int, begin: int, end: int
) -> None:
    (images, cells), size, each = shape, end - begin, channels // groups
    for image in range(images):
        for g in range(groups):
            at, to = U((image * cells * groups + g) * size), U((image * channels + g * each + begin) * cells)
            transpose(own, at, groups * size, cells, size, target, to, cells)


def _transpose(source: Tensor, target: Tensor, shape: tuple[int, int, int]) -> None:
    """``target[n, j, i] = source[n, i, j]``, both contiguous; several times as fast as PyTorch's copy. shape: (images,
    rows, columns) of source."""
    images, rows, columns = shape
    run = partial(_transpose_blocks, source.numpy().reshape(-1), target.numpy().reshape(-1), rows, columns)
    threads.share(run, images * -(-rows // SIDE), grain=-(-_LEAST // (SIDE * max(columns, 1))))


@compiled
def _transpose_blocks(source: Array, target: Array, rows: int, columns: int, begin: int, end: int) -> None:
    """`_transpose` for the blocks [begin, end) of SIDE rows of an image each."""
    blocks = -(-rows // SIDE)
    for block in range(begin, end):
        origin, first = block // blocks * rows * columns, block % blocks * SIDE
        size, at = min(SIDE, rows - first), U(origin + first * columns)
        transpose(source, at, columns, size, columns, target, U(origin + first), rows)


def plain(*tensors: Tensor) -> tuple[Array, ...]:
    """The tensors as contiguous arrays."""
    return tuple(t.detach().contiguous().numpy() for t in tensors)


def boxes_of_each_level(image: Array, level: Array, images: int, levels: int) -> list[Array]:
    """The rows of the boxes on each level. Raises ValueError where an image is not in [0, images), or a level not in
    [0, levels): kernels would read elsewhere."""
    rows, ends = np.empty(len(level), np.int64), np.zeros(levels + 1, np.int64)
    bad = _sort(image, level, images, rows, ends)
    if bad >= 0 and not 0 <= image[bad] < images:
        raise ValueError(f"image: expected an index in [0, {images}), got {image[bad]} at row {bad}")
    if bad >= 0:
        raise ValueError(f"level: expected an index in [0, {levels}), got {level[bad]} at row {bad}")
    return [rows[ends[i] : ends[i + 1]] for i in range(levels)]


@compiled
def _sort(image: Array, level: Array, images: int, rows: Array, ends: Array) -> int:
    """Write the rows of the boxes level by level, and where those of each level end after that of the level before.
    Returns the first row that is not in the range, or -1."""
    levels = ends.size - 1
    for r in range(level.size):
        if not (0 <= image[r] < images and 0 <= level[r] < levels):
            return r
    n = 0
    for i in range(levels):
        for r in range(level.size):
            if level[r] == i:
                rows[n] = r
                n += 1
        ends[i + 1] = n
    return -1
