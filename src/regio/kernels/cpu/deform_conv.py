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

from regio.kernels.arguments import coordinate_dtype, is_channels_last
from regio.kernels.cpu import buffer_pool, deformable_columns, deformable_depthwise, layout, threads
from regio.kernels.cpu.bfloat16 import as_array
from regio.kernels.cpu.deformable_taps import find_cells

__all__ = ["Arguments", "backward", "forward"]

Array = np.ndarray[Any, Any]

_COLUMNS = 2**25  # bytes of columns that exist at once


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
        # NumPy's float16 has no kernels: its columns and products are float32.
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
        by_tap = _cells(self.weight, self.product_dtype)
        return by_tap.view(self.groups, self.outputs // self.groups, by_tap[0].numel())

    def by_tap(self) -> Tensor:
        """The weights of a depthwise convolution as [taps, channels]."""
        return self.weight.to(self.dtype).flatten(1).t().contiguous()

    def chunks(self) -> Iterator[tuple[int, int, Tensor]]:
        """The first output cell of each chunk, the one after the last, and the columns of the chunk, [groups, P, taps,
        channels of a group], which are overwritten by those of the next."""
        in_cell = self.taps * self.channels
        chunks = -(-self.count * in_cell * self.product_dtype.itemsize // _COLUMNS)
        step = max(1, -(-self.count // max(1, chunks)))
        buffer = buffer_pool.empty((step * in_cell,), self.product_dtype)
        for begin in range(0, self.count, step):
            end = min(begin + step, self.count)
            columns = buffer[: (end - begin) * in_cell].view(self.groups, end - begin, self.taps, -1)
            fixed = self.x, self.cells, self.weights, begin, as_array(columns)
            threads.share(partial(deformable_columns.write_columns, *fixed), end - begin, grain=16, shares=4)
            yield begin, end, columns


def forward(arguments: Arguments, bias: Tensor | None) -> Tensor:
    """The result [N, C_out, H_out, W_out], in the memory format of x."""
    convolution = _Convolution(arguments)
    (n, *size), outputs = convolution.out_shape, convolution.outputs
    # Not a view of cells, which nobody could write to in place.
    result = torch.empty((n, outputs, *size), dtype=arguments.x.dtype, memory_format=_format(arguments.x))
    dtype = convolution.dtype if convolution.is_depthwise else convolution.product_dtype
    cells = result.permute(0, 2, 3, 1)
    is_result = cells.is_contiguous() and result.dtype == dtype
    out = (cells if is_result else buffer_pool.empty(tuple(cells.shape), dtype)).view(convolution.count, outputs)
    with torch.autocast("cpu", enabled=False):
        (_sum_taps if convolution.is_depthwise else _multiply)(convolution, out)
        if bias is not None:
            out += bias
    if not is_result:
        _put_cells(out, result)
    return result


def backward(arguments: Arguments, grad: Tensor) -> list[Tensor]:
    """The gradients of x and weight in their memory format, of offset and mask stored with channels last: x, offset,
    weight, mask."""
    x, convolution = arguments.x, _Convolution(arguments)
    offset_groups, in_group = convolution.offset_groups, convolution.channels // convolution.offset_groups
    # A thread has blocks of channels, whatever their number: so many channels that the cells of each are one long read,
    # and so few that two threads have something to do.
    block = min(in_group, 256, max(64, -(-in_group // 2)))
    blocks, map_cells = -(-in_group // block), x[:, 0].numel()
    sums = buffer_pool.empty((offset_groups * blocks, map_cells * block), convolution.dtype).zero_()
    products = buffer_pool.empty((blocks, *convolution.cells.shape), convolution.dtype)
    dtype = convolution.dtype if convolution.is_depthwise else convolution.product_dtype
    grad_cells = _cells(grad, dtype).view(convolution.count, convolution.outputs)
    with torch.autocast("cpu", enabled=False):
        run = _depthwise_gradients if convolution.is_depthwise else _product_gradients
        to_weight = _stored_like(arguments.weight, run(convolution, grad_cells, block, sums, products))
    to_x = layout.empty_like_map(x, convolution.dtype)
    for i, own in enumerate(sums):
        begin = i // blocks * in_group + i % blocks * block
        end = min(begin + block, (i // blocks + 1) * in_group)
        layout.put_channels(own[: map_cells * (end - begin)].numpy(), to_x, begin, end)
    to_offset, to_mask = _tap_gradients(convolution, products.sum(0))
    by_cell = *convolution.out_shape, convolution.mask.shape[1]
    return [
        to_x.to(x.dtype),
        to_offset.view(*by_cell[:3], 2 * by_cell[3]).permute(0, 3, 1, 2),
        to_weight,
        to_mask.view(by_cell).permute(0, 3, 1, 2),
    ]


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


def _depthwise_gradients(convolution: _Convolution, grad: Tensor, block: int, sums: Tensor, products: Tensor) -> Tensor:
    """Add the gradient of the map to sums [blocks, cells * channels of a block], fill products [blocks of an offset
    group, P, M, 4], those of the four cells of each tap with the gradient of what it reads, and return the gradient of
    the weights as [C_out, taps, C / groups]."""
    by_tap = convolution.by_tap()
    to_weight = torch.zeros_like(by_tap)
    fixed = convolution.x, convolution.cells, convolution.weights, by_tap.numpy(), grad.numpy(), block
    results = sums.numpy(), to_weight.numpy(), products.numpy()
    threads.share(partial(deformable_depthwise.add_gradients, *fixed, *results), len(sums))
    return to_weight.t()[..., None]


def _product_gradients(convolution: _Convolution, grad: Tensor, block: int, sums: Tensor, products: Tensor) -> Tensor:
    """As `_depthwise_gradients`."""
    matrix = convolution.matrix()
    total = buffer_pool.empty(tuple(matrix.shape), convolution.dtype)
    if convolution.count == 0:
        total.zero_()
    product = buffer_pool.empty(tuple(matrix.shape), convolution.product_dtype)
    for begin, end, columns in convolution.chunks():
        by_group = grad[begin:end].chunk(convolution.groups, 1)
        rows = columns.flatten(2)
        for g, weights, r, of_chunk in zip(by_group, matrix, rows, product, strict=True):
            torch.mm(g.t(), r, out=of_chunk)
            torch.mm(g, weights, out=r)  # the gradient takes the place of the columns
        total = total.copy_(product) if begin == 0 else total.add_(product)
        fixed = convolution.x, convolution.cells, convolution.weights, begin, as_array(columns), block
        run = partial(deformable_columns.add_columns, *fixed, sums.numpy(), products.numpy())
        threads.share(run, len(sums))
    return total.view(convolution.outputs, convolution.taps, -1)


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


def _format(x: Tensor) -> torch.memory_format:
    return torch.channels_last if is_channels_last(x) else torch.contiguous_format


def _cells(x: Tensor, dtype: torch.dtype) -> Tensor:
    """[N, C, H, W] as contiguous [N, H, W, C]."""
    if dtype == torch.bfloat16:
        return x.to(dtype).permute(0, 2, 3, 1).contiguous()
    return torch.from_numpy(layout.cells(x, dtype)).view(len(x), *x.shape[2:], x.shape[1])


def _stored_like(x: Tensor, cells: Tensor) -> Tensor:
    """cells, the numbers of [N, H, W, C], as a tensor [N, C, H, W] of the dtype and with the strides of `x`."""
    by_cell = cells.reshape(len(x), *x.shape[2:], x.shape[1])
    if is_channels_last(x):  # and maybe contiguous too, with one channel, whose strides may be any
        return torch.empty_like(x).copy_(by_cell.permute(0, 3, 1, 2))
    result = layout.empty_like_map(x, cells.dtype)
    layout.put_channels(by_cell.numpy().reshape(-1), result, 0, x.shape[1])
    return result.to(x.dtype)


def _put_cells(cells: Tensor, target: Tensor) -> None:
    """Write cells, the numbers of [N, H, W, C], into target [N, C, H, W]."""
    by_cell = cells.view(len(target), *target.shape[2:], target.shape[1])
    if target.dtype == cells.dtype != torch.bfloat16 and target.is_contiguous():
        layout.put_channels(by_cell.numpy().reshape(-1), target, 0, target.shape[1])  # faster than PyTorch
    else:
        target.copy_(by_cell.permute(0, 3, 1, 2))
