"""SPPnet: a spatial pyramid over each region of maps of the whole image.

He, Zhang, Ren, Sun: Spatial pyramid pooling in deep convolutional networks for visual recognition, ECCV 2014. The
numbers are the paper's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from regio.backbones import Backbone
from regio.detector import TwoStageDetector
from regio.image_pyramid import ImagePyramid
from regio.postprocess import Postprocess
from regio.preprocess import Preprocess
from regio.regions import FPNLevels, LevelRule, Levels, NearestArea, SpatialPyramidPool, SPPNetCorners
from regio.regions.quantisation import Corners
from regio.roi_heads import FullyConnected, SVMHead

__all__ = ["sppnet"]


def sppnet(
    num_classes: int,
    backbone: Backbone,
    fully_connected: FullyConnected | None = None,
    *,
    levels: Sequence[int] = (6, 3, 2, 1),
    corners: Corners = SPPNetCorners(),  # noqa: B008 (frozen)
    sides: Sequence[int] = (480, 576, 688, 864, 1200),
    long_side: int = 2000,
    rule: LevelRule | None = None,
    hidden: int = 4096,
    layer: str = "fc7",
    box_layer: str | None = "pool5",
    postprocess: Postprocess = Postprocess(-torch.inf, nms_threshold=0.3),  # noqa: B008 (frozen)
) -> TwoStageDetector:
    """A detector for boxes that are given, `detector(images, proposals)`: its convolutions see the whole image, once
    at each scale.

    num_classes: with the background, 21 for Pascal VOC. backbone: the convolutions, of one map. fully_connected: layers
    fc6 and fc7 for features of the pyramid, as those of a `SpatialPyramidClassifier`; unless given, new ones of width
    `hidden`. levels, corners: of the spatial pyramid; `SPPNetReleasedCorners` are those of the released code.

    sides: short sides to which images are scaled. Each box is read at the scale at which its area is nearest to 224 x
    224 pixels; rule: another choice, as `NearestScale`, the released code's (which has a side of 874, not 864). One
    side is a network without a pyramid of scales. layer, box_layer: what the SVMs and the box regressions read, "pool5"
    (the spatial pyramid), "fc6" or "fc7"; box_layer None for boxes that stay as they are. postprocess: which candidates
    are detections.

    It is trained in stages (`regio.recipes.FittedHead`), in which the convolutions stay as they are.
    """
    stride = backbone.strides[-1]
    extractor = SpatialPyramidPool(levels, corners)
    if fully_connected is None:
        fully_connected = FullyConnected(backbone.channels[-1], extractor.bins, hidden, dropout=0.5)
    if (fully_connected.channels, fully_connected.bins) != (backbone.channels[-1], extractor.bins):
        raise ValueError(
            f"fully_connected: expected layers for {backbone.channels[-1]} channels and {extractor.bins} bins, which "
            f"the pyramid gives, got some for {fully_connected.channels} and {fully_connected.bins}"
        )
    several = len(sides) > 1
    rule = rule or (NearestArea(stride=stride) if several else FPNLevels())
    head = SVMHead(
        Levels(extractor, rule),
        fully_connected,
        num_classes,
        layer=layer,
        box_layer=box_layer,
        postprocess=postprocess,
        chunk=512,
    )
    return TwoStageDetector(
        preprocess=Preprocess(max(sides), long_side, backbone.mean, backbone.std, divisor=stride),
        backbone=ImagePyramid(backbone, sides, divisor=stride) if several else backbone,
        neck=nn.Identity(),
        proposals=None,
        roi_heads=[head],
    )
