"""The detector: the page to read first.

    maps = neck(backbone(images)); found = proposals(maps); for head in roi_heads: found = head(maps, found)

Each of these is an object that is passed in. Without RoI heads it is a proposal network; without a proposal network the
boxes come from the caller (Fast R-CNN); with the image itself as the map it is R-CNN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from regio.preprocess import ImageBatch, Preprocess
from regio.roi_heads.base import RoIHead
from regio.types import Detections, FeatureMap, Targets

__all__ = ["Proposals", "TwoStageDetector"]


class Proposals(Protocol):
    """Gives boxes for maps, in pixels of the batch; in training, boxes and the losses of giving them."""

    def __call__(self, maps: Sequence[FeatureMap], /) -> list[Detections]: ...

    def losses(
        self, maps: Sequence[FeatureMap], targets: Sequence[Targets], /
    ) -> tuple[list[Tensor], dict[str, Tensor]]: ...


class TwoStageDetector(nn.Module):
    """Detects with `forward`, trains with `losses`; which of them is called decides, not a mode of the module.

    Images are tensors [3, H, W], uint8 in 0..255 or floating point in 0..1, of any sizes. Boxes, those given and those
    returned, are in pixels of these images. Gradients do not flow into the coordinates of boxes between the stages
    (approximate joint training, Faster R-CNN, section 3.2) unless the proposals let them (`RPN(box_gradients=True)`).

    proposals: None for a detector whose boxes are always given. roi_heads: the heads, in order; none for a network that
    only proposes.
    """

    def __init__(
        self,
        *,
        preprocess: Preprocess,
        backbone: nn.Module,
        neck: nn.Module,
        proposals: Proposals | None,
        roi_heads: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.backbone = backbone
        self.neck = neck
        self.proposals = proposals
        self.roi_heads = nn.ModuleList(roi_heads)

    def features(self, images: Sequence[Tensor]) -> tuple[ImageBatch, list[FeatureMap]]:
        """The batch made of `images`, and its maps, finest first."""
        batch = self.preprocess(images)
        maps = self.neck(self.backbone(batch.data))
        return batch, [replace(x, sizes=tuple(batch.sizes)) for x in maps]

    def forward(self, images: Sequence[Tensor], proposals: Sequence[Tensor] | None = None) -> list[Detections]:
        """What is in each of `images`, best first.

        proposals: boxes [P_i, 4] of each image, in its pixels, instead of those of the proposal network.
        """
        batch, maps = self.features(images)
        found = self._proposals()(maps) if proposals is None else _unscored(self._given(proposals, batch))
        for head in self.roi_heads:
            found = head(maps, found)
        return self.preprocess.restore(found, batch)

    def losses(
        self, images: Sequence[Tensor], targets: Sequence[Targets], proposals: Sequence[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The losses, scalars by name, whose sum is trained: those of the proposals and those of the heads.

        `targets` has one element an image. Images without objects are ordinary input. A head whose losses have names
        already taken by an earlier one gets its place in the sequence behind them: `class`, `class_2`. Samples are
        drawn from PyTorch's global generator. proposals: as in `forward`; the proposal network is then not trained.
        """
        batch, maps = self.features(images)
        targets = self.preprocess.targets(targets, batch)
        if proposals is None:
            boxes, losses = self._proposals().losses(maps, targets)
        else:
            boxes, losses = self._given(proposals, batch), {}
        for place, head in enumerate(self.roi_heads, 1):
            boxes, own = _as_head(head).losses(maps, boxes, targets)
            losses |= {f"{name}_{place}" if name in losses else name: loss for name, loss in own.items()}
        return losses

    def with_parts(self, proposals: Proposals | None, roi_heads: Sequence[nn.Module] = ()) -> TwoStageDetector:
        """The same preprocessing, backbone and neck, not copies, with these proposals and heads."""
        return type(self)(
            preprocess=self.preprocess,
            backbone=self.backbone,
            neck=self.neck,
            proposals=proposals,
            roi_heads=roi_heads,
        )

    def without_heads(self) -> TwoStageDetector:
        """The proposal network alone: a detector whose modules are those of this one, not copies."""
        return self.with_parts(self._proposals())

    def without_proposals(self) -> TwoStageDetector:
        """The heads alone, for boxes that are given: a detector whose modules are those of this one, not copies."""
        return self.with_parts(None, [*self.roi_heads])

    def _proposals(self) -> Proposals:
        if self.proposals is None:
            raise ValueError("proposals: expected boxes [P, 4] of each image: this detector has no proposal network")
        return self.proposals

    def _given(self, proposals: Sequence[Tensor], batch: ImageBatch) -> list[Tensor]:
        device = batch.data.device
        return self.preprocess.boxes([boxes.detach().to(device) for boxes in proposals], batch)


def _unscored(boxes: list[Tensor]) -> list[Detections]:
    """Proposals that came without scores: all are the class "object", in the order given."""
    return [Detections(b, torch.ones_like(b[:, 0], dtype=torch.int64), torch.ones_like(b[:, 0])) for b in boxes]


def _as_head(module: nn.Module) -> RoIHead:
    return module  # type: ignore[return-value]  # nn.ModuleList has forgotten what it holds
