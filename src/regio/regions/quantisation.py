"""How a box becomes whole cells and the cells become bins: rules that differ from one publication to the next.

Both kinds of rule look at one axis at a time. Ranges of cells are half-open, (begin, end), and float tensors that hold
whole numbers. Whole numbers have no derivative: boxes receive no gradient through them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regio.regions.axes import along_axes
from regio.regions.sampling import boxes_in_cells
from regio.types import FeatureMap, Regions

__all__ = [
    "Corners",
    "DisjointBins",
    "Division",
    "FastRCNNCorners",
    "HalfOpenCorners",
    "OverlappingBins",
    "SPPNetCorners",
    "SPPNetReleasedCorners",
    "SlidingBins",
    "bin_ranges",
    "cell_ranges",
    "round_half_away",
]

Range = tuple[Tensor, Tensor]


class Corners(ABC):
    """Which cells a box covers."""

    @abstractmethod
    def __call__(self, low: Tensor, high: Tensor, size: Tensor) -> Range:
        """(begin, end) [...] of at least one cell, for the sides low <= high [...] of boxes in cells, on maps of `size`
        cells, which broadcasts with them. A range may lie outside the map."""


@dataclass(frozen=True)
class FastRCNNCorners(Corners):
    """Both corners rounded, halves away from zero; the cells of both belong to the box (Girshick 2015, in its code)."""

    def __call__(self, low: Tensor, high: Tensor, size: Tensor) -> Range:
        first = round_half_away(low)
        return first, torch.maximum(round_half_away(high), first) + 1


@dataclass(frozen=True)
class HalfOpenCorners(Corners):
    """Both corners rounded, halves away from zero; the cell of the second no longer belongs to the box.

    A box that is rounded to nothing has the cell of its first corner.
    """

    def __call__(self, low: Tensor, high: Tensor, size: Tensor) -> Range:
        begin = round_half_away(low)
        return begin, torch.maximum(round_half_away(high), begin + 1)


@dataclass(frozen=True)
class SPPNetCorners(Corners):
    """The cells whose centres lie strictly inside the box: from floor(x1 / s) + 1 to ceil(x2 / s) - 1 (He et al. 2014,
    appendix on the mapping of a window to the feature map).

    centre: where the centre of cell 0 lies, in cells. The paper has it at 0, as in a network whose layers are padded by
    half their kernels, and asks for an offset otherwise; 0.5 is the centre in regio's own convention. A box that holds
    no centre has the cell midway between the two that it would begin and end with, or the lower of two such.
    """

    centre: float = 0.0

    def __call__(self, low: Tensor, high: Tensor, size: Tensor) -> Range:
        first, last = _midway((low - self.centre).floor() + 1, (high - self.centre).ceil() - 1)
        return first, last + 1


@dataclass(frozen=True)
class SPPNetReleasedCorners(Corners):
    """The mapping of SPPnet's released code: with 1-based pixels and cells, from floor((x1 - o0 + o) / s + 1/2) + 1 to
    ceil((x2 - o0 - o) / s - 1/2) + 1; crossed corners both go to the middle, and the box is cut to the map.

    stride, offset0 (the centre of the first cell) and offset (a margin) are s, o0 and o, in pixels of a map with that
    stride; on a map of another stride they scale with it. The values of the release come with its model files and are
    known from ports of it. A box beside the map has the nearest cells, so that no bin is ever empty.
    """

    stride: float = 16.0
    offset0: float = 21.0
    offset: float = 6.5

    def __call__(self, low: Tensor, high: Tensor, size: Tensor) -> Range:
        # Pixel 1 of the released code covers [0, 1) here: a box begins at pixel x1 + 1 and ends with pixel x2.
        first = ((low * self.stride + 1 - self.offset0 + self.offset) / self.stride + 0.5).floor()
        last = ((high * self.stride - self.offset0 - self.offset) / self.stride - 0.5).ceil()
        first, last = (torch.minimum(cell.clamp(min=0), size - 1) for cell in _midway(first, last))
        return first, last + 1


def _midway(first: Tensor, last: Tensor) -> Range:
    """Where first > last, both at the middle."""
    middle = ((first + last) / 2).floor()
    reversed_ = first > last
    return middle.where(reversed_, first), middle.where(reversed_, last)


class Division(ABC):
    """How the cells of a box are shared among bins."""

    @abstractmethod
    def __call__(self, begin: Tensor, end: Tensor, bins: int) -> Range:
        """(begin, end) [R, bins] of each bin, for the boxes' own [R]."""


@dataclass(frozen=True)
class OverlappingBins(Division):
    """Bin i of K over h cells is [floor(i h / K), ceil((i + 1) h / K)): no bin is empty, and neighbours may share a
    cell (He et al. 2014; Girshick 2015; Dai et al. 2017, Eq. 5). Multiples of h / K in floating point, as in
    torchvision: where i h / K is whole but for rounding, a bin may have a cell more than in exact arithmetic."""

    def __call__(self, begin: Tensor, end: Tensor, bins: int) -> Range:
        begin, step = begin[:, None], ((end - begin) / bins)[:, None]
        edges = _count(bins + 1, step) * step
        return begin + edges[:, :-1].floor(), begin + edges[:, 1:].ceil()


@dataclass(frozen=True)
class DisjointBins(Division):
    """Bin i of K over h cells is [floor(i h / K), floor((i + 1) h / K)): every cell is in one bin, and where h < K some
    bins are empty (the worked example of deepsense.ai's "Region of interest pooling explained")."""

    def __call__(self, begin: Tensor, end: Tensor, bins: int) -> Range:
        side = (end - begin)[:, None]
        edges = begin[:, None] + (_count(bins + 1, side) * side / bins).floor()
        return edges[:, :-1], edges[:, 1:]


@dataclass(frozen=True)
class SlidingBins(Division):
    """Windows of ceil(h / K) cells every floor(h / K) cells: SPPnet's pooling while it trains for classification (He et
    al. 2014, section 2.3).

    The last cells may be left out (13 cells in 5 bins: 3 every 2, up to cell 10). Where h < K all windows are the first
    cell.
    """

    def __call__(self, begin: Tensor, end: Tensor, bins: int) -> Range:
        step = ((end - begin) / bins)[:, None]
        start = begin[:, None] + _count(bins, step) * step.floor()
        return start, start + step.ceil()


def _count(bins: int, like: Tensor) -> Tensor:
    return torch.arange(bins, device=like.device, dtype=like.dtype)


def cell_ranges(maps: Sequence[FeatureMap], r: Regions, level: Tensor, corners: Corners) -> tuple[Range, Tensor]:
    """The cells (begin, end) [2, R] that every box covers along x and y, in ``maps[level]`` and not cut to it, and the
    (height, width) [R, 2] or [1, 2] of that map."""
    boxes, size = boxes_in_cells(maps, r, level)
    boxes = boxes.detach().clamp(-(2**30), 2**30)  # so that no side overflows
    return corners(*along_axes(boxes, size)), size


def bin_ranges(
    maps: Sequence[FeatureMap],
    r: Regions,
    level: Tensor,
    bins: tuple[int, int],
    corners: Corners,
    division: Division,
) -> tuple[Range, Range, Tensor]:
    """The rows (begin, end) [R, Kh] and columns (begin, end) [R, Kw] of every bin, in cells of ``maps[level]`` and not
    cut to it, and the (height, width) [R, 2] or [1, 2] of that map."""
    (begin, end), size = cell_ranges(maps, r, level, corners)
    if bins[0] != bins[1]:
        return division(begin[1], end[1], bins[0]), division(begin[0], end[0], bins[1]), size
    first, last = division(begin.flatten(), end.flatten(), bins[0])  # both axes as those of twice as many boxes
    (left, top), (right, bottom) = (edge.view(*begin.shape, bins[0]) for edge in (first, last))
    return (top, bottom), (left, right), size


def round_half_away(value: Tensor) -> Tensor:
    """C's `round`: 2.5 to 3 and -2.5 to -3, where `torch.round` takes both to the even neighbour."""
    below_half = 0.5 - torch.finfo(value.dtype).eps / 4  # the next number: 0.5 itself would take it to 1
    return torch.add(value, value.sign(), alpha=below_half).trunc()
