"""torchvision's layer classes on the functions of `regio.ops`.

They are torchvision's own classes with another `forward`: constructors, attributes, initial values, state dicts,
`repr` and `isinstance` stay what they are there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torchvision
from torch import Tensor

from regio.ops.convolution import deform_conv2d
from regio.ops.overriding import overridable
from regio.ops.pooling import roi_align, roi_pool
from regio.ops.position_sensitive import ps_roi_align, ps_roi_pool
from regio.ops.rois import as_regions, pair, reading_zeros
from regio.regions.roi_align import RoIAlign as Align
from regio.types import FeatureMap, Regions

__all__ = ["DeformConv2d", "MultiScaleRoIAlign", "PSRoIAlign", "PSRoIPool", "RoIAlign", "RoIPool"]


class RoIPool(torchvision.ops.RoIPool):
    """`roi_pool` as a layer."""

    def forward(self, input: Tensor, rois: Tensor | Sequence[Tensor]) -> Tensor:
        return roi_pool(input, rois, self.output_size, self.spatial_scale)


class RoIAlign(torchvision.ops.RoIAlign):
    """`roi_align` as a layer."""

    def forward(self, input: Tensor, rois: Tensor | Sequence[Tensor]) -> Tensor:
        return roi_align(input, rois, self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned)


class PSRoIPool(torchvision.ops.PSRoIPool):
    """`ps_roi_pool` as a layer."""

    def forward(self, input: Tensor, rois: Tensor | Sequence[Tensor]) -> Tensor:
        return ps_roi_pool(input, rois, self.output_size, self.spatial_scale)


class PSRoIAlign(torchvision.ops.PSRoIAlign):
    """`ps_roi_align` as a layer."""

    def forward(self, input: Tensor, rois: Tensor | Sequence[Tensor]) -> Tensor:
        return ps_roi_align(input, rois, self.output_size, self.spatial_scale, self.sampling_ratio)


class DeformConv2d(torchvision.ops.DeformConv2d):
    """`deform_conv2d` with parameters of its own; offsets and mask come as arguments.

    `regio.deformable_conv.DeformableConv2d` makes them itself.
    """

    def forward(self, input: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        return deform_conv2d(input, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask)


class MultiScaleRoIAlign(torchvision.ops.MultiScaleRoIAlign):
    """`roi_align` on the level of a pyramid that fits the size of each box (Lin et al. 2017, FPN, Eq. 1).

    The scale of a map is the power of two next to its height over that of the largest image; it is worked out at every
    call, where torchvision keeps that of the first. Where levels are left out (names "0" and "2"), a box of a level
    beyond the last map is read from that map; torchvision gives it zeros. All levels are read in one pass.
    """

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Region features [K, C, *output_size] from maps [N, C, H_l, W_l], boxes [L, 4] of each image in pixels, and
        the images' (height, width)."""
        return _multi_scale_roi_align(
            x, boxes, image_shapes, self.featmap_names, self.output_size, self.sampling_ratio, self.canonical_scale,
            self.canonical_level,
        )  # fmt: skip


@overridable
def _multi_scale_roi_align(
    x: dict[str, Tensor],
    boxes: list[Tensor],
    image_shapes: list[tuple[int, int]],
    featmap_names: list[str],
    output_size: tuple[int, int],
    sampling_ratio: int,
    canonical_scale: int,
    canonical_level: int,
) -> Tensor:
    """`MultiScaleRoIAlign.forward` as a function of the layer's attributes."""
    data = [tensor for name, tensor in x.items() if name in featmap_names]
    if not data:
        raise ValueError(f"x: expected maps of the names {featmap_names}, got {list(x)}")
    if not image_shapes:
        raise ValueError("image_shapes: expected the (height, width) of each image, got an empty list")
    height = max(size[0] for size in image_shapes)
    strides = [2.0 ** -round(math.log2(tensor.shape[2] / height)) for tensor in data]
    if len(data) == 1:
        return roi_align(data[0], boxes, output_size, 1 / strides[0], sampling_ratio)
    maps = [FeatureMap(tensor, stride) for tensor, stride in zip(data, strides, strict=True)]
    _, r = as_regions(data[0], boxes, 1.0)
    align = Align(pair("output_size", output_size), max(sampling_ratio, 0), aligned=False)
    r, level = _levels(maps, r, canonical_scale, canonical_level)
    return align.sampling(maps, r, level).features(data, r.image, level).contiguous()


def _levels(maps: list[FeatureMap], r: Regions, canonical_scale: int, canonical_level: int) -> tuple[Regions, Tensor]:
    """The level [K] of each box. A box inverted on one axis has no size: it is moved to where it reads zeros."""
    finest, coarsest = (math.log2(maps[i].stride) for i in (0, -1))
    width, height = r.boxes[:, 2] - r.boxes[:, 0], r.boxes[:, 3] - r.boxes[:, 1]
    size = (width * height).detach().sqrt()
    k = torch.floor(canonical_level + torch.log2(size / canonical_scale) + 1e-6)
    level = (k.clamp(finest, coarsest) - finest).clamp(max=len(maps) - 1)
    unsized = torch.isnan(level)
    return reading_zeros(r, unsized), level.where(~unsized, 0).to(torch.int64)
