"""Small, medium and large objects, and a mean for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["SIZES", "Statistic", "by_class", "size_class"]

SIZES = ("small", "medium", "large")
"""COCO's object sizes: an area below 32 x 32, up to 96 x 96, and above, in square pixels of the original image."""


@dataclass(frozen=True)
class Statistic:
    """Of `count` values, the mean and the standard deviation of these values (divided by `count`); NaN of none."""

    count: int
    mean: float
    deviation: float


def size_class(area: Tensor) -> Tensor:
    """The index into `SIZES` [R] int64 of areas [R] in square pixels: 1024 and 9216 are both medium."""
    return (area >= 32**2).to(torch.int64) + (area > 96**2)


def by_class(values: Tensor, classes: Tensor, names: Sequence[str]) -> dict[str, Statistic]:
    """The statistic of `values` [M] over each class; classes: [M] int64, indices into `names`.

    Raises ValueError when the two differ in shape or a class has no name.
    """
    if values.shape != classes.shape:
        raise ValueError(f"classes: expected shape {list(values.shape)}, one for each value, got {list(classes.shape)}")
    if classes.numel() and not 0 <= int(classes.min()) <= int(classes.max()) < len(names):
        raise ValueError(
            f"classes: expected 0 .. {len(names) - 1}, one for each of names, "
            f"got {int(classes.min())} .. {int(classes.max())}"
        )
    return {name: _statistic(values[classes == i].to(torch.float64)) for i, name in enumerate(names)}


def _statistic(values: Tensor) -> Statistic:
    if values.numel() == 0:
        return Statistic(0, float("nan"), float("nan"))
    return Statistic(values.numel(), float(values.mean()), float(values.std(correction=0)))
