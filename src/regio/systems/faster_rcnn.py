"""Faster R-CNN on a single feature map.

Ren, He, Girshick, Sun: Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks, NIPS 2015. The
numbers are the paper's and, where it gives none, those of its released code (py-faster-rcnn, joint training).
"""

from __future__ import annotations

from regio.backbones import Backbone
from regio.boxes import BoxCoder
from regio.detector import TwoStageDetector
from regio.heads import BoxHead
from regio.matching import BalancedSampler, Matcher, RegionSampler
from regio.necks import SingleMap
from regio.postprocess import Postprocess
from regio.preprocess import Preprocess
from regio.proposals import RPN, Anchors, ProposalFilter
from regio.regions import Levels, RoIPool
from regio.regions.base import RegionExtractor

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
    anchor_sizes: tuple[float, ...] = (128, 256, 512),
    border: float | None = 0.0,
    sampled_regions: int = 128,
) -> TwoStageDetector:
    """Faster R-CNN whose region features `extractor` reads from the last map of `backbone` (stride 16 in the paper).

    num_classes: with the background, 21 for Pascal VOC. extractor: RoI pooling to 7 x 7 unless given; it reads maps of
    `channels`. hidden: width of the head's two layers. short_side, long_side: image scale, in pixels. anchor_sizes:
    square roots of the anchors' areas, in pixels of the scaled image. border: by how many pixels an anchor may leave
    the image and still be trained on, None for any; None suits images not much larger than the anchors.
    sampled_regions: regions per image in the head's mini-batch.

    The released code also drops proposals with a side under 16 pixels of the image as given; here none are dropped.
    """
    extractor = RoIPool((7, 7)) if extractor is None else extractor
    coder = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))
    return TwoStageDetector(
        preprocess=Preprocess(short_side, long_side, backbone.mean, backbone.std, divisor=backbone.strides[-1]),
        backbone=backbone,
        neck=SingleMap(backbone.channels[-1], channels),
        proposals=RPN(
            channels,
            Anchors((anchor_sizes,), ratios=(0.5, 1.0, 2.0)),
            test=ProposalFilter(before_nms=6000, after_nms=300, iou_threshold=0.7),
            train=ProposalFilter(before_nms=12000, after_nms=2000, iou_threshold=0.7),
            matcher=Matcher(positive=0.7, background=0.3, best_for_each=True),
            sampler=BalancedSampler(256, 0.5),
            border=border,
        ),
        extractor=Levels(extractor),
        sampler=RegionSampler(Matcher(positive=0.5, background=0.5), BalancedSampler(sampled_regions, 0.25), coder),
        head=BoxHead(channels, extractor.bins, num_classes, hidden, beta=1.0),
        postprocess=Postprocess(coder, score_threshold=0.05, iou_threshold=0.3, max_detections=100),
    )
