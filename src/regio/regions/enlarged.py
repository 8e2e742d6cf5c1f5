"""Enlarged: an extractor that reads a larger box, with what lies around the object."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from regio.boxes import precise
from regio.regions.base import RegionExtractor
from regio.regions.sampling import SamplePoints
from regio.types import FeatureMap, Regions

__all__ = ["Enlarged"]


class Enlarged(RegionExtractor):
    """The features that `extractor` reads from boxes of `area` times the area about the same centre, that is, of
    sqrt(area) times each side (Gu et al. 2018, table 2, where it is 2).

    The larger box may leave the image; what is there is the affair of `extractor`. On a pyramid a box is read from the
    level of its own size, not of the larger one's. Law: with an area of 1 it is `extractor`. Features receive
    gradients, and boxes as in `extractor`.

    Raises ValueError unless area is positive.
    """

    def __init__(self, extractor: RegionExtractor, area: float = 2.0) -> None:
        super().__init__()
        if not 0 < area < math.inf:
            raise ValueError(f"area: expected a positive number, got {area}")
        self.extractor, self.bins, self.area = extractor, extractor.bins, area

    def extra_repr(self) -> str:
        return f"area={self.area:g}"

    def forward(self, x: FeatureMap, r: Regions) -> Tensor:
        """Region features [R, C, *bins]."""
        r.check(x)
        return self.extractor(x, self._enlarged(r))

    def pyramid(self, maps: Sequence[FeatureMap], r: Regions, level: Tensor) -> Tensor:
        """Region features [R, C, *bins], box i read from ``maps[level[i]]``."""
        r.check(maps[0])
        return self.extractor.pyramid(maps, self._enlarged(r), level)

    def weights(self, x: FeatureMap, r: Regions) -> Tensor:
        """The weights [R, 1 or C, K, H, W]."""
        r.check(x)
        return self.extractor.weights(x, self._enlarged(r))

    def mean_weights(self, x: FeatureMap, r: Regions) -> Tensor:
        return self.extractor.mean_weights(x, self._enlarged(r))

    def whole_cells(self, maps: Sequence[FeatureMap], r: Regions, level: Tensor) -> Tensor | None:
        """Those of the larger boxes."""
        return self.extractor.whole_cells(maps, self._enlarged(r), level)

    def terms_alone(self) -> dict[str, RegionExtractor]:
        return {name: Enlarged(each, self.area) for name, each in self.extractor.terms_alone().items()}

    def moved_samples(self, x: FeatureMap, r: Regions) -> tuple[SamplePoints, SamplePoints] | None:
        return self.extractor.moved_samples(x, self._enlarged(r))

    def part_shifts(self, x: FeatureMap, r: Regions) -> Tensor | None:
        return self.extractor.part_shifts(x, self._enlarged(r))

    def _enlarged(self, r: Regions) -> Regions:
        boxes = precise(r.boxes)
        corner, opposite = boxes[:, :2], boxes[:, 2:]
        margin = (opposite - corner) * ((math.sqrt(self.area) - 1) / 2)
        return replace(r, boxes=torch.cat([corner - margin, opposite + margin], 1))
