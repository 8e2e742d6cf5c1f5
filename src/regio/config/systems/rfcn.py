"""R-FCN and Light-Head R-CNN: position-sensitive regions of the last map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from regio.config.systems.box_heads import BoxHead
from regio.config.systems.two_stage import TwoStage
from regio.settings import setting

if TYPE_CHECKING:
    from regio.backbones import Backbone
    from regio.detector import TwoStageDetector

__all__ = ["RFCN", "LightHeadRCNN"]


@dataclass(frozen=True)
class PositionSensitive(BoxHead, TwoStage):
    """Those of the systems whose regions are read from maps with channels for each part."""

    level: int = setting(5, "of the backbone that the map of the head comes from", ge=2, le=5)
    proposal_level: int | None = setting(
        None, "of the backbone, that proposals are found on, 4 in the papers; null for the map of the head", ge=2, le=4
    )
    output_stride: int = setting(16, "of these maps at most, by dilation", ge=1)
    proposal_channels: int = setting(128, "of the convolution of the proposal network", ge=1)
    anchor_sizes: tuple[float, ...] = setting((32.0, 64.0, 128.0, 256.0), "in pixels of the scaled image")
    straddle_threshold: float | None = setting(
        None, "pixels by which an anchor may leave the image and be trained on; null for any"
    )
    hard_examples: int | None = setting(
        128,
        "proposals of an image that are learnt from, those with the largest loss of all; null for a mini-batch drawn "
        "at random, a quarter of it objects",
        ge=1,
    )
    regions_per_image: int = setting(128, "in that mini-batch", ge=1)

    def stage(self, pretrained: bool) -> tuple[Backbone, dict[str, Any]]:
        """The backbone, and the arguments that the systems share."""
        from regio.losses import HardExamples, MeanLoss
        from regio.matching import BalancedSampler, TakeAll
        from regio.postprocess import Postprocess
        from regio.proposals import Anchors

        if self.proposal_level is not None and self.proposal_level >= self.level:
            raise ValueError(f"proposal_level: expected one under level {self.level}, got {self.proposal_level}")
        levels = (self.level,) if self.proposal_level is None else (self.proposal_level, self.level)
        hard = self.hard_examples
        return self.make_backbone(levels, self.output_stride, pretrained=pretrained), {
            "proposal_channels": self.proposal_channels,
            "short_side": self.short_side,
            "long_side": self.long_side,
            "anchors": Anchors((self.anchor_sizes,), self.anchor_ratios),
            "straddle_threshold": self.straddle_threshold,
            "sampler": BalancedSampler(self.regions_per_image, 0.25) if hard is None else TakeAll(),
            "reduction": MeanLoss() if hard is None else HardExamples(hard),
            "beta": self.beta,
            "postprocess": Postprocess(self.score_threshold, self.nms_threshold, self.detections_per_image),
        }


@dataclass(frozen=True)
class RFCN(PositionSensitive):
    """R-FCN: a vote over score maps; with extractor=deformable-roi-pool its deformable form."""

    channels: int = setting(1024, "of the map that score maps are made from; few learn slowly", ge=1)
    neck_rate: float = setting(1.0, "factor on the learning rate of the convolution that makes it", gt=0)
    class_agnostic: bool = setting(True, "one refinement of a box for all classes, as in the paper; or one for each")
    class_offsets: bool = setting(
        True, "of deformable-roi-pool: offsets for the parts of each class, as in the paper; or the same for all"
    )

    def build(self, classes: int, *, pretrained: bool = True) -> TwoStageDetector:
        from regio.systems import rfcn

        backbone, stage = self.stage(pretrained)
        made = rfcn(
            classes + 1,
            backbone,
            self.extractor.score_maps(self.channels, classes + 1, classes + 1 if self.class_offsets else 1),
            self.extractor.score_maps(self.channels, 4 if self.class_agnostic else 4 * (classes + 1), 1),
            channels=self.channels,
            neck_rate=self.neck_rate,
            **stage,
        )
        return self.adjusted(made)


@dataclass(frozen=True)
class LightHeadRCNN(PositionSensitive):
    """Light-Head R-CNN: position-sensitive regions of few channels, and one fully connected layer."""

    thin_channels: int = setting(10, "of the region features", ge=1)
    separable_channels: int = setting(64, "between the two thin convolutions of the large separable one", ge=1)
    separable_size: int = setting(15, "of the large separable convolution, in cells, an odd number", ge=1)
    hidden: int = setting(512, "width of the layer after the region features", ge=1)

    def build(self, classes: int, *, pretrained: bool = True) -> TwoStageDetector:
        from regio.systems import light_head_rcnn

        backbone, stage = self.stage(pretrained)
        made = light_head_rcnn(
            classes + 1,
            backbone,
            self.extractor.position_sensitive(),
            thin_channels=self.thin_channels,
            separable_channels=self.separable_channels,
            separable_size=self.separable_size,
            hidden=self.hidden,
            **stage,
        )
        return self.adjusted(made)
