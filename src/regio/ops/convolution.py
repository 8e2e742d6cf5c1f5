"""Deformable convolution with torchvision's and mmcv's signatures; `regio.kernels.deform_conv` has the formula."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regio.kernels.arguments import autocast_off, has_values, is_channels_last
from regio.kernels.deform_conv import Geometry, deform_conv
from regio.ops.overriding import overridable
from regio.ops.rois import check_map, pair

__all__ = ["deform_conv2d", "modulated_deform_conv2d"]


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

    The matrix product runs in the dtype of `input` (for float16 on a CPU in float32), regardless of autocast, and the
    result has that dtype; it is stored with channels last where the input is. Differentiable in every tensor; at an
    integer coordinate the derivative of a sample is that from above. Samples exist for some cells at a time, 32 MiB of
    them on a CPU and 2^25 of them elsewhere; on a CPU there are also 60 bytes for each tap of each output cell.

    Raises ValueError or TypeError for shapes, dtypes and devices that do not fit, and for offsets that are not finite.
    """
    g = _geometry(input, offset, weight, stride, padding, dilation)
    size = g.output_size((input.shape[2], input.shape[3]))
    _check(g, size, input, offset, weight, bias, mask)
    with autocast_off(input):
        out = deform_conv(g, input, offset, weight, bias, mask)
    return out.contiguous(memory_format=torch.channels_last if is_channels_last(input) else torch.contiguous_format)


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


def _geometry(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
) -> Geometry:
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
    return Geometry((kernel[0], kernel[1]), *steps, groups, offset_groups)


def _check(
    g: Geometry,
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
    expected = [("offset", offset, (input.shape[0], 2 * parts, *size)), ("weight", weight, tuple(weight.shape))]
    if mask is not None:
        expected.append(("mask", mask, (input.shape[0], parts, *size)))
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
