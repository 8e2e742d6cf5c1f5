"""A trained proposal network as a method that finds boxes for another detector."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from regio.detector import TwoStageDetector
from regio.proposals.class_aware import ClassAwareRPN
from regio.proposals.rpn import RPN
from regio.types import Detections

__all__ = ["ProposalNetwork"]


@dataclass(frozen=True, eq=False)
class ProposalNetwork:
    """The boxes that the proposal network of `detector` finds, before any RoI head.

    detector: an RPN alone, or a whole detector of which the rest is not used; it is put into evaluation mode. number:
    of boxes at most, in place of what the network's own filter gives (2000 in the 4-step training of Faster R-CNN; a
    detector by itself uses 300 or 1000). What that filter takes of a map before suppression stays (6000 for one map;
    the 4-step training has no such limit, see `regio.recipes`), so there may be fewer. weights: where the detector was
    read from, for whoever wants to read it again.
    Raises ValueError for a detector without a proposal network, and for a class-aware one.
    """

    detector: TwoStageDetector
    number: int = 2000
    weights: str = ""
    _alone: nn.Module = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.detector.proposals is None:
            raise ValueError("detector: expected one with a proposal network, got one whose boxes are given")
        if isinstance(self.detector.proposals, ClassAwareRPN):
            raise ValueError("detector: expected one whose network finds objects, got one that gives detections")
        network = copy.copy(self.detector.proposals)
        if isinstance(network, RPN):
            network.test_filter = replace(network.test_filter, post_nms_top_n=self.number)
        object.__setattr__(self, "_alone", self.detector.with_parts(network).eval())

    @torch.no_grad()
    def __call__(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes [P, 4] and scores [P] for an image [3, H, W], best first, on the CPU."""
        device = next(self.detector.parameters()).device
        found: Detections = self._alone([image.to(device)])[0]
        return found.boxes[: self.number].float().cpu(), found.scores[: self.number].float().cpu()
