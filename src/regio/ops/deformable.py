"""Pooling whose bins are moved by given offsets (Dai et al. 2017, section 2.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regio.kernels.arguments import has_values
from regio.ops.overriding import overridable
from regio.ops.rois import as_regions, check_groups, check_scale, pair, read
from regio.regions.deformable import RoundedSamples, deformed_samples
from regio.regions.position_sensitive import PositionSensitive
from regio.regions.roi_align import RoIAlign
from regio.regions.sampling import SamplingExtractor
from regio.types import FeatureMap, Regions

__all__ = ["deform_ps_roi_pool", "deform_roi_pool"]


@overridable
def deform_roi_pool(
    input: Tensor,
    rois: Tensor | Sequence[Tensor],
    offset: Tensor | None,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    gamma: float = 0.1,
) -> Tensor:
    """`roi_align` with ``aligned=True`` whose bins move by ``gamma * offset * (width, height)`` of the box,
    [K, C, *output_size] (Dai et al. 2017, Eq. 6). Signature, defaults and convention of mmcv's function.

    offset: [K, 2, *output_size], channel 0 along x and channel 1 along y; None for bins that stay. The other arguments
    are those of `roi_align`, `rois` its `boxes`. Differentiable in input, offset and rois.

    Raises as `roi_pool` does, and ValueError or TypeError for offsets that do not fit.
    """
    bins = pair("output_size", output_size)
    x, r = as_regions(input, rois, spatial_scale, "rois")
    _check_offset(offset, (len(r), 2, *bins), input)
    return _moved(RoIAlign(bins, max(sampling_ratio, 0), aligned=True), x, r, offset, gamma)


@overridable
def deform_ps_roi_pool(
    input: Tensor,
    rois: Tensor | Sequence[Tensor],
    offset: Tensor | None,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 4,
    gamma: float = 0.1,
    group_size: int | tuple[int, int] | None = None,
) -> Tensor:
    """Deformable position-sensitive pooling (Dai et al. 2017, figure 4) as in the operator released with it:
    [K, C, *output_size] from an input [N, C * groups, H, W].

    Corners are rounded to whole image pixels and the pixel of the second belongs to the box; each bin takes
    sampling_ratio x sampling_ratio samples from its corner on, of which those on the map count, and moves by
    ``gamma * offset * (width, height)`` of the box. Arguments as of `deform_roi_pool`, but for these.

    offset: [K, 2 * classes, rows, columns], in pairs along x and y, a pair for each of `classes` equal ranges of the C
    channels; rows and columns may be fewer than those of the output. group_size: into how many (rows, columns) groups
    the channels divide, None for one a bin; group g of channel c is input channel ``c * groups + g``. Differentiable in
    input and offset. mmcv has no such function: the order of arguments is that of its `deform_roi_pool`.

    Raises as `deform_roi_pool` does, and ValueError where the channels do not divide.
    """
    bins = pair("output_size", output_size)
    if sampling_ratio < 1:
        raise ValueError(f"sampling_ratio: expected a positive number, got {sampling_ratio}")
    groups = bins if group_size is None else pair("group_size", group_size)
    check_scale(spatial_scale)
    _, r = as_regions(input, rois, 1.0, "rois")
    channels = check_groups(input, groups)
    classes = 1
    if offset is not None:
        classes = offset.shape[1] // 2 if offset.ndim == 4 else 0
        _check_offset(offset, (len(r), 2 * classes, *offset.shape[2:]), input)
        if 0 in offset.shape[1:] or channels % classes:
            raise ValueError(
                f"offset: expected [{len(r)}, 2 * classes, rows, columns], classes a divisor of {channels}, "
                f"got {list(offset.shape)}"
            )
    x = FeatureMap(input, 1 / spatial_scale)  # the corners are rounded in pixels, before they are scaled
    return _moved(PositionSensitive(RoundedSamples(bins, sampling_ratio), groups), x, r, offset, gamma)


def _moved(extractor: SamplingExtractor, x: FeatureMap, r: Regions, offset: Tensor | None, gamma: float) -> Tensor:
    """Region features [K, C, rows, columns] of an extractor with its bins moved."""
    if offset is None:
        return read(extractor, x, r)
    level = torch.zeros_like(r.image)
    return deformed_samples(extractor, [x], r, level, offset, gamma).features([x.data], r.image, level).contiguous()


def _check_offset(offset: Tensor | None, shape: tuple[int, ...], input: Tensor) -> None:
    if offset is None:
        return
    if offset.shape != shape:
        raise ValueError(f"offset: expected shape {list(shape)}, got {list(offset.shape)}")
    if not offset.dtype.is_floating_point:
        raise TypeError(f"offset: expected a floating point dtype, got {offset.dtype}")
    if offset.device != input.device:
        raise ValueError(f"offset: expected device {input.device}, that of the input, got {offset.device}")
    if has_values(offset) and not bool(torch.isfinite(offset.detach()).all()):
        raise ValueError("offset: expected finite numbers, got NaN or infinity")
