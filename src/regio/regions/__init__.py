"""Region features: from a feature map and boxes to one feature a box."""

from regio.regions.base import RegionExtractor, contract
from regio.regions.centre import CentreFeature
from regio.regions.convolved import Convolved, score_maps
from regio.regions.deformable import DeformablePositionSensitive, DeformableRoIPool, RoundedSamples
from regio.regions.enlarged import Enlarged
from regio.regions.learned import Dense, Exact, LearnedRegionFeatures, Sampled
from regio.regions.levels import FPNLevels, LevelRule, Levels, NearestArea, NearestScale, OneLevel
from regio.regions.masked import MaskedBins, MaskedRegions
from regio.regions.position_sensitive import PositionSensitive, RFCNAveragePool, TorchvisionAveragePool, vote
from regio.regions.precise_roi_pool import PreciseRoIPool
from regio.regions.priors import DeformablePrior, GaussianPrior, GridPrior, Prior, RoIAlignPrior
from regio.regions.quantisation import (
    DisjointBins,
    FastRCNNCorners,
    HalfOpenCorners,
    OverlappingBins,
    SlidingBins,
    SPPNetCorners,
    SPPNetReleasedCorners,
)
from regio.regions.roi_align import RoIAlign
from regio.regions.roi_pool import RoIAveragePool, RoIPool
from regio.regions.roi_warp import RoIWarp
from regio.regions.sample_max import SampleMax
from regio.regions.sampling import SamplingExtractor
from regio.regions.spatial_pyramid import SpatialPyramidPool
from regio.regions.support import BoxSupport, WholeImage
from regio.regions.triangular import TriangularBins
from regio.regions.warped_crop import TightestSquare, Warp, WarpedCrop

__all__ = [
    "BoxSupport",
    "CentreFeature",
    "Convolved",
    "DeformablePositionSensitive",
    "DeformablePrior",
    "DeformableRoIPool",
    "Dense",
    "DisjointBins",
    "Enlarged",
    "Exact",
    "FPNLevels",
    "FastRCNNCorners",
    "GaussianPrior",
    "GridPrior",
    "HalfOpenCorners",
    "LearnedRegionFeatures",
    "LevelRule",
    "Levels",
    "MaskedBins",
    "MaskedRegions",
    "NearestArea",
    "NearestScale",
    "OneLevel",
    "OverlappingBins",
    "PositionSensitive",
    "PreciseRoIPool",
    "Prior",
    "RFCNAveragePool",
    "RegionExtractor",
    "RoIAlign",
    "RoIAlignPrior",
    "RoIAveragePool",
    "RoIPool",
    "RoIWarp",
    "RoundedSamples",
    "SPPNetCorners",
    "SPPNetReleasedCorners",
    "SampleMax",
    "Sampled",
    "SamplingExtractor",
    "SlidingBins",
    "SpatialPyramidPool",
    "TightestSquare",
    "TorchvisionAveragePool",
    "TriangularBins",
    "Warp",
    "WarpedCrop",
    "WholeImage",
    "contract",
    "score_maps",
    "vote",
]
