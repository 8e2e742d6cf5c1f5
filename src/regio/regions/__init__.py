"""Region features: from a feature map and boxes to one feature a box."""

from regio.regions.base import RegionExtractor, contract
from regio.regions.grid import RoIAlign, RoIAlignMax
from regio.regions.learned import LearnedRegionFeatures
from regio.regions.levels import Levels
from regio.regions.pool import RoIPool

__all__ = [
    "LearnedRegionFeatures",
    "Levels",
    "RegionExtractor",
    "RoIAlign",
    "RoIAlignMax",
    "RoIPool",
    "contract",
]
