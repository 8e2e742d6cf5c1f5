"""Fast R-CNN: the second stage that the later systems share.

Girshick: Fast R-CNN, ICCV 2015.
"""

from __future__ import annotations

from regio.matching import BalancedSampler, Matcher, RegionSampler
from regio.postprocess import Postprocess
from regio.regions import Levels
from regio.regions.base import RegionExtractor
from regio.roi_heads import FastRCNNHead, FullyConnected

__all__ = ["fast_rcnn_head"]


def fast_rcnn_head(
    extractor: RegionExtractor,
    channels: int,
    hidden: int,
    num_classes: int,
    *,
    regions_per_image: int,
    beta: float = 1.0,
    postprocess: Postprocess,
) -> FastRCNNHead:
    """Two fully connected layers of width `hidden` on the features that `extractor` reads from maps of `channels`.

    A quarter of `regions_per_image` in the mini-batch overlap an object by an IoU of at least 0.5, the others less
    (section 2.3, with the released codes' lower bound of 0). beta: of the box loss. postprocess: which of the scored
    boxes are detections.
    """
    return FastRCNNHead(
        Levels(extractor),
        FullyConnected(channels, extractor.bins, hidden),
        hidden,
        num_classes,
        sampler=RegionSampler(Matcher(positive=0.5, background=0.5), BalancedSampler(regions_per_image, 0.25)),
        beta=beta,
        postprocess=postprocess,
    )
