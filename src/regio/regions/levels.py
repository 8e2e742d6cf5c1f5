"""Feature pyramids: each box is read from the level that fits its size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from regio.boxes import area
from regio.regions.base import RegionExtractor, level_by_level
from regio.types import FeatureMap, Regions

__all__ = ["FPNLevels", "LevelRule", "Levels", "NearestArea", "NearestScale", "OneLevel"]


class LevelRule(Protocol):
    """Which level of a pyramid a box is read from."""

    def __call__(self, boxes: Tensor, strides: Sequence[float], /) -> Tensor:
        """For each of `boxes` [R, 4], in pixels, the index [R] int64 into `strides`, pixels a cell, finest first.

        Raises ValueError for strides that the rule is not made for.
        """
        ...


@dataclass(frozen=True)
class FPNLevels:
    """A box of w x h pixels is read at level ``k = floor(k0 + log2(sqrt(w h) / s0))``, clamped to the levels there are
    (Lin et al. 2017, FPN, Eq. 1).

    The level of a map is log2 of its stride: k0 = 4 means stride 16 for boxes of canonical_size s0 = 224 pixels. `eps`
    is added before the floor, as in torchvision. A box without area goes to the finest level.
    """

    canonical_size: float = 224
    canonical_level: float = 4
    eps: float = 1e-6

    def __call__(self, boxes: Tensor, strides: Sequence[float]) -> Tensor:
        """The level of each box. Raises ValueError unless each stride is a power of two and twice the one before."""
        finest = round(math.log2(strides[0]))
        if list(strides) != [2 ** (finest + i) for i in range(len(strides))]:
            raise ValueError(f"maps: expected strides that double, powers of two, finest first, got {list(strides)}")
        size = area(boxes).sqrt()
        k = self.canonical_level + torch.log2(size / self.canonical_size) + self.eps
        return (k - finest).clamp(0, len(strides) - 1).to(torch.int64)  # of what is not negative, this is the floor


@dataclass(frozen=True)
class NearestArea:
    """The level on which the area of a box is nearest to that of the images that the network was trained on: argmin of
    ``|area * (stride / s)**2 - size**2|`` over the strides s, of an image pyramid as a rule (He et al. 2014, SPPnet,
    section 4.1; Fast R-CNN, section 2.4).

    size: a side of those images, in pixels. stride: of the network, that is, of its map of an image at scale 1. Of
    equally near levels the finest is taken.
    """

    size: float = 224
    stride: float = 16

    def __call__(self, boxes: Tensor, strides: Sequence[float]) -> Tensor:
        areas = area(boxes)[:, None]
        scale = areas.new_tensor([self.stride / each for each in strides])
        return (areas * scale**2 - self.size**2).abs().argmin(1)


@dataclass(frozen=True)
class NearestScale:
    """The level whose scale is nearest to the one at which a box has `size` pixels a side: argmin of
    ``|stride / s - size / sqrt(area)|`` over the strides s, as in the released code of SPPnet, where `size` is 13 cells
    of 16 pixels. (There the short side of the image that it asks for is also rounded to a pixel.)

    stride: see `NearestArea`. A box without area goes to the finest level.
    """

    size: float = 208
    stride: float = 16

    def __call__(self, boxes: Tensor, strides: Sequence[float]) -> Tensor:
        scales = [self.stride / each for each in strides]
        wanted = (self.size / area(boxes).sqrt()).clamp(max=2 * max(scales))  # infinite where there is no area
        return (wanted.new_tensor(scales) - wanted[:, None]).abs().argmin(1)


class Levels(nn.Module):
    """An extractor on a pyramid: each box is read from the level that `rule` gives, FPN's unless another is passed.

    extractor: one for all levels, or a sequence with one a level. With a single map it is that extractor alone.
    """

    def __init__(
        self,
        extractor: RegionExtractor | Sequence[RegionExtractor],
        rule: LevelRule = FPNLevels(),
    ) -> None:
        super().__init__()
        own = [extractor] if isinstance(extractor, RegionExtractor) else list(extractor)
        if not own or any(e.bins != own[0].bins for e in own):
            raise ValueError(f"extractor: expected one, or several with the same bins, got {[e.bins for e in own]}")
        self.extractors = nn.ModuleList(own)
        self.bins = own[0].bins
        self.rule = rule

    def extra_repr(self) -> str:
        return f"rule={self.rule}"

    def assign(self, maps: Sequence[FeatureMap], r: Regions) -> Tensor:
        """The index [R] int64 into `maps` of each box's level. Raises ValueError as the rule does."""
        return self.rule(r.boxes.detach(), [x.stride for x in maps])

    def forward(self, maps: Sequence[FeatureMap], r: Regions) -> Tensor:
        """Region features [R, C, *bins] from maps of the same batch and channels.

        Raises ValueError as the extractor does, and where maps and extractors do not match.
        """
        own = self.by_level(maps)
        if len(maps) == 1:
            return own[0](maps[0], r)
        level = self.assign(maps, r)
        if len(self.extractors) == 1:
            return own[0].pyramid(maps, r, level)
        return level_by_level(own, maps, r, level)

    def distinct(self, maps: Sequence[FeatureMap], r: Regions) -> tuple[Regions, Tensor] | None:
        """Regions without those whose features repeat another one's, since they cover the same cells, and the index
        [R] int64 of each region of `r` among them; None for extractors that do not round boxes to cells. Raises
        ValueError for regions that `forward` would not take."""
        r.check(maps[0])
        level = self.assign(maps, r) if len(maps) > 1 else torch.zeros_like(r.image)
        cells = [own.whole_cells(maps, r, level) for own in self.by_level(maps)[: len(self.extractors)]]
        if len(cells) > 1 or cells[0] is None:
            return None
        _, index = torch.cat([cells[0], r.image[:, None], level[:, None]], 1).unique(dim=0, return_inverse=True)
        first = index.new_zeros(int(index.max()) + 1 if len(r) else 0)
        first[index] = torch.arange(len(r), device=index.device)
        return r[first], index

    def weights(self, maps: Sequence[FeatureMap], r: Regions) -> list[Tensor]:
        """One tensor a level, [R, 1 or C, K, H_l, W_l], zero for the boxes of other levels.

        ``forward`` is the sum over the levels of ``contract(weights[l], maps[l])``.
        """
        own = self.by_level(maps)
        level = self.assign(maps, r) if len(maps) > 1 else torch.zeros_like(r.image)
        return [
            e.weights(x, r) * (level == i)[:, None, None, None, None]
            for i, (e, x) in enumerate(zip(own, maps, strict=True))
        ]

    def by_level(self, maps: Sequence[FeatureMap]) -> list[RegionExtractor]:
        """The extractor of each of `maps`. Raises ValueError for another number of them than there are extractors."""
        own = [cast(RegionExtractor, e) for e in self.extractors]
        if not maps or len(own) not in (1, len(maps)):
            raise ValueError(f"maps: expected {len(own) if maps else 'at least one'}, got {len(maps)}")
        return own * len(maps) if len(own) == 1 else own


class OneLevel(Levels):
    """An extractor that reads one of several maps alone, ``maps[level]``: the last one unless another is named.

    For heads whose map is not that of the proposals, as in R-FCN (`regio.proposals.RPN` has an argument of this name).
    The other maps may have other channels. Raises ValueError, when called, for too few maps.
    """

    def __init__(self, extractor: RegionExtractor, level: int = -1) -> None:
        super().__init__(extractor)
        self.level = level

    def extra_repr(self) -> str:
        return f"level={self.level}"

    def assign(self, maps: Sequence[FeatureMap], r: Regions) -> Tensor:
        """The index [R] int64 into `maps`, the same for all boxes."""
        return torch.full_like(r.image, self._place(maps))

    def forward(self, maps: Sequence[FeatureMap], r: Regions) -> Tensor:
        """Region features [R, C, *bins] from ``maps[level]``."""
        features: Tensor = self.extractors[0](maps[self._place(maps)], r)
        return features

    def _place(self, maps: Sequence[FeatureMap]) -> int:
        if not -len(maps) <= self.level < len(maps):
            raise ValueError(f"maps: expected one at {self.level}, got {len(maps)} maps")
        return range(len(maps))[self.level]

    def weights(self, maps: Sequence[FeatureMap], r: Regions) -> list[Tensor]:
        """One tensor a level, [R, 1 or C, K, H_l, W_l], zero on all maps but ``maps[level]``."""
        read = self._place(maps)
        own = self.by_level(maps)[0].weights(maps[read], r)
        return [own if i == read else own.new_zeros((*own.shape[:3], *x.size)) for i, x in enumerate(maps)]
