"""The per-region head: from the feature of a box to its class and its refined coordinates."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regio.losses import box_loss, class_loss
from regio.matching import RegionSample

__all__ = ["BoxHead", "HeadOutput"]


class HeadOutput(NamedTuple):
    """logits: [R, C], class 0 the background. deltas: [R, C, 4], one refinement a class."""

    logits: Tensor
    deltas: Tensor


class BoxHead(nn.Module):
    """Two fully connected layers, then a class and, for each class, a box (Fast R-CNN, section 2.1).

    `channels` and `bins` are those of the region features, `num_classes` counts the background, `hidden` is the width
    of both layers. `beta` is where the box loss turns from a square to a line. New layers start as in the paper:
    N(0, 0.01) for the classes, N(0, 0.001) for the boxes.
    """

    def __init__(
        self, channels: int, bins: tuple[int, int], num_classes: int, hidden: int = 1024, beta: float = 1.0
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes: expected the background and at least one class, got {num_classes}")
        self.beta = beta
        self.fc6 = nn.Linear(channels * bins[0] * bins[1], hidden)
        self.fc7 = nn.Linear(hidden, hidden)
        self.class_logits = nn.Linear(hidden, num_classes)
        self.box_deltas = nn.Linear(hidden, num_classes * 4)
        nn.init.normal_(self.class_logits.weight, std=0.01)
        nn.init.normal_(self.box_deltas.weight, std=0.001)
        nn.init.zeros_(self.class_logits.bias)
        nn.init.zeros_(self.box_deltas.bias)

    def forward(self, y: Tensor) -> HeadOutput:
        """Classes and boxes of region features [R, C, *bins]."""
        y = F.relu(self.fc6(y.flatten(1)))
        y = F.relu(self.fc7(y))
        logits, deltas = self.class_logits(y), self.box_deltas(y)
        precise = torch.promote_types(logits.dtype, torch.float32)  # scores and boxes are never in half precision
        return HeadOutput(logits.to(precise), deltas.to(precise).unflatten(1, (-1, 4)))

    def losses(self, output: HeadOutput, sample: RegionSample) -> dict[str, Tensor]:
        """The losses `class` and `box` of a sample. Only the box of the true class enters."""
        rows = (sample.labels > 0).nonzero()[:, 0]
        deltas = output.deltas[rows, sample.labels[rows]]
        return {
            "class": class_loss(output.logits, sample.labels),
            "box": box_loss(deltas, sample.deltas[rows], self.beta, len(sample.labels)),
        }
