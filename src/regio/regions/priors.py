"""Where the parts of learned region features begin: Gaussians about the centres of the bins of a grid in the box.

They are not the paper's and are not learned: a prior is added to the logits, and what a module learns is added to it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from regio.kernels.arguments import coordinate_dtype
from regio.types import FeatureMap, Regions

__all__ = ["GaussianPrior", "GridPrior", "RoIAlignPrior"]


class GaussianPrior(ABC):
    """Part k is a Gaussian about the centre c_k(b) of bin k, as wide as `variance` says: a term of the column plus a
    term of the row, ``-(u - c_u)^2 / (2 variance(width of a bin)) - (v - c_v)^2 / (2 variance(height of a bin))``."""

    @abstractmethod
    def variance(self, side: Tensor) -> Tensor:
        """Along one axis, in cells^2, for bins whose sides along it are `side` [R] cells."""

    def __call__(self, x: FeatureMap, r: Regions, bins: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The terms [R, 1, bins[1], W] of the columns, the same for all rows of bins, and [R, bins[0], 1, H] of the
        rows."""
        x1, y1, x2, y2 = (r.boxes.to(coordinate_dtype(x.data)) / x.stride).unbind(1)
        down, across = self._term(y1, y2, bins[0], x.size[0]), self._term(x1, x2, bins[1], x.size[1])
        return across[:, None], down[:, :, None]

    def _term(self, low: Tensor, high: Tensor, bins: int, length: int) -> Tensor:
        """Along one axis, [R, bins, length], for boxes from `low` [R] to `high` [R] in cells."""
        share, cells = (torch.arange(n, dtype=low.dtype, device=low.device) + 0.5 for n in (bins, length))
        side = (high - low) / bins
        centres = low[:, None] + side[:, None] * share
        return (cells - centres[..., None]).square() / (-2 * self.variance(side))[:, None, None]


@dataclass(frozen=True)
class GridPrior(GaussianPrior):
    """Gaussians of one width, whatever the size of the box.

    sigma: in cells. Law: with bins of a cell and sigma 1/2 the weights are those of RoIAlign to 7 %. Raises ValueError
    unless sigma is positive.
    """

    sigma: float = 0.5

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise ValueError(f"sigma: expected a positive number of cells, got {self.sigma}")

    def variance(self, side: Tensor) -> Tensor:
        """``sigma^2``."""
        return torch.full_like(side, self.sigma**2)


@dataclass(frozen=True)
class RoIAlignPrior(GaussianPrior):
    """Gaussians as wide as the weights of RoIAlign with `samples` x `samples` samples a bin.

    Samples at (i + 1/2) / S of a bin of side B have a variance of B^2 / 12 (1 - 1 / S^2), and the bilinear weights of a
    point add between 0, at the centre of a cell, and 1/4; 1/6 on average.

    Laws, on average over the places of boxes: the weights of a part have the variance of RoIAlign's; of bins up to a
    cell they are RoIAlign's to 8 % of their sum, of bins of two cells to 13 %.

    Raises ValueError for `samples` below 1.
    """

    samples: int = 2

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples: expected at least 1, got {self.samples}")

    def variance(self, side: Tensor) -> Tensor:
        """``1 / 6 + side^2 (1 - 1 / samples^2) / 12``."""
        return 1 / 6 + side.square() * ((1 - 1 / self.samples**2) / 12)
