"""PreciseRoIPool: the mean of the bilinear surface over each bin, as an integral and not as samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regio.regions.axes import max_count, outer_grid
from regio.regions.base import rows_and_columns
from regio.regions.sampling import SampleGrid, Samples, SamplingExtractor, boxes_in_cells
from regio.types import FeatureMap, Regions

__all__ = ["PreciseRoIPool"]


class PreciseRoIPool(SamplingExtractor):
    """The integral of the bilinear surface through the cells over a bin, divided by the area of the bin (Jiang et al.
    2018, "Acquisition of localization confidence", section 3.3). It has no number of samples to choose, and its
    gradient to the boxes is exact and continuous.

    bins: (rows, columns), or one number for both. aligned: True has the centre of cell 0 at half a cell, False at 0 as
    in the publication. The surface is zero beyond one cell outside the centres of the border cells, so weights of a bin
    that reaches outside them sum to less than one. A bin without width or height has the limit: the mean over the line
    or the point that is left (the published code gives 0).

    Laws, with the cells of a box and of its bins aligned to those of the map:

    * aligned: it is ``avg_pool2d`` of the map after smoothing with (1/8, 3/4, 1/8) along both axes, zeros outside. On
      maps that this leaves as they are (affine ones, away from the border) it is ``avg_pool2d`` itself.
    * not aligned: it is ``avg_pool2d`` of the means of 2 x 2 cells.
    * On any map and box it is linear in the map, and additive: the mean over the bins is that over the box.

    Features and boxes receive gradients, through the weights of the cells. The cost of a box is bounded by that of the
    map, however large the box.
    """

    def __init__(self, bins: int | tuple[int, int] = (7, 7), aligned: bool = True) -> None:
        super().__init__()
        self.bins = rows_and_columns(bins)
        self.aligned = aligned

    def extra_repr(self) -> str:
        return f"bins={self.bins}, aligned={self.aligned}"

    def sampling(self, maps: Sequence[FeatureMap], r: Regions, level: Tensor, shift: Tensor | None = None) -> Samples:
        """The cells under each bin and the integrals of their bilinear weights; see `SamplingExtractor.sampling`. A
        shift moves the bins over the surface and receives its gradient as the boxes do."""
        boxes, size = boxes_in_cells(maps, r, level)
        if self.aligned:
            boxes = boxes - 0.5
        x1, y1, x2, y2 = boxes.unbind(1)
        rows, columns = _edges(y1, y2, self.bins[0]), _edges(x1, x2, self.bins[1])
        height, width = (max(x.size[axis] for x in maps) for axis in (0, 1))
        if shift is None:
            grid_rows, row_weight = _bilinear_means(*rows, size[:, 0, None], height)
            grid_columns, column_weight = _bilinear_means(*columns, size[:, 1, None], width)
            return SampleGrid(grid_rows, grid_columns, row_weight, column_weight)
        right_by, down_by = shift.to(size.dtype).unbind(-1)
        top, bottom = (edge[:, :, None] + down_by for edge in rows)
        left, right = (edge[:, None, :] + right_by for edge in columns)
        return outer_grid(
            *_bilinear_means(top, bottom, size[:, 0, None, None], height),
            *_bilinear_means(left, right, size[:, 1, None, None], width),
        )


def _edges(low: Tensor, high: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Where bins [R, bins] start and stop along one axis."""
    part = torch.arange(bins + 1, device=low.device, dtype=low.dtype) / bins
    edges = low[:, None] + part * (high - low)[:, None]
    return edges[:, :-1], edges[:, 1:]


def _bilinear_means(start: Tensor, stop: Tensor, size: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """The cells [..., S] of a map of `size` cells whose bilinear weights ``max(0, 1 - |t - cell|)`` reach into
    [start, stop], and the means of these functions over it."""
    first = start.detach().floor().clamp(min=0)
    count = (torch.minimum(stop.detach().ceil(), size - 1) - first + 1).clamp(min=0)
    s = torch.arange(max_count(count, longest), device=start.device, dtype=start.dtype)
    cells = first[..., None] + s
    low, high = start[..., None] - cells, stop[..., None] - cells
    # The weight is 1 + t below 0 and 1 - t above: over a piece of one side, its mean is its value in the middle.
    (low_below, low_above), (high_below, high_above) = _sides(low), _sides(high)
    below = (high_below - low_below) * (1 + (high_below + low_below) / 2)
    above = (high_above - low_above) * (1 - (high_above + low_above) / 2)
    width = high - low
    extended = width > 0
    at_point = (1 - ((low + high) / 2).abs()).clamp(min=0)
    mean = ((below + above) / width.where(extended, 1)).where(extended, at_point)
    return cells, mean.where(s < count[..., None], 0)


def _sides(t: Tensor) -> tuple[Tensor, Tensor]:
    """`t` cut to [-1, 0] and to [0, 1]; at 0 only the second has a derivative."""
    negative = t < 0
    return t.where(negative, 0).clamp(min=-1), t.where(~negative, 0).clamp(max=1)
