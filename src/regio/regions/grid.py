"""RoIAlign: a regular grid of bilinear samples in each bin, nothing rounded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regio.kernels.maps import coordinate_dtype
from regio.kernels.sample_grid import sample_grid
from regio.regions.base import RegionExtractor, rows_and_columns
from regio.types import FeatureMap, Regions

__all__ = ["RoIAlign", "RoIAlignMax", "SampleGrid"]


@dataclass(frozen=True)
class SampleGrid:
    """Where a regular grid of samples lies, in the cells of each box's map.

    rows: [R, Kh, S], columns: [R, Kw, T]. row_coef and column_coef have the same shapes: one over the number of
    samples, or 0 for a sample that reads nothing.
    """

    rows: Tensor
    columns: Tensor
    row_coef: Tensor
    column_coef: Tensor


class _Aligned(RegionExtractor):
    """The samples of RoIAlign, which its mean and its maximum share."""

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
        """The samples of every box, in cells of ``maps[level]``."""
        boxes = r.boxes.to(coordinate_dtype(maps[0].data))
        if len(maps) > 1:
            size = boxes.new_tensor([x.size for x in maps])[level]
            height, width = size[:, 0, None, None], size[:, 1, None, None]
            boxes = boxes * boxes.new_tensor([1 / x.stride for x in maps])[level, None]
        else:
            height, width = boxes.new_tensor(maps[0].size)
            boxes = boxes * (1 / maps[0].stride)
        if self.aligned:
            boxes = boxes - 0.5  # the centre of cell 0 is at half a cell
        x1, y1, x2, y2 = boxes.unbind(1)
        rows, row_coef = self._axis(y1, y2, self.bins[0], height)
        columns, column_coef = self._axis(x1, x2, self.bins[1], width)
        return SampleGrid(rows, columns, row_coef, column_coef)

    def _axis(self, low: Tensor, high: Tensor, bins: int, size: Tensor) -> tuple[Tensor, Tensor]:
        """Positions [R, bins, S] and coefs along one axis, for sides [R] in cells."""
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
        # Up to one cell outside the map a sample reads the border; further out it reads zero.
        reads = (s < count) & (positions >= -1) & (positions <= size)
        positions = torch.minimum(positions.clamp(min=0), size - 1)
        return positions, (1 / count.clamp(min=1)).where(reads, 0)


class RoIAlign(_Aligned):
    """The mean of regularly spaced bilinear samples in each bin (He et al. 2017, section 3).

    bins: (rows, columns), or one number for both. samples: along each axis of a bin; 0 takes ceil(bin side in cells),
    which differs from box to box (and does not go through `torch.compile` in one graph). aligned: False gives the
    convention of the first publications, which leaves out the half-pixel shift between the pixel and the cell grid
    and forces sides to at least one cell.

    A sample outside [-1, size] counts as zero; one nearer is moved onto the border cell. Features and boxes receive
    gradients.
    """

    def forward(self, x: FeatureMap, r: Regions) -> Tensor:
        """Region features [R, C, *bins]."""
        return self.pyramid([x], r, torch.zeros_like(r.image))

    def pyramid(self, maps: Sequence[FeatureMap], r: Regions, level: Tensor) -> Tensor:
        """Region features [R, C, *bins], box i read from ``maps[level[i]]``."""
        r.check(maps[0])
        g = self.grid(maps, r, level)
        data = [x.data for x in maps]
        return sample_grid(data, r.image, g.rows, g.columns, g.row_coef, g.column_coef, level)

    def weights(self, x: FeatureMap, r: Regions) -> Tensor:
        """The weights [R, 1, K, H, W]: hat functions of the rows times hat functions of the columns."""
        r.check(x)
        g = self.grid([x], r, torch.zeros_like(r.image))
        row = (g.row_coef[..., None] * _hat(g.rows, x.size[0])).sum(2)
        column = (g.column_coef[..., None] * _hat(g.columns, x.size[1])).sum(2)
        return torch.einsum("rih,rjw->rijhw", row, column).flatten(1, 2).unsqueeze(1)


class RoIAlignMax(_Aligned):
    """The largest of the bilinear samples in each bin (He et al. 2017, table 2c).

    Arguments as in `RoIAlign`, but for a fixed number of samples. The weights are the hat functions of the sample that
    is largest, channel by channel; a sample outside the map takes part with value zero.
    """

    def __init__(self, bins: int | tuple[int, int] = (7, 7), samples: int = 2, aligned: bool = True) -> None:
        super().__init__(bins, samples, aligned)
        if samples < 1:
            raise ValueError(f"samples: expected a positive number along each axis of a bin, got {samples}")

    def forward(self, x: FeatureMap, r: Regions) -> Tensor:
        """Region features [R, C, *bins]."""
        return self.pyramid([x], r, torch.zeros_like(r.image))

    def pyramid(self, maps: Sequence[FeatureMap], r: Regions, level: Tensor) -> Tensor:
        """Region features [R, C, *bins], box i read from ``maps[level[i]]``."""
        r.check(maps[0])
        return self._values(maps, r, level).amax(4)

    def _values(self, maps: Sequence[FeatureMap], r: Regions, level: Tensor) -> Tensor:
        """Every sample on its own: [R, C, *bins, S * S]."""
        g = self.grid(maps, r, level)
        rows, columns, row_coef, column_coef = (
            t.flatten(1)[..., None]
            for t in (g.rows, g.columns, g.row_coef * self.samples, g.column_coef * self.samples)
        )
        y = sample_grid([x.data for x in maps], r.image, rows, columns, row_coef, column_coef, level)
        y = y.unflatten(3, (self.bins[1], self.samples)).unflatten(2, (self.bins[0], self.samples))
        return y.transpose(3, 4).flatten(4)

    def weights(self, x: FeatureMap, r: Regions) -> Tensor:
        """The weights [R, C, K, H, W]."""
        r.check(x)
        level = torch.zeros_like(r.image)
        g = self.grid([x], r, level)
        row = self.samples * g.row_coef[..., None] * _hat(g.rows, x.size[0])
        column = self.samples * g.column_coef[..., None] * _hat(g.columns, x.size[1])
        each = torch.einsum("rish,rjtw->rijsthw", row, column).flatten(3, 4)  # [R, Kh, Kw, S * S, H, W]
        best = self._values([x], r, level).argmax(4)
        picked = (
            each[:, None]
            .expand(-1, best.shape[1], *[-1] * 5)
            .gather(4, best[..., None, None, None].expand(*best.shape, 1, *x.size))
        )
        return picked.squeeze(4).flatten(2, 3)


def _hat(positions: Tensor, size: int) -> Tensor:
    """``max(0, 1 - |p - q|)`` for the cells q < size: [..., size]."""
    cells = torch.arange(size, device=positions.device, dtype=positions.dtype)
    return (1 - (positions[..., None] - cells).abs()).clamp(min=0)
