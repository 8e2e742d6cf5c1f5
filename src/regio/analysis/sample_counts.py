"""How many cells learned region features read: sampled (Gu et al. 2018, section 3.1 and table 3), and exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from regio.regions.learned import LearnedRegionFeatures, Sampled
from regio.regions.support import BoxSupport, Support, WholeImage
from regio.types import FeatureMap, Regions

__all__ = ["count_cells", "count_samples"]


def count_samples(
    x: FeatureMap,
    r: Regions,
    mode: Sampled = Sampled(),  # noqa: B008  (it is frozen)
    support: Support = WholeImage(),  # noqa: B008
) -> tuple[Tensor, Tensor]:
    """The numbers [R] int64 of sampled cells inside and outside of each box; of `x` only size, stride and sizes matter.

    Inside are the cells that the box covers any part of, as in `regio.regions.support.BoxSupport`.

    The paper's text gives the means over 300 proposals an image of COCO as 114 inside and 86 outside, for maxima of 196
    each. Its table 3 has them the other way round, and only that can be: with Eq. 11 a map of its size (about 2019
    cells, 38 x 53) is sampled every 4th row and column, 140 cells in all of which a box of 282 cells covers a seventh.
    """
    width = x.size[1]
    cells = mode.cells(x, r, support(x, r))
    u0, v0, u1, v1 = BoxSupport()(x, r)[:, :, None].unbind(1)
    u, v = cells % width, cells.div(width, rounding_mode="floor")
    sampled = cells >= 0
    inside = (u >= u0) & (u < u1) & (v >= v0) & (v < v1)
    return (sampled & inside).sum(1), (sampled & ~inside).sum(1)


def count_cells(extractor: LearnedRegionFeatures, x: FeatureMap, r: Regions) -> Tensor:
    """The cells [R, K] int64 whose weights the exact form multiplies with features on a CPU: those that are not below
    rounding, and all of the map for boxes with parts that read many. Their mean is the `cells` of
    `regio.analysis.flops.LearnedSize` by which the cost falls as parts specialise."""
    from regio.kernels.cpu.attend_lists import ListedBoxes  # which compiles its loops

    with torch.no_grad():
        column, row, appearance = extractor.terms(x, r)
        support = extractor.support(x, r)
        return ListedBoxes(x.data, r.image, column, row, appearance, support, x.data.dtype).counts()
