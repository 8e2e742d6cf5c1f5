"""torchvision's Faster R-CNN code as a detector that regio's training loop can train: the peer of the comparisons.

Same backbone object (and ImageNet weights), pyramid levels, width, anchors, numbers of proposals and samples as
`regio.config.systems.FasterRCNNOnFPN` builds of the same settings. Pyramid, proposal network, matching, RoIAlign, head,
losses and post-processing are torchvision's own.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from regio.backbones import efficientnet_lite0
from regio.config.systems import FasterRCNNOnFPN
from regio.types import Detections, Targets


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
    """`forward` detects, `losses` trains, as `regio.detector.TwoStageDetector`."""

    def __init__(self, config: FasterRCNNOnFPN, classes: int) -> None:
        super().__init__()
        backbone = PyramidBackbone(config)
        self.preprocess = _Normalisation(backbone.body.mean, backbone.body.std)
        self.model = FasterRCNN(
            backbone,
            min_size=config.short_side,
            max_size=config.long_side,
            image_mean=list(backbone.body.mean),
            image_std=list(backbone.body.std),
            rpn_anchor_generator=AnchorGenerator(
                tuple((int(size),) for size in config.anchor_sizes), ((0.5, 1.0, 2.0),) * len(config.anchor_sizes)
            ),
            box_roi_pool=MultiScaleRoIAlign([str(i) for i in range(len(config.levels))], 7, 2),
            box_head=TwoMLPHead(config.channels * 49, config.hidden),
            box_predictor=FastRCNNPredictor(config.hidden, classes + 1),
            box_batch_size_per_image=config.regions_per_image,
            box_score_thresh=config.score_threshold,
            box_nms_thresh=config.nms_threshold,
            box_detections_per_img=config.detections_per_image,
        )

    def forward(self, images: list[Tensor]) -> list[Detections]:
        """What is in each of `images`, uint8."""
        self.model.eval()
        found = self.model([image.float() / 255 for image in images])
        return [Detections(one["boxes"], one["labels"], one["scores"]) for one in found]

    def losses(self, images: list[Tensor], targets: list[Targets]) -> dict[str, Tensor]:
        """torchvision's four losses. Crowds are left out, as torchvision's reference training does."""
        self.model.train()
        dictionaries = [{"boxes": t.boxes[~t.crowd], "labels": t.labels[~t.crowd]} for t in targets]
        return self.model([image.float() / 255 for image in images], dictionaries)
