"""RoIAlign: a regular grid of bilinear samples in each bin, nothing rounded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regio.regions.axes import along_axes, at_border, crossed, largest
from regio.regions.base import rows_and_columns
from regio.regions.reading import Reading, ReadingExtractor, SampleGrid, boxes_in_cells
from regio.types import FeatureMap, Regions

__all__ = ["RoIAlign"]


class RoIAlign(ReadingExtractor):
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

    def reading(self, maps: Sequence[FeatureMap], r: Regions, level: Tensor, shift: Tensor | None = None) -> Reading:
        """Where the samples lie; see `ReadingExtractor.reading`. The border rule comes after the shift."""
        boxes, size = boxes_in_cells(maps, r, level)
        low, high, size = along_axes(boxes, size)
        side = high - low if self.aligned else (high - low).clamp(min=1)
        if self.aligned:
            low = low - 0.5  # the centre of cell 0 is at half a cell
        longest = max(max(x.size) for x in maps)
        kh, kw = self.bins
        if shift is None and kh == kw:  # both axes at once
            positions, coef = self._samples(*_bins(low, side, kh), size[..., None], longest)
            return SampleGrid(positions[1], positions[0], coef[1], coef[0])
        columns, column_step = _bins(low[0], side[0], kw)
        rows, row_step = _bins(low[1], side[1], kh)
        width, height = size[..., None]
        if shift is None:
            on_rows = self._samples(rows, row_step, height, longest)
            on_columns = self._samples(columns, column_step, width, longest)
            return SampleGrid(on_rows[0], on_columns[0], on_rows[1], on_columns[1])
        rows, columns = rows[:, :, None] + shift[..., 1], columns[:, None] + shift[..., 0]
        return crossed(
            *self._samples(rows, row_step[..., None], height[..., None], longest),
            *self._samples(columns, column_step[..., None], width[..., None], longest),
        )

    def _samples(self, start: Tensor, step: Tensor, size: Tensor, longest: int) -> tuple[Tensor, Tensor]:
        """Positions and coefs [..., S] of the samples of bins that begin at `start` [...] and are `step` long, on maps
        of `size`, none above `longest`."""
        start, step, size = start[..., None], step[..., None], size[..., None]
        if self.samples:
            s = torch.arange(0.5, self.samples, device=start.device, dtype=start.dtype)
            positions = torch.addcmul(start, step / self.samples, s)
            return at_border(positions, torch.full_like(positions, 1 / self.samples), size, margin=1)
        count = step.detach().ceil()  # a box without extent takes no sample
        spacing = step / count.clamp(min=1)
        # Of the samples only those that may be on the map, so that a box costs no more than the map does; they are more
        # than half a cell apart. One more on both sides, since the rule itself is that of the border.
        scale, origin = spacing.detach().clamp(min=1e-6), start.detach()
        first = (((-1 - origin) / scale - 0.5).ceil() - 1).clamp(min=0).minimum(count)
        stop = (((size - origin) / scale - 0.5).floor() + 2).clamp(min=0).minimum(count)
        s = first + torch.arange(
            largest((stop - first).clamp(min=0), 2 * longest + 6), device=start.device, dtype=start.dtype
        )
        coef = (1 / count.clamp(min=1)).where(s < stop, 0)
        s = s.minimum(stop - 1)  # to pad a box that has fewer, its last sample, which leads to no other cells
        return at_border(start + (s + 0.5) * spacing, coef, size, margin=1)


def _bins(low: Tensor, side: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Where the bins [..., bins] of sides [...] from `low` on begin, and their length [..., 1], in cells."""
    step = (side / bins)[..., None]
    return torch.addcmul(low[..., None], step, torch.arange(bins, device=low.device, dtype=low.dtype)), step
