"""Depthwise convolution whose backward pass is fast on a CPU.

A quarter of a training step of a small backbone on a CPU goes into one operation, the gradient of the 5 x 5 depthwise
weights, for which the library behind PyTorch's convolutions has no fast code; nor has it for the gradient of the input
when the convolution is dilated. The forward pass is PyTorch's.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
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

    Where PyTorch's own backward pass is fast (up to nine taps, reduced precision, other devices) this is that function.
    Elsewhere it is differentiable once.
    """
    slow = weight.shape[2] * weight.shape[3] > 9 and torch.is_grad_enabled() and weight.requires_grad
    plain = x.device.type == "cpu" and x.dtype == weight.dtype and x.dtype in (torch.float32, torch.float64)
    if slow and plain and not torch.is_autocast_enabled("cpu"):
        return _DepthwiseConv.apply(x, weight, bias, stride, padding, dilation)
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups=x.shape[1])


class _DepthwiseConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.options = stride, padding, dilation
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups=x.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_x = _input_gradient(grad, x, weight, *ctx.options) if ctx.needs_input_grad[0] else None
        stride, padding, dilation = ctx.options
        grad_weight = _weight_gradient(grad, x, weight, [*stride], [*padding], [*dilation])
        grad_bias = grad.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        return grad_x, grad_weight, grad_bias, None, None, None


def _input_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    reach = [d * (k - 1) - p for d, k, p in zip(dilation, weight.shape[2:], padding, strict=True)]
    if stride == (1, 1) and min(reach) >= 0:
        # The gradient of a convolution of stride 1 is the convolution with the weight turned by half a turn.
        return F.conv2d(grad, weight.flip(2, 3), None, 1, reach, dilation, groups=x.shape[1])
    gradients = torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, dilation, False, (0, 0), x.shape[1], (True, False, False)
    )
    return gradients[0]


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
