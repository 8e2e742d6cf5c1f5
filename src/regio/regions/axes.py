"""Cells and samples along one axis of a part, and how two axes cross."""

from __future__ import annotations

import torch
from torch import Tensor

from regio.regions.reading import SamplePoints

__all__ = ["at_border", "crossed", "largest"]


def crossed(rows: Tensor, row_coef: Tensor, columns: Tensor, column_coef: Tensor) -> SamplePoints:
    """The samples where the rows [R, Kh, Kw, S] and columns [R, Kh, Kw, T] of each part cross, with the products of
    their coefs. A `SampleGrid` is the case in which all parts of a row of bins share their rows."""
    v, u = torch.broadcast_tensors(rows[..., :, None], columns[..., None, :])
    coef = row_coef[..., :, None] * column_coef[..., None, :]
    return SamplePoints(torch.stack([u, v], -1).flatten(3, 4), coef.flatten(3, 4))


def at_border(positions: Tensor, coef: Tensor, size: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Positions and coefs where a sample up to `margin` cells outside the centres of the first and last cell reads
    that cell, and one further out reads nothing."""
    reads = (positions >= -margin) & (positions <= size - 1 + margin)
    return torch.minimum(positions.clamp(min=0), size - 1), coef.where(reads, 0)


def largest(counts: Tensor, bound: int) -> int:
    """The largest of some counts, none above `bound`: the length to which they are padded.

    While PyTorch compiles or exports a graph it is the bound, for a length must not depend on data there.
    """
    if torch.compiler.is_compiling():
        return bound
    return int(counts.max()) if counts.numel() else 0
