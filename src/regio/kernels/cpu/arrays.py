"""From tensors to the arrays that the CPU kernels read."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from regio.kernels.cpu import memory
from regio.kernels.maps import is_channels_last

__all__ = ["boxes_of_each_level", "cells", "gradient", "image_index", "plain"]

Array = np.ndarray[Any, Any]


def cells(x: Tensor, dtype: torch.dtype) -> Array:
    """A map [N, C, H, W] as the flat array of its channels-last cells; no copy where it is stored like that."""
    stored = x.detach().permute(0, 2, 3, 1)
    if stored.dtype != dtype or not is_channels_last(x):
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


def image_index(image: Tensor, images: int) -> Array:
    """`image` [R] as an array. Raises ValueError where one is not in [0, images): kernels would read elsewhere."""
    index = image.detach().contiguous().numpy()
    if index.size and (index.min() < 0 or index.max() >= images):
        bad = int(((index < 0) | (index >= images)).argmax())
        raise ValueError(f"image: expected an index in [0, {images}), got {index[bad]} at row {bad}")
    return index


def boxes_of_each_level(level: Tensor, levels: int) -> list[Array]:
    """The rows of the boxes on each level. Raises ValueError where a level is not in [0, levels)."""
    value = level.detach().numpy()
    rows = [np.flatnonzero(value == i) for i in range(levels)]
    if sum(len(r) for r in rows) != len(value):
        bad = int(((value < 0) | (value >= levels)).argmax())
        raise ValueError(f"level: expected an index in [0, {levels}), got {value[bad]} at row {bad}")
    return rows
