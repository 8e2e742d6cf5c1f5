"""Fast R-CNN: a detector whose boxes are given, and the second stage that the later systems share.

Girshick: Fast R-CNN, ICCV 2015. The numbers are the paper's and, where it gives none, those of its released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from regio.backbones import Backbone
from regio.box_targets import ClassBoxCoder
from regio.boxes import BoxCoder, Coder
from regio.detector import TwoStageDetector
from regio.image_pyramid import ImagePyramid
from regio.matching import BalancedSampler, Matcher, RegionSampler
from regio.necks import Norm, SingleMap
from regio.postprocess import Postprocess
from regio.preprocess import Preprocess
from regio.regions import FPNLevels, LevelRule, Levels, NearestArea, RoIPool
from regio.regions.base import RegionExtractor
from regio.roi_heads import FastRCNNHead, FullyConnected, Softmax, SVMHead

__all__ = ["fast_rcnn", "fast_rcnn_head", "fast_rcnn_svms"]


def fast_rcnn(
    num_classes: int,
    backbone: Backbone,
    extractor: RegionExtractor | None = None,
    *,
    trunk: FullyConnected | None = None,
    channels: int | None = None,
    hidden: int = 4096,
    short_side: int = 600,
    long_side: int = 1000,
    sides: Sequence[int] = (),
    regions_per_image: int = 64,
    background_low: float = 0.1,
    norm: Norm | None = None,
    coder: Coder = BoxCoder((10.0, 10.0, 5.0, 5.0)),  # noqa: B008 (frozen)
    beta: float = 1.0,
    box_weight: float = 1.0,
    postprocess: Postprocess = Postprocess(nms_threshold=0.3),  # noqa: B008 (frozen)
) -> TwoStageDetector:
    """A detector for boxes that are given, `detector(images, proposals)`: selective search, as a rule.

    num_classes: with the background, 21 for Pascal VOC. extractor: reads the last map of `backbone` (stride 16 in the
    paper); RoI pooling unless given. trunk: the layers fc6 and fc7 of a classifier, see
    `regio.classifiers.split_classifier`; unless given, new ones of width `hidden`. channels: width to which a 1 x 1
    convolution, followed by `norm`, brings the map; None, as in the paper, for the map as it is.

    short_side, long_side: image scale, in pixels. sides: several short sides in place of one, for an image pyramid:
    (480, 576, 688, 864, 1200), with a long_side of 2000, in the paper. Each box is then read from the scale at which
    its area is nearest to 224 x 224 pixels, and in training a step is at one scale, drawn at random.

    A training step sees `regions_per_image` boxes of an image (the paper has two images of 64): a quarter with an IoU
    of 0.5 or more with an object, the others of [background_low, 0.5), which the paper takes for hard examples.
    coder: `regio.box_targets.ClassBoxCoder` normalises targets as the paper does. beta, box_weight: of the box loss; a
    weight of 0 trains a classifier, to which boxes can be added by a second training with everything frozen but the
    head's `box_deltas` (section 5.1, stage-wise training). postprocess: which of the scored boxes are detections.

    Raises ValueError for a trunk that is made for other features than the extractor gives.
    """
    stride, width = backbone.strides[-1], backbone.channels[-1] if channels is None else channels
    neck = nn.Identity() if channels is None else SingleMap(backbone.channels[-1], channels, norm)
    if extractor is None:
        extractor = RoIPool((7, 7) if trunk is None else trunk.bins)
    if trunk is not None and (trunk.channels, trunk.bins) != (width, extractor.bins):
        raise ValueError(
            f"trunk: expected one for {width} channels and {extractor.bins} bins, which the extractor gives, got one "
            f"for {trunk.channels} and {trunk.bins}"
        )
    head = fast_rcnn_head(
        extractor,
        width,
        hidden,
        num_classes,
        trunk=trunk,
        rule=NearestArea(stride=stride) if sides else FPNLevels(),
        regions_per_image=regions_per_image,
        background_low=background_low,
        coder=coder,
        beta=beta,
        box_weight=box_weight,
        postprocess=postprocess,
    )
    return TwoStageDetector(
        preprocess=Preprocess(max(sides, default=short_side), long_side, backbone.mean, backbone.std, divisor=stride),
        backbone=ImagePyramid(backbone, sides, neck=neck, divisor=stride) if sides else backbone,
        neck=nn.Identity() if sides else neck,
        proposals=None,
        roi_heads=[head],
    )


@torch.no_grad()
def fast_rcnn_svms(detector: TwoStageDetector) -> TwoStageDetector:
    """`detector`, a trained Fast R-CNN, with one linear SVM a class on fc7 in place of the softmax (section 5.4).

    All else is that of `detector`: its network, which is shared and not copied, and its refinements of boxes. It finds
    nothing until the SVMs are fitted (`regio.fitting.HardNegativeMining`; `examples/softmax_and_svms.py`).

    Raises TypeError for a detector whose first head is not that of Fast R-CNN with fully connected layers.
    """
    head = next(iter(detector.roi_heads), None)
    if not (
        isinstance(head, FastRCNNHead) and isinstance(head.trunk, FullyConnected) and isinstance(head.scores, Softmax)
    ):
        raise TypeError(f"detector: expected one with fully connected layers and a softmax, got {type(head).__name__}")
    classes = head.class_logits.out_features - 1
    svms = SVMHead(head.extractor, head.trunk, classes + 1, box_layer="fc7", postprocess=_margins(head.postprocess))
    assert svms.box_deltas is not None
    weight, bias = (each.unflatten(0, (-1, 4)) for each in (head.box_deltas.weight, head.box_deltas.bias))
    if len(weight) > 1:
        weight, bias = weight[1:], bias[1:]  # the background has none in an SVMHead
    if isinstance(head.coder, ClassBoxCoder):
        mean, std = head.coder.mean[1:], head.coder.std[1:]
    else:
        assert isinstance(head.coder, BoxCoder)
        mean, std = bias.new_zeros(4), 1 / bias.new_tensor(head.coder.weights)
    svms.box_deltas.weight.copy_((weight * std[..., None]).expand(classes, 4, -1).flatten(0, 1))
    svms.box_deltas.bias.copy_((bias * std + mean).expand(classes, 4).flatten())
    return detector.with_parts(detector.proposals, [svms.to(head.box_deltas.weight)])


def _margins(postprocess: Postprocess) -> Postprocess:
    """The same for margins, of which none is too low."""
    return replace(postprocess, score_threshold=-torch.inf)


def fast_rcnn_head(
    extractor: RegionExtractor,
    channels: int,
    hidden: int,
    num_classes: int,
    *,
    trunk: FullyConnected | None = None,
    rule: LevelRule = FPNLevels(),  # noqa: B008 (frozen)
    regions_per_image: int,
    background_low: float = 0.0,
    coder: Coder = BoxCoder((10.0, 10.0, 5.0, 5.0)),  # noqa: B008 (frozen)
    beta: float = 1.0,
    box_weight: float = 1.0,
    postprocess: Postprocess,
) -> FastRCNNHead:
    """Two fully connected layers of width `hidden`, or `trunk`, on the features that `extractor` reads from maps of
    `channels`; of several maps, from the one that `rule` gives.

    A quarter of `regions_per_image` in the mini-batch overlap an object by an IoU of at least 0.5, the others by
    `background_low` or more, and less than 0.5 (section 2.3, where the lower bound is 0.1; in Faster R-CNN it is 0).
    coder, beta, box_weight: of the box loss. postprocess: which of the scored boxes are detections.
    """
    trunk = FullyConnected(channels, extractor.bins, hidden) if trunk is None else trunk
    matcher = Matcher(positive=0.5, background=0.5, background_low=background_low)
    return FastRCNNHead(
        Levels(extractor, rule),
        trunk,
        trunk.width,
        num_classes,
        sampler=RegionSampler(matcher, BalancedSampler(regions_per_image, 0.25)),
        coder=coder,
        beta=beta,
        box_weight=box_weight,
        postprocess=postprocess,
    )
