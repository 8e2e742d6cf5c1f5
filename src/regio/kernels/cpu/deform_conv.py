"""The CPU kernels of `regio.kernels.deform_conv`: columns and a matrix product, or, for depthwise convolutions, sums
over taps.

Columns exist for some output cells at a time, in memory that is used again, and the backward pass makes them anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from regio.kernels.arguments import coordinate_dtype
from regio.kernels.cpu import buffer_pool, deformable_columns, deformable_depthwise, layout, threads
from regio.kernels.cpu.bfloat16 import as_array
from regio.kernels.cpu.deformable_taps import find_cells

__all__ = ["Arguments", "backward", "forward"]

Array = np.ndarray[Any, Any]

_COLUMNS = 2**23  # numbers in the columns that exist at once


class Arguments(NamedTuple):
    """Those of the operation `regio::deform_conv`, without the bias."""

    x: Tensor
    offset: Tensor
    weight: Tensor
    mask: Tensor | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]


class _Convolution:
    """What the two passes have in common: the shapes, and what each tap reads."""

    def __init__(self, arguments: Arguments) -> None:
        x, offset, self.weight, mask, *steps = arguments
        self.dtype = coordinate_dtype(x)
        # Columns and products of float16 are float32, which is faster on a CPU.
        self.product_dtype = torch.bfloat16 if x.dtype == torch.bfloat16 else self.dtype
        self.channels, self.outputs = x.shape[1], self.weight.shape[0]
        self.groups, self.taps = self.channels // self.weight.shape[1], self.weight.shape[2:].numel()
        self.is_depthwise = self.groups == self.channels == self.outputs
        images, numbers, *size = offset.shape
        self.out_shape, self.count = (images, *size), images * size[0] * size[1]
        self.offset_groups = numbers // (2 * self.taps)
        self.x = layout.cells(x, self.dtype)
        parts = (self.count, numbers // 2)
        self.mask = np.ones(parts, self.x.dtype) if mask is None else _by_cell(mask).reshape(parts)
        self.cells = np.empty((*parts, 4), np.int64)
        self.weights, self.fraction = np.empty((*parts, 4), self.x.dtype), np.empty((*parts, 2), self.x.dtype)
        geometry = (*x.shape[2:],), (*size,), (*self.weight.shape[2:],), *steps
        fixed = _by_cell(offset).reshape(*parts, 2), self.mask, geometry, self.cells, self.weights, self.fraction
        threads.share(partial(find_cells, *fixed), self.count, grain=256, shares=4)

    def matrix(self) -> Tensor:
        """The weights as [groups, outputs of a group, taps * channels of a group], the order of columns."""
        by_tap = self.weight.to(self.product_dtype).permute(0, 2, 3, 1)
        return by_tap.reshape(self.groups, self.outputs // self.groups, -1)

    def by_tap(self) -> Tensor:
        """The weights of a depthwise convolution as [taps, channels]."""
        return self.weight.to(self.dtype).flatten(1).t().contiguous()

    def chunks(self) -> Iterator[tuple[int, int, Tensor]]:
        """The first output cell of each chunk, the one after the last, and the columns of the chunk, [groups, P, taps,
        channels of a group], which are overwritten by those of the next."""
        in_cell = self.taps * self.channels
        step = max(1, min(self.count, _COLUMNS // in_cell))
        buffer = buffer_pool.empty((step * in_cell,), self.product_dtype)
        for begin in range(0, self.count, step):
            end = min(begin + step, self.count)
            columns = buffer[: (end - begin) * in_cell].view(self.groups, end - begin, self.taps, -1)
            fixed = self.x, self.cells, self.weights, begin, as_array(columns)
            threads.share(partial(deformable_columns.write_columns, *fixed), end - begin, grain=16, shares=4)
            yield begin, end, columns


def forward(arguments: Arguments, bias: Tensor | None) -> Tensor:
    """The result [N, C_out, H_out, W_out], stored with channels last; not a view, which could not be written in place."""
    convolution = _Convolution(arguments)
    (n, *size), outputs = convolution.out_shape, convolution.outputs
    dtype = convolution.dtype if convolution.is_depthwise else convolution.product_dtype
    result = torch.empty((n, outputs, *size), dtype=dtype, memory_format=torch.channels_last)
    out = result.permute(0, 2, 3, 1).view(convolution.count, outputs)
    with torch.autocast("cpu", enabled=False):
        run = _sum_taps if convolution.is_depthwise else _multiply
        run(convolution, out)
        if bias is not None:
            out += bias
    return result.to(arguments.x.dtype)


def backward(arguments: Arguments, grad: Tensor) -> list[Tensor]:
    """The gradients of x, offset, weight and mask, stored with channels last."""
    convolution, (n, _, height, width) = _Convolution(arguments), arguments.x.shape
    offset_groups, in_group = convolution.offset_groups, convolution.channels // convolution.offset_groups
    # A thread has blocks of channels, whatever their number: so many channels that the cells of each are one long read,
    # and so few that two threads have something to do.
    block = min(256, max(64, -(-in_group // 2)))
    blocks = -(-in_group // block)
    grad_x = buffer_pool.empty((offset_groups * blocks, n * height * width, block), convolution.dtype).zero_()
    products = buffer_pool.empty((blocks, *convolution.cells.shape), convolution.dtype)
    by_cell = grad.permute(0, 2, 3, 1).contiguous().view(convolution.count, convolution.outputs)
    with torch.autocast("cpu", enabled=False):
        run = _depthwise_gradients if convolution.is_depthwise else _product_gradients
        grad_weight = run(convolution, by_cell, grad_x, products)
    to_x = buffer_pool.empty((n, height, width, offset_groups, in_group), arguments.x.dtype)
    for i, part in enumerate(grad_x):
        group, first = i // blocks, i % blocks * block
        last = min(first + block, in_group)
        to_x[..., group, first:last] = part.view(n, height, width, block)[..., : last - first]
    by_tap = *convolution.out_shape, arguments.offset.shape[1]
    to_offset, to_mask = _tap_gradients(convolution, products.sum(0))
    gradients = to_x.flatten(3), to_offset.view(by_tap), grad_weight, to_mask.view(*by_tap[:3], by_tap[3] // 2)
    return [g.permute(0, 3, 1, 2) for g in gradients]


def _sum_taps(convolution: _Convolution, out: Tensor) -> None:
    """Fill out [P, C_out]."""
    fixed = convolution.x, convolution.cells, convolution.weights, convolution.by_tap().numpy(), out.zero_().numpy()
    threads.share(partial(deformable_depthwise.sum_taps, *fixed), convolution.count, grain=16, shares=4)


def _multiply(convolution: _Convolution, out: Tensor) -> None:
    """Fill out [P, C_out]."""
    matrix = convolution.matrix()
    for begin, end, columns in convolution.chunks():
        by_group = out[begin:end].chunk(convolution.groups, 1)
        for rows, weights, to in zip(columns.flatten(2), matrix, by_group, strict=True):
            torch.mm(rows, weights.t(), out=to)


def _depthwise_gradients(convolution: _Convolution, grad: Tensor, grad_x: Tensor, products: Tensor) -> Tensor:
    """Fill grad_x [blocks, cells, channels of a block] and products [blocks of an offset group, P, M, 4] (those of the
    four cells of each tap with the gradient of what it reads); return the gradient of the weights as [C_out, rows,
    columns, C / groups]."""
    by_tap = convolution.by_tap()
    grad_by_tap = torch.zeros_like(by_tap)
    fixed = convolution.x, convolution.cells, convolution.weights, by_tap.numpy(), grad.to(convolution.dtype).numpy()
    results = grad_x.numpy(), grad_by_tap.numpy(), products.numpy()
    threads.share(partial(deformable_depthwise.add_gradients, *fixed, *results), len(grad_x))
    size = convolution.weight.shape[2:]
    return grad_by_tap.t().to(convolution.weight.dtype).reshape(convolution.outputs, *size, 1)


def _product_gradients(convolution: _Convolution, grad: Tensor, grad_x: Tensor, products: Tensor) -> Tensor:
    """As `_depthwise_gradients`."""
    matrix = convolution.matrix()
    outputs, in_group, *size = convolution.weight.shape
    total = buffer_pool.empty(tuple(matrix.shape), convolution.dtype)
    if convolution.count == 0:
        total.zero_()
    product = buffer_pool.empty(tuple(matrix.shape), convolution.product_dtype)
    for begin, end, columns in convolution.chunks():
        by_group = grad[begin:end].to(convolution.product_dtype).chunk(convolution.groups, 1)
        rows = columns.flatten(2)
        for g, weights, r, of_chunk in zip(by_group, matrix, rows, product, strict=True):
            torch.mm(g.t(), r, out=of_chunk)
            torch.mm(g, weights, out=r)  # the gradient takes the place of the columns
        total = total.copy_(product) if begin == 0 else total.add_(product)
        fixed = convolution.x, convolution.cells, convolution.weights, begin, as_array(columns)
        run = partial(deformable_columns.add_columns, *fixed, grad_x.numpy(), products.numpy())
        threads.share(run, len(grad_x))
    return total.view(outputs, *size, in_group).to(convolution.weight.dtype)


def _tap_gradients(convolution: _Convolution, products: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of offset [P, M, 2] and mask [P, M]; at a whole number the derivative is that from above."""
    top_left, top_right, bottom_left, bottom_right = products.unbind(-1)
    down, right = torch.from_numpy(convolution.fraction).unbind(-1)
    top, bottom = torch.lerp(top_left, top_right, right), torch.lerp(bottom_left, bottom_right, right)
    to_column = torch.lerp(top_right - top_left, bottom_right - bottom_left, down)
    mask = torch.from_numpy(convolution.mask)
    return torch.stack([mask * (bottom - top), mask * to_column], -1), torch.lerp(top, bottom, down)


def _by_cell(x: Tensor) -> Array:
    """[N, C, H, W] as contiguous [N, H, W, C]."""
    return x.permute(0, 2, 3, 1).contiguous().numpy()
