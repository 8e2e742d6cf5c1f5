"""RoIWarp: bilinear samples of a box that is, in its first form, rounded to whole cells."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regio.regions.axes import clamp_to_border, outer_grid
from regio.regions.base import rows_and_columns
from regio.regions.quantisation import round_half_away
from regio.regions.sampling import SampleGrid, Samples, SamplingExtractor, boxes_in_cells
from regio.types import FeatureMap, Regions

__all__ = ["RoIWarp"]


class RoIWarp(SamplingExtractor):
    """RoIWarp of multi-task network cascades (Dai, He, Sun 2016, section 3.2): the box warped to a finer grid by one
    bilinear sample a cell of that grid, then averaged over bins.

    bins: (rows, columns), or one number for both. samples: cells of the finer grid along each axis of a bin, each
    sampled where it *begins* (RoIAlign samples the middle). rounded: the corners are divided by the stride and rounded,
    halves away from zero, which leaves boxes without a gradient; False keeps them, and boxes receive the gradient of
    the warp. The width is x2 - x1, and coordinates have no half-pixel shift, as in the published layer. A sample up to
    half a cell outside the map reads the border cell, one further out zero.

    For the maximum over bins take `SampleMax` of it, or ``max_pool2d`` of a warp with samples = 1. (The published layer
    takes the maximum of ceil(bin side) + 1 samples along an axis, both ends of a bin among them.)
    """

    def __init__(self, bins: int | tuple[int, int] = (14, 14), samples: int = 2, rounded: bool = True) -> None:
        super().__init__()
        self.bins = rows_and_columns(bins)
        if samples < 1:
            raise ValueError(f"samples: expected a positive number along each axis of a bin, got {samples}")
        self.samples = samples
        self.rounded = rounded

    def extra_repr(self) -> str:
        return f"bins={self.bins}, samples={self.samples}, rounded={self.rounded}"

    def sampling(self, maps: Sequence[FeatureMap], r: Regions, level: Tensor, shift: Tensor | None = None) -> Samples:
        """Where the samples lie; see `SamplingExtractor.sampling`. The border rule comes after the shift."""
        boxes, size = boxes_in_cells(maps, r, level)
        if self.rounded:
            boxes = round_half_away(boxes.detach())
        x1, y1, x2, y2 = boxes.unbind(1)
        rows, columns = self._axis(y1, y2, self.bins[0]), self._axis(x1, x2, self.bins[1])
        if shift is None:
            on_rows = self._on_map(rows, size[:, 0, None, None])
            on_columns = self._on_map(columns, size[:, 1, None, None])
            return SampleGrid(on_rows[0], on_columns[0], on_rows[1], on_columns[1])
        rows, columns = rows[:, :, None] + shift[..., 1:], columns[:, None] + shift[..., :1]
        height, width = size[:, 0, None, None, None], size[:, 1, None, None, None]
        return outer_grid(*self._on_map(rows, height), *self._on_map(columns, width))

    def _axis(self, low: Tensor, high: Tensor, bins: int) -> Tensor:
        """Positions [R, bins, samples] along one axis, for sides [R] in cells."""
        count = bins * self.samples
        step = torch.arange(count, device=low.device, dtype=low.dtype) / count
        return (low[:, None] + step * (high - low)[:, None]).unflatten(1, (bins, self.samples))

    def _on_map(self, positions: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        return clamp_to_border(positions, torch.full_like(positions, 1 / self.samples), size, margin=0.5)
