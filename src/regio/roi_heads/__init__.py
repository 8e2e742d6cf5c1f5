"""The second stage: a sequence of heads, each with a region feature extractor of its own.

The first head turns proposals into detections; later ones refine them (a cascade) or add to them (masks).
"""

from regio.roi_heads.base import RoIHead
from regio.roi_heads.box import BoxHead, BoxOutput, FastRCNNHead
from regio.roi_heads.mask import MaskConvolutions, MaskHead, MaskOutput, SigmoidMasks, SoftmaxMasks
from regio.roi_heads.position_sensitive import RFCNHead
from regio.roi_heads.region_classifier import RegionClassifier
from regio.roi_heads.scores import Margins, Scores, Sigmoid, Softmax
from regio.roi_heads.svm import SVMHead
from regio.roi_heads.trunks import (
    ConvolutionsAndLinear,
    FullyConnected,
    LayeredTrunk,
    StageAverage,
    WholeNetwork,
)

__all__ = [
    "BoxHead",
    "BoxOutput",
    "ConvolutionsAndLinear",
    "FastRCNNHead",
    "FullyConnected",
    "LayeredTrunk",
    "Margins",
    "MaskConvolutions",
    "MaskHead",
    "MaskOutput",
    "RFCNHead",
    "RegionClassifier",
    "RoIHead",
    "SVMHead",
    "Scores",
    "Sigmoid",
    "SigmoidMasks",
    "Softmax",
    "SoftmaxMasks",
    "StageAverage",
    "WholeNetwork",
]
