"""RoIPool: the largest cell in each bin of a box that is rounded to whole cells."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regio.kernels.maps import coordinate_dtype
from regio.kernels.pool import pool_max
from regio.regions.base import RegionExtractor, rows_and_columns
from regio.types import FeatureMap, Regions

__all__ = ["RoIPool"]


class RoIPool(RegionExtractor):
    """Fast R-CNN's RoI max pooling (Girshick 2015, section 2.1), in the convention of its code.

    The corners are divided by the stride and rounded, halves away from zero; both corner cells belong to the box, which
    is at least one cell wide and high. Bin i of K takes the cells from ``floor(i h / K)`` up to, and without,
    ``ceil((i + 1) h / K)``, so neighbouring bins may share a cell. A bin outside the map gives 0. Features receive
    gradients, boxes none.

    bins: (rows, columns), or one number for both.
    """

    def __init__(self, bins: int | tuple[int, int] = (7, 7)) -> None:
        super().__init__()
        self.bins = rows_and_columns(bins)

    def extra_repr(self) -> str:
        return f"bins={self.bins}"

    def forward(self, x: FeatureMap, r: Regions) -> Tensor:
        """Region features [R, C, *bins]."""
        return self.pyramid([x], r, torch.zeros_like(r.image))

    def pyramid(self, maps: Sequence[FeatureMap], r: Regions, level: Tensor) -> Tensor:
        """Region features [R, C, *bins], box i read from ``maps[level[i]]``."""
        r.check(maps[0])
        return pool_max([x.data for x in maps], r.image, *self.cells(maps, r, level), level)

    def cells(self, maps: Sequence[FeatureMap], r: Regions, level: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The cells of each bin: top and bottom [R, rows], left and right [R, columns], int64, half-open."""
        boxes = r.boxes.detach().to(coordinate_dtype(maps[0].data))
        scale = boxes.new_tensor([1 / x.stride for x in maps])[level, None]
        x1, y1, x2, y2 = _round_half_away(boxes * scale).unbind(1)
        size = boxes.new_tensor([x.size for x in maps])[level]
        top, bottom = _axis(y1, y2, self.bins[0], size[:, :1])
        left, right = _axis(x1, x2, self.bins[1], size[:, 1:])
        return top, bottom, left, right

    def weights(self, x: FeatureMap, r: Regions) -> Tensor:
        """The weights [R, C, K, H, W]: 1 at the first of the largest cells of the bin, for each channel."""
        r.check(x)
        top, bottom, left, right = self.cells([x], r, torch.zeros_like(r.image))
        v, u = (torch.arange(n, device=top.device) for n in x.size)
        row = (v >= top[..., None]) & (v < bottom[..., None])
        column = (u >= left[..., None]) & (u < right[..., None])
        inside = (row[:, :, None, :, None] & column[:, None, :, None, :]).flatten(1, 2)[:, None].flatten(3)
        values = x.data[r.image].flatten(2)[:, :, None].where(inside, -torch.inf)
        largest = inside & (values == values.amax(3, keepdim=True))
        first = largest & (largest.cumsum(3) == 1)
        return first.unflatten(3, x.size).to(coordinate_dtype(x.data))


def _axis(first: Tensor, last: Tensor, bins: int, size: Tensor) -> tuple[Tensor, Tensor]:
    """Begin and end [R, bins] of the bins along one axis, cut to maps of `size` [R, 1]."""
    side = (last - first + 1).clamp(min=1)
    step = (side.to(size.dtype) / bins)[:, None]
    i = torch.arange(bins, device=first.device, dtype=size.dtype)
    stop = (i + 1) * step
    floor, ceil = (i * step).to(torch.int64), stop.to(torch.int64)
    ceil = ceil + (ceil < stop)
    cells = size.to(torch.int64)
    begin, end = (torch.minimum((first[:, None] + offset).clamp(min=0), cells) for offset in (floor, ceil))
    return begin, end


def _round_half_away(value: Tensor) -> Tensor:
    """C's `round`, int64: 2.5 to 3 and -2.5 to -3, where `torch.round` takes both to the even neighbour.

    Beyond 2^30 cells, far outside any map, it stays at 2^30.
    """
    value = value.clamp(-(2**30), 2**30)
    whole = value.to(torch.int64)  # towards zero
    return whole + ((value - whole).abs() >= 0.5) * value.sign().to(torch.int64)
