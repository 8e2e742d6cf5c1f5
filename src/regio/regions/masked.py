"""MaskedBins: the bins of a box outside its instance's mask give zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from regio.kernels.arguments import coordinate_dtype
from regio.regions.base import RegionExtractor
from regio.regions.sampling import SamplePoints
from regio.types import FeatureMap, Regions

__all__ = ["MaskedBins", "MaskedRegions"]


@dataclass(frozen=True)
class MaskedRegions(Regions):
    """Regions with a mask each.

    masks: [R, m, n], bool or floating point in [0, 1], in the frame of the box: row 0 is its top, whatever its size.

    Raises ValueError or TypeError when shapes, dtypes or devices do not fit.
    """

    masks: Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        rows = self.boxes.shape[0]  # not len(), which would fix the number when a graph is exported
        if self.masks.ndim != 3 or self.masks.shape[0] != rows or 0 in self.masks.shape[1:]:
            raise ValueError(f"masks: expected shape [{rows}, m, n], got {list(self.masks.shape)}")
        if self.masks.dtype != torch.bool and not self.masks.dtype.is_floating_point:
            raise TypeError(f"masks: expected bool or a floating point dtype, got {self.masks.dtype}")
        if self.masks.device != self.boxes.device:
            raise ValueError(f"masks: expected device {self.boxes.device}, that of boxes, got {self.masks.device}")

    def __getitem__(self, index: Tensor) -> MaskedRegions:
        """The regions at `index` (a boolean mask [R] or int64 indices), with their masks."""
        return MaskedRegions(self.boxes[index], self.image[index], self.masks[index])


class MaskedBins(RegionExtractor):
    """An extractor whose bins outside the mask of the instance are zero (Dai, He, Sun 2016, section 3.3; Gu et al.
    2018, section 2). It is called with `MaskedRegions`, and its weights no longer sum to one.

    extractor: any with bins on a grid over the box. threshold: a mask is first made binary, 1 where it is at least
    this (0.4, on masks of 21 x 21, in the published code); None keeps its values, and masks receive gradients. The mask
    is then resized to the bins: a bin has the bilinear value at its centre, so a mask with the rows and columns of the
    bins is taken as it is. Law: with masks of ones it is `extractor`.

    Raises TypeError, when called, for regions without masks.
    """

    def __init__(self, extractor: RegionExtractor, threshold: float | None = 0.4) -> None:
        super().__init__()
        self.extractor = extractor
        self.bins = extractor.bins
        self.threshold = threshold

    def extra_repr(self) -> str:
        return f"threshold={self.threshold}"

    def forward(self, x: FeatureMap, r: Regions) -> Tensor:
        """Region features [R, C, *bins]."""
        values = self.values(x, r)
        y = self.extractor(x, r)
        return (y * values[:, None]).to(y.dtype)

    def pyramid(self, maps: Sequence[FeatureMap], r: Regions, level: Tensor) -> Tensor:
        """Region features [R, C, *bins], box i read from ``maps[level[i]]``."""
        values = self.values(maps[0], r)
        y = self.extractor.pyramid(maps, r, level)
        return (y * values[:, None]).to(y.dtype)

    def weights(self, x: FeatureMap, r: Regions) -> Tensor:
        """The weights [R, 1 or C, K, H, W]."""
        return self.extractor.weights(x, r) * self.values(x, r).flatten(1)[:, None, :, None, None]

    def mean_weights(self, x: FeatureMap, r: Regions) -> Tensor:
        return self.extractor.mean_weights(x, r) * self.values(x, r).flatten(1)[:, None, :, None, None]

    def terms_alone(self) -> dict[str, RegionExtractor]:
        return {name: MaskedBins(each, self.threshold) for name, each in self.extractor.terms_alone().items()}

    def moved_samples(self, x: FeatureMap, r: Regions) -> tuple[SamplePoints, SamplePoints] | None:
        return self.extractor.moved_samples(x, r)

    def part_shifts(self, x: FeatureMap, r: Regions) -> Tensor | None:
        return self.extractor.part_shifts(x, r)

    def values(self, x: FeatureMap, r: Regions) -> Tensor:
        """The share [R, *bins] of each bin that is kept, 0 to 1."""
        if not isinstance(r, MaskedRegions):
            raise TypeError(f"r: expected MaskedRegions, got {type(r).__name__}")
        masks = r.masks if self.threshold is None else r.masks >= self.threshold
        masks = masks.to(coordinate_dtype(x.data))
        return interpolate(masks[:, None], self.bins, mode="bilinear", align_corners=False)[:, 0]
