"""Weighted sums of bilinear samples of a feature map: the kernel under aligned and deformable region features."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from regio.kernels.maps import as_pyramid, check_shape, coordinate_dtype, like_maps

__all__ = ["sample_points", "sample_points_reference"]


def sample_points(
    x: Tensor | Sequence[Tensor], image: Tensor, points: Tensor, coef: Tensor, level: Tensor | None = None
) -> Tensor:
    """``y[r, c, k] = sum over s of coef[r, k, s] sum over q of G(q, points[r, k, s]) x[image[r], c, q]``
    with ``G(q, (u, v)) = max(0, 1 - |q_u - u|) max(0, 1 - |q_v - v|)`` (Dai et al. 2017, Eqs. 3 and 4).

    x: [N, C, H, W], or a sequence of such maps with `level` [R] int64 naming the map of each box. image: [R] int64.
    points: [R, K, S, 2] as (u, v) = (column, row) in cells, integer i at the centre of cell i. coef: [R, K, S].
    Outside the map x is zero, so a point that is not in (-1, W) x (-1, H), or not finite, reads zero.

    Returns [R, C, K] in the dtype of x; sums are float32 (float64 for float64 features). Differentiable once in x,
    points and coef; at an integer coordinate the derivative is that from above.

    Raises ValueError or TypeError for shapes, dtypes, devices or indices that do not fit.
    """
    maps, level = as_pyramid(x, image, level)
    if points.ndim != 4:
        raise ValueError(f"points: expected shape [R, K, S, 2], got {list(points.shape)}")
    check_shape("points", points, (image.shape[0], *points.shape[1:3], 2), maps[0])
    check_shape("coef", coef, tuple(points.shape[:3]), maps[0])
    dtype = coordinate_dtype(maps[0])
    points, coef = points.to(dtype), coef.to(dtype)
    if maps[0].device.type != "cpu":
        return sample_points_reference(maps, image, points, coef, level)
    return _sample_points(maps, image, level, points, coef)


def sample_points_reference(
    x: Tensor | Sequence[Tensor], image: Tensor, points: Tensor, coef: Tensor, level: Tensor | None = None
) -> Tensor:
    """`sample_points` in plain PyTorch: the four cells about each point, gathered. Holds [R, K, S, C] values."""
    maps, level = as_pyramid(x, image, level)
    if len(maps) > 1:
        rows = [(level == i).nonzero()[:, 0] for i in range(len(maps))]
        parts = [sample_points_reference(m, image[i], points[i], coef[i]) for m, i in zip(maps, rows, strict=True)]
        return torch.cat(parts)[torch.cat(rows).argsort()]
    height, width = maps[0].shape[2:]
    cells = maps[0].permute(0, 2, 3, 1).to(points.dtype)  # [N, H, W, C]
    u, v = points.unbind(-1)
    near = (u > -1) & (u < width) & (v > -1) & (v < height)
    u, v = u.where(near, 0), v.where(near, 0)
    left, top = u.detach().floor(), v.detach().floor()
    y = cells.new_zeros((*points.shape[:2], cells.shape[3]))
    for column, column_hat in ((left, 1 - (u - left)), (left + 1, u - left)):
        for row, row_hat in ((top, 1 - (v - top)), (top + 1, v - top)):
            inside = near & (column >= 0) & (column < width) & (row >= 0) & (row < height)
            weight = (coef * column_hat * row_hat).where(inside, 0)
            index = (row.where(inside, 0).long(), column.where(inside, 0).long())
            y = y + (weight[..., None] * cells[image[:, None, None], *index]).sum(2)
    return y.transpose(1, 2).to(maps[0].dtype)


@torch.library.custom_op("regio::sample_points", mutates_args=(), device_types="cpu")
def _sample_points(maps: Sequence[Tensor], image: Tensor, level: Tensor, points: Tensor, coef: Tensor) -> Tensor:
    from regio.kernels.cpu import arrays, memory, sample_points, threads

    out = memory.empty((points.shape[0], maps[0].shape[1], points.shape[1]), points.dtype)
    index = arrays.image_index(image, maps[0].shape[0])
    samples, result = arrays.plain(points, coef), out.numpy()
    for x, which in zip(maps, arrays.boxes_of_each_level(level, len(maps)), strict=True):
        fixed = (arrays.cells(x, points.dtype), tuple(x.shape[1:]), index, which, *samples, result)
        threads.share(partial(sample_points.forward, *fixed), len(which), shares=4)
    return out.to(maps[0].dtype)


@_sample_points.register_fake
def _(maps, image, level, points, coef):  # type: ignore[no-untyped-def]
    return maps[0].new_empty((points.shape[0], maps[0].shape[1], points.shape[1]))


@torch.library.custom_op("regio::sample_points_backward_maps", mutates_args=(), device_types="cpu")
def _backward_maps(
    grad: Tensor, maps: Sequence[Tensor], image: Tensor, level: Tensor, points: Tensor, coef: Tensor
) -> list[Tensor]:
    from regio.kernels.cpu import arrays, memory, sample_points, threads

    (g,) = arrays.plain(grad.to(points.dtype))
    index = arrays.image_index(image, maps[0].shape[0])
    samples, grads = arrays.plain(points, coef), []
    for x, which in zip(maps, arrays.boxes_of_each_level(level, len(maps)), strict=True):
        n, c, h, w = x.shape
        grad_x = memory.zeros((n, h, w, c), points.dtype)
        fixed = (grad_x.view(-1).numpy(), (c, h, w), index, which, *samples, g)
        threads.share(partial(sample_points.backward_map, *fixed), c, grain=16)
        grads.append(arrays.gradient(grad_x, x))
    return grads


@_backward_maps.register_fake
def _(grad, maps, image, level, points, coef):  # type: ignore[no-untyped-def]
    return like_maps(maps)


@torch.library.custom_op("regio::sample_points_backward_points", mutates_args=(), device_types="cpu")
def _backward_points(
    grad: Tensor, maps: Sequence[Tensor], image: Tensor, level: Tensor, points: Tensor, coef: Tensor
) -> list[Tensor]:
    from regio.kernels.cpu import arrays, sample_points, threads

    (g,) = arrays.plain(grad.to(points.dtype))
    index = arrays.image_index(image, maps[0].shape[0])
    samples = arrays.plain(points, coef)
    grads = [torch.empty(t.shape, dtype=t.dtype) for t in (points, coef)]
    results = [t.numpy() for t in grads]
    for x, which in zip(maps, arrays.boxes_of_each_level(level, len(maps)), strict=True):
        fixed = (arrays.cells(x, points.dtype), tuple(x.shape[1:]), index, which, *samples, g, *results)
        threads.share(partial(sample_points.backward_points, *fixed), len(which), shares=4)
    return grads


@_backward_points.register_fake
def _(grad, maps, image, level, points, coef):  # type: ignore[no-untyped-def]
    return [torch.empty(t.shape, dtype=t.dtype) for t in (points, coef)]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    maps, *others = inputs
    ctx.levels = len(maps)
    ctx.save_for_backward(*maps, *others)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    maps, others = list(ctx.saved_tensors[: ctx.levels]), ctx.saved_tensors[ctx.levels :]
    need_maps, _, _, *need_samples = ctx.needs_input_grad
    grad_maps = _backward_maps(grad, maps, *others) if any(need_maps) else [None] * ctx.levels
    grad_samples = _backward_points(grad, maps, *others) if any(need_samples) else (None, None)
    return grad_maps, None, None, *grad_samples


_sample_points.register_autograd(_backward, setup_context=_setup_context)
