"""Faster R-CNN: on one map, on a feature pyramid, and on C4."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from regio.config.extractors import EXTRACTORS, Extractor, RoIAlign
from regio.config.systems.box_heads import BoxHead, FullyConnectedHead
from regio.config.systems.proposal_networks import OneMap, Proposing, Pyramid
from regio.settings import setting

if TYPE_CHECKING:
    from regio.backbones import Backbone
    from regio.detector import TwoStageDetector
    from regio.recipes import Recipe

__all__ = ["FasterRCNN", "FasterRCNNOnC4", "FasterRCNNOnFPN"]


@dataclass(frozen=True)
class TwoStage(Proposing):
    """Those of the systems with a proposal network and heads."""

    scheme: Literal["approximate", "joint", "alternating"] = setting(
        "approximate",
        "proposals and heads trained jointly without gradients into the coordinates of boxes; with them (joint), for "
        "extractors that have them; or in the four alternating steps of Faster R-CNN, each of as many steps",
    )

    def recipe(self) -> Recipe:
        from regio.config.run import model_to_dict
        from regio.recipes import Alternating, Joint

        if self.scheme != "alternating":
            return Joint()
        alone = self.proposals_alone()
        return Alternating(network=None if alone is None else model_to_dict(alone))

    def adjusted(self, detector: TwoStageDetector) -> TwoStageDetector:
        """As `Proposing.adjusted`. Raises ValueError where boxes are to be trained through an extractor that has no
        gradient for them."""
        if self.scheme == "joint":
            from regio.recipes import require_box_gradients

            rpn: Any = detector.proposals
            require_box_gradients(detector)
            rpn.box_gradients = True
        return super().adjusted(detector)


@dataclass(frozen=True)
class FasterRCNN(FullyConnectedHead, TwoStage, OneMap):
    """Faster R-CNN on one map."""

    def whole(self, classes: int, *, pretrained: bool) -> TwoStageDetector:
        from regio.systems import faster_rcnn

        backbone, stage = self.stage(pretrained)
        extractor = self.extractor.build(self.channels)
        return self.adjusted(faster_rcnn(classes + 1, backbone, extractor, **stage, **self.head()))


@dataclass(frozen=True)
class FasterRCNNOnFPN(FullyConnectedHead, TwoStage, Pyramid):
    """Faster R-CNN on a feature pyramid."""

    def whole(self, classes: int, *, pretrained: bool) -> TwoStageDetector:
        from regio.systems import faster_rcnn_fpn

        backbone, stage = self.stage(pretrained)
        extractor = self.extractor.build(self.channels)
        return self.adjusted(faster_rcnn_fpn(classes + 1, backbone, extractor, **stage, **self.head()))


@dataclass(frozen=True)
class FasterRCNNOnC4(BoxHead, TwoStage):
    """Faster R-CNN on C4, with the stage after it as the head."""

    backbone: str = setting("torchvision:resnet50", "a chain of stages: a ResNet as torchvision:NAME, timm:NAME")
    level: int = setting(4, "of the backbone that is read; the stage to the next one is the head", ge=2, le=4)
    anchor_sizes: tuple[float, ...] = setting((32.0, 64.0, 128.0, 256.0), "in pixels of the scaled image")
    proposal_channels: int = setting(256, "of the convolution of the proposal network", ge=1)
    extractor: Extractor = setting(
        RoIAlign((14, 14)), "what reads region features, whose bins the stage halves", choices=EXTRACTORS
    )
    regions_per_image: int = setting(64, "in the mini-batch of the head", ge=1)

    def stage(self, pretrained: bool) -> tuple[Backbone, dict[str, Any]]:
        """The backbone, with the stage that becomes the head, and the other arguments of the system."""
        from regio.proposals import Anchors

        backbone = self.make_backbone((self.level, self.level + 1), 32, pretrained=pretrained)
        return backbone, {
            "extractor": self.extractor.build(backbone.channels[0]),
            "proposal_channels": self.proposal_channels,
            "short_side": self.short_side,
            "long_side": self.long_side,
            "anchors": Anchors((self.anchor_sizes,), self.anchor_ratios),
            **self.head(),
        }

    def build(self, classes: int, *, pretrained: bool = True) -> TwoStageDetector:
        from regio.systems import faster_rcnn_c4

        backbone, stage = self.stage(pretrained)
        return self.adjusted(faster_rcnn_c4(classes + 1, backbone, **stage))
