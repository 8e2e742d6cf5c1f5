"""RoIAlign: a regular grid of bilinear samples in each bin, nothing rounded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regio.regions.axes import along_axes, clamp_to_border, max_count, outer_grid
from regio.regions.base import rows_and_columns
from regio.regions.sampling import SampleGrid, Samples, SamplingExtractor, boxes_in_cells
from regio.types import FeatureMap, Regions

__all__ = ["RoIAlign"]


class RoIAlign(SamplingExtractor):
    """The mean of regularly spaced bilinear samples in each bin (He et al. 2017, section 3).

    bins: (rows, columns), or one number for both. samples: along each axis of a bin; 0 takes ceil(bin side in cells),
    which differs from box to box. aligned: False gives the convention of the first publications, which leaves out the
    half-pixel shift between the pixel and the cell grid and forces sides to at least one cell.

    A sample outside [-1, size] counts as zero; one nearer is moved onto the border cell. Features and boxes receive
    gradients.
    """

    def __init__(self, bins: int | tuple[int, int] = (7, 7), samples: int = 2, aligned: bool = True) -> None:
        super().__init__()
        self.bins = rows_and_columns(bins)
        if samples < 0:
            raise ValueError(f"samples: expected a number along each axis, or 0 to adapt it to the box, got {samples}")
        self.samples = samples
        self.aligned = aligned

    def extra_repr(self) -> str:
        return f"bins={self.bins}, samples={self.samples}, aligned={self.aligned}"

    def sampling(self, maps: Sequence[FeatureMap], r: Regions, level: Tensor, shift: Tensor | None = None) -> Samples:
        """Where the samples lie; see `SamplingExtractor.sampling`. The border rule comes after the shift."""
        boxes, size = boxes_in_cells(maps, r, level)
        low, high, size = (t[..., None, None] for t in along_axes(boxes, size))  # [2, R, 1, 1]
        side = high - low if self.aligned else (high - low).clamp(min=1)
        if self.aligned:
            low = low - 0.5  # the centre of cell 0 is at half a cell
        kh, kw = self.bins
        if shift is None and kh == kw:
            positions, weight = self._samples(self._start(low, side, kh), side, kh, size, maps)
            (columns, rows), (column_weight, row_weight) = positions.unbind(), weight.unbind()
            return SampleGrid(rows, columns, row_weight, column_weight)
        columns, rows = self._start(low[0], side[0], kw), self._start(low[1], side[1], kh)
        if shift is not None:
            columns, rows = columns[:, None] + shift[..., :1], rows[:, :, None] + shift[..., 1:]
            side, size = side[..., None], size[..., None]
        on_columns = self._samples(columns, side[0], kw, size[0], maps)
        on_rows = self._samples(rows, side[1], kh, size[1], maps)
        if shift is not None:
            return outer_grid(*on_rows, *on_columns)
        return SampleGrid(on_rows[0], on_columns[0], on_rows[1], on_columns[1])

    def _start(self, low: Tensor, side: Tensor, bins: int) -> Tensor:
        """On sides [..., 1, 1] from `low` on, in cells: the samples of the bins [..., bins, samples], which are the
        middles of as many equal parts; or, where their number depends on the box, the beginnings [..., bins, 1]."""
        parts = bins * max(self.samples, 1)
        i = torch.arange(0.5 if self.samples else 0, parts, device=low.device, dtype=low.dtype)
        return torch.addcmul(low, side / parts, i.view(bins, -1))

    def _samples(
        self, start: Tensor, side: Tensor, bins: int, size: Tensor, maps: Sequence[FeatureMap]
    ) -> tuple[Tensor, Tensor]:
        """Positions and weights [..., S] of the samples of bins from `start`, see `_start`, on maps of `size`."""
        if self.samples:
            return clamp_to_border(start, torch.full_like(start, 1 / self.samples), size, margin=1)
        step = side / bins
        count = step.detach().ceil()  # a box without extent takes no sample
        spacing = step / count.clamp(min=1)
        # Of the samples only those that may be on the map, so that a box costs no more than the map does; they are more
        # than half a cell apart. One more on both sides, since the rule itself is that of the border.
        scale, origin = spacing.detach().clamp(min=1e-6), start.detach()
        first = (((-1 - origin) / scale - 0.5).ceil() - 1).clamp(min=0).minimum(count)
        stop = (((size - origin) / scale - 0.5).floor() + 2).clamp(min=0).minimum(count)
        most = max_count((stop - first).clamp(min=0), 2 * max(max(x.size) for x in maps) + 6)
        s = first + torch.arange(most, device=start.device, dtype=start.dtype)
        weight = (1 / count.clamp(min=1)).where(s < stop, 0)
        s = s.minimum(stop - 1)  # where a box has fewer, its last sample again, which leads to no other cells
        return clamp_to_border(start + (s + 0.5) * spacing, weight, size, margin=1)
