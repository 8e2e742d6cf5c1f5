"""Faster R-CNN on a single feature map.

Ren, He, Girshick, Sun: Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks, NIPS 2015. The
numbers are the paper's and, where it gives none, those of its released code (py-faster-rcnn, joint training).

With the fifth stage of a ResNet as the head: He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, CVPR
2016, appendix A. The numbers of that form are those of Mask R-CNN (He et al., ICCV 2017), its later description.
"""

from __future__ import annotations

from torch import nn

from regio.backbones import Backbone
from regio.detector import TwoStageDetector
from regio.matching import BalancedSampler, Matcher, RegionSampler
from regio.necks import Norm, SingleMap
from regio.postprocess import Postprocess
from regio.preprocess import Preprocess
from regio.proposals import RPN, Anchors, ProposalFilter
from regio.regions import Levels, RoIAlign, RoIPool
from regio.regions.base import RegionExtractor
from regio.roi_heads import FastRCNNHead, StageAverage
from regio.systems.fast_rcnn import fast_rcnn_head

__all__ = ["faster_rcnn", "faster_rcnn_c4", "rpn"]


def rpn(
    backbone: Backbone,
    *,
    channels: int = 256,
    short_side: int = 600,
    long_side: int = 1000,
    anchors: Anchors = Anchors(((128.0, 256.0, 512.0),)),  # noqa: B008 (frozen)
    straddle_threshold: float | None = 0.0,
    norm: Norm | None = None,
) -> TwoStageDetector:
    """The proposal network alone, on the last map of `backbone` (stride 16 in the paper): a detector without heads.

    channels: of the map that the network looks at. short_side, long_side: image scale, in pixels. anchors: in pixels of
    the scaled image. straddle_threshold: by how many pixels an anchor may leave the image and still be trained on, None
    for any; None suits images not much larger than the anchors. norm: after the neck's convolution.

    The released code also drops proposals with a side under 16 pixels of the image as given; here none are dropped.
    """
    return TwoStageDetector(
        preprocess=Preprocess(short_side, long_side, backbone.mean, backbone.std, divisor=backbone.strides[-1]),
        backbone=backbone,
        neck=SingleMap(backbone.channels[-1], channels, norm),
        proposals=RPN(
            channels,
            anchors,
            test=ProposalFilter(pre_nms_top_n=6000, post_nms_top_n=300, nms_threshold=0.7),
            train=ProposalFilter(pre_nms_top_n=12000, post_nms_top_n=2000, nms_threshold=0.7),
            straddle_threshold=straddle_threshold,
        ),
    )


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
    """`rpn` and a head whose region features `extractor` reads from the same map.

    num_classes: with the background, 21 for Pascal VOC. extractor: RoI pooling to 7 x 7 unless given; it reads maps of
    `channels`. hidden: width of the head's two layers. regions_per_image: regions of an image in the head's mini-batch.
    beta: of the head's box loss. postprocess: which of the scored boxes are detections. The others: see `rpn`.
    """
    detector = rpn(
        backbone,
        channels=channels,
        short_side=short_side,
        long_side=long_side,
        anchors=anchors,
        straddle_threshold=straddle_threshold,
        norm=norm,
    )
    head = fast_rcnn_head(
        RoIPool((7, 7)) if extractor is None else extractor,
        channels,
        hidden,
        num_classes,
        regions_per_image=regions_per_image,
        beta=beta,
        postprocess=postprocess,
    )
    detector.roi_heads.append(head)
    return detector


def faster_rcnn_c4(
    num_classes: int,
    backbone: Backbone,
    extractor: RegionExtractor | None = None,
    *,
    proposal_channels: int = 1024,
    short_side: int = 800,
    long_side: int = 1333,
    anchors: Anchors = Anchors(((32.0, 64.0, 128.0, 256.0, 512.0),)),  # noqa: B008 (frozen)
    straddle_threshold: float | None = None,
    regions_per_image: int = 64,
    beta: float = 1.0,
    postprocess: Postprocess = Postprocess(nms_threshold=0.5),  # noqa: B008 (frozen)
) -> TwoStageDetector:
    """Proposals and region features from the last but one level of `backbone` (C4), and the stage from there to the
    last (C5) as the head, on each region.

    num_classes: with the background. backbone: of two levels, (4, 5) in the paper, whose last stage can be split off.
    extractor: RoIAlign to 14 x 14 unless given; it reads the map as it is, and the stage halves its bins.
    proposal_channels: of the convolution of the proposal network. The others: see `rpn` and `faster_rcnn`.

    Raises ValueError for a backbone that cannot be split.
    """
    width = backbone.channels[-1]
    backbone, stage = backbone.split()
    channels = backbone.channels[-1]
    head = FastRCNNHead(
        Levels(RoIAlign((14, 14), samples=2) if extractor is None else extractor),
        StageAverage(stage),
        width,
        num_classes,
        sampler=RegionSampler(Matcher(positive=0.5, background=0.5), BalancedSampler(regions_per_image, 0.25)),
        beta=beta,
        postprocess=postprocess,
    )
    return TwoStageDetector(
        preprocess=Preprocess(short_side, long_side, backbone.mean, backbone.std, divisor=backbone.strides[-1]),
        backbone=backbone,
        neck=nn.Identity(),
        proposals=RPN(
            channels,
            anchors,
            hidden=proposal_channels,
            test=ProposalFilter(pre_nms_top_n=6000, post_nms_top_n=300, nms_threshold=0.7),
            train=ProposalFilter(pre_nms_top_n=12000, post_nms_top_n=2000, nms_threshold=0.7),
            straddle_threshold=straddle_threshold,
        ),
        roi_heads=[head],
    )
