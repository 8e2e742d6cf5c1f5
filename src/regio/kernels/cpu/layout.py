"""From tensors to the arrays that the CPU kernels read."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regio.kernels.arguments import by_group
from regio.kernels.cpu import buffer_pool, threads
from regio.kernels.cpu.channels_last import transpose
from regio.kernels.cpu.compile import compiled
from regio.kernels.cpu.inner_loops import SIDE

__all__ = [
    "boxes_of_each_level",
    "cells",
    "empty_like_map",
    "flat",
    "has_planes",
    "plain",
    "planes",
    "planes_for",
    "put_channels",
    "put_planes",
]

Array = np.ndarray[Any, Any]
U = np.uintp

_LEAST = 1 << 17  # numbers: fewer are copied before another thread has begun


def cells(x: Tensor, dtype: torch.dtype) -> Array:
    """A map [N, C, H, W] or [N, G, C, H, W] as the flat array of its cells [N, H, W, G, C]; no copy where it is stored
    like that."""
    x = by_group(x.detach())
    stored = x.permute(0, 3, 4, 1, 2)
    if x.dtype != dtype or not stored.is_contiguous():
        n, g, c, h, w = x.shape
        stored = buffer_pool.empty((n, h, w, g, c), dtype)
        if has_planes(x):
            x = x.to(dtype)
            step = (x.stride(0), x.stride(1)), (h * w * g * c, c)
            _transpose(x, stored, (n, g), step, (c, h * w), (x.stride(2), g * c))
        else:
            stored.copy_(x.permute(0, 3, 4, 1, 2))
    return stored.numpy().reshape(-1)


def planes(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A map [N, G, C, H, W] in memory where the cells of every channel follow each other; no copy where they do."""
    x = x.detach()
    if has_planes(x):
        return x.to(dtype)
    inner, swapped = _inner_last(x)
    if not inner.permute(0, 3, 4, 1, 2).is_contiguous():
        return x.to(dtype).contiguous()
    n, a, b, h, w = inner.shape
    stored = buffer_pool.empty((n, a, b, h, w), dtype)
    step = h * w * a * b, 0
    _transpose(inner.to(dtype), stored, (n, 1), (step, step), (h * w, a * b), (a * b, h * w))
    return stored.transpose(1, 2) if swapped else stored


def planes_for(target: Tensor) -> Tensor:
    """An empty tensor, stored as by `planes`, for what `put_planes` writes into `target`; it may be the target."""
    if has_planes(target):
        return target
    inner, swapped = _inner_last(target)
    stored = buffer_pool.empty(tuple(inner.shape), target.dtype)
    return stored.transpose(1, 2) if swapped else stored


def put_planes(own: Tensor, target: Tensor) -> None:
    """Write `own`, from `planes_for`, into `target`, a tensor as from `empty_like_map`."""
    if own is target:
        return
    inner, swapped = _inner_last(target)
    ours = own.transpose(1, 2) if swapped else own
    if ours.is_contiguous() and inner.permute(0, 3, 4, 1, 2).is_contiguous():
        n, a, b, h, w = inner.shape
        step = h * w * a * b, 0
        _transpose(ours, inner, (n, 1), (step, step), (a * b, h * w), (h * w, a * b))
    else:
        target.copy_(own)


def _inner_last(x: Tensor) -> tuple[Tensor, bool]:
    """A map [N, G, C, H, W], or [N, C, G, H, W] where the groups are what is closer together in memory."""
    swapped = x.stride(1) < x.stride(2)
    return (x.transpose(1, 2), True) if swapped else (x, False)


def empty_like_map(x: Tensor, dtype: torch.dtype) -> Tensor:
    """An empty tensor for the gradient of the map `x`, stored as `arguments.like_maps`."""
    if x.is_contiguous():
        return buffer_pool.empty(tuple(x.shape), dtype)
    like = torch.empty_like(x, device="meta")
    return buffer_pool.empty((like.numel(),), dtype).as_strided(like.shape, like.stride())


def put_channels(own: Array, target: Tensor, begin: int, end: int) -> None:
    """Write the channels [begin, end) of every group into `target`, a tensor as from `empty_like_map`.

    own: flat cells [N, H, W, G, end - begin].
    """
    target = by_group(target)
    n, g, c, h, w = target.shape
    size = end - begin
    stored = target.permute(0, 3, 4, 1, 2)
    if has_planes(target):
        _put_planes(own, flat(target), (n, g), target.stride()[:3], h * w, begin, size)
    elif stored.is_contiguous():
        _put_cells(own, stored.numpy().reshape(-1), n * h * w * g, c, begin, size)
    else:
        stored[..., begin:end] = torch.from_numpy(own).view(n, h, w, g, size)


def has_planes(x: Tensor) -> bool:
    """Whether the cells of every channel of a map [N, G, C, H, W] follow each other row by row."""
    return x.stride(4) == 1 and x.stride(3) == x.shape[4]


def flat(x: Tensor) -> Array:
    """The memory of `x` from its first number to its last."""
    extent = 1 + sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True)) if x.numel() else 0
    return x.as_strided((extent,), (1,)).numpy()


@compiled
def _put_cells(own: Array, target: Array, cells: int, channels: int, begin: int, size: int) -> None:
    for i in range(cells):
        at, to = U(i * size), U(i * channels + begin)
        for j in range(size):
            target[to + U(j)] = own[at + U(j)]


@compiled
def _put_planes(
    own: Array, target: Array, count: tuple[int, int], steps: tuple[int, int, int], cells: int, begin: int, size: int
) -> None:
    (images, groups), (image_step, group_step, row_stride) = count, steps
    for image in range(images):
        for g in range(groups):
            at, to = U((image * cells * groups + g) * size), U(image * image_step + g * group_step + begin * row_stride)
            transpose(own, at, groups * size, cells, size, target, to, row_stride)


def _transpose(
    source: Tensor,
    target: Tensor,
    count: tuple[int, int],
    steps: tuple[tuple[int, int], tuple[int, int]],
    shape: tuple[int, int],
    row_stride: tuple[int, int],
) -> None:
    """``target[a, b, j, i] = source[a, b, i, j]`` for i, j in `shape` and a, b in `count`; several times as fast as
    PyTorch's copy. steps: those of a and b in the memory of source and of target. row_stride: that of i in source, of j
    in target."""
    run = partial(_transpose_blocks, flat(source), flat(target), count, steps, shape, row_stride)
    blocks = count[0] * count[1] * -(-shape[0] // SIDE)
    threads.share(run, blocks, grain=-(-_LEAST // (SIDE * max(shape[1], 1))))


@compiled
def _transpose_blocks(
    source: Array, target: Array, count: tuple[int, int], steps: tuple[tuple[int, int], tuple[int, int]],
    shape: tuple[int, int], row_stride: tuple[int, int], begin: int, end: int
) -> None:  # fmt: skip
    """`_transpose` for the blocks [begin, end) of SIDE rows of a matrix each."""
    rows, columns = shape
    blocks = -(-rows // SIDE)
    for block in range(begin, end):
        matrix, first = block // blocks, block % blocks * SIDE
        a, b = matrix // count[1], matrix % count[1]
        at, to = a * steps[0][0] + b * steps[0][1] + first * row_stride[0], a * steps[1][0] + b * steps[1][1] + first
        transpose(source, U(at), row_stride[0], min(SIDE, rows - first), columns, target, U(to), row_stride[1])


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
