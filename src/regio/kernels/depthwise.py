"""Depthwise convolution whose backward pass is fast on a CPU.

A quarter of a training step of a small backbone on a CPU goes into one operation, the gradient of the 5 x 5 depthwise
weights, for which the library behind PyTorch's convolutions has no fast code; nor has it for either gradient where the
convolution is dilated, nor for most of them in reduced precision, where they take five to thirty times as long as in
float32 and outweigh all that bfloat16 gains elsewhere. The forward pass is PyTorch's.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["depthwise_conv"]

Pair = tuple[int, int]


def depthwise_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
) -> Tensor:
    """``F.conv2d(x, weight, bias, stride, padding, dilation, groups=C)``: `x` [N, C, H, W], `weight` [C, 1, Kh, Kw].

    Where PyTorch's own backward pass is fast this is that function: with up to nine taps side by side, in reduced
    precision with a stride of 1, and on other devices. Elsewhere gradients in reduced precision, also under autocast,
    are those in float32, rounded; and gradients that are to have gradients themselves are PyTorch's.
    """
    if x.device.type == "cpu" and torch.is_grad_enabled() and weight.requires_grad:
        if torch.is_autocast_enabled("cpu"):
            reduced = torch.get_autocast_dtype("cpu")
            x, weight, bias = x.to(reduced), weight.to(reduced), None if bias is None else bias.to(reduced)
        fast = _nine_taps_at_most(weight, dilation) and (x.dtype.itemsize > 2 or stride == (1, 1))
        if x.dtype == weight.dtype and not fast:
            return _DepthwiseConv.apply(x, weight, bias, stride, padding, dilation)
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups=x.shape[1])


def _nine_taps_at_most(weight: Tensor, dilation: Pair) -> bool:
    """And these side by side: PyTorch's gradients in float32 are fast then."""
    return weight.shape[2] * weight.shape[3] <= 9 and dilation == (1, 1)


class _DepthwiseConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.options = stride, padding, dilation
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        given = ctx.saved_tensors
        precise = torch.promote_types(grad.dtype, torch.float32)
        grad, x, weight = (each.to(precise) for each in (grad, *given))
        stride, padding, dilation = ctx.options
        grad_x: Tensor | None = None
        if torch.is_grad_enabled() or _nine_taps_at_most(weight, dilation):
            wanted = ctx.needs_input_grad[0], True
            grad_x, grad_weight = _gradients(grad, x, weight, stride, padding, dilation, wanted)
        else:
            if ctx.needs_input_grad[0]:
                grad_x = _input_gradient(grad, x, weight, stride, padding, dilation)
            grad_weight = _weight_gradient(grad, x, weight, [*stride], [*padding], [*dilation])
        grad_bias = grad.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        found = (None if each is None else each.to(given[0].dtype) for each in (grad_x, grad_weight, grad_bias))
        return *found, None, None, None


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair, wanted: tuple[bool, bool]
) -> tuple[Any, Any]:
    """PyTorch's, of the input and of the weight; None where it is not wanted."""
    to_x, to_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, dilation, False, (0, 0), x.shape[1], (*wanted, False)
    )
    return to_x, to_weight


def _input_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    reach = [d * (k - 1) - p for d, k, p in zip(dilation, weight.shape[2:], padding, strict=True)]
    if stride == (1, 1) and min(reach) >= 0:
        # The gradient of a convolution of stride 1 is the convolution with the weight turned by half a turn.
        return F.conv2d(grad, weight.flip(2, 3), None, 1, reach, dilation, groups=x.shape[1])
    grad_x: Tensor = _gradients(grad, x, weight, stride, padding, dilation, (True, False))[0]
    return grad_x


@torch.library.custom_op("regio::depthwise_weight_gradient", mutates_args=(), device_types="cpu")
def _weight_gradient(
    grad: Tensor, x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int]
) -> Tensor:
    from regio.kernels.cpu import depthwise, layout, threads

    out = torch.empty(weight.shape, dtype=weight.dtype)
    cells, grad_cells = layout.cells(x, x.dtype), layout.cells(grad, x.dtype)
    options = tuple(weight.shape[2:]), tuple(stride), tuple(padding), tuple(dilation)
    fixed = (cells, tuple(x.shape), grad_cells, tuple(grad.shape[2:]), *options, out.flatten(1).numpy())
    threads.share(partial(depthwise.weight_gradient, *fixed), x.shape[1], grain=depthwise.BLOCK, shares=2)
    return out


@_weight_gradient.register_fake
def _(grad, x, weight, stride, padding, dilation):  # type: ignore[no-untyped-def]
    return torch.empty_like(weight)
