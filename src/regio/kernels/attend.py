"""Softmax over the cells of a map, with logits that are a column term plus a row term plus a term of the cell.

    y_k(b) = sum over p = (u, v) of softmax_p(column_k(b, u) + row_k(b, v) + appearance_k(p)) x(p)

This is the region feature of Gu et al. 2018 (Eqs. 2 and 7): the inner product of Eq. 8 with a position embedding
[E(u), E(v)] is a sum of one term of u and one of v, so the logits of a box never exist as an inner product per cell.

How it is fast. exp(a + c + A) = exp(a) exp(c) exp(A), so a box needs W + H exponentials a part, and exp(A) is shared
by all boxes of an image; each factor is shifted by its maximum, and where their product still loses its range the
logits are summed and shifted together. The weights of a few boxes (a tile that fits the cache) are multiplied out,
handed to one matrix product and overwritten; the division by their sum is done on the result. Columns and rows which
cannot reach the last digit of the sum are left out, so that peaked weights cost little. The backward pass makes the
tiles again. On a CPU boxes are first looked at part by part: where these read few cells, the cells that can be told
from zero are listed, and they alone are formed, summed, and given gradients (`regio.kernels.cpu.attend_lists`).

All this is a few dozen tensor operations on tiles. On a CPU, kernels do what is between the matrix products of boxes
that read the whole map (`regio.kernels.cpu.attend`); on a CUDA device one kernel does all, with tiles that never leave
the processor (`regio.kernels.cuda.attend`). Listed cells are gathered here.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from regio.kernels.arguments import has_values
from regio.kernels.attend_tiles import TiledSoftmax
from regio.kernels.registration import has_kernel, no_view

__all__ = ["attend", "attend_reference", "readable"]


def attend(
    x: Tensor,
    image: Tensor,
    column: Tensor,
    row: Tensor,
    appearance: Tensor | None,
    support: Tensor,
    cells: Tensor | None = None,
    *,
    aggregate_dtype: torch.dtype | None = None,
) -> Tensor:
    """Softmax-weighted sums of the cells of `x`, [R, C, K], in the dtype of `x`.

    x: [N, C, H, W]. image: [R] int64, the image of each box. column: [R, K, W] and row: [R, K, H], float32 (float64
    if x is float64). appearance: [N, K, H, W] of the same dtype, or None for zero. support: [R, 4] int64, half-open
    ranges of cells (u0, v0, u1, v1) within the map; a box with an empty range gets zeros. cells: [R, S] int64, to
    read only these cells ``v * W + u`` (each at most once, those outside the support and -1 are passed over) and no
    others.

    `aggregate_dtype` is that of the operands of the matrix product (bfloat16 is about twice as fast as float32 on a
    CPU that has it); the accumulation, the logits and the sums of the weights stay in float32, and so do the weights
    and features of boxes whose cells are listed, which have no matrix product. It is the autocast dtype under autocast,
    and that of `x` otherwise. Operands are float16 in the CUDA kernel only, in which the weights are scaled to its
    range; elsewhere float32 takes its place. So no weight is lost for being small, and the error relative to the
    largest result is that of rounding x, the weights and the result once. Gradients reach x, column, row and
    appearance, once (no double backward). Memory is the inputs, the result and a few tiles or lists: it does not grow
    with R x H x W.

    Raises ValueError or TypeError for shapes, dtypes and ranges that are not as above.
    """
    if aggregate_dtype is None:
        device = x.device.type
        mixed = not x.is_meta and torch.is_autocast_enabled(device)
        aggregate_dtype = torch.get_autocast_dtype(device) if mixed else x.dtype
    if x.dtype == torch.float64:
        aggregate_dtype = torch.float64
    _check(x, image, column, row, appearance, support, cells)
    return _attend(x, image, column, row, appearance, support, cells, aggregate_dtype)


def attend_reference(
    x: Tensor,
    image: Tensor,
    column: Tensor,
    row: Tensor,
    appearance: Tensor | None,
    support: Tensor,
    cells: Tensor | None = None,
) -> Tensor:
    """`attend`, written as the equation, with all weights [R, K, H, W] at once."""
    inside = readable(support, cells, (x.shape[2], x.shape[3])).flatten(1)[:, None]
    logits = column[:, :, None, :] + row[:, :, :, None]
    if appearance is not None:
        logits = logits + appearance[image]
    weights = logits.flatten(2).masked_fill(~inside, -math.inf).softmax(2).masked_fill(~inside, 0.0)
    # No einsum: where there is no box, that of ONNX Runtime divides by zero and ends the process.
    return (weights @ x.flatten(2)[image].to(weights.dtype).mT).mT.to(x.dtype)


def readable(support: Tensor, cells: Tensor | None, size: tuple[int, int]) -> Tensor:
    """Which cells of a map of `size` (height, width) the boxes read, [R, H, W] bool; see `attend`."""
    height, width = size
    u, v = torch.arange(width, device=support.device), torch.arange(height, device=support.device)[:, None]
    u0, v0, u1, v1 = support[:, :, None, None].unbind(1)
    inside = (u >= u0) & (u < u1) & (v >= v0) & (v < v1)
    if cells is None:
        return inside
    listed = inside.new_zeros((cells.shape[0], height * width + 1))  # the last takes the padding
    listed.scatter_(1, cells.where(cells >= 0, height * width), True)
    return inside & listed[:, :-1].unflatten(1, size)


def _check(
    x: Tensor,
    image: Tensor,
    column: Tensor,
    row: Tensor,
    appearance: Tensor | None,
    support: Tensor,
    cells: Tensor | None,
) -> None:
    images, _, height, width = x.shape
    boxes, parts = column.shape[:2]
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    expected = [
        ("image", image, (boxes,), torch.int64),
        ("column", column, (boxes, parts, width), dtype),
        ("row", row, (boxes, parts, height), dtype),
        ("support", support, (boxes, 4), torch.int64),
    ]
    if appearance is not None:
        expected.append(("appearance", appearance, (images, parts, height, width), dtype))
    if cells is not None:
        expected.append(("cells", cells, (boxes, cells.shape[-1]), torch.int64))
    for name, tensor, shape, kind in expected:
        if tensor.shape != shape:
            raise ValueError(f"{name}: expected shape {list(shape)}, got {list(tensor.shape)}")
        if tensor.dtype != kind:
            raise TypeError(f"{name}: expected dtype {kind}, got {tensor.dtype}")
    if not has_values(x) or boxes == 0:
        return
    if bool(((image < 0) | (image >= images)).any()):
        raise ValueError(f"image: expected indices in [0, {images}), got {image.min().item()} to {image.max().item()}")
    limit = support.new_tensor([width, height, width, height])
    if bool(((support < 0) | (support > limit)).any()):
        raise ValueError(f"support: expected ranges within the map of {width} columns and {height} rows")
    if cells is not None and bool(((cells < -1) | (cells >= height * width)).any()):
        raise ValueError(f"cells: expected indices in [-1, {height * width})")


@torch.library.custom_op("regio::attend", mutates_args=())
def _attend(
    x: Tensor,
    image: Tensor,
    column: Tensor,
    row: Tensor,
    appearance: Tensor | None,
    support: Tensor,
    cells: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    if cells is None and x.is_cuda and has_kernel(x):
        from regio.kernels.cuda import attend as kernel

        return no_view(kernel.forward(x, image, column, row, appearance, support, dtype))
    if cells is None and x.device.type == "cpu":
        out, rest = _listed_boxes(x, image, column, row, appearance, support, dtype).sums()
        if len(rest):
            some = TiledSoftmax(x, image[rest], column[rest], row[rest], appearance, support[rest], None, dtype)
            out[rest] = some.sums()
    else:
        out = TiledSoftmax(x, image, column, row, appearance, support, cells, dtype).sums()
    return no_view(out.to(x.dtype).transpose(1, 2))


def _listed_boxes(*arguments: Any) -> Any:
    from regio.kernels.cpu.attend_lists import ListedBoxes

    return ListedBoxes(*arguments)


@_attend.register_fake
def _(
    x: Tensor,
    image: Tensor,
    column: Tensor,
    row: Tensor,
    appearance: Tensor | None,
    support: Tensor,
    cells: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    return x.new_empty((column.shape[0], column.shape[1], x.shape[1])).transpose(1, 2)


@torch.library.custom_op("regio::attend_backward", mutates_args=())
def _attend_backward(
    gradient: Tensor,
    x: Tensor,
    image: Tensor,
    column: Tensor,
    row: Tensor,
    appearance: Tensor | None,
    support: Tensor,
    cells: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, column, row and appearance (empty for None).

    With y = sum_p w_p x_p and g the gradient of y: that of x_p is w_p g, that of logit p is w_p (<g, x_p> - <g, y>).
    """
    if cells is None and x.is_cuda and has_kernel(x):
        from regio.kernels.cuda import attend as kernel

        return kernel.backward(gradient, x, image, column, row, appearance, support, dtype)
    of_sums = gradient.transpose(1, 2)  # [R, K, C]
    if cells is None and x.device.type == "cpu":
        listed = _listed_boxes(x, image, column, row, appearance, support, dtype)
        (to_features, to_column, to_row, to_appearance), rest = listed.gradients(of_sums)
        if len(rest):
            some = TiledSoftmax(x, image[rest], column[rest], row[rest], appearance, support[rest], None, dtype)
            of_rest = some.gradients(of_sums[rest])
            to_features += of_rest[0]
            to_column[rest], to_row[rest] = of_rest[1:3]
            to_appearance += of_rest[3]
    else:
        softmax = TiledSoftmax(x, image, column, row, appearance, support, cells, dtype)
        to_features, to_column, to_row, to_appearance = softmax.gradients(of_sums)
    to_x = to_features.to(x.dtype).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
    if appearance is not None:
        to_appearance = to_appearance.unflatten(2, x.shape[2:])
    return to_x, to_column, to_row, to_appearance


@_attend_backward.register_fake
def _(
    gradient: Tensor,
    x: Tensor,
    image: Tensor,
    column: Tensor,
    row: Tensor,
    appearance: Tensor | None,
    support: Tensor,
    cells: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    images, channels, height, width = x.shape
    to_x = x.new_empty((images, height, width, channels)).permute(0, 3, 1, 2)
    to_appearance = column.new_empty((0,) if appearance is None else appearance.shape)
    return to_x, torch.empty_like(column), torch.empty_like(row), to_appearance


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:-1])
    ctx.dtype = inputs[-1]


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, image, column, row, appearance, support, cells = ctx.saved_tensors
    to_x, to_column, to_row, to_appearance = _attend_backward(
        gradient, x, image, column, row, appearance, support, cells, ctx.dtype
    )
    return to_x, None, to_column, to_row, None if appearance is None else to_appearance, None, None, None


_attend.register_autograd(_backward, setup_context=_keep_inputs)
