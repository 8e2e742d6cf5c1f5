"""Pooling in which each bin reads channels of its own (R-FCN, Dai et al. 2016)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from regio.ops.overriding import overridable
from regio.ops.rois import as_regions, check_groups, pair, read
from regio.regions.position_sensitive import PositionSensitive, TorchvisionAveragePool
from regio.regions.roi_align import RoIAlign

__all__ = ["ps_roi_align", "ps_roi_pool"]


@overridable
def ps_roi_pool(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
) -> Tensor:
    """The mean of the cells of each bin in its own channels, [K, C, *output_size] from an input [N, C * bins, H, W].

    Signature, defaults and results of torchvision's function: boxes are rounded to cells, the cell of the second corner
    does not belong to them, a side is at least 0.1 cells, and bin k of channel c reads channel ``c * bins + k``. The
    last row and column of the map are never read. Arguments as of `roi_pool`. Differentiable in `input`; for a box that
    reaches them torchvision's gradient, which spreads over them too, is not that of its result, and this one is.

    Raises as `roi_pool` does, and ValueError where the channels do not divide by the bins.
    """
    bins = pair("output_size", output_size)
    x, r = as_regions(input, boxes, spatial_scale)
    check_groups(input, bins)
    return read(PositionSensitive(TorchvisionAveragePool(bins)), x, r)


@overridable
def ps_roi_align(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
) -> Tensor:
    """`roi_align` with ``aligned=True``, each bin in its own channels, [K, C, *output_size] from an input
    [N, C * bins, H, W] (Li et al. 2017, Light-Head R-CNN).

    Signature, defaults and results of torchvision's function, and gradients for boxes that ask for them; bin k of
    channel c reads channel ``c * bins + k``. A bin that takes no sample, because its box has no extent and their number
    is adaptive, gives 0 as in `roi_align`; torchvision divides zero by zero there.

    Raises as `roi_pool` does, and ValueError where the channels do not divide by the bins.
    """
    bins = pair("output_size", output_size)
    x, r = as_regions(input, boxes, spatial_scale)
    check_groups(input, bins)
    return read(PositionSensitive(RoIAlign(bins, max(sampling_ratio, 0), aligned=True)), x, r)
