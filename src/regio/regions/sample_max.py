"""The largest of the bilinear samples in each bin, where the extractor that places them takes their mean."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regio.regions.base import RegionExtractor, mean_over_channels
from regio.regions.roi_align import RoIAlign
from regio.regions.roi_warp import RoIWarp
from regio.regions.sampling import SampleGrid
from regio.types import FeatureMap, Regions

__all__ = ["SampleMax"]


class SampleMax(RegionExtractor):
    """The largest of the samples in each bin, channel by channel (He et al. 2017, table 2c, of RoIAlign and RoIWarp).

    extractor: `RoIAlign` with a fixed number of samples, or `RoIWarp`. The weights are the bilinear weights of the
    sample that is largest; a sample outside the map takes part with value zero. Features, and boxes as in `extractor`,
    receive gradients.

    Raises TypeError for another extractor, and ValueError for `RoIAlign` with an adaptive number of samples.
    """

    def __init__(self, extractor: RoIAlign | RoIWarp) -> None:
        super().__init__()
        if not isinstance(extractor, RoIAlign | RoIWarp):  # all of whose samples count the same
            raise TypeError(f"extractor: expected RoIAlign or RoIWarp, got {type(extractor).__name__}")
        if isinstance(extractor, RoIAlign) and not extractor.samples:
            raise ValueError(f"extractor: expected a fixed number of samples, got {extractor}")
        self.extractor = extractor
        self.bins = extractor.bins

    def forward(self, x: FeatureMap, r: Regions) -> Tensor:
        """Region features [R, C, *bins]."""
        return self.pyramid([x], r, torch.zeros_like(r.image))

    def pyramid(self, maps: Sequence[FeatureMap], r: Regions, level: Tensor) -> Tensor:
        """Region features [R, C, *bins], box i read from ``maps[level[i]]``."""
        r.check(maps[0])
        return self._samples(maps, r, level, [x.data for x in maps]).amax(4)

    def weights(self, x: FeatureMap, r: Regions) -> Tensor:
        """The weights [R, C, K, H, W]."""
        r.check(x)
        level = torch.zeros_like(r.image)
        grid, count = self._grid([x], r, level)
        one = grid.weights(x.data, r.image).unflatten(2, (grid.rows.shape[1], grid.columns.shape[1]))
        each = self._by_bin(one, count)  # [R, 1, Kh, Kw, S * T, H, W]
        best = self._samples([x], r, level, [x.data]).argmax(4)
        index = best[..., None, None, None].expand(*best.shape, 1, *x.size)
        return each.expand(-1, best.shape[1], *[-1] * 5).gather(4, index).squeeze(4).flatten(2, 3)

    def mean_weights(self, x: FeatureMap, r: Regions) -> Tensor:
        return mean_over_channels(self.weights, x, r)

    def _samples(self, maps: Sequence[FeatureMap], r: Regions, level: Tensor, data: Sequence[Tensor]) -> Tensor:
        """The values of all samples, [R, C, Kh, Kw, S * T]."""
        grid, count = self._grid(maps, r, level)
        return self._by_bin(grid.features(data, r.image, level), count)

    def _grid(self, maps: Sequence[FeatureMap], r: Regions, level: Tensor) -> tuple[SampleGrid, tuple[int, int]]:
        """Every sample as a part of its own, with weight 1, or 0 where it reads nothing; and the numbers (S, T) along
        the axes of a bin."""
        mean = self.extractor.sampling(maps, r, level)
        assert isinstance(mean, SampleGrid)
        s, t = mean.rows.shape[2], mean.columns.shape[2]
        rows, columns, row_weight, column_weight = (
            axis.flatten(1)[..., None]
            for axis in (mean.rows, mean.columns, mean.row_weight * s, mean.column_weight * t)
        )
        return SampleGrid(rows, columns, row_weight, column_weight), (s, t)

    def _by_bin(self, samples: Tensor, count: tuple[int, int]) -> Tensor:
        """Samples [R, C, Kh * S, Kw * T, ...] as [R, C, Kh, Kw, S * T, ...]."""
        (kh, kw), (s, t) = self.bins, count
        return samples.unflatten(3, (kw, t)).unflatten(2, (kh, s)).transpose(3, 4).flatten(4, 5)
