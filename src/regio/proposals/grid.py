"""Boxes at regular places, whatever the image shows: what any other method has to surpass."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from regio.boxes import clip

__all__ = ["Grid"]


@dataclass(frozen=True)
class Grid:
    """Boxes of `scales` (the square root of the area, as a share of that of the image) and `ratios` (height / width),
    at every `step` of their own sides, clipped to the image.

    The grid of each shape is centred in the image, and boxes of one shape overlap their neighbours by 1 - `step` of a
    side. Larger boxes come first, and boxes of one scale in an order shuffled by `seed`, so that the first few boxes
    are spread over the image. Scores fall evenly from 1. Boxes do not depend on what the image shows, only on its size.

    Raises ValueError for scales, ratios or a step that are not positive.
    """

    scales: tuple[float, ...] = (0.9, 0.65, 0.45, 0.3, 0.2, 0.13, 0.09)
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    step: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        for name, values in (("scales", self.scales), ("ratios", self.ratios), ("step", (self.step,))):
            if not values or not all(math.isfinite(value) and value > 0 for value in values):
                raise ValueError(f"{name}: expected positive numbers, got {list(values)}")

    def __call__(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes [P, 4] and scores [P] for an image [3, H, W], best first."""
        height, width = image.shape[-2:]
        generator = torch.Generator().manual_seed(self.seed)
        boxes = [torch.zeros(0, 4)]
        for scale in sorted(self.scales, reverse=True):
            of_scale = torch.cat([self._shape(scale, ratio, height, width) for ratio in self.ratios])
            boxes.append(of_scale[torch.randperm(len(of_scale), generator=generator)])
        found = clip(torch.cat(boxes), (height, width))
        return found, torch.linspace(1, 0, len(found) + 1)[:-1]

    def _shape(self, scale: float, ratio: float, height: int, width: int) -> Tensor:
        side = scale * math.sqrt(height * width)
        h, w = min(side * math.sqrt(ratio), height), min(side / math.sqrt(ratio), width)
        y, x = self._centres(height, h), self._centres(width, w)
        cy, cx = torch.meshgrid(y, x, indexing="ij")
        half = torch.tensor([w, h]) / 2
        centre = torch.stack([cx, cy], dim=-1).reshape(-1, 2)
        return torch.cat([centre - half, centre + half], dim=1)

    def _centres(self, room: float, side: float) -> Tensor:
        count = int((room - side) / (self.step * side)) + 1
        return room / 2 + (torch.arange(count) - (count - 1) / 2) * self.step * side
