"""RoIPool and RoIAveragePool: the largest cell, or the mean of the cells, of each bin of a box in whole cells."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regio.regions.axes import max_count, outer_grid, within
from regio.regions.base import mean_over_channels, rows_and_columns
from regio.regions.quantisation import Corners, Division, FastRCNNCorners, OverlappingBins, bin_ranges, cell_ranges
from regio.regions.sampling import CellBlocks, SampleGrid, Samples, SamplingExtractor
from regio.types import FeatureMap, Regions

__all__ = ["RoIAveragePool", "RoIPool"]


class RoIPool(SamplingExtractor):
    """RoI max pooling: the largest cell of each bin (Girshick 2015, section 2.1).

    bins: (rows, columns), or one number for both. corners: which cells a box covers. division: how bins share them. The
    defaults are Fast R-CNN's code and torchvision's `roi_pool`; ``RoIPool(2, HalfOpenCorners(), DisjointBins())`` is
    the worked example of deepsense.ai. Only cells inside the map count; a bin without any gives 0. Features receive
    gradients, boxes none.
    """

    def __init__(
        self,
        bins: int | tuple[int, int] = (7, 7),
        corners: Corners = FastRCNNCorners(),  # noqa: B008 (frozen)
        division: Division = OverlappingBins(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__()
        self.bins = rows_and_columns(bins)
        self.corners = corners
        self.division = division

    def extra_repr(self) -> str:
        return f"bins={self.bins}, corners={self.corners}, division={self.division}"

    def sampling(self, maps: Sequence[FeatureMap], r: Regions, level: Tensor, shift: Tensor | None = None) -> Samples:
        """The cells of each bin; see `SamplingExtractor.sampling`. Raises ValueError for a shift: a maximum over cells
        cannot be moved by a fraction of one."""
        if shift is not None:
            raise ValueError("shift: expected None, a maximum over cells cannot be moved by a fraction of one")
        rows, columns, _ = bin_ranges(maps, r, level, self.bins, self.corners, self.division)
        return CellBlocks(*(edge.to(torch.int64) for edge in (*rows, *columns)))

    def mean_weights(self, x: FeatureMap, r: Regions) -> Tensor:
        return mean_over_channels(self.weights, x, r)

    def whole_cells(self, maps: Sequence[FeatureMap], r: Regions, level: Tensor) -> Tensor:
        """The corners [R, 4] of each box in cells; see `RegionExtractor.whole_cells`."""
        ranges, _ = cell_ranges(maps, r, level, self.corners)
        return torch.cat(ranges).T.to(torch.int64)

    def cells(self, maps: Sequence[FeatureMap], r: Regions, level: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The cells of each bin within the map: top and bottom [R, rows], left and right [R, columns], int64,
        half-open."""
        rows, columns, size = bin_ranges(maps, r, level, self.bins, self.corners, self.division)
        top, bottom = (_within(edge, size[:, :1]) for edge in rows)
        left, right = (_within(edge, size[:, 1:]) for edge in columns)
        return top, bottom, left, right


def _within(edge: Tensor, size: Tensor) -> Tensor:
    return torch.minimum(edge.clamp(min=0), size).to(torch.int64)


class RoIAveragePool(SamplingExtractor):
    """RoI average pooling: the mean of the cells of each bin (Gu et al. 2018, Eq. 3; Dai et al. 2017, Eq. 5).

    Arguments as in `RoIPool`. count_outside: False takes the mean of the cells inside the map, and 0 where there is
    none (the average of R-FCN's and torchvision's position-sensitive pooling). True divides by all cells of the bin,
    those outside the map counting as zeros (the equations as written). A bin without cells gives 0.

    Parts can be moved by a fraction of a cell: the cells of a bin become bilinear samples, which is deformable RoI
    pooling as in Dai et al. 2017, Eq. 6. With count_outside a moved cell reads zeros outside the map (their Eq. 3);
    without, those more than half a cell outside are left out, and the others read the border.

    Features and shifts receive gradients, boxes none of their own. The cost of a box is bounded by that of the map,
    however large the box.
    """

    def __init__(
        self,
        bins: int | tuple[int, int] = (7, 7),
        corners: Corners = FastRCNNCorners(),  # noqa: B008 (frozen)
        division: Division = OverlappingBins(),  # noqa: B008 (frozen)
        count_outside: bool = False,
    ) -> None:
        super().__init__()
        self.bins = rows_and_columns(bins)
        self.corners = corners
        self.division = division
        self.count_outside = count_outside

    def extra_repr(self) -> str:
        return f"bins={self.bins}, corners={self.corners}, division={self.division}, count_outside={self.count_outside}"

    def sampling(self, maps: Sequence[FeatureMap], r: Regions, level: Tensor, shift: Tensor | None = None) -> Samples:
        """The cells of each bin with weights 1 / cells; see `SamplingExtractor.sampling`."""
        rows, columns, size = bin_ranges(maps, r, level, self.bins, self.corners, self.division)
        height, width = (max(x.size[axis] for x in maps) for axis in (0, 1))
        if shift is None:
            still = size.new_zeros(())
            grid_rows, row_weight = self._axis(*rows, still, size[:, 0, None], height)
            grid_columns, column_weight = self._axis(*columns, still, size[:, 1, None], width)
            return SampleGrid(grid_rows, grid_columns, row_weight, column_weight)
        top, bottom = (edge[:, :, None] for edge in rows)
        left, right = (edge[:, None, :] for edge in columns)
        right_by, down_by = shift.to(size.dtype).unbind(-1)
        return outer_grid(
            *self._axis(top, bottom, down_by, size[:, 0, None, None], height),
            *self._axis(left, right, right_by, size[:, 1, None, None], width),
        )

    def whole_cells(self, maps: Sequence[FeatureMap], r: Regions, level: Tensor) -> Tensor:
        """The corners [R, 4] of each box in cells; see `RegionExtractor.whole_cells`."""
        ranges, _ = cell_ranges(maps, r, level, self.corners)
        return torch.cat(ranges).T.to(torch.int64)

    def _axis(self, begin: Tensor, end: Tensor, shift: Tensor, size: Tensor, longest: int) -> tuple[Tensor, Tensor]:
        """Positions and weights [..., S] of the cells from `begin` to `end` [...], moved by `shift`, that read the map
        of `size` cells, at most `longest`."""
        fixed = shift.detach()
        # Of the moved cells, those in (-1, size) read something; those in [-1/2, size - 1/2] are inside the map.
        nearest = (-1 - fixed).floor() + 1 if self.count_outside else (-0.5 - fixed).ceil()
        beyond = (size - fixed).ceil() if self.count_outside else (size - 0.5 - fixed).floor() + 1
        first = torch.maximum(begin, nearest)
        reads = (torch.minimum(end, beyond) - first).clamp(min=0)
        cells = (end - begin if self.count_outside else reads)[..., None]
        s = torch.arange(max_count(reads, longest + 1), device=size.device, dtype=size.dtype)
        positions = first[..., None] + s + shift[..., None]
        weight = (1 / cells.clamp(min=1)).where(s < reads[..., None], 0)
        if self.count_outside:
            return positions, weight
        return within(positions, size[..., None]), weight
