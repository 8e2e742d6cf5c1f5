"""Spatial pyramid pooling: the bins of several grids over the same box, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import cast

import torch
from torch import Tensor, nn

from regio.regions.pool import RoIPool
from regio.regions.quantisation import Corners, Division, OverlappingBins, SPPNetCorners
from regio.regions.reading import Reading, ReadingExtractor
from regio.types import FeatureMap, Regions

__all__ = ["JoinedReading", "SpatialPyramidPool"]


@dataclass(frozen=True)
class JoinedReading(Reading):
    """The parts of several readings as one column of K parts: features [R, C, K, 1]."""

    readings: tuple[Reading, ...]

    def features(
        self, maps: Sequence[Tensor], image: Tensor, level: Tensor, groups: Sequence[int] | None = None
    ) -> Tensor:
        if groups is None:
            parts = [own.features(maps, image, level).flatten(2) for own in self.readings]
            return torch.cat(parts, 2)[..., None]
        # How many parts a reading has is known once it is asked, so each group map is read by all that it could serve.
        raise ValueError("groups: expected None, the grids of a pyramid read all channels")

    def weights(self, x: Tensor, image: Tensor) -> Tensor:
        parts = [own.weights(x, image) for own in self.readings]
        return torch.cat(parts, 2)


class SpatialPyramidPool(ReadingExtractor):
    """SPPnet's spatial pyramid pooling (He et al. 2014, sections 2.2 and 4.1): n x n bins over the box for each n of
    `levels`, the largest cell of each.
    """
