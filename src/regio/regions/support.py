"""Which cells of the map a box may read: the support region of Gu et al. 2018, section 2 and table 2.

A cell belongs to a box if the box covers any part of it. A box that covers none (of zero size on a border between
cells, or beside the image) has the nearest cells, so that a support is never empty. No support reaches beyond the image
of its box: in a batch of images of several sizes, the cells of the padding belong to none.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from regio.boxes import precise
from regio.types import FeatureMap, Regions

__all__ = ["BoxSupport", "Support", "WholeImage"]


class Support(ABC):
    """Ranges of cells, one a box."""

    @abstractmethod
    def __call__(self, x: FeatureMap, r: Regions) -> Tensor:
        """Half-open ranges (u0, v0, u1, v1) [R, 4] int64 of columns and rows, never empty.

        A range is a constant: boxes receive no gradient through it.
        """


@dataclass(frozen=True)
class WholeImage(Support):
    """Every cell of the box's image."""

    def __call__(self, x: FeatureMap, r: Regions) -> Tensor:
        stop = x.extents_of(r.image).flip(1)
        return torch.cat([torch.zeros_like(stop), stop], 1)


@dataclass(frozen=True)
class BoxSupport(Support):
    """The box itself, or one of `area` times its area about the same centre (sqrt(area) times each side).

    Raises ValueError unless area is positive.
    """

    area: float = 1.0

    def __post_init__(self) -> None:
        if not self.area > 0:
            raise ValueError(f"area: expected a positive number, got {self.area}")

    def __call__(self, x: FeatureMap, r: Regions) -> Tensor:
        boxes, size = precise(r.boxes.detach()), x.extents_of(r.image).flip(1)
        corner, opposite = boxes[:, :2], boxes[:, 2:]
        margin = (opposite - corner) * ((math.sqrt(self.area) - 1) / 2)
        start = ((corner - margin) / x.stride).floor().clamp(min=0).minimum(size - 1)
        stop = ((opposite + margin) / x.stride).ceil().minimum(size).maximum(start + 1)
        return torch.cat([start, stop], 1).to(torch.int64)
