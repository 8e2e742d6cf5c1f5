"""Reference boxes on a regular grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regio.types import FeatureMap

__all__ = ["Anchors"]


@dataclass(frozen=True)
class Anchors:
    """Anchors at every cell of one or more maps (Faster R-CNN, section 3.1.1; FPN, section 4.1).

    sizes: for each map, the square roots of the anchors' areas, in pixels. ratios: height / width, for all maps.
    A cell has ``len(sizes[i]) * len(ratios)`` anchors, ratios varying slowest.

    By default an anchor is centred on its cell, ``(i + 0.5) * stride``, and has exactly its area and ratio. The
    released codes differ: `offset` is the place of the centre in the cell, 0 (its corner) in torchvision and 0.5 here;
    `rounded` moves the corners of the anchor about the origin to whole pixels, as torchvision does.
    """

    sizes: tuple[tuple[float, ...], ...]
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    offset: float = 0.5
    rounded: bool = False

    def __post_init__(self) -> None:
        counts = {len(sizes) for sizes in self.sizes}
        if len(counts) != 1 or 0 in counts:
            raise ValueError(f"sizes: expected the same number of sizes, at least one, for each map, got {self.sizes}")
        numbers = (*self.ratios, *(size for sizes in self.sizes for size in sizes))
        if not self.ratios or not all(0 < each < math.inf for each in numbers):
            raise ValueError(f"anchors: expected positive sizes and ratios, got {self.sizes} and {self.ratios}")

    @property
    def per_cell(self) -> int:
        """The number of anchors at a cell."""
        return len(self.sizes[0]) * len(self.ratios)

    def at_origin(self, sizes: Sequence[float]) -> Tensor:
        """The anchors [A, 4] of a cell with centre (0, 0)."""
        root = torch.tensor(self.ratios).sqrt()[:, None]
        side = torch.tensor(sizes, dtype=torch.float32)[None, :]
        width, height = (side * (1 / root)).flatten(), (side * root).flatten()
        boxes = torch.stack([-width, -height, width, height], dim=1) / 2
        return boxes.round() if self.rounded else boxes

    def __call__(self, maps: Sequence[FeatureMap]) -> list[Tensor]:
        """For each map, its anchors [H * W * A, 4] float32, row by row, anchors of a cell next to each other.

        Raises ValueError when the number of maps is not that of `sizes`.
        """
        if len(maps) != len(self.sizes):
            raise ValueError(f"maps: expected {len(self.sizes)}, one for each tuple of sizes, got {len(maps)}")
        strides = [(x.stride, x.stride) for x in maps]
        return self.on_grids([x.size for x in maps], strides, maps[0].data.device)

    def on_grids(
        self, sizes: Sequence[tuple[int, int]], strides: Sequence[tuple[float, float]], device: torch.device
    ) -> list[Tensor]:
        """The same from the (height, width) of each map in cells, and its strides along (y, x) in pixels."""
        anchors = []
        for (height, width), (stride_y, stride_x), own in zip(sizes, strides, self.sizes, strict=True):
            y = (torch.arange(height, device=device, dtype=torch.float32) + self.offset) * stride_y
            x = (torch.arange(width, device=device, dtype=torch.float32) + self.offset) * stride_x
            y, x = torch.meshgrid(y, x, indexing="ij")
            centres = torch.stack([x, y, x, y], dim=2)
            anchors.append((centres[:, :, None] + self.at_origin(own).to(device)).reshape(-1, 4))
        return anchors
