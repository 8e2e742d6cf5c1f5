"""R-FCN and Light-Head R-CNN: position-sensitive regions of maps that are made after the last convolution.

Dai, Li, He, Sun: R-FCN: Object Detection via Region-based Fully Convolutional Networks, NIPS 2016. Its deformable form:
Dai et al.: Deformable Convolutional Networks, ICCV 2017.

Li, Peng, Yu, Zhang, Deng, Sun: Light-Head R-CNN: In Defense of Two-Stage Object Detector, 2017.

The numbers are the papers' and, where they give none, those of their released codes.
"""

from __future__ import annotations

from math import prod

from torch import nn

from regio.backbones import Backbone
from regio.convolutions import LargeSeparable
from regio.detector import TwoStageDetector
from regio.losses import HardExamples, Reduction
from regio.matching import Matcher, RegionSampler, Sampler, TakeAll
from regio.necks import Norm, ReducedLast
from regio.postprocess import Postprocess
from regio.preprocess import Preprocess
from regio.proposals import RPN, Anchors, ProposalFilter
from regio.regions import Convolved, OneLevel, PositionSensitive, RFCNAveragePool, RoIAlign, score_maps
from regio.regions.base import RegionExtractor
from regio.roi_heads import ConvolutionsAndLinear, FastRCNNHead, RFCNHead

__all__ = ["light_head_rcnn", "rfcn"]


def rfcn(
    num_classes: int,
    backbone: Backbone,
    extractor: RegionExtractor | None = None,
    box_extractor: RegionExtractor | None = None,
    *,
    channels: int = 1024,
    proposal_channels: int = 512,
    short_side: int = 600,
    long_side: int = 1000,
    anchors: Anchors = Anchors(((128.0, 256.0, 512.0),)),  # noqa: B008 (frozen)
    straddle_threshold: float | None = 0.0,
    norm: Norm | None = None,
    neck_rate: float = 1.0,
    sampler: Sampler = TakeAll(),  # noqa: B008 (frozen)
    reduction: Reduction = HardExamples(128),  # noqa: B008 (frozen)
    beta: float = 1.0,
    postprocess: Postprocess = Postprocess(nms_threshold=0.3),  # noqa: B008 (frozen)
) -> TwoStageDetector:
    """A detector whose head only reads: all its layers run once an image.

    num_classes: with the background, 21 for Pascal VOC. backbone: its last map, C5 at stride 16 by dilation in the
    paper (``output_stride=16``), is brought to `channels` by a 1 x 1 convolution and a ReLU, which learn at `neck_rate`
    times the rate of the others (3 in the released code of deformable ConvNets). Of a backbone with several levels,
    (4, 5) in the paper, the proposal network reads the first, as it is; of one level, both read the same map.

    extractor: reads [R, num_classes, *bins] from maps of `channels`; 7 x 7 groups of score maps, pooled as in the
    released code, unless given. box_extractor: the same of [R, 4, *bins], or [R, 4 num_classes, *bins] for refinements
    of each class. The deformable form (Dai et al. 2017, section 2.2) is

        pool = PositionSensitive(RoundedSamples(7))  # or RoIAlign(7)
        rfcn(21, backbone, DeformablePositionSensitive(pool, 1024, 21, classes=21),  # classes=1: offsets for all
             DeformablePositionSensitive(pool, 1024, 4))

    sampler, reduction: which proposals are trained on; all, of which the 128 with the largest loss are learnt from,
    unless others are given (``BalancedSampler(128, 0.25)`` and ``MeanLoss()`` for none of that). proposal_channels: of
    the convolution of the proposal network. The others: see `faster_rcnn`.

    Raises ValueError for fewer than two classes.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes: expected the background and at least one class, got {num_classes}")
    pool = PositionSensitive(RFCNAveragePool(7))
    head = RFCNHead(
        OneLevel(score_maps(channels, num_classes, pool) if extractor is None else extractor),
        OneLevel(score_maps(channels, 4, pool) if box_extractor is None else box_extractor),
        sampler=RegionSampler(Matcher(positive=0.5, background=0.5), sampler),
        reduction=reduction,
        beta=beta,
        postprocess=postprocess,
    )
    several, best = len(backbone.levels) > 1, ProposalFilter(pre_nms_top_n=6000, post_nms_top_n=300, nms_threshold=0.7)
    return TwoStageDetector(
        preprocess=Preprocess(short_side, long_side, backbone.mean, backbone.std, divisor=max(backbone.strides)),
        backbone=backbone,
        neck=ReducedLast(backbone.channels[-1], channels, norm, rate=neck_rate),
        proposals=_rpn(
            backbone.channels[0] if several else channels,
            anchors,
            proposal_channels,
            straddle_threshold,
            test=best,
            train=best,
        ),
        roi_heads=[head],
    )


def light_head_rcnn(
    num_classes: int,
    backbone: Backbone,
    extractor: PositionSensitive | None = None,
    *,
    thin_channels: int = 10,
    separable_channels: int = 256,
    separable_size: int = 15,
    hidden: int = 2048,
    proposal_channels: int = 512,
    short_side: int = 800,
    long_side: int = 1200,
    anchors: Anchors = Anchors(((32.0, 64.0, 128.0, 256.0, 512.0),)),  # noqa: B008 (frozen)
    straddle_threshold: float | None = None,
    sampler: Sampler = TakeAll(),  # noqa: B008 (frozen)
    reduction: Reduction = HardExamples(256),  # noqa: B008 (frozen)
    beta: float = 1.0,
    postprocess: Postprocess = Postprocess(nms_threshold=0.5),  # noqa: B008 (frozen)
) -> TwoStageDetector:
    """Between R-FCN and Faster R-CNN: position-sensitive regions of few channels, and one fully connected layer.

    A large separable convolution, of `separable_size` cells and `separable_channels`, makes thin maps of the last map
    of `backbone`, `thin_channels` for each group of `extractor` (10 x 7 x 7 = 490), which is position-sensitive
    RoIAlign unless given. On its features follow a layer of width `hidden`, a class, and a box for each class. The
    proposal network reads the first map of `backbone`, C4 in the paper. The others: see `rfcn`.
    """
    if extractor is None:
        extractor = PositionSensitive(RoIAlign(7, samples=2))
    thin = thin_channels * prod(extractor.group_size)
    layer = LargeSeparable(backbone.channels[-1], thin, separable_channels, separable_size)
    head = FastRCNNHead(
        OneLevel(Convolved(layer, extractor)),
        ConvolutionsAndLinear(thin_channels, extractor.bins, hidden, layers=0),
        hidden,
        num_classes,
        sampler=RegionSampler(Matcher(positive=0.5, background=0.5), sampler),
        reduction=reduction,
        beta=beta,
        postprocess=postprocess,
    )
    return TwoStageDetector(
        preprocess=Preprocess(short_side, long_side, backbone.mean, backbone.std, divisor=max(backbone.strides)),
        backbone=backbone,
        neck=nn.Identity(),
        proposals=_rpn(
            backbone.channels[0],
            anchors,
            proposal_channels,
            straddle_threshold,
            test=ProposalFilter(pre_nms_top_n=6000, post_nms_top_n=1000, nms_threshold=0.7),
            train=ProposalFilter(pre_nms_top_n=12000, post_nms_top_n=2000, nms_threshold=0.7),
        ),
        roi_heads=[head],
    )


def _rpn(
    channels: int,
    anchors: Anchors,
    hidden: int,
    straddle_threshold: float | None,
    *,
    test: ProposalFilter,
    train: ProposalFilter,
) -> RPN:
    """The proposal network on the first map."""
    return RPN(channels, anchors, hidden=hidden, level=0, test=test, train=train, straddle_threshold=straddle_threshold)
