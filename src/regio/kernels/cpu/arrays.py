"""From tensors to the arrays that the CPU kernels read."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from regio.kernels.cpu import memory
from regio.kernels.cpu.compile import compiled
from regio.kernels.maps import is_channels_last

__all__ = ["boxes_of_each_level", "cells", "gradient", "plain"]

Array = np.ndarray[Any, Any]


def cells(x: Tensor, dtype: torch.dtype) -> Array:
    """A map [N, C, H, W] as the flat array of its channels-last cells; no copy where it is stored like that."""
    stored = x.detach().permute(0, 2, 3, 1)
    if stored.dtype != dtype or not stored.is_contiguous():
        stored = memory.empty(tuple(stored.shape), dtype).copy_(stored)  # one pass for both
    return stored.view(-1).numpy()


def gradient(grad: Tensor, x: Tensor) -> Tensor:
    """Channels-last `grad` [N, H, W, C] in the shape, dtype and memory format of the map `x`, as `maps.like_maps`."""
    grad = grad.permute(0, 3, 1, 2)
    if is_channels_last(x):
        return grad.to(x.dtype)
    return memory.empty(tuple(x.shape), x.dtype).copy_(grad)


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
