"""A proposal network alone: what 4-step training trains first, and what recall of proposals measures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from regio.boxes import clip
from regio.preprocess import Preprocess, resize_boxes
from regio.proposals.rpn import RPN
from regio.types import Detections, Targets

__all__ = ["ProposalNetwork"]


class ProposalNetwork(nn.Module):
    """Backbone, neck and RPN, without a second stage (Faster R-CNN, section 3.1; step 1 of section 3.2).

    Images are tensors [3, H, W], uint8 in 0..255 or floating point in 0..1, of any sizes. Boxes, those given and those
    returned, are in pixels of these images. The parts have the names they have in `TwoStageDetector`, so that weights
    of the one load into the other.
    """

    def __init__(self, *, preprocess: Preprocess, backbone: nn.Module, neck: nn.Module, proposals: RPN) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.backbone = backbone
        self.neck = neck
        self.proposals = proposals

    def forward(self, images: Sequence[Tensor]) -> list[Detections]:
        """The proposals in each of `images`, best first, with their objectness as scores and 1 as label."""
        batch = self.preprocess(images)
        found = self.proposals.scored(self.neck(self.backbone(batch.data)), batch.sizes)
        proposals = []
        for (boxes, scores), size, original in zip(found, batch.sizes, batch.original, strict=True):
            boxes = clip(resize_boxes(boxes, size, original), original)
            proposals.append(Detections(boxes, torch.ones_like(scores, dtype=torch.int64), scores))
        return proposals

    def losses(self, images: Sequence[Tensor], targets: Sequence[Targets]) -> dict[str, Tensor]:
        """The losses `rpn_objectness` and `rpn_box`, scalars whose sum is trained. Classes do not count.

        `targets` has one element an image. Samples are drawn from PyTorch's global generator.
        """
        batch = self.preprocess(images)
        targets = self.preprocess.targets(targets, batch)
        _, losses = self.proposals.losses(self.neck(self.backbone(batch.data)), batch.sizes, targets)
        return losses
