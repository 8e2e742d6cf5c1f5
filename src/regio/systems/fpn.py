"""Faster R-CNN on a feature pyramid.

Lin, Dollár, Girshick, He, Hariharan, Belongie: Feature Pyramid Networks for Object Detection, CVPR 2017. The numbers
are the paper's and, where it gives none, those of its released code (Detectron).
"""

from __future__ import annotations

from regio.backbones import Backbone
from regio.boxes import BoxCoder
from regio.detector import TwoStageDetector
from regio.heads import BoxHead
from regio.matching import BalancedSampler, Matcher, RegionSampler
from regio.necks import FPN
from regio.postprocess import Postprocess
from regio.preprocess import Preprocess
from regio.proposals import RPN, Anchors, ProposalFilter
from regio.regions import Levels, RoIAlign
from regio.regions.base import RegionExtractor

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
    anchor_sizes: tuple[float, ...] | None = None,
    sampled_regions: int = 512,
) -> TwoStageDetector:
    """Faster R-CNN with all maps of `backbone` (C2 to C5 in the paper) in a pyramid, and one more map for proposals.

    num_classes: with the background, 81 for COCO. extractor: RoIAlign to 7 x 7 unless given; it reads maps of
    `channels`. hidden: width of the head's two layers. short_side, long_side: image scale, in pixels. anchor_sizes: one
    for each map and the one more, the square root of the anchors' area in pixels of the scaled image; 8 times the
    stride unless given, which is 32 to 512 for P2 to P6. sampled_regions: regions per image in the head's mini-batch.
    """
    extractor = RoIAlign((7, 7), samples=2) if extractor is None else extractor
    coder = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))
    strides = (*backbone.strides, backbone.strides[-1] * 2)
    sizes = tuple(8.0 * stride for stride in strides) if anchor_sizes is None else anchor_sizes
    return TwoStageDetector(
        preprocess=Preprocess(short_side, long_side, backbone.mean, backbone.std, divisor=backbone.strides[-1]),
        backbone=backbone,
        neck=FPN(backbone.channels, channels),
        proposals=RPN(
            channels,
            Anchors(tuple((size,) for size in sizes), ratios=(0.5, 1.0, 2.0)),
            coarser=True,
            test=ProposalFilter(before_nms=1000, after_nms=1000, iou_threshold=0.7),
            train=ProposalFilter(before_nms=2000, after_nms=2000, iou_threshold=0.7),
            matcher=Matcher(positive=0.7, background=0.3, best_for_each=True),
            sampler=BalancedSampler(256, 0.5),
            border=None,
        ),
        extractor=Levels(extractor),
        sampler=RegionSampler(Matcher(positive=0.5, background=0.5), BalancedSampler(sampled_regions, 0.25), coder),
        head=BoxHead(channels, extractor.bins, num_classes, hidden, beta=1.0),
        postprocess=Postprocess(coder, score_threshold=0.05, iou_threshold=0.5, max_detections=100),
    )
