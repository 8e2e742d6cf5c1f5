"""torchvision's Faster and Mask R-CNN code as detectors that regio's training loop can train: the peers of comparisons.

Same backbone object (and ImageNet weights), pyramid levels, width, anchors, numbers of proposals and samples, and
widths of the heads as `regio.config.systems.FasterRCNNOnFPN` and `MaskRCNN` build of the same settings. Pyramid,
proposal network, matching, RoIAlign, heads, losses and post-processing are torchvision's own,
pasting of masks among it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from regio.backbones import efficientnet_lite0
from regio.config.systems import FasterRCNNOnFPN, MaskRCNN, System
from regio.masks import PixelMasks
from regio.types import Detections, Targets

HAS_NO_OTHER = ("backbone", "backbone_weights", "extractor", "norm", "mask_extractor", "mask_output")
"""Settings that are not passed on: they must be at their defaults."""


@dataclass(frozen=True)
class _Normalisation:
    mean: tuple[float, ...]
    std: tuple[float, ...]


class PyramidBackbone(nn.Module):
    """A regio backbone under torchvision's pyramid; torchvision wants a dictionary of maps."""

    def __init__(self, config: FasterRCNNOnFPN) -> None:
        super().__init__()
        self.body = efficientnet_lite0(config.levels, frozen=config.frozen)
        self.fpn = FeaturePyramidNetwork(list(self.body.channels), config.channels, extra_blocks=LastLevelMaxPool())
        self.out_channels = config.channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Maps by name, finest first."""
        return self.fpn(OrderedDict((str(i), each.data) for i, each in enumerate(self.body(x))))


class TorchvisionDetector(nn.Module):
    """`forward` detects, `losses` trains, as `regio.detector.TwoStageDetector`; with masks for the settings of a
    `MaskRCNN`. Raises ValueError for settings that torchvision's code has no counterpart of."""

    def __init__(self, config: System, classes: int) -> None:
        super().__init__()
        if type(config) not in (FasterRCNNOnFPN, MaskRCNN):
            raise ValueError(f"model: expected faster-rcnn-fpn or mask-rcnn, got {type(config).__name__}")
        for name in HAS_NO_OTHER:
            if hasattr(config, name) and getattr(config, name) != getattr(type(config)(), name):
                raise ValueError(f"{name}: expected the default, got {getattr(config, name)}")
        backbone = PyramidBackbone(config)
        self.preprocess = _Normalisation(backbone.body.mean, backbone.body.std)
        self.masks = isinstance(config, MaskRCNN)
        make = TorchvisionMaskRCNN if self.masks else FasterRCNN
        self.model = make(
            backbone,
            min_size=config.short_side,
            max_size=config.long_side,
            image_mean=list(backbone.body.mean),
            image_std=list(backbone.body.std),
            rpn_anchor_generator=AnchorGenerator(
                tuple((int(size),) for size in config.anchor_sizes), (config.anchor_ratios,) * len(config.anchor_sizes)
            ),
            box_roi_pool=_roi_align(config, 7),
            box_head=TwoMLPHead(config.channels * 49, config.hidden),
            box_predictor=FastRCNNPredictor(config.hidden, classes + 1),
            box_batch_size_per_image=config.regions_per_image,
            box_score_thresh=config.score_threshold,
            box_nms_thresh=config.nms_threshold,
            box_detections_per_img=config.detections_per_image,
            **(_mask_head(config, classes) if self.masks else {}),
        )

    def forward(self, images: list[Tensor]) -> list[Detections]:
        """What is in each of `images`, uint8; masks on all pixels, those above 0.5, as in torchvision's references."""
        self.model.eval()
        found = self.model([image.float() / 255 for image in images])
        return [
            Detections(
                one["boxes"],
                one["labels"],
                one["scores"],
                PixelMasks(one["masks"][:, 0] > 0.5) if self.masks else None,
            )
            for one in found
        ]

    def losses(self, images: list[Tensor], targets: list[Targets]) -> dict[str, Tensor]:
        """torchvision's losses: four, and that of masks. Crowds are left out, as torchvision's reference training does.
        An object without a known mask has an empty one, which torchvision's code has no other form of."""
        self.model.train()
        return self.model([image.float() / 255 for image in images], [self._dictionary(each) for each in targets])

    def _dictionary(self, targets: Targets) -> dict[str, Tensor]:
        kept = ~targets.crowd
        given = {"boxes": targets.boxes[kept], "labels": targets.labels[kept]}
        if self.masks:
            if targets.masks is None:
                raise ValueError("targets: expected masks, got none: open the data set with_masks")
            given["masks"] = targets.masks[kept].to(torch.uint8)
        return given


def _roi_align(config: FasterRCNNOnFPN, bins: int) -> MultiScaleRoIAlign:
    return MultiScaleRoIAlign([str(i) for i in range(len(config.levels))], bins, 2)


def _mask_head(config: MaskRCNN, classes: int) -> dict[str, Any]:
    """The arguments of torchvision's mask head."""
    width = config.mask_channels if config.mask_layers else config.channels
    return {
        "mask_roi_pool": _roi_align(config, 14),
        "mask_head": MaskRCNNHeads(config.channels, (config.mask_channels,) * config.mask_layers, dilation=1),
        "mask_predictor": MaskRCNNPredictor(width, config.mask_channels, classes + 1),
    }
