"""Weighted sums of bilinear samples that lie on a grid of rows and columns in each box."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from regio.kernels.maps import as_pyramid, check_shape, coordinate_dtype, like_maps
from regio.kernels.sample_points import sample_points_reference

__all__ = ["sample_grid", "sample_grid_reference"]


def sample_grid(
    x: Tensor | Sequence[Tensor],
    image: Tensor,
    rows: Tensor,
    columns: Tensor,
    row_coef: Tensor,
    column_coef: Tensor,
    level: Tensor | None = None,
) -> Tensor:
    """``y[r, c, i, j] = sum over s, t of row_coef[r, i, s] column_coef[r, j, t] bilinear(x[image[r], c], point)``
    with ``point = (columns[r, j, t], rows[r, i, s])``.

    It is `sample_points` for the bins of a regular grid, and several times as fast: the samples of a bin share their
    rows and columns.

    x: [N, C, H, W], or a sequence of such maps with `level` [R] int64 naming the map of each box. image: [R] int64.
    A float32 or float64 map that is stored channels-last is read in place; any other is copied to that form first.
    rows, row_coef: [R, Kh, S]. columns, column_coef: [R, Kw, T]. Coordinates are in cells, integer i at the centre of
    cell i; outside the map x is zero. Pad a box that has fewer samples with coef 0.

    Returns [R, C, Kh, Kw] in the dtype of x; sums are float32 (float64 for float64 features). Differentiable once in
    x, rows, columns and both coefs; at an integer coordinate the derivative is that from above.

    Raises ValueError or TypeError for shapes, dtypes, devices or indices that do not fit.
    """
    maps, level = as_pyramid(x, image, level)
    bins = []
    for name, positions, coef in (("row", rows, row_coef), ("column", columns, column_coef)):
        if positions.ndim != 3:
            raise ValueError(f"{name}s: expected shape [R, bins, samples], got {list(positions.shape)}")
        check_shape(f"{name}s", positions, (image.shape[0], *positions.shape[1:]), maps[0])
        check_shape(f"{name}_coef", coef, tuple(positions.shape), maps[0])
        bins.append(positions.shape[1])
    dtype = coordinate_dtype(maps[0])
    rows, columns, row_coef, column_coef = (t.to(dtype) for t in (rows, columns, row_coef, column_coef))
    if maps[0].device.type != "cpu":
        return sample_grid_reference(maps, image, rows, columns, row_coef, column_coef, level)
    return _sample_grid(maps, image, level, rows, row_coef, columns, column_coef).unflatten(2, bins)


def sample_grid_reference(
    x: Tensor | Sequence[Tensor],
    image: Tensor,
    rows: Tensor,
    columns: Tensor,
    row_coef: Tensor,
    column_coef: Tensor,
    level: Tensor | None = None,
) -> Tensor:
    """`sample_grid` in plain PyTorch, by `sample_points_reference` on the products of rows and columns."""
    (kh, s), (kw, t) = rows.shape[1:], columns.shape[1:]
    shape = (rows.shape[0], kh, kw, s, t)
    v = rows[:, :, None, :, None].expand(shape)
    u = columns[:, None, :, None, :].expand(shape)
    coef = row_coef[:, :, None, :, None] * column_coef[:, None, :, None, :]
    points = torch.stack([u, v], dim=-1).reshape(rows.shape[0], kh * kw, s * t, 2)
    y = sample_points_reference(x, image, points, coef.reshape(points.shape[:3]), level)
    return y.unflatten(2, (kh, kw))


@torch.library.custom_op("regio::sample_grid", mutates_args=(), device_types="cpu")
def _sample_grid(
    maps: Sequence[Tensor],
    image: Tensor,
    level: Tensor,
    rows: Tensor,
    row_coef: Tensor,
    columns: Tensor,
    column_coef: Tensor,
) -> Tensor:
    from regio.kernels.cpu import arrays, memory, sample_grid, threads

    out = memory.empty((rows.shape[0], maps[0].shape[1], rows.shape[1] * columns.shape[1]), rows.dtype)
    index = arrays.image_index(image, maps[0].shape[0])
    axes, result = arrays.plain(rows, row_coef, columns, column_coef), out.numpy()
    for x, which in zip(maps, arrays.boxes_of_each_level(level, len(maps)), strict=True):
        fixed = (arrays.cells(x, rows.dtype), tuple(x.shape[1:]), index, which, *axes, result)
        threads.share(partial(sample_grid.forward, *fixed), len(which), shares=4)
    return out.to(maps[0].dtype)


@_sample_grid.register_fake
def _(maps, image, level, rows, row_coef, columns, column_coef):  # type: ignore[no-untyped-def]
    return maps[0].new_empty((rows.shape[0], maps[0].shape[1], rows.shape[1] * columns.shape[1]))


@torch.library.custom_op("regio::sample_grid_backward_maps", mutates_args=(), device_types="cpu")
def _backward_maps(
    grad: Tensor,
    maps: Sequence[Tensor],
    image: Tensor,
    level: Tensor,
    rows: Tensor,
    row_coef: Tensor,
    columns: Tensor,
    column_coef: Tensor,
) -> list[Tensor]:
    from regio.kernels.cpu import arrays, memory, sample_grid, threads

    (g,) = arrays.plain(grad.to(rows.dtype))
    index = arrays.image_index(image, maps[0].shape[0])
    axes, grads = arrays.plain(rows, row_coef, columns, column_coef), []
    for x, which in zip(maps, arrays.boxes_of_each_level(level, len(maps)), strict=True):
        n, c, h, w = x.shape
        grad_x = memory.zeros((n, h, w, c), rows.dtype)
        fixed = (grad_x.view(-1).numpy(), (c, h, w), index, which, *axes, g)
        threads.share(partial(sample_grid.backward_map, *fixed), c, grain=16)
        grads.append(arrays.gradient(grad_x, x))
    return grads


@_backward_maps.register_fake
def _(grad, maps, image, level, rows, row_coef, columns, column_coef):  # type: ignore[no-untyped-def]
    return like_maps(maps)


@torch.library.custom_op("regio::sample_grid_backward_axes", mutates_args=(), device_types="cpu")
def _backward_axes(
    grad: Tensor,
    maps: Sequence[Tensor],
    image: Tensor,
    level: Tensor,
    rows: Tensor,
    row_coef: Tensor,
    columns: Tensor,
    column_coef: Tensor,
) -> list[Tensor]:
    from regio.kernels.cpu import arrays, sample_grid, threads

    (g,) = arrays.plain(grad.to(rows.dtype))
    index = arrays.image_index(image, maps[0].shape[0])
    axes = arrays.plain(rows, row_coef, columns, column_coef)
    grads = [torch.zeros(t.shape, dtype=t.dtype) for t in (rows, row_coef, columns, column_coef)]
    results = [t.numpy() for t in grads]
    for x, which in zip(maps, arrays.boxes_of_each_level(level, len(maps)), strict=True):
        fixed = (arrays.cells(x, rows.dtype), tuple(x.shape[1:]), index, which, *axes, g, *results)
        threads.share(partial(sample_grid.backward_axes, *fixed), len(which), shares=4)
    return grads


@_backward_axes.register_fake
def _(grad, maps, image, level, rows, row_coef, columns, column_coef):  # type: ignore[no-untyped-def]
    return [torch.empty(t.shape, dtype=t.dtype) for t in (rows, row_coef, columns, column_coef)]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    maps, *others = inputs
    ctx.levels = len(maps)
    ctx.save_for_backward(*maps, *others)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    maps, others = list(ctx.saved_tensors[: ctx.levels]), ctx.saved_tensors[ctx.levels :]
    need_maps, _, _, *need_axes = ctx.needs_input_grad
    grad_maps = _backward_maps(grad, maps, *others) if any(need_maps) else [None] * ctx.levels
    grad_axes = _backward_axes(grad, maps, *others) if any(need_axes) else (None,) * 4
    return grad_maps, None, None, *grad_axes


_sample_grid.register_autograd(_backward, setup_context=_setup_context)
