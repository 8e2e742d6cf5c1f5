"""Cells and samples along one axis of a part, and how two axes cross."""

from __future__ import annotations

import torch
from torch import Tensor

from regio.kernels.arguments import has_values
from regio.regions.reading import SamplePoints

__all__ = ["along_axes", "at_border", "crossed", "largest"]


def along_axes(boxes: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The (low, high) [2, R] coordinates of boxes [R, 4], along x and along y, and so the (height, width) `size` [R, 2]
    or [1, 2] as widths and heights [2, R] or [2, 1]. What is done to both axes at once costs half the operations."""
    low, high = boxes.t().reshape(2, 2, -1).unbind()
    return low, high, size.flip(1).t()


def crossed(rows: Tensor, row_coef: Tensor, columns: Tensor, column_coef: Tensor) -> SamplePoints:
    """The samples where the rows [R, Kh, Kw, S] and columns [R, Kh, Kw, T] of each part cross, with the products of
    their coefs. A `SampleGrid` is the case in which all parts of a row of bins share their rows."""
    v, u = torch.broadcast_tensors(rows[..., :, None], columns[..., None, :])
    coef = row_coef[..., :, None] * column_coef[..., None, :]
    return SamplePoints(torch.stack([u, v], -1).flatten(3, 4), coef.flatten(3, 4))


def at_border(positions: Tensor, coef: Tensor, size: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Positions and coefs where a sample up to `margin` cells outside the centres of the first and last cell reads
    that cell, and one further out reads nothing."""
    inside = torch.minimum(positions.clamp(min=0), size - 1)
    return inside, coef.where((positions - inside).abs() <= margin, 0)


def largest(counts: Tensor, bound: int) -> int:
    """The largest of some counts, none above `bound`: the length to which they are padded.

    Where numbers cannot be looked at (see `has_values`) it is the bound.
    """
    if not has_values(counts):
        return bound
    return int(counts.max()) if counts.numel() else 0
