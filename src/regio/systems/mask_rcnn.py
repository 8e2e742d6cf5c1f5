"""Mask R-CNN, on a feature pyramid and on C4.

He, Gkioxari, Dollár, Girshick: Mask R-CNN, ICCV 2017. The numbers are the paper's and, where it gives none, those of
its released code (Detectron).
"""

from __future__ import annotations

from torch import nn

from regio.backbones import Backbone
from regio.detector import TwoStageDetector
from regio.necks import Norm
from regio.postprocess import Postprocess
from regio.proposals import Anchors
from regio.regions import Levels, RoIAlign
from regio.regions.base import RegionExtractor
from regio.roi_heads import FastRCNNHead, MaskConvolutions, MaskHead, MaskOutput, SigmoidMasks
from regio.systems.faster_rcnn import faster_rcnn_c4
from regio.systems.fpn import faster_rcnn_fpn

__all__ = ["mask_rcnn_c4", "mask_rcnn_fpn"]


def mask_rcnn_fpn(
    num_classes: int,
    backbone: Backbone,
    extractor: RegionExtractor | None = None,
    mask_extractor: RegionExtractor | None = None,
    *,
    channels: int = 256,
    hidden: int = 1024,
    mask_channels: int = 256,
    mask_layers: int = 4,
    short_side: int = 800,
    long_side: int = 1333,
    anchors: Anchors | None = None,
    regions_per_image: int = 512,
    norm: Norm | None = None,
    beta: float = 1.0,
    output: MaskOutput = SigmoidMasks(),  # noqa: B008 (frozen)
    postprocess: Postprocess = Postprocess(nms_threshold=0.5),  # noqa: B008 (frozen)
) -> TwoStageDetector:
    """`faster_rcnn_fpn` and a mask head on the detections that it keeps.

    mask_extractor: RoIAlign to 14 x 14 unless given; masks have twice as many cells a side. mask_channels, mask_layers:
    of the convolutions of the mask head. output: what its logits mean. The others: see `faster_rcnn_fpn`.
    """
    detector = faster_rcnn_fpn(
        num_classes,
        backbone,
        extractor,
        channels=channels,
        hidden=hidden,
        short_side=short_side,
        long_side=long_side,
        anchors=anchors,
        regions_per_image=regions_per_image,
        norm=norm,
        beta=beta,
        postprocess=postprocess,
    )
    head = MaskHead(
        Levels(RoIAlign((14, 14), samples=2) if mask_extractor is None else mask_extractor),
        MaskConvolutions(channels, mask_channels, mask_layers),
        mask_channels,
        num_classes,
        output=output,
    )
    detector.roi_heads.append(head)
    return detector


def mask_rcnn_c4(
    num_classes: int,
    backbone: Backbone,
    extractor: RegionExtractor | None = None,
    *,
    proposal_channels: int = 1024,
    mask_channels: int = 256,
    short_side: int = 800,
    long_side: int = 1333,
    anchors: Anchors = Anchors(((32.0, 64.0, 128.0, 256.0, 512.0),)),  # noqa: B008 (frozen)
    straddle_threshold: float | None = None,
    regions_per_image: int = 64,
    beta: float = 1.0,
    output: MaskOutput = SigmoidMasks(),  # noqa: B008 (frozen)
    postprocess: Postprocess = Postprocess(nms_threshold=0.5),  # noqa: B008 (frozen)
) -> TwoStageDetector:
    """`faster_rcnn_c4` and a mask head on the detections that it keeps, which has the extractor and the stage of the
    box head: the same modules, not copies (figure 4, left).

    extractor: RoIAlign to 14 x 14 unless given; masks have as many cells a side as its bins, or one more where their
    number is odd. mask_channels: of the deconvolution after the stage. output: what the masks' logits mean. The others:
    see `faster_rcnn_c4`.
    """
    width = backbone.channels[-1]
    detector = faster_rcnn_c4(
        num_classes,
        backbone,
        extractor,
        proposal_channels=proposal_channels,
        short_side=short_side,
        long_side=long_side,
        anchors=anchors,
        straddle_threshold=straddle_threshold,
        regions_per_image=regions_per_image,
        beta=beta,
        postprocess=postprocess,
    )
    box = detector.roi_heads[0]
    assert isinstance(box, FastRCNNHead) and isinstance(box.trunk, nn.Sequential)
    trunk = nn.Sequential(box.trunk[0], MaskConvolutions(width, mask_channels, layers=0))
    detector.roi_heads.append(MaskHead(box.extractor, trunk, mask_channels, num_classes, output=output))
    return detector
