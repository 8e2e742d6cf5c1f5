"""Rows of a tensor that are treated in parts, and put together again in their order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["joined_rows", "rows_of_levels"]


def rows_of_levels(level: Tensor, levels: int) -> list[Tensor]:
    """For each of 0 .. `levels` - 1 the indices of the elements of `level` [R] that are it."""
    return [(level == i).nonzero()[:, 0] for i in range(levels)]


def joined_rows(parts: Sequence[Tensor], rows: Sequence[Tensor]) -> Tensor:
    """The tensor [R, ...] whose rows ``rows[i]`` are ``parts[i]``, where each of 0 .. R - 1 is in `rows` once.

    The gradient of a part is its rows of the gradient, which are read. That of ``cat(parts)[cat(rows).argsort()]``,
    the same values, is added to zeros: twice the time.
    """
    together = torch.cat([*parts])
    return torch.empty_like(together).index_copy_(0, torch.cat([*rows]), together)
