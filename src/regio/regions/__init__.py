"""Region features: from a feature map and boxes to one feature a box."""

from regio.regions.base import RegionExtractor, contract
from regio.regions.grid import RoIAlign, RoIAlignMax
from regio.regions.learned import Dense, Exact, LearnedRegionFeatures, Sampled
from regio.regions.levels import Levels
from regio.regions.pool import RoIPool
from regio.regions.support import Box, WholeImage

__all__ = [
    "Box",
    "Dense",
    "Exact",
    "LearnedRegionFeatures",
    "Levels",
    "RegionExtractor",
    "RoIAlign",
    "RoIAlignMax",
    "RoIPool",
    "Sampled",
    "WholeImage",
    "contract",
]
