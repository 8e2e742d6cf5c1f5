"""Extractors of fixed weights read all levels of a pyramid in one call, as they read one level after the other."""

import pytest
import torch

from regio.regions.base import RegionExtractor
from regio.regions.centre import CentreFeature
from regio.regions.precise_roi_pool import PreciseRoIPool
from regio.regions.quantisation import DisjointBins, HalfOpenCorners, SPPNetReleasedCorners
from regio.regions.roi_pool import RoIAveragePool, RoIPool
from regio.regions.roi_warp import RoIWarp
from regio.regions.sample_max import SampleMax
from regio.regions.spatial_pyramid import SpatialPyramidPool
from regio.regions.triangular import TriangularBins
from regio.regions.warped_crop import WarpedCrop
from regio.types import FeatureMap
from tests.regions.contract import BOXES, close, feature_map, regions


@pytest.mark.parametrize(
    "extractor",
    [
        CentreFeature(),
        PreciseRoIPool((2, 3)),
        RoIAveragePool((2, 3)),
        RoIAveragePool((2, 3), HalfOpenCorners(), DisjointBins(), count_outside=True),
        RoIPool((2, 3), HalfOpenCorners(), DisjointBins()),
        RoIWarp((2, 3)),
        SampleMax(RoIWarp((2, 3), rounded=False)),
        SpatialPyramidPool((2, 1), SPPNetReleasedCorners()),
        TriangularBins(),
        WarpedCrop((6, 7), context=1),
        WarpedCrop((2, 3), context=0, rounded=False),
    ],
    ids=lambda e: type(e).__name__,
)
def test_all_levels_at_once(extractor: RegionExtractor) -> None:
    """On maps of 9 x 11, 5 x 6 and 3 x 2 cells; every box on every level."""
    maps = [FeatureMap(feature_map(seed=i).data[:, :, :: 2**i, :: 2**i], 4 * 2**i) for i in range(3)]
    maps[2] = FeatureMap(maps[2].data[..., :2], maps[2].stride)
    r = regions(BOXES * 3)
    level = torch.arange(3).repeat_interleave(len(BOXES))
    y = extractor.pyramid(maps, r, level)
    close(y, RegionExtractor.pyramid(extractor, maps, r, level), 1e-12)
    for i, x in enumerate(maps):
        close(y[level == i], extractor(x, r[level == i]), 1e-12)
