"""The one definition of a region feature, which every extractor specialises."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from regio.kernels.arguments import autocast_off
from regio.rows import joined_rows, rows_of_levels
from regio.types import FeatureMap, Regions

if TYPE_CHECKING:
    from regio.regions.sampling import SamplePoints

__all__ = ["RegionExtractor", "contract", "level_by_level", "mean_over_channels", "rows_and_columns"]


class RegionExtractor(nn.Module, ABC):
    """``y_k(b) = sum over p of w_k(b, p, x) x(p)`` (Gu et al. 2018, Eq. 2).

    `b` is a box, `k` one of its K = prod(bins) parts, `p` a cell of the map `x`. A subclass is its `weights`;
    `forward` has a default that contracts them a few boxes at a time, and fast extractors override it. The law
    ``forward(x, r) == contraction of weights(x, r) with x`` is tested for each of them.
    """

    bins: tuple[int, int]
    map_layers: ClassVar[tuple[str, ...]] = ()
    """The submodules that make the maps which are read, and so run in the precision of maps in inference."""

    @abstractmethod
    def weights(self, x: FeatureMap, r: Regions) -> Tensor:
        """The weights [R, 1 or C, K, H, W] by which the cells of the box's image enter each part.

        The second axis is 1 where all channels share their weights. Large: 512 boxes x 49 parts on a stride-4 map of
        a 800 x 1333 image are 5 GiB, so `forward` never builds them for all boxes.
        """

    def mean_weights(self, x: FeatureMap, r: Regions) -> Tensor:
        """The mean of `weights` over channels, [R, 1, K, H, W]: how much each cell enters each part. Maxima, of which
        each channel has weights of its own, do without those of all channels at once."""
        return self.weights(x, r).mean(1, keepdim=True)

    def forward(self, x: FeatureMap, r: Regions) -> Tensor:
        """Region features [R, C, *bins], in the dtype of `x.data`.

        Raises ValueError for boxes that are not finite or inverted, and for an image index out of range.
        """
        r.check(x)
        parts = []
        if torch.compiler.is_compiling():  # the number of pieces must not depend on the number of boxes
            return contract(self.weights(x, r), x, r).unflatten(2, self.bins)
        for rows in torch.arange(len(r), device=r.boxes.device).split(16):
            some = r[rows]
            parts.append(contract(self.weights(x, some), x, some))
        empty = x.data.new_zeros((0, x.data.shape[1], prod(self.bins)))
        return torch.cat([empty, *parts]).unflatten(2, self.bins)

    def pyramid(self, maps: Sequence[FeatureMap], r: Regions, level: Tensor) -> Tensor:
        """As `forward`, box i read from ``maps[level[i]]``; level: [R] int64.

        The default takes one level after the other; extractors whose kernel reads all levels at once override it.
        """
        return level_by_level([self] * len(maps), maps, r, level)

    def whole_cells(self, maps: Sequence[FeatureMap], r: Regions, level: Tensor) -> Tensor | None:
        """For extractors that round boxes to cells: numbers [R, D] int64 that are equal for boxes of one image and
        level only if they cover the same cells, so that their features are equal too. None for all others."""
        return None

    def terms_alone(self) -> dict[str, RegionExtractor]:
        """This extractor with each of the terms of its weights alone, by name; empty where there is but one."""
        return {}

    def moved_samples(self, x: FeatureMap, r: Regions) -> tuple[SamplePoints, SamplePoints] | None:
        """Where samples lie that it has learned to move, and where they would lie unmoved; None where it moves none."""
        return None

    def part_shifts(self, x: FeatureMap, r: Regions) -> Tensor | None:
        """By how much it has learned to move each part, [R, D, *bins, 2] as (x, y) in cells, for each of D equal ranges
        of its channels; None where it moves none."""
        return None


def mean_over_channels(
    weights: Callable[[FeatureMap, Regions], Tensor], x: FeatureMap, r: Regions, *, at_once: int = 8
) -> Tensor:
    """The mean of `weights` over channels, [R, 1, K, H, W], a few of them at a time; for weights of a channel that
    depend on this channel of the map alone."""
    count = x.data.shape[1]
    parts = (
        weights(replace(x, data=some), r).mean(1, keepdim=True) * (some.shape[1] / count)
        for some in x.data.split(at_once, 1)
    )
    return functools.reduce(torch.add, parts)


def rows_and_columns(bins: int | tuple[int, int]) -> tuple[int, int]:
    """`bins` as (rows, columns), one number standing for both. Raises ValueError unless they are positive."""
    rows, columns = (bins, bins) if isinstance(bins, int) else bins
    if rows < 1 or columns < 1:
        raise ValueError(f"bins: expected positive numbers (rows, columns), got {(rows, columns)}")
    return rows, columns


def level_by_level(
    extractors: Sequence[RegionExtractor], maps: Sequence[FeatureMap], r: Regions, level: Tensor
) -> Tensor:
    """Features [R, C, *bins] of boxes that ``extractors[level]`` reads from ``maps[level]``."""
    rows = rows_of_levels(level, len(maps))
    parts = [e(x, r[i]) for e, x, i in zip(extractors, maps, rows, strict=True)]
    return joined_rows(parts, rows)


def contract(weights: Tensor, x: FeatureMap, r: Regions) -> Tensor:
    """``sum over p of w_k(b, p) x(p)``: [R, C, K] from weights [R, 1 or C, K, H, W], also under autocast in their
    dtype: float16 does not hold the small weights of a large map."""
    cells = x.data[r.image].to(weights.dtype)
    with autocast_off(x.data):
        if weights.shape[1] == 1:  # one product a box for all channels
            y = cells.flatten(2) @ weights[:, 0].flatten(2).mT
        else:
            y = torch.einsum("rckhw,rchw->rck", weights, cells)
    return y.to(x.data.dtype)
