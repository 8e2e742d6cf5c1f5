"""Where the parts of learned region features begin: Gaussians about the centres of the bins of a grid in the box.

They are not the paper's. A prior is added to the logits, and what a module learns is added to it; of the priors,
`DeformablePrior` alone learns something itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import prod
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regio.kernels.arguments import autocast_off, coordinate_dtype
from regio.regions.base import RegionExtractor, rows_and_columns
from regio.regions.roi_align import RoIAlign
from regio.types import FeatureMap, Regions

__all__ = ["DeformablePrior", "GaussianPrior", "GridPrior", "Prior", "RoIAlignPrior"]


class Prior(Protocol):
    """Terms that are added to the logits of learned region features."""

    def __call__(self, x: FeatureMap, r: Regions, bins: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """For (rows, columns) of parts, a term of the columns of the map, [R, *bins, W], and one of its rows,
        [R, *bins, H], or shapes that broadcast to these."""


class GaussianPrior(ABC):
    """Part k is a Gaussian about the centre c_k(b) of bin k, as wide as `variance` says: a term of the column plus a
    term of the row, ``-(u - c_u)^2 / (2 variance(width of a bin)) - (v - c_v)^2 / (2 variance(height of a bin))``."""

    @abstractmethod
    def variance(self, side: Tensor) -> Tensor:
        """Along one axis, in cells^2, for bins whose sides along it are `side` [R] cells."""

    def __call__(
        self, x: FeatureMap, r: Regions, bins: tuple[int, int], shift: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The terms [R, 1, bins[1], W] of the columns, the same for all rows of bins, and [R, bins[0], 1, H] of the
        rows. shift: by how much each centre is moved, [R, *bins, 2] as (x, y) in cells; then both are [R, *bins, ...].
        """
        x1, y1, x2, y2 = (r.boxes.to(coordinate_dtype(x.data)) / x.stride).unbind(1)
        width, height = (x2 - x1) / bins[1], (y2 - y1) / bins[0]
        columns, rows = _centres(x1, width, bins[1])[:, None], _centres(y1, height, bins[0])[..., None]
        if shift is not None:
            columns, rows = columns + shift[..., 0], rows + shift[..., 1]
        return self._term(columns, width, x.size[1]), self._term(rows, height, x.size[0])

    def _term(self, centres: Tensor, side: Tensor, length: int) -> Tensor:
        """Along one axis, [R, *, length], about `centres` [R, *] in cells, for bins of `side` [R]."""
        cells = torch.arange(length, dtype=side.dtype, device=side.device) + 0.5
        return (cells - centres[..., None]).square() / (-2 * self.variance(side))[:, None, None, None]


def _centres(low: Tensor, side: Tensor, bins: int) -> Tensor:
    """Of so many bins of `side` [R] from `low` [R] on: [R, bins]."""
    return low[:, None] + side[:, None] * (torch.arange(bins, dtype=low.dtype, device=low.device) + 0.5)


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


class DeformablePrior(nn.Module):
    """The Gaussians of `prior`, each moved by ``gamma * offset_k(b, x) * (w, h)``, w and h the sides of the box.

    As in deformable RoI pooling (Dai et al. 2017, section 2.2), a linear layer finds the offsets in features of the
    box. The geometric term of learned region features knows where a box is, and not what is in it; with these its
    parts go to the object.

    channels: of the map. bins: (rows, columns) of parts. extractor: reads the features that the offsets are found in;
    None for RoIAlign of 3 x 3 bins, as they may be coarse. The layer starts at zero, where this is `prior`. Its rate is
    0.05 of that of the other layers: it sees 9 numbers of each channel where deformable RoI pooling sees 49 and has a
    rate of 0.01, so that a step of Adam moves a part about as far.

    Raises ValueError for sizes that are not positive, for maps of another number of channels, and for other `bins` than
    those of the module that has this prior.
    """

    rate_factors: ClassVar[dict[str, float]] = {"offset": 0.05}  # see `regio.optimisation.rate_groups`

    def __init__(
        self,
        channels: int,
        bins: int | tuple[int, int] = (7, 7),
        prior: GaussianPrior = RoIAlignPrior(),
        extractor: RegionExtractor | None = None,
        gamma: float = 0.1,
    ) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels: expected a positive number, got {channels}")
        self.bins = rows_and_columns(bins)
        self.prior, self.gamma = prior, gamma
        self.extractor = RoIAlign((3, 3), samples=2) if extractor is None else extractor
        self.offset = nn.Linear(channels * prod(self.extractor.bins), 2 * prod(self.bins))
        self.zero_offsets()

    def extra_repr(self) -> str:
        return f"bins={self.bins}, prior={self.prior}, gamma={self.gamma}"

    @torch.no_grad()
    def zero_offsets(self) -> None:
        """Set the parameters that the offsets come from to zero, as in a new layer: no part is moved."""
        for parameter in self.offset.parameters():
            nn.init.zeros_(parameter)

    def shifts(self, x: FeatureMap, r: Regions) -> Tensor:
        """By how much each part is moved, [R, *bins, 2] as (x, y) in cells; in float32 (float64 for float64 features)
        also under autocast."""
        dtype = coordinate_dtype(x.data)
        read = self.extractor(x, r).flatten(1)
        if read.shape[1] != self.offset.in_features:
            expected, got = (n // prod(self.extractor.bins) for n in (self.offset.in_features, read.shape[1]))
            raise ValueError(f"x: expected {expected} channels, got {got}")
        with autocast_off(x.data):
            weight, bias = (p.to(dtype) for p in self.offset.parameters())
            offsets = F.linear(read.to(dtype), weight, bias).unflatten(1, (*self.bins, 2))
        boxes = r.boxes.to(dtype)
        sides = (boxes[:, 2:] - boxes[:, :2]) / x.stride
        return self.gamma * offsets * sides[:, None, None]

    def forward(self, x: FeatureMap, r: Regions, bins: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The terms [R, *bins, W] and [R, *bins, H]; see `GaussianPrior`."""
        if bins != self.bins:
            raise ValueError(f"bins: expected {self.bins}, those of the prior, got {bins}")
        return self.prior(x, r, bins, self.shifts(x, r))
