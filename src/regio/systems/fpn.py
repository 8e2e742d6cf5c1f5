"""Faster R-CNN on a feature pyramid.

Lin, Dollár, Girshick, He, Hariharan, Belongie: Feature Pyramid Networks for Object Detection, CVPR 2017. The numbers
are the paper's and, where it gives none, those of its released code (Detectron).
"""

from __future__ import annotations

from regio.backbones import Backbone
from regio.detector import TwoStageDetector
from regio.matching import BalancedSampler, Matcher, RegionSampler
from regio.necks import FPN, Norm
from regio.postprocess import Postprocess
from regio.preprocess import Preprocess
from regio.proposals import RPN, Anchors, ProposalFilter
from regio.regions import Levels, RoIAlign
from regio.regions.base import RegionExtractor
from regio.roi_heads import FastRCNNHead, FullyConnected

__all__ = ["faster_rcnn_fpn"]


def faster_rcnn_fpn(
    num_classes: int,
    backbone: Backbone,
    extractor: RegionExtractor | None = None,
    *,
    channels: int = 256,
    hidden: int = 1024,
    short_side: int = 800,
    long_side: int = 1333,
    anchors: Anchors | None = None,
    regions_per_image: int = 512,
    norm: Norm | None = None,
    beta: float = 1.0,
    postprocess: Postprocess = Postprocess(nms_threshold=0.5),  # noqa: B008 (frozen)
) -> TwoStageDetector:
    """Faster R-CNN with all maps of `backbone` (C2 to C5 in the paper) in a pyramid, and one more map for proposals.

    num_classes: with the background, 81 for COCO. extractor: RoIAlign to 7 x 7 unless given; it reads maps of
    `channels`. hidden: width of the head's two layers. short_side, long_side: image scale, in pixels. anchors: in
    pixels of the scaled image, one tuple of sizes for each map and the one more; unless given, three ratios of 8 times
    the stride, which is 32 to 512 for P2 to P6. regions_per_image: regions of an image in the head's mini-batch. norm:
    after each convolution of the pyramid. beta: of the head's box loss. postprocess: which of the scored boxes are
    detections.
    """
    extractor = RoIAlign((7, 7), samples=2) if extractor is None else extractor
    strides = (*backbone.strides, backbone.strides[-1] * 2)
    anchors = Anchors(tuple((8.0 * stride,) for stride in strides)) if anchors is None else anchors
    return TwoStageDetector(
        preprocess=Preprocess(short_side, long_side, backbone.mean, backbone.std, divisor=backbone.strides[-1]),
        backbone=backbone,
        neck=FPN(backbone.channels, channels, norm),
        proposals=RPN(
            channels,
            anchors,
            extra_level=True,
            test=ProposalFilter(pre_nms_top_n=1000, post_nms_top_n=1000, nms_threshold=0.7),
            train=ProposalFilter(pre_nms_top_n=2000, post_nms_top_n=2000, nms_threshold=0.7),
            matcher=Matcher(positive=0.7, background=0.3, allow_low_quality_matches=True),
            sampler=BalancedSampler(256, 0.5),
            straddle_threshold=None,
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
