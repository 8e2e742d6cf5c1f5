"""RoIAlign: a regular grid of bilinear samples in each bin, nothing rounded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regio.regions.axes import at_border, crossed, largest
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
        if self.aligned:
            boxes = boxes - 0.5  # the centre of cell 0 is at half a cell
        longest = [max(x.size[axis] for x in maps) for axis in (0, 1)]
        rows, row_step = self._bins(boxes[:, 1], boxes[:, 3], self.bins[0])
        columns, column_step = self._bins(boxes[:, 0], boxes[:, 2], self.bins[1])
        if shift is None:
            on_rows = self._samples(rows, row_step, size[:, :1], longest[0])
            on_columns = self._samples(columns, column_step, size[:, 1:], longest[1])
            return SampleGrid(on_rows[0], on_columns[0], on_rows[1], on_columns[1])
        rows, columns = rows[:, :, None] + shift[..., 1], columns[:, None] + shift[..., 0]
        height, width = size[:, :1, None], size[:, 1:, None]
        return crossed(
            *self._samples(rows, row_step[..., None], height, longest[0]),
            *self._samples(columns, column_step[..., None], width, longest[1]),
        )

    def _bins(self, low: Tensor, high: Tensor, bins: int) -> tuple[Tensor, Tensor]:
        """Where the bins [R, bins] of the sides low to high [R] begin, and their length [R, 1], in cells."""
        side = high - low if self.aligned else (high - low).clamp(min=1)
        step = (side / bins)[:, None]
        return low[:, None] + torch.arange(bins, device=low.device) * step, step

    def _samples(self, start: Tensor, step: Tensor, size: Tensor, longest: int) -> tuple[Tensor, Tensor]:
        """Positions and coefs [..., S] of the samples of bins that begin at `start` [...] and are `step` long, on maps
        of `size`, none above `longest`."""
        start, step, size = start[..., None], step[..., None], size[..., None]
        if self.samples:
            s = torch.arange(self.samples, device=start.device, dtype=start.dtype)
            positions = start + (s + 0.5) / self.samples * step
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
        return at_border(start + (s + 0.5) * spacing, coef, size, margin=1)
