"""Deformable convolution: every output cell is a box whose parts are the taps of the kernel.

    y(p) = sum over taps n of  w_n  m_n(p)  x(p + p_n + offset_n(p))

(Dai et al. 2017, Eq. 2; with the factors m_n, Zhu et al. 2019, Eq. 1.)
`sample_points` reads the taps, and one matrix product applies the weights to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import lcm

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from regio.kernels.arguments import autocast_off, coordinate_dtype, has_values, is_channels_last
from regio.kernels.sample_points import sample_points
from regio.ops.overriding import overridable
from regio.ops.rois import check_map, pair

__all__ = ["deform_conv2d", "modulated_deform_conv2d"]

# Samples that exist at once, 128 MiB in float32. A larger convolution goes chunk by chunk, and makes the samples of a
# chunk again in the backward pass instead of keeping them.
_SAMPLES = 2**25


@dataclass(frozen=True)
class _Geometry:
    """Where the taps of a convolution lie, and how channels are divided."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    offset_groups: int

    @property
    def taps(self) -> int:
        return self.kernel[0] * self.kernel[1]

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of the output for an input of `size`."""
        spans = zip(size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        rows, columns = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in spans)
        return rows, columns

    def points(self, offset: Tensor) -> Tensor:
        """Where the taps read, [N, rows, columns, offset groups * taps, 1, 2] as (u, v), from offsets in (y, x)."""
        y, x = offset.unflatten(1, (self.offset_groups * self.taps, 2)).unbind(2)
        tap = torch.arange(self.taps, device=offset.device).repeat(self.offset_groups)[:, None, None]
        row = torch.arange(y.shape[2], device=offset.device)[:, None] * self.stride[0] - self.padding[0]
        column = torch.arange(y.shape[3], device=offset.device) * self.stride[1] - self.padding[1]
        v = y + (row + tap // self.kernel[1] * self.dilation[0])
        u = x + (column + tap % self.kernel[1] * self.dilation[1])
        return torch.stack([u, v], -1).permute(0, 2, 3, 1, 4).unsqueeze(4)

    def blocks(self, channels: int) -> tuple[int, int, int]:
        """The channels are cut finely enough for both kinds of groups: blocks in an offset group, blocks in a weight
        group, channels in a block."""
        blocks = lcm(self.groups, self.offset_groups)
        return blocks // self.offset_groups, blocks // self.groups, channels // blocks

    def matrix(self, weight: Tensor) -> Tensor:
        """The weights as [groups, blocks * taps * channels, outputs], the order of `convolve`'s samples."""
        _, blocks, channels = self.blocks(weight.shape[1] * self.groups)
        by_block = weight.reshape(self.groups, -1, blocks, channels, self.taps)
        return by_block.permute(0, 2, 4, 3, 1).flatten(1, 3)

    def convolve(self, x: Tensor, points: Tensor, sample_weight: Tensor, matrix: Tensor, bias: Tensor) -> Tensor:
        """[n, rows, columns, outputs] from n images and the points and sample weights of some of their rows."""
        n, rows, columns = points.shape[:3]
        image = torch.arange(n, device=x.device).repeat_interleave(rows * columns)
        part_groups = None
        if self.offset_groups > 1:
            part_groups = [g for g in range(self.offset_groups) for _ in range(self.taps)]
            x = x.unflatten(1, (self.offset_groups, -1))
        y = sample_points(x, image, points.flatten(0, 2), sample_weight.flatten(0, 2), groups=part_groups)
        blocks, _, channels = self.blocks(x.shape[1:-2].numel())
        by_block = y.transpose(1, 2).unflatten(1, (self.offset_groups, self.taps)).unflatten(3, (blocks, channels))
        samples = by_block.transpose(2, 3).reshape(len(image), self.groups, matrix.shape[1])
        out = torch.baddbmm(bias.view(self.groups, 1, -1), samples.transpose(0, 1), matrix)
        return out.transpose(0, 1).reshape(n, rows, columns, bias.shape[0])


@overridable
def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = (1, 1),
    padding: int | tuple[int, int] = (0, 0),
    dilation: int | tuple[int, int] = (1, 1),
    mask: Tensor | None = None,
) -> Tensor:
    """Deformable convolution [N, C_out, H_out, W_out] (Dai et al. 2017, Eq. 2), modulated if there is a mask
    (Zhu et al. 2019, Eq. 1). Signature, defaults and results of torchvision's function.

    input: [N, C, H, W], zero outside. offset: [N, 2 * offset groups * taps, H_out, W_out] in cells, the (y, x) of each
    tap side by side. weight: [C_out, C / groups, rows, columns], with rows * columns taps. bias: [C_out]. mask:
    [N, offset groups * taps, H_out, W_out], a factor for each tap. The numbers of groups follow from the shapes.

    The matrix product runs in the dtype of `input`, regardless of autocast, and so does the result; it is stored with
    channels last where the input is. Differentiable in every tensor; at an integer coordinate the derivative of a
    sample is that from above. Memory beyond the result is bounded: 2^25 samples at once.

    Raises ValueError or TypeError for shapes, dtypes and devices that do not fit, and for offsets that are not finite.
    """
    g = _geometry(input, offset, weight, stride, padding, dilation)
    size = g.output_size((input.shape[2], input.shape[3]))
    _check(g, size, input, offset, weight, bias, mask)
    with autocast_off(input):
        dtype = coordinate_dtype(input)
        points = g.points(offset.to(dtype))
        if mask is None:
            sample_weight = points.new_ones(points.shape[:5])
        else:
            sample_weight = mask.to(dtype).permute(0, 2, 3, 1).unsqueeze(4)
        bias = weight.new_zeros(weight.shape[0]) if bias is None else bias
        out = _by_chunks(g, input, points, sample_weight, g.matrix(weight.to(input.dtype)), bias.to(input.dtype))
    form = torch.channels_last if is_channels_last(input) else torch.contiguous_format
    return out.permute(0, 3, 1, 2).contiguous(memory_format=form)


@overridable
def modulated_deform_conv2d(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    deform_groups: int = 1,
) -> Tensor:
    """`deform_conv2d` with mmcv's order of arguments, which names the groups. Raises ValueError where they do not agree
    with the shapes of `weight` and `offset`."""
    check_map("input", input)
    check_map("weight", weight)
    if groups < 1 or weight.shape[1] * groups != input.shape[1]:
        raise ValueError(f"groups: expected {input.shape[1]} channels / {weight.shape[1]} of the weight, got {groups}")
    if deform_groups < 1 or offset.shape[1] != 2 * deform_groups * weight.shape[2] * weight.shape[3]:
        raise ValueError(
            f"deform_groups: expected 2 * deform_groups * {weight.shape[2] * weight.shape[3]} channels of offset, "
            f"got {deform_groups} and {offset.shape[1]} channels"
        )
    return deform_conv2d(input, offset, weight, bias, stride, padding, dilation, mask)


def _by_chunks(g: _Geometry, x: Tensor, points: Tensor, sample_weight: Tensor, matrix: Tensor, bias: Tensor) -> Tensor:
    """`_Geometry.convolve` on a few images, or a few rows of one, at a time: [N, rows, columns, outputs]."""
    rows, columns = points.shape[1:3]
    row = max(1, columns * g.taps * x.shape[1])  # samples in a row of the output
    images = max(1, _SAMPLES // (rows * row))
    some_rows = min(rows, max(1, _SAMPLES // row))
    if images >= len(x) and some_rows == rows:
        return g.convolve(x, points, sample_weight, matrix, bias)
    convolve = partial(checkpoint, g.convolve, use_reentrant=False, preserve_rng_state=False)
    by_images = []
    for few, at, factor in zip(x.split(images), points.split(images), sample_weight.split(images), strict=True):
        parts = zip(at.split(some_rows, 1), factor.split(some_rows, 1), strict=True)
        by_images.append(torch.cat([convolve(few, p, c, matrix, bias) for p, c in parts], 1))
    return torch.cat(by_images)


def _geometry(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
) -> _Geometry:
    """The geometry that the shapes imply. Raises ValueError where channels do not divide into groups."""
    for name, tensor in (("input", input), ("offset", offset), ("weight", weight)):
        check_map(name, tensor)
    outputs, channels_in_group, *kernel = weight.shape
    taps = kernel[0] * kernel[1]
    if 0 in weight.shape:
        raise ValueError(f"weight: expected a shape without zeros, got {list(weight.shape)}")
    groups = input.shape[1] // channels_in_group
    if groups < 1 or groups * channels_in_group != input.shape[1] or outputs % groups:
        raise ValueError(
            f"weight: expected [C_out, {input.shape[1]} / groups, rows, columns], groups a divisor of C_out, "
            f"got {list(weight.shape)}"
        )
    offset_groups = offset.shape[1] // (2 * taps)
    if offset_groups < 1 or offset.shape[1] != 2 * taps * offset_groups or input.shape[1] % offset_groups:
        raise ValueError(
            f"offset: expected 2 * {taps} * offset groups channels, offset groups a divisor of {input.shape[1]}, "
            f"got {list(offset.shape)}"
        )
    steps = pair("stride", stride), pair("padding", padding, 0), pair("dilation", dilation)
    return _Geometry((kernel[0], kernel[1]), *steps, groups, offset_groups)


def _check(
    g: _Geometry,
    size: tuple[int, int],
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
) -> None:
    """Raise ValueError or TypeError unless the tensors fit the output size and each other."""
    if min(size) < 1:
        raise ValueError(f"input: expected at least as large as the kernel, got {list(input.shape)}: output {size}")
    parts = g.offset_groups * g.taps
    expected = [("offset", offset, (len(input), 2 * parts, *size)), ("weight", weight, tuple(weight.shape))]
    if mask is not None:
        expected.append(("mask", mask, (len(input), parts, *size)))
    if bias is not None:
        expected.append(("bias", bias, (weight.shape[0],)))
    mixed = not input.is_meta and torch.is_autocast_enabled(input.device.type)
    for name, tensor, shape in expected:
        if tensor.shape != shape:
            raise ValueError(f"{name}: expected shape {list(shape)}, got {list(tensor.shape)}")
        if tensor.device != input.device:
            raise ValueError(f"{name}: expected device {input.device}, that of the input, got {tensor.device}")
        any_float = name in ("offset", "mask") or mixed
        if not tensor.dtype.is_floating_point or not (any_float or tensor.dtype == input.dtype):
            raise TypeError(f"{name}: expected dtype {input.dtype}, that of the input, got {tensor.dtype}")
    if has_values(offset) and not bool(torch.isfinite(offset.detach()).all()):
        raise ValueError("offset: expected finite numbers, got NaN or infinity")
