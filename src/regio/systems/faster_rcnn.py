"""Faster R-CNN on a single feature map.

Ren, He, Girshick, Sun: Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks, NIPS 2015. The
numbers are the paper's and, where it gives none, those of its released code (py-faster-rcnn, joint training).
"""

from __future__ import annotations

from regio.backbones import Backbone
from regio.detector import TwoStageDetector
from regio.matching import BalancedSampler, Matcher, RegionSampler
from regio.necks import Norm, SingleMap
from regio.postprocess import Postprocess
from regio.preprocess import Preprocess
from regio.proposals import RPN, Anchors, ProposalFilter
from regio.regions import Levels, RoIPool
from regio.regions.base import RegionExtractor
from regio.roi_heads import FastRCNNHead, FullyConnected

__all__ = ["faster_rcnn"]


def faster_rcnn(
    num_classes: int,
    backbone: Backbone,
    extractor: RegionExtractor | None = None,
    *,
    channels: int = 256,
    hidden: int = 1024,
    short_side: int = 600,
    long_side: int = 1000,
    anchors: Anchors = Anchors(((128.0, 256.0, 512.0),)),  # noqa: B008 (frozen)
    straddle_threshold: float | None = 0.0,
    regions_per_image: int = 128,
    norm: Norm | None = None,
    beta: float = 1.0,
    postprocess: Postprocess = Postprocess(nms_threshold=0.3),  # noqa: B008 (frozen)
) -> TwoStageDetector:
    """Faster R-CNN whose region features `extractor` reads from the last map of `backbone` (stride 16 in the paper).

    num_classes: with the background, 21 for Pascal VOC. extractor: RoI pooling to 7 x 7 unless given; it reads maps of
    `channels`. hidden: width of the head's two layers. short_side, long_side: image scale, in pixels. anchors: in
    pixels of the scaled image. straddle_threshold: by how many pixels an anchor may leave the image and still be
    trained on, None for any; None suits images not much larger than the anchors. regions_per_image: regions of an image
    in the head's mini-batch. norm: after the neck's convolution. beta: of the head's box loss. postprocess: which of
    the scored boxes are detections.

    The released code also drops proposals with a side under 16 pixels of the image as given; here none are dropped.
    """
    extractor = RoIPool((7, 7)) if extractor is None else extractor
    return TwoStageDetector(
        preprocess=Preprocess(short_side, long_side, backbone.mean, backbone.std, divisor=backbone.strides[-1]),
        backbone=backbone,
        neck=SingleMap(backbone.channels[-1], channels, norm),
        proposals=RPN(
            channels,
            anchors,
            test=ProposalFilter(pre_nms_top_n=6000, post_nms_top_n=300, nms_threshold=0.7),
            train=ProposalFilter(pre_nms_top_n=12000, post_nms_top_n=2000, nms_threshold=0.7),
            matcher=Matcher(positive=0.7, background=0.3, allow_low_quality_matches=True),
            sampler=BalancedSampler(256, 0.5),
            straddle_threshold=straddle_threshold,
        ),
        roi_heads=[
            FastRCNNHead(
                Levels(extractor),
                FullyConnected(channels, extractor.bins, hidden),
                hidden,
                num_classes,
                sampler=RegionSampler(Matcher(positive=0.5, background=0.5), BalancedSampler(regions_per_image, 0.25)),
                beta=beta,
                postprocess=postprocess,
            )
        ],
    )
