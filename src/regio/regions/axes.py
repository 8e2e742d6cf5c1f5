"""Cells and samples along one axis of a part, and how two axes cross."""

from __future__ import annotations

import torch
from torch import Tensor

from regio.kernels.arguments import has_values
from regio.regions.sampling import SamplePoints

__all__ = ["along_axes", "clamp_to_border", "max_count", "outer_grid", "within"]


def along_axes(boxes: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The (low, high) [2, R] coordinates of boxes [R, 4], along x and along y, and so the (height, width) `size` [R, 2]
    or [1, 2] as widths and heights [2, R] or [2, 1]. What is done to both axes at once costs half the operations."""
    low, high = boxes.t().reshape(2, 2, -1).unbind()
    return low, high, size.flip(1).t()


def outer_grid(rows: Tensor, row_weight: Tensor, columns: Tensor, column_weight: Tensor) -> SamplePoints:
    """The samples where the rows [R, Kh, Kw, S] and columns [R, Kh, Kw, T] of each part cross, with the products of
    their weights. A `SampleGrid` is the case in which all parts of a row of bins share their rows."""
    v, u = torch.broadcast_tensors(rows[..., :, None], columns[..., None, :])
    weight = row_weight[..., :, None] * column_weight[..., None, :]
    return SamplePoints(torch.stack([u, v], -1).flatten(3, 4), weight.flatten(3, 4))


def clamp_to_border(positions: Tensor, weight: Tensor, size: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Positions and weights where a sample up to `margin` cells outside the centres of the first and last cell reads
    that cell, and one further out reads nothing."""
    inside = within(positions, size)
    return inside, weight.where((positions - inside).abs() <= margin, 0)


def within(positions: Tensor, size: Tensor) -> Tensor:
    """Positions clamped to the centres of the first and the last of `size` cells. Their gradient is the derivative from
    above, as that of the value of a map is: 1 at the first centre, 0 at the last, where `torch.minimum` has 1/2."""
    low, last = positions.clamp(min=0), size - 1
    return low.where(low < last, last)


def max_count(counts: Tensor, bound: int) -> int:
    """The largest of some counts, none above `bound`: the length to which they are padded.

    Where numbers cannot be looked at (see `has_values`) it is the bound.
    """
    if not has_values(counts):
        return bound
    return int(counts.max()) if counts.numel() else 0
