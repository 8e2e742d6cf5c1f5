"""Faster R-CNN on a feature pyramid.

Lin, Dollár, Girshick, He, Hariharan, Belongie: Feature Pyramid Networks for Object Detection, CVPR 2017. The numbers
are the paper's and, where it gives none, those of its released code (Detectron).
"""

from __future__ import annotations

from regio.backbones import Backbone
from regio.detector import TwoStageDetector
from regio.necks import FPN, Norm
from regio.postprocess import Postprocess
from regio.preprocess import Preprocess
from regio.proposals import RPN, Anchors, ProposalFilter
from regio.regions import RoIAlign
from regio.regions.base import RegionExtractor
from regio.systems.fast_rcnn import fast_rcnn_head

__all__ = ["fast_rcnn_fpn", "faster_rcnn_fpn", "rpn_fpn"]


def rpn_fpn(
    backbone: Backbone,
    *,
    channels: int = 256,
    short_side: int = 800,
    long_side: int = 1333,
    anchors: Anchors | None = None,
    norm: Norm | None = None,
) -> TwoStageDetector:
    """The proposal network alone, on a pyramid of all maps of `backbone` (C2 to C5 in the paper) and one map more: a
    detector without heads.

    channels: of the maps of the pyramid. short_side, long_side: image scale, in pixels. anchors: in pixels of the
    scaled image, one tuple of sizes for each map and the one more; unless given, three ratios of 8 times the stride,
    which is 32 to 512 for P2 to P6. norm: after each convolution of the pyramid.
    """
    strides = (*backbone.strides, backbone.strides[-1] * 2)
    return TwoStageDetector(
        preprocess=Preprocess(short_side, long_side, backbone.mean, backbone.std, divisor=backbone.strides[-1]),
        backbone=backbone,
        neck=FPN(backbone.channels, channels, norm),
        proposals=RPN(
            channels,
            Anchors(tuple((8.0 * stride,) for stride in strides)) if anchors is None else anchors,
            extra_level=True,
            test=ProposalFilter(pre_nms_top_n=1000, post_nms_top_n=1000, nms_threshold=0.7),
            train=ProposalFilter(pre_nms_top_n=2000, post_nms_top_n=2000, nms_threshold=0.7),
        ),
    )


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
    """`rpn_fpn` and a head whose region features `extractor` reads from the pyramid.

    num_classes: with the background, 81 for COCO. extractor: RoIAlign to 7 x 7 unless given; it reads maps of
    `channels`. hidden: width of the head's two layers. regions_per_image: regions of an image in the head's mini-batch.
    beta: of the head's box loss. postprocess: which of the scored boxes are detections. The others: see `rpn_fpn`.
    """
    detector = rpn_fpn(
        backbone, channels=channels, short_side=short_side, long_side=long_side, anchors=anchors, norm=norm
    )
    head = fast_rcnn_head(
        RoIAlign((7, 7), samples=2) if extractor is None else extractor,
        channels,
        hidden,
        num_classes,
        regions_per_image=regions_per_image,
        beta=beta,
        postprocess=postprocess,
    )
    detector.roi_heads.append(head)
    return detector


def fast_rcnn_fpn(
    num_classes: int,
    backbone: Backbone,
    extractor: RegionExtractor | None = None,
    *,
    channels: int = 256,
    hidden: int = 1024,
    short_side: int = 800,
    long_side: int = 1333,
    regions_per_image: int = 512,
    background_low: float = 0.0,
    norm: Norm | None = None,
    beta: float = 1.0,
    postprocess: Postprocess = Postprocess(nms_threshold=0.5),  # noqa: B008 (frozen)
) -> TwoStageDetector:
    """The same without the proposal network, for boxes that are given (section 5.2.1, where they are those of an
    `rpn_fpn` trained before): ``detector(images, proposals)``.

    background_low: lowest IoU with an object of the background in the mini-batch. The others: see `faster_rcnn_fpn`.
    """
    head = fast_rcnn_head(
        RoIAlign((7, 7), samples=2) if extractor is None else extractor,
        channels,
        hidden,
        num_classes,
        regions_per_image=regions_per_image,
        background_low=background_low,
        beta=beta,
        postprocess=postprocess,
    )
    return TwoStageDetector(
        preprocess=Preprocess(short_side, long_side, backbone.mean, backbone.std, divisor=backbone.strides[-1]),
        backbone=backbone,
        neck=FPN(backbone.channels, channels, norm),
        proposals=None,
        roi_heads=[head],
    )
