"""What a RoI head is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from regio.types import Detections, FeatureMap, Targets

__all__ = ["RoIHead"]


class RoIHead(Protocol):
    """One step of the second stage. Boxes are in pixels of the batch; the maps know the sizes of the images in it."""

    def __call__(self, maps: Sequence[FeatureMap], found: list[Detections], /) -> list[Detections]:
        """Detections of each image from what was `found` before: proposals, or detections of the head before."""
        ...

    def losses(
        self, maps: Sequence[FeatureMap], boxes: list[Tensor], targets: Sequence[Targets], /
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The boxes [B_i, 4] of each image that the next head is trained on, and the losses, scalars by name.

        `boxes` [P_i, 4] are the proposals, or what the head before gave. They carry a gradient only where the
        proposals are trained through their coordinates, see `regio.proposals.RPN`.
        """
        ...
