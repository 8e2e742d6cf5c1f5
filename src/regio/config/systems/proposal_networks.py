"""Settings of proposal networks, on one map and on a pyramid, and the systems that are one alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from regio.config.systems.backbones import OnBackbone
from regio.settings import setting

if TYPE_CHECKING:
    from regio.backbones import Backbone
    from regio.data import DetectionDataset
    from regio.detector import TwoStageDetector
    from regio.evaluate import Evaluator
    from regio.necks import Norm
    from regio.run_report import Results

__all__ = ["RPN", "OneMap", "Proposing", "Pyramid", "RPNOnFPN"]


@dataclass(frozen=True)
class Proposing(OnBackbone):
    """Those of all systems with a proposal network."""

    anchor_ratios: tuple[float, ...] = setting((0.5, 1.0, 2.0), "height / width of anchors")
    rpn_box_weight: float = setting(1.0, "of the proposals' box loss, the paper's lambda / 10", ge=0)

    def adjusted(self, detector: TwoStageDetector) -> TwoStageDetector:
        """`detector` with those of the settings that its proposal network has."""
        rpn: Any = detector.proposals
        rpn.box_weight = self.rpn_box_weight
        return detector

    def proposals_alone(self) -> ProposalsAlone | None:
        """The system that is the proposal network of this one, without heads; None where the table has none."""
        return None


@dataclass(frozen=True)
class Necked(Proposing):
    """Those of the systems with a neck between the backbone and the proposals."""

    channels: int = setting(128, "of the maps that proposals and region features are made from", ge=1)
    norm: Literal["none", "batch", "group"] = setting("none", "normalisation in the neck")


def make_norm(name: Literal["none", "batch", "group"]) -> Norm | None:
    """The normalisation of this name."""
    from torch import nn

    norms: dict[str, Norm | None] = {"none": None, "batch": nn.BatchNorm2d, "group": partial(nn.GroupNorm, 32)}
    return norms[name]


@dataclass(frozen=True)
class OneMap(Necked):
    """Those of the systems on one map."""

    level: int = setting(5, "of the backbone that the map comes from", ge=2, le=5)
    output_stride: int = setting(16, "of that map at most, by dilation", ge=1)
    anchor_sizes: tuple[float, ...] = setting((32.0, 64.0, 128.0, 256.0), "in pixels of the scaled image")
    straddle_threshold: float | None = setting(
        None, "pixels by which an anchor may leave the image and be trained on; null for any"
    )

    def stage(self, pretrained: bool) -> tuple[Backbone, dict[str, Any]]:
        """The backbone, and the arguments of the proposal network."""
        from regio.proposals import Anchors

        return self.make_backbone((self.level,), self.output_stride, pretrained=pretrained), {
            "channels": self.channels,
            "short_side": self.short_side,
            "long_side": self.long_side,
            "anchors": Anchors((self.anchor_sizes,), self.anchor_ratios),
            "straddle_threshold": self.straddle_threshold,
            "norm": make_norm(self.norm),
        }

    def proposals_alone(self) -> ProposalsAlone | None:
        return RPN(**{each.name: getattr(self, each.name) for each in fields(OneMap)})


@dataclass(frozen=True)
class Pyramid(Necked):
    """Those of the systems on a feature pyramid."""

    levels: tuple[int, ...] = setting((3, 4, 5), "of the backbone, which the pyramid is made of")
    anchor_sizes: tuple[float, ...] = setting(
        (32.0, 64.0, 128.0, 256.0), "in pixels of the scaled image, one for each level and one more"
    )

    def stage(self, pretrained: bool) -> tuple[Backbone, dict[str, Any]]:
        """The backbone, and the arguments of the proposal network."""
        from regio.proposals import Anchors

        if len(self.anchor_sizes) != len(self.levels) + 1:
            raise ValueError(
                f"anchor_sizes: expected {len(self.levels) + 1}, one for each of levels and one more, "
                f"got {list(self.anchor_sizes)}"
            )
        return self.make_backbone(self.levels, 32, pretrained=pretrained), {
            "channels": self.channels,
            "short_side": self.short_side,
            "long_side": self.long_side,
            "anchors": Anchors(tuple((size,) for size in self.anchor_sizes), self.anchor_ratios),
            "norm": make_norm(self.norm),
        }

    def proposals_alone(self) -> ProposalsAlone | None:
        return RPNOnFPN(**{each.name: getattr(self, each.name) for each in fields(Pyramid)})


@dataclass(frozen=True)
class ProposalsAlone(Proposing):
    """The systems that end with the proposals, which have no class and are measured by the objects among them."""

    score_threshold: float = setting(0.0, "lowest score of a proposal", ge=0, le=1)

    def adjusted(self, detector: TwoStageDetector) -> TwoStageDetector:
        rpn: Any = detector.proposals
        rpn.test_filter = replace(rpn.test_filter, score_threshold=self.score_threshold)
        return super().adjusted(detector)

    def evaluator(self, dataset: DetectionDataset) -> Evaluator:
        from regio.evaluate import ProposalRecall

        return ProposalRecall(dataset)

    def results(self, evaluator: Any, records: Sequence[Any]) -> Results:
        from regio.run_report import ProposalResults

        return ProposalResults(evaluator, records)

    def labels(self, class_names: Sequence[str]) -> tuple[str, ...]:
        """All that a proposal network finds are objects."""
        return ("object",)


@dataclass(frozen=True)
class RPN(ProposalsAlone, OneMap):
    """The proposal network of Faster R-CNN alone."""

    def build(self, classes: int, *, pretrained: bool = True) -> TwoStageDetector:
        from regio.systems import rpn

        backbone, stage = self.stage(pretrained)
        return self.adjusted(rpn(backbone, **stage))


@dataclass(frozen=True)
class RPNOnFPN(ProposalsAlone, Pyramid):
    """The proposal network of FPN alone."""

    def build(self, classes: int, *, pretrained: bool = True) -> TwoStageDetector:
        from regio.systems import rpn_fpn

        backbone, stage = self.stage(pretrained)
        return self.adjusted(rpn_fpn(backbone, **stage))
