"""Feature pyramids: each box is read from the level that fits its size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from regio.boxes import area
from regio.regions.base import RegionExtractor, level_by_level
from regio.types import FeatureMap, Regions

__all__ = ["Levels"]


class Levels(nn.Module):
    """An extractor on a pyramid: a box of w x h pixels is read at level ``k = floor(k0 + log2(sqrt(w h) / s0))``,
    clamped to the levels there are (Lin et al. 2017, FPN, Eq. 1).

    The level of a map is log2 of its stride: k0 = 4 means stride 16 for boxes of canonical_size s0 = 224 pixels. `eps`
    is added before the floor, as in torchvision. A box without area goes to the finest level.

    extractor: one for all levels, or a sequence with one a level. With a single map it is that extractor alone.
    """

    def __init__(
        self,
        extractor: RegionExtractor | Sequence[RegionExtractor],
        canonical_size: float = 224,
        canonical_level: float = 4,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        own = [extractor] if isinstance(extractor, RegionExtractor) else list(extractor)
        if not own or any(e.bins != own[0].bins for e in own):
            raise ValueError(f"extractor: expected one, or several with the same bins, got {[e.bins for e in own]}")
        self.extractors = nn.ModuleList(own)
        self.bins = own[0].bins
        self.canonical_size = canonical_size
        self.canonical_level = canonical_level
        self.eps = eps

    def extra_repr(self) -> str:
        return f"canonical_size={self.canonical_size}, canonical_level={self.canonical_level}"

    def assign(self, maps: Sequence[FeatureMap], r: Regions) -> Tensor:
        """The index [R] int64 into `maps` of each box's level.

        Raises ValueError unless each stride is a power of two and twice the one before.
        """
        finest = round(math.log2(maps[0].stride))
        strides = [x.stride for x in maps]
        if strides != [2 ** (finest + i) for i in range(len(maps))]:
            raise ValueError(f"maps: expected strides that double, powers of two, finest first, got {strides}")
        size = area(r.boxes.detach()).sqrt()
        k = self.canonical_level + torch.log2(size / self.canonical_size) + self.eps
        return (k - finest).clamp(0, len(maps) - 1).to(torch.int64)  # of what is not negative, this is the floor

    def forward(self, maps: Sequence[FeatureMap], r: Regions) -> Tensor:
        """Region features [R, C, *bins] from maps of the same batch and channels.

        Raises ValueError as the extractor does, and where maps and extractors do not match.
        """
        own = self._of(maps)
        if len(maps) == 1:
            return own[0](maps[0], r)
        level = self.assign(maps, r)
        if len(self.extractors) == 1:
            return own[0].pyramid(maps, r, level)
        return level_by_level(own, maps, r, level)

    def weights(self, maps: Sequence[FeatureMap], r: Regions) -> list[Tensor]:
        """One tensor a level, [R, 1 or C, K, H_l, W_l], zero for the boxes of other levels.

        ``forward`` is the sum over the levels of ``contract(weights[l], maps[l])``.
        """
        own = self._of(maps)
        level = self.assign(maps, r) if len(maps) > 1 else torch.zeros_like(r.image)
        return [
            e.weights(x, r) * (level == i)[:, None, None, None, None]
            for i, (e, x) in enumerate(zip(own, maps, strict=True))
        ]

    def _of(self, maps: Sequence[FeatureMap]) -> list[RegionExtractor]:
        """The extractor of each map."""
        own = [cast(RegionExtractor, e) for e in self.extractors]
        if not maps or len(own) not in (1, len(maps)):
            raise ValueError(f"maps: expected {len(own) if maps else 'at least one'}, got {len(maps)}")
        return own * len(maps) if len(own) == 1 else own
