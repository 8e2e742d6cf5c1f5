"""Settings of class-aware proposal networks, which are detectors of one stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from regio.config.systems.box_heads import Detecting
from regio.config.systems.proposal_networks import OneMap, ProposalsAlone, Proposing, Pyramid
from regio.settings import setting

if TYPE_CHECKING:
    from regio.detector import TwoStageDetector

__all__ = ["ClassAwareRPN", "ClassAwareRPNOnFPN"]


@dataclass(frozen=True)
class ClassAware(Detecting, Proposing):
    """Those of both."""

    scores: Literal["softmax", "sigmoid"] = setting(
        "softmax", "of classes that exclude each other and the background, or one of each class by itself"
    )
    class_agnostic: bool = setting(True, "one box for all classes of an anchor; false for one of each class")

    def head(self) -> dict[str, Any]:
        """The arguments of the network, but for its maps and anchors."""
        from regio.roi_heads import Sigmoid, Softmax

        return {
            "scores": Softmax() if self.scores == "softmax" else Sigmoid(),
            "class_agnostic": self.class_agnostic,
            "postprocess": self.postprocess(),
        }

    def proposals_alone(self) -> ProposalsAlone | None:
        """None: without classes nothing is left of it."""
        return None


@dataclass(frozen=True)
class ClassAwareRPN(ClassAware, OneMap):
    """The class-aware RPN on one map."""

    def build(self, classes: int, *, pretrained: bool = True) -> TwoStageDetector:
        from regio.systems import class_aware_rpn

        backbone, stage = self.stage(pretrained)
        return self.adjusted(class_aware_rpn(classes + 1, backbone, hidden=None, **stage, **self.head()))


@dataclass(frozen=True)
class ClassAwareRPNOnFPN(ClassAware, Pyramid):
    """The class-aware RPN on a feature pyramid."""

    def build(self, classes: int, *, pretrained: bool = True) -> TwoStageDetector:
        from regio.systems import class_aware_rpn_fpn

        backbone, stage = self.stage(pretrained)
        return self.adjusted(class_aware_rpn_fpn(classes + 1, backbone, **stage, **self.head()))
