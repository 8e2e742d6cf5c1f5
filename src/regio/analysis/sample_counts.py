"""How many cells sampled learned region features read (Gu et al. 2018, section 3.1 and table 3)."""

from __future__ import annotations

from torch import Tensor

from regio.regions.learned import Sampled
from regio.regions.support import BoxSupport, Support, WholeImage
from regio.types import FeatureMap, Regions

__all__ = ["count_samples"]


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
