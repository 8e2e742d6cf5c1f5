"""Spatial pyramid pooling: the bins of several grids over the same box, one grid after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import cast

import torch
from torch import Tensor, nn

from regio.regions.base import mean_over_channels
from regio.regions.quantisation import Corners, Division, OverlappingBins, SPPNetCorners
from regio.regions.roi_pool import RoIPool
from regio.regions.sampling import Samples, SamplingExtractor
from regio.types import FeatureMap, Regions

__all__ = ["JoinedSamples", "SpatialPyramidPool"]


class SpatialPyramidPool(SamplingExtractor):
    """Spatial pyramid pooling: over each box n x n bins for each n of `levels`, and the largest cell of every bin (He
    et al. 2014, sections 2.2 and 4.1).

    levels: bins along a side of each grid. corners, division: as in `RoIPool`; the default corners are those of the
    paper's appendix, `SPPNetReleasedCorners` those of its code, and `SlidingBins` is the pooling of its training for
    classification. pool: ``pool(n, corners, division)`` makes the extractor of a grid; `RoIAveragePool` is the other.

    Features [R, C, K, 1] with K = sum of n * n: the parts of the first grid row by row, then those of the second, and
    so on. SPPnet's code keeps the grids apart, [C, n * n] of the first, then of the next: split K by grid before
    flattening to load its fully connected layers. Law: with one level it is `pool` itself, its parts in one column.

    Raises ValueError unless there are levels and they are positive.
    """

    def __init__(
        self,
        levels: Sequence[int] = (6, 3, 2, 1),
        corners: Corners = SPPNetCorners(),  # noqa: B008 (frozen)
        division: Division = OverlappingBins(),  # noqa: B008 (frozen)
        pool: Callable[[int, Corners, Division], SamplingExtractor] = RoIPool,
    ) -> None:
        super().__init__()
        self.levels = tuple(levels)
        if not self.levels or min(self.levels) < 1:
            raise ValueError(f"levels: expected positive numbers of bins along a side, got {self.levels}")
        self.pools = nn.ModuleList(pool(n, corners, division) for n in self.levels)
        self.bins = (sum(n * n for n in self.levels), 1)

    def sampling(self, maps: Sequence[FeatureMap], r: Regions, level: Tensor, shift: Tensor | None = None) -> Samples:
        """The cells of each bin; see `SamplingExtractor.sampling`. shift: [R, K, 1, 2], for pools that can be moved."""
        pools = [cast(SamplingExtractor, p) for p in self.pools]
        parts = [prod(p.bins) for p in pools]
        shifts: Sequence[Tensor | None] = [None] * len(pools)
        if shift is not None:
            shifts = [s.reshape(-1, *p.bins, 2) for s, p in zip(shift.split(parts, 1), pools, strict=True)]
        samples = (p.sampling(maps, r, level, s) for p, s in zip(pools, shifts, strict=True))
        return JoinedSamples(tuple(samples), tuple(parts))

    def mean_weights(self, x: FeatureMap, r: Regions) -> Tensor:
        return mean_over_channels(self.weights, x, r)


@dataclass(frozen=True)
class JoinedSamples(Samples):
    """The parts of several `Samples` one after the other, as one column: features [R, C, K, 1].

    parts: how many parts each of them has.
    """

    samples: tuple[Samples, ...]
    parts: tuple[int, ...]

    def features(
        self, maps: Sequence[Tensor], image: Tensor, level: Tensor, groups: Sequence[int] | None = None
    ) -> Tensor:
        if groups is None:
            own = [samples.features(maps, image, level) for samples in self.samples]
        else:
            parts = zip(self.samples, self._split(groups), strict=True)
            own = [samples.features(maps, image, level, some) for samples, some in parts]
        return torch.cat([y.flatten(2) for y in own], 2)[..., None]

    def weights(self, x: Tensor, image: Tensor) -> Tensor:
        return torch.cat([samples.weights(x, image) for samples in self.samples], 2)

    def _split(self, groups: Sequence[int]) -> list[list[int]]:
        ends = accumulate(self.parts)
        return [list(groups[end - n : end]) for end, n in zip(ends, self.parts, strict=True)]
