"""Region features of maps that a layer makes first: score maps (R-FCN), thin maps (Light-Head R-CNN)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import ClassVar

from torch import Tensor, nn

from regio.regions.base import RegionExtractor
from regio.regions.position_sensitive import PositionSensitive
from regio.regions.sampling import SamplePoints
from regio.types import FeatureMap, Regions

__all__ = ["Convolved", "score_layer", "score_maps"]


class Convolved(RegionExtractor):
    """The features that `extractor` reads from ``layer(x)`` in place of the map x.

    layer: from [N, C, H, W] to [N, C', H, W]; it runs once over each map, however many boxes are read.

    Law: ``forward(x, r) == extractor(layer(x), r)``; `weights` are those of the cells of ``layer(x)``.
    """

    map_layers: ClassVar[tuple[str, ...]] = ("layer",)

    def __init__(self, layer: nn.Module, extractor: RegionExtractor) -> None:
        super().__init__()
        self.layer, self.extractor, self.bins = layer, extractor, extractor.bins

    def made(self, x: FeatureMap) -> FeatureMap:
        """The map that is read in place of x."""
        return replace(x, data=self.layer(x.data))

    def forward(self, x: FeatureMap, r: Regions) -> Tensor:
        """Region features [R, C, *bins]."""
        features: Tensor = self.extractor(self.made(x), r)
        return features

    def pyramid(self, maps: Sequence[FeatureMap], r: Regions, level: Tensor) -> Tensor:
        """Region features [R, C, *bins], box i read from what the layer makes of ``maps[level[i]]``."""
        return self.extractor.pyramid([self.made(x) for x in maps], r, level)

    def weights(self, x: FeatureMap, r: Regions) -> Tensor:
        """The weights [R, 1 or C, K, H, W] of the cells of ``layer(x)``."""
        return self.extractor.weights(self.made(x), r)

    def mean_weights(self, x: FeatureMap, r: Regions) -> Tensor:
        return self.extractor.mean_weights(self.made(x), r)

    def whole_cells(self, maps: Sequence[FeatureMap], r: Regions, level: Tensor) -> Tensor | None:
        return self.extractor.whole_cells(maps, r, level)

    def terms_alone(self) -> dict[str, RegionExtractor]:
        """Those of the extractor, each behind the same layer."""
        return {name: Convolved(self.layer, each) for name, each in self.extractor.terms_alone().items()}

    def part_shifts(self, x: FeatureMap, r: Regions) -> Tensor | None:
        return self.extractor.part_shifts(self.made(x), r)

    def moved_samples(self, x: FeatureMap, r: Regions) -> tuple[SamplePoints, SamplePoints] | None:
        return self.extractor.moved_samples(self.made(x), r)


def score_layer(in_channels: int, channels: int) -> nn.Conv2d:
    """A 1 x 1 convolution that starts as N(0, 0.01), its bias at 0, as R-FCN's released code has for score maps."""
    layer = nn.Conv2d(in_channels, channels, 1)
    nn.init.normal_(layer.weight, std=0.01)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def score_maps(in_channels: int, channels: int, extractor: PositionSensitive) -> Convolved:
    """R-FCN's score maps (Dai et al. 2016, section 2.2): a 1 x 1 convolution makes G * channels maps of `in_channels`,
    from which `extractor` gives region features [R, channels, *bins], part k of group g(k). The mean over the parts is
    `vote`. The form whose parts learn where to read is `DeformablePositionSensitive`."""
    return Convolved(score_layer(in_channels, prod(extractor.group_size) * channels), extractor)
