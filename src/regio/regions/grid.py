"""RoIAlign: a regular grid of bilinear samples in each bin, nothing rounded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regio.regions.base import RegionExtractor, rows_and_columns
from regio.regions.reading import Reading, ReadingExtractor, SampleGrid, SamplePoints, boxes_in_cells
from regio.types import FeatureMap, Regions

__all__ = ["RoIAlign", "RoIAlignMax"]


class RoIAlign(ReadingExtractor):
    """The mean of regularly spaced bilinear samples in each bin (He et al. 2017, section 3).

    bins: (rows, columns), or one number for both. samples: along each axis of a bin; 0 takes ceil(bin side in cells),
    which differs from box to box (and does not go through `torch.compile` in one graph). aligned: False gives the
    convention of the first publications, which leaves out the half-pixel shift between the pixel and the cell grid
    and forces sides to at least one cell.

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

    def grid(self, maps: Sequence[FeatureMap], r: Regions, level: Tensor) -> SampleGrid:
        """The samples of every box, in cells of ``maps[level]``, before the border rule."""
        boxes, _ = boxes_in_cells(maps, r, level)
        if self.aligned:
            boxes = boxes - 0.5  # the centre of cell 0 is at half a cell
        x1, y1, x2, y2 = boxes.unbind(1)
        rows, row_coef = self._axis(y1, y2, self.bins[0])
        columns, column_coef = self._axis(x1, x2, self.bins[1])
        return SampleGrid(rows, columns, row_coef, column_coef)

    def _axis(self, low: Tensor, high: Tensor, bins: int) -> tuple[Tensor, Tensor]:
        """Positions and coefs [R, bins, S] along one axis, for sides [R] in cells."""
        side = high - low if self.aligned else (high - low).clamp(min=1)
        step = (side / bins)[:, None, None]
        if self.samples:
            count, most = step.new_tensor(float(self.samples)), self.samples
        else:
            count = step.detach().ceil()
            most = int(count.max()) if len(count) else 0  # a box without extent takes no sample
        s = torch.arange(most, device=low.device, dtype=low.dtype)
        bin_start = low[:, None, None] + torch.arange(bins, device=low.device)[:, None] * step
        positions = bin_start + (s + 0.5) / count.clamp(min=1) * step
        return positions, (1 / count.clamp(min=1)).where(s < count, 0).expand_as(positions)

    def reading(self, maps: Sequence[FeatureMap], r: Regions, level: Tensor, shift: Tensor | None = None) -> Reading:
        """Where the samples lie; see `ReadingExtractor.reading`. The border rule comes after the shift."""
        _, size = boxes_in_cells(maps, r, level)
        g = self.grid(maps, r, level)
        if shift is None:
            return border_grid(g, size)
        return border_points(g.points(shift), size)


def border_grid(g: SampleGrid, size: Tensor) -> SampleGrid:
    """RoIAlign's border rule on maps of `size` (height, width), [R, 2] or [1, 2]."""
    rows, row_coef = _at_border(g.rows, g.row_coef, size[:, 0, None, None])
    columns, column_coef = _at_border(g.columns, g.column_coef, size[:, 1, None, None])
    return SampleGrid(rows, columns, row_coef, column_coef)


def border_points(p: SamplePoints, size: Tensor) -> SamplePoints:
    """RoIAlign's border rule on maps of `size` (height, width), [R, 2] or [1, 2]."""
    u, v = p.points.unbind(-1)
    u, coef = _at_border(u, p.coef, size[:, 1, None, None, None])
    v, coef = _at_border(v, coef, size[:, 0, None, None, None])
    return SamplePoints(torch.stack([u, v], -1), coef)


def _at_border(positions: Tensor, coef: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Up to one cell outside the map a sample reads the border; further out it reads zero."""
    reads = (positions >= -1) & (positions <= size)
    return torch.minimum(positions.clamp(min=0), size - 1), coef.where(reads, 0)


class RoIAlignMax(RegionExtractor):
    """The largest of the bilinear samples in each bin (He et al. 2017, table 2c).

    Arguments as in `RoIAlign`, but for a fixed number of samples. The weights are the hat functions of the sample that
    is largest, channel by channel; a sample outside the map takes part with value zero.
    """

    def __init__(self, bins: int | tuple[int, int] = (7, 7), samples: int = 2, aligned: bool = True) -> None:
        super().__init__()
        if samples < 1:
            raise ValueError(f"samples: expected a positive number along each axis of a bin, got {samples}")
        self.align = RoIAlign(bins, samples, aligned)
        self.bins = self.align.bins

    def forward(self, x: FeatureMap, r: Regions) -> Tensor:
        """Region features [R, C, *bins]."""
        return self.pyramid([x], r, torch.zeros_like(r.image))

    def pyramid(self, maps: Sequence[FeatureMap], r: Regions, level: Tensor) -> Tensor:
        """Region features [R, C, *bins], box i read from ``maps[level[i]]``."""
        r.check(maps[0])
        y = self._samples(maps, r, level).features([x.data for x in maps], r.image, level)
        return self._by_bin(y).amax(4)

    def _samples(self, maps: Sequence[FeatureMap], r: Regions, level: Tensor) -> SampleGrid:
        """Every sample as a part of its own, with coef 1, or 0 where it reads nothing."""
        _, size = boxes_in_cells(maps, r, level)
        g, n = border_grid(self.align.grid(maps, r, level), size), self.align.samples
        rows, columns, row_coef, column_coef = (
            t.flatten(1)[..., None] for t in (g.rows, g.columns, g.row_coef * n, g.column_coef * n)
        )
        return SampleGrid(rows, columns, row_coef, column_coef)

    def _by_bin(self, samples: Tensor) -> Tensor:
        """Samples [R, C, Kh * S, Kw * S, ...] as [R, C, Kh, Kw, S * S, ...]."""
        (kh, kw), n = self.bins, self.align.samples
        return samples.unflatten(3, (kw, n)).unflatten(2, (kh, n)).transpose(3, 4).flatten(4, 5)

    def weights(self, x: FeatureMap, r: Regions) -> Tensor:
        """The weights [R, C, K, H, W]."""
        r.check(x)
        samples, level = self._samples([x], r, torch.zeros_like(r.image)), torch.zeros_like(r.image)
        grid = samples.rows.shape[1], samples.columns.shape[1]
        each = self._by_bin(samples.weights(x.data, r.image).unflatten(2, grid))  # [R, 1, Kh, Kw, S * S, H, W]
        best = self._by_bin(samples.features([x.data], r.image, level)).argmax(4)
        index = best[..., None, None, None].expand(*best.shape, 1, *x.size)
        return each.expand(-1, best.shape[1], *[-1] * 5).gather(4, index).squeeze(4).flatten(2, 3)
