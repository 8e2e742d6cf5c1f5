"""Where boxes read a map: the part of an extractor that a wrapper can move or hand other channels to.

`Samples` are in the cells of each box's map, integer i at the centre of cell i, and independent of the features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regio.kernels.arguments import coordinate_dtype
from regio.kernels.pool_max import pool_max
from regio.kernels.sample_grid import sample_grid
from regio.kernels.sample_points import sample_points
from regio.regions.base import RegionExtractor
from regio.types import FeatureMap, Regions

__all__ = [
    "CellBlocks",
    "SampleGrid",
    "SamplePoints",
    "Samples",
    "SamplingExtractor",
    "bilinear_weight",
    "boxes_in_cells",
]


class Samples(ABC):
    """The places that Kh x Kw parts of R boxes read, and their weights there."""

    @abstractmethod
    def features(
        self, maps: Sequence[Tensor], image: Tensor, level: Tensor, groups: Sequence[int] | None = None
    ) -> Tensor:
        """Region features [R, C, Kh, Kw] from maps [N, C, H_l, W_l], box i from image ``image[i]`` of
        ``maps[level[i]]``.

        groups: the channel group that each of the Kh * Kw parts reads, of maps [N, G, C, H_l, W_l].
        """

    @abstractmethod
    def weights(self, x: Tensor, image: Tensor) -> Tensor:
        """The weights [R, 1 or C, K, H, W] on a single map [N, C, H, W]."""


@dataclass(frozen=True)
class SampleGrid(Samples):
    """Bilinear samples where rows and columns cross: part (i, j) sums ``row_weight[i, s] * column_weight[j, t]`` times
    the sample at ``(columns[j, t], rows[i, s])``.

    rows, row_weight: [R, Kh, S]. columns, column_weight: [R, Kw, T]. A weight of 0 is a sample that reads nothing. At
    whole numbers a sample is one cell, so this also holds sums over blocks of cells with separable weights.
    """

    rows: Tensor
    columns: Tensor
    row_weight: Tensor
    column_weight: Tensor

    def features(
        self, maps: Sequence[Tensor], image: Tensor, level: Tensor, groups: Sequence[int] | None = None
    ) -> Tensor:
        return sample_grid(
            maps, image, self.rows, self.columns, self.row_weight, self.column_weight, level, groups=groups
        )

    def weights(self, x: Tensor, image: Tensor) -> Tensor:
        row = (self.row_weight[..., None] * bilinear_weight(self.rows, x.shape[2])).sum(2)
        column = (self.column_weight[..., None] * bilinear_weight(self.columns, x.shape[3])).sum(2)
        return torch.einsum("rih,rjw->rijhw", row, column).flatten(1, 2).unsqueeze(1)


@dataclass(frozen=True)
class SamplePoints(Samples):
    """Bilinear samples anywhere. points: [R, Kh, Kw, S, 2] as (column, row). weight: [R, Kh, Kw, S]."""

    points: Tensor
    weight: Tensor

    def features(
        self, maps: Sequence[Tensor], image: Tensor, level: Tensor, groups: Sequence[int] | None = None
    ) -> Tensor:
        y = sample_points(maps, image, self.points.flatten(1, 2), self.weight.flatten(1, 2), level, groups=groups)
        return y.unflatten(2, tuple(self.weight.shape[1:3]))

    def weights(self, x: Tensor, image: Tensor) -> Tensor:
        u, v = self.points.flatten(1, 2).unbind(-1)
        weight = self.weight.flatten(1, 2)[..., None]
        rows, columns = bilinear_weight(v, x.shape[2]), bilinear_weight(u, x.shape[3])
        return torch.einsum("rksh,rksw->rkhw", weight * rows, columns)[:, None]


@dataclass(frozen=True)
class CellBlocks(Samples):
    """The largest cell of a block, channel by channel.

    top, bottom: [R, Kh] int64; left, right: [R, Kw] int64, half-open. A block without cells gives 0. The weights are 1
    at the first of the largest cells, in row-major order.
    """

    top: Tensor
    bottom: Tensor
    left: Tensor
    right: Tensor

    def features(
        self, maps: Sequence[Tensor], image: Tensor, level: Tensor, groups: Sequence[int] | None = None
    ) -> Tensor:
        return pool_max(maps, image, self.top, self.bottom, self.left, self.right, level, groups=groups)

    def weights(self, x: Tensor, image: Tensor) -> Tensor:
        size = tuple(x.shape[2:])
        v, u = (torch.arange(n, device=self.top.device) for n in size)
        row = (v >= self.top[..., None]) & (v < self.bottom[..., None])
        column = (u >= self.left[..., None]) & (u < self.right[..., None])
        inside = (row[:, :, None, :, None] & column[:, None, :, None, :]).flatten(1, 2)[:, None].flatten(3)
        values = x[image].flatten(2)[:, :, None].where(inside, -torch.inf)
        first = values.argmax(3, keepdim=True)  # of equal values PyTorch gives the first
        read = torch.take_along_dim(inside, first, 3).to(coordinate_dtype(x))
        return torch.zeros_like(values, dtype=read.dtype).scatter(3, first, read).unflatten(3, size)


class SamplingExtractor(RegionExtractor):
    """An extractor whose parts read places that the box determines: a subclass is its `sampling`."""

    @abstractmethod
    def sampling(self, maps: Sequence[FeatureMap], r: Regions, level: Tensor, shift: Tensor | None = None) -> Samples:
        """Where the boxes read, box i in the cells of ``maps[level[i]]``.

        shift: [R, Kh, Kw, 2] as (columns, rows) moves each part by so many cells. Raises ValueError where parts cannot
        be moved.
        """

    def sides(self, maps: Sequence[FeatureMap], r: Regions, level: Tensor) -> Tensor:
        """The (width, height) [R, 2] in cells of what is divided into parts: the box, unless that is rounded."""
        boxes, _ = boxes_in_cells(maps, r, level)
        return boxes[:, 2:] - boxes[:, :2]

    def forward(self, x: FeatureMap, r: Regions) -> Tensor:
        """Region features [R, C, *bins], in the dtype of `x.data`."""
        return self.pyramid([x], r, torch.zeros_like(r.image))

    def pyramid(self, maps: Sequence[FeatureMap], r: Regions, level: Tensor) -> Tensor:
        """Region features [R, C, *bins], box i read from ``maps[level[i]]``, all levels in one call."""
        r.check(maps[0])
        return self.sampling(maps, r, level).features([x.data for x in maps], r.image, level)

    def weights(self, x: FeatureMap, r: Regions) -> Tensor:
        """The weights [R, 1 or C, K, H, W]."""
        r.check(x)
        return self.sampling([x], r, torch.zeros_like(r.image)).weights(x.data, r.image)


def boxes_in_cells(maps: Sequence[FeatureMap], r: Regions, level: Tensor) -> tuple[Tensor, Tensor]:
    """The boxes [R, 4] divided by the stride of their map, and the (height, width) [R, 2] or [1, 2] of that map, both
    in cells and in the dtype of coordinates."""
    boxes = r.boxes.to(coordinate_dtype(maps[0].data))
    if len(maps) == 1:
        return boxes * (1 / maps[0].stride), torch.tensor([maps[0].size], dtype=boxes.dtype, device=boxes.device)
    sizes = torch.tensor([x.size for x in maps], dtype=boxes.dtype, device=boxes.device)
    return boxes * boxes.new_tensor([1 / x.stride for x in maps])[level, None], sizes[level]


def bilinear_weight(positions: Tensor, size: int) -> Tensor:
    """``max(0, 1 - |p - q|)`` for the cells q < size: [..., size]."""
    cells = torch.arange(size, device=positions.device, dtype=positions.dtype)
    return (1 - (positions[..., None] - cells).abs()).clamp(min=0)
