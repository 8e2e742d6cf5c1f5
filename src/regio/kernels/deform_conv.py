"""Deformable convolution: every output cell is a box whose parts are the taps of the kernel.

    y(p) = sum over taps n of  w_n  m_n(p)  x(p + p_n + offset_n(p))

(Dai et al. 2017, Eq. 2; with the factors m_n, Zhu et al. 2019, Eq. 1.)
In general `sample_points` reads the taps, and one matrix product applies the weights to them. The samples of all taps
are then made in float32, converted, and kept for the backward pass. On a CPU there is one operation instead, which
makes them in the dtype of the product, some output cells at a time, and makes them again in the backward pass; where
every channel has its own weights there is no product, and no sample leaves the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import lcm
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from regio.kernels.arguments import coordinate_dtype, is_channels_last
from regio.kernels.sample_points import sample_points

__all__ = ["Geometry", "deform_conv", "deform_conv_reference"]

# Samples that exist at once, 128 MiB in float32. A larger convolution goes chunk by chunk, and makes the samples of a
# chunk again in the backward pass instead of keeping them.
_SAMPLES = 2**25


@dataclass(frozen=True)
class Geometry:
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
        samples = by_block.transpose(2, 3).reshape(image.shape[0], self.groups, matrix.shape[1])
        out = torch.baddbmm(bias.view(self.groups, 1, -1), samples.transpose(0, 1), matrix)
        return out.transpose(0, 1).reshape(n, rows, columns, bias.shape[0])


def deform_conv(
    g: Geometry, x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None
) -> Tensor:
    """`regio.ops.deform_conv2d` of arguments that fit, whatever their floating point dtypes; the result has that of
    `x`, in any memory format. Differentiable once in every tensor."""
    if x.device.type != "cpu":
        return deform_conv_reference(g, x, offset, weight, bias, mask)
    dtype = coordinate_dtype(x)
    factor = None if mask is None else mask.to(dtype)
    return _deform_conv(x, offset.to(dtype), weight, bias, factor, g.stride, g.padding, g.dilation)


def deform_conv_reference(
    g: Geometry, x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None
) -> Tensor:
    """`deform_conv` from `sample_points` and a matrix product, on any device."""
    dtype = coordinate_dtype(x)
    points = g.points(offset.to(dtype))
    if mask is None:
        sample_weight = points.new_ones(points.shape[:5])
    else:
        sample_weight = mask.to(dtype).permute(0, 2, 3, 1).unsqueeze(4)
    bias = weight.new_zeros(weight.shape[0]) if bias is None else bias
    out = _by_chunks(g, x, points, sample_weight, g.matrix(weight.to(x.dtype)), bias.to(x.dtype))
    return out.permute(0, 3, 1, 2)


def _by_chunks(g: Geometry, x: Tensor, points: Tensor, sample_weight: Tensor, matrix: Tensor, bias: Tensor) -> Tensor:
    """`Geometry.convolve` on a few images, or a few rows of one, at a time: [N, rows, columns, outputs]."""
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


@torch.library.custom_op("regio::deform_conv", mutates_args=(), device_types="cpu")
def _deform_conv(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    """offset, mask: of `coordinate_dtype`. Returns [N, C_out, H_out, W_out] in the memory format of x."""
    from regio.kernels.cpu import deform_conv as kernels

    return kernels.forward(kernels.Arguments(x, offset, weight, mask, (*stride,), (*padding,), (*dilation,)), bias)


@torch.library.custom_op("regio::deform_conv_backward", mutates_args=(), device_types="cpu")
def _backward(
    grad: Tensor,
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> list[Tensor]:
    """The gradients of x, offset, weight and mask (of a mask of ones where there is none)."""
    from regio.kernels.cpu import deform_conv as kernels

    return kernels.backward(kernels.Arguments(x, offset, weight, mask, (*stride,), (*padding,), (*dilation,)), grad)


@_deform_conv.register_fake
def _(x, offset, weight, bias, mask, stride, padding, dilation):  # type: ignore[no-untyped-def]
    n, _, rows, columns = offset.shape
    form = torch.channels_last if is_channels_last(x) else torch.contiguous_format
    return torch.empty((n, weight.shape[0], rows, columns), dtype=x.dtype, device=x.device, memory_format=form)


@_backward.register_fake
def _(grad, x, offset, weight, mask, stride, padding, dilation):  # type: ignore[no-untyped-def]
    to_offset, to_mask = (
        torch.empty_like(each, memory_format=torch.channels_last) for each in (offset, offset[:, ::2])
    )
    return [torch.empty_like(x), to_offset, torch.empty_like(weight), to_mask]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, offset, weight, _, mask, *ctx.geometry = inputs
    ctx.save_for_backward(x, offset, weight, mask)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, offset, weight, mask = ctx.saved_tensors
    to_x, to_offset, to_weight, to_mask = _backward(grad, x, offset, weight, mask, *ctx.geometry)
    to_bias = grad.sum((0, 2, 3)) if ctx.needs_input_grad[3] else None
    return to_x, to_offset, to_weight, to_bias, None if mask is None else to_mask, None, None, None


_deform_conv.register_autograd(_gradients, setup_context=_setup)
