"""The class-aware RPN: a proposal network that names what it finds, on one map and on a feature pyramid.

Dai, Qi, Xiong, Li, Zhang, Hu, Wei: Deformable Convolutional Networks, ICCV 2017, sections 2.3 and 4.1. What the paper
does not state is as in Faster R-CNN and FPN.
"""

from __future__ import annotations

from regio.backbones import Backbone
from regio.detector import TwoStageDetector
from regio.necks import FPN, Norm, SingleMap
from regio.postprocess import Postprocess
from regio.preprocess import Preprocess
from regio.proposals import Anchors, ClassAwareRPN
from regio.roi_heads import Scores, Softmax

__all__ = ["class_aware_rpn", "class_aware_rpn_fpn"]


def class_aware_rpn(
    num_classes: int,
    backbone: Backbone,
    *,
    channels: int = 1024,
    hidden: int | None = 512,
    short_side: int = 600,
    long_side: int = 1000,
    anchors: Anchors = Anchors(((128.0, 256.0, 512.0),)),  # noqa: B008 (frozen)
    straddle_threshold: float | None = 0.0,
    norm: Norm | None = None,
    scores: Scores = Softmax(),  # noqa: B008 (frozen)
    class_agnostic: bool = True,
    postprocess: Postprocess = Postprocess(nms_threshold=0.3),  # noqa: B008 (frozen)
) -> TwoStageDetector:
    """On the last map of `backbone`, C5 at stride 16 in the paper: a detector without heads.

    num_classes: with the background, 21 for Pascal VOC. channels: of the map that the network looks at. hidden: of its
    3 x 3 convolution, which the paper does not state (512 in the released Faster R-CNN); None for `channels`. anchors:
    in pixels of the scaled image; on COCO the released code has a fourth size, 64. scores, class_agnostic: see
    `ClassAwareRPN`. postprocess: which of the scored boxes are detections. The others: see `rpn`.
    """
    return TwoStageDetector(
        preprocess=Preprocess(short_side, long_side, backbone.mean, backbone.std, divisor=backbone.strides[-1]),
        backbone=backbone,
        neck=SingleMap(backbone.channels[-1], channels, norm),
        proposals=ClassAwareRPN(
            channels,
            anchors,
            num_classes,
            hidden=hidden,
            scores=scores,
            class_agnostic=class_agnostic,
            pre_nms_top_n=6000,
            straddle_threshold=straddle_threshold,
            postprocess=postprocess,
        ),
    )


def class_aware_rpn_fpn(
    num_classes: int,
    backbone: Backbone,
    *,
    channels: int = 256,
    short_side: int = 800,
    long_side: int = 1333,
    anchors: Anchors | None = None,
    norm: Norm | None = None,
    scores: Scores = Softmax(),  # noqa: B008 (frozen)
    class_agnostic: bool = True,
    postprocess: Postprocess = Postprocess(nms_threshold=0.5),  # noqa: B008 (frozen)
) -> TwoStageDetector:
    """The same on a pyramid of all maps of `backbone` and one map more, which is not in the paper. See `rpn_fpn`."""
    strides = (*backbone.strides, backbone.strides[-1] * 2)
    return TwoStageDetector(
        preprocess=Preprocess(short_side, long_side, backbone.mean, backbone.std, divisor=backbone.strides[-1]),
        backbone=backbone,
        neck=FPN(backbone.channels, channels, norm),
        proposals=ClassAwareRPN(
            channels,
            Anchors(tuple((8.0 * stride,) for stride in strides)) if anchors is None else anchors,
            num_classes,
            extra_level=True,
            scores=scores,
            class_agnostic=class_agnostic,
            pre_nms_top_n=1000,
            postprocess=postprocess,
        ),
    )
