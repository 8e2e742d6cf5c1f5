"""R-CNN: regions with CNN features.

Girshick, Donahue, Darrell, Malik: Rich feature hierarchies for accurate object detection and semantic segmentation,
CVPR 2014. The numbers are the paper's and, where it gives none, those of its released code.
"""

from __future__ import annotations

import torch
from torch import nn

from regio.backbones import Backbone, ImageItself
from regio.detector import TwoStageDetector
from regio.matching import BalancedSampler, Matcher, RegionSampler
from regio.postprocess import Postprocess
from regio.preprocess import ShrinkingPreprocess
from regio.regions import Levels, WarpedCrop
from regio.regions.warped_crop import CropShape, Warp
from regio.roi_heads import FullyConnected, RegionClassifier, SVMHead, WholeNetwork

__all__ = ["fine_tuning", "rcnn"]


def rcnn(
    num_classes: int,
    backbone: Backbone,
    fully_connected: FullyConnected | None = None,
    *,
    crop: int = 227,
    context: int = 16,
    shape: CropShape = Warp(),  # noqa: B008 (frozen)
    bins: tuple[int, int] = (6, 6),
    hidden: int = 4096,
    layer: str = "fc7",
    box_layer: str | None = "pool5",
    short_side: int = 600,
    long_side: int = 1000,
    chunk: int = 32,
    postprocess: Postprocess = Postprocess(-torch.inf, nms_threshold=0.3),  # noqa: B008 (frozen)
) -> TwoStageDetector:
    """A detector for boxes that are given, `detector(images, proposals)`: each one's crop goes through a whole network.

    num_classes: with the background, 21 for Pascal VOC. backbone: the convolutions of that network. fully_connected:
    its layers fc6 and fc7 (`regio.classifiers.split_classifier` of AlexNet or VGG); unless given, new ones on `bins`
    of the last map, of width `hidden`. crop, context, shape: see `WarpedCrop`. layer, box_layer: what the SVMs and the
    box regressions read, "pool5", "fc6" or "fc7"; box_layer None for boxes that stay as they are.

    Images keep their size up to `short_side` and `long_side`. chunk: crops that are read at once. postprocess: which
    candidates are detections.

    It is trained in stages (`regio.recipes.FittedHead`): `fine_tuning`, then SVMs and regressions on stored features.
    """
    if fully_connected is None:
        fully_connected = FullyConnected(backbone.channels[-1], bins, hidden, dropout=0.5)
    head = SVMHead(
        Levels(WarpedCrop(crop, context, shape)),
        WholeNetwork(backbone, fully_connected),
        num_classes,
        layer=layer,
        box_layer=box_layer,
        postprocess=postprocess,
        chunk=chunk,
    )
    return TwoStageDetector(
        preprocess=ShrinkingPreprocess(short_side, long_side, backbone.mean, backbone.std, divisor=1),
        backbone=ImageItself(backbone.mean, backbone.std),
        neck=nn.Identity(),
        proposals=None,
        roi_heads=[head],
    )


def fine_tuning(
    detector: TwoStageDetector, *, regions_per_image: int = 64, background_low: float = 0.0, rate: float = 1.0
) -> TwoStageDetector:
    """The detector by which the network of `detector`, one with an `SVMHead`, is fine-tuned: its very layers, and a
    softmax over the classes and the background in place of the SVMs (section 2.3).

    Of `regions_per_image` boxes (128 of two images in the paper: 32 and 96) a quarter have an IoU of 0.5 or more with
    an object, the others one of [background_low, 0.5). Annotated boxes are among them. Where there are fewer of the
    former, there are more of the latter. rate: see `RegionClassifier`.
    """
    (head,) = detector.roi_heads
    assert isinstance(head, SVMHead)
    matcher = Matcher(positive=0.5, background=0.5, background_low=background_low)
    classifier = RegionClassifier(
        head.extractor,
        head.trunk,
        head.class_logits.out_features + 1,
        sampler=RegionSampler(matcher, BalancedSampler(regions_per_image, 0.25)),
        chunk=head.chunk,
        rate=rate,
    )
    return detector.with_parts(None, [classifier])
