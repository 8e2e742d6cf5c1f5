"""The largest cell of each bin, channel by channel."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from regio.kernels.maps import as_pyramid, check_shape, coordinate_dtype, like_maps

__all__ = ["pool_max", "pool_max_reference"]


def pool_max(
    x: Tensor | Sequence[Tensor],
    image: Tensor,
    top: Tensor,
    bottom: Tensor,
    left: Tensor,
    right: Tensor,
    level: Tensor | None = None,
) -> Tensor:
    """``y[r, c, i, j] = max of x[image[r], c, v, u] over
    top[r, i] <= v < bottom[r, i], left[r, j] <= u < right[r, j]``.

    x: [N, C, H, W], or a sequence of such maps with `level` [R] int64 naming the map of each box. image: [R] int64.
    top, bottom: [R, Kh] int64; left, right: [R, Kw] int64, in cells; what lies outside the map is left out.

    Returns [R, C, Kh, Kw] in the dtype of x. A bin without cells gives 0 and has no gradient. Among equal cells the
    gradient goes to the first in row-major order. NaN in a bin gives NaN. Differentiable once in x.

    Raises ValueError or TypeError for shapes, dtypes, devices or indices that do not fit.
    """
    maps, level = as_pyramid(x, image, level)
    sides = (("top", top, top), ("bottom", bottom, top), ("left", left, left), ("right", right, left))
    for name, side, like in sides:
        if side.ndim != 2 or side.dtype != torch.int64:
            raise ValueError(f"{name}: expected [R, bins] int64, got {list(side.shape)} {side.dtype}")
        check_shape(name, side, (image.shape[0], like.shape[1]), maps[0])
    if maps[0].device.type != "cpu":
        return pool_max_reference(maps, image, top, bottom, left, right, level)
    return _pool_max(maps, image, level, top, bottom, left, right).unflatten(2, (top.shape[1], left.shape[1]))


def pool_max_reference(
    x: Tensor | Sequence[Tensor],
    image: Tensor,
    top: Tensor,
    bottom: Tensor,
    left: Tensor,
    right: Tensor,
    level: Tensor | None = None,
) -> Tensor:
    """`pool_max` in plain PyTorch, bin by bin."""
    maps, level = as_pyramid(x, image, level)
    y = []
    sides = zip(
        image.tolist(), level.tolist(), top.tolist(), bottom.tolist(), left.tolist(), right.tolist(), strict=True
    )
    for n, l, v0, v1, u0, u1 in sides:
        cells = maps[l][n]
        for i in range(len(v0)):
            for j in range(len(u0)):
                block = cells[:, max(v0[i], 0) : max(v1[i], 0), max(u0[j], 0) : max(u1[j], 0)].flatten(1)
                y.append(block.max(1).values if block.shape[1] else cells.new_zeros(len(cells)))
    shape = (image.shape[0], top.shape[1], left.shape[1], maps[0].shape[1])
    return (torch.stack(y) if y else maps[0].new_zeros(0)).reshape(shape).permute(0, 3, 1, 2)


@torch.library.custom_op("regio::pool_max", mutates_args=(), device_types="cpu")
def _pool_max(
    maps: Sequence[Tensor], image: Tensor, level: Tensor, top: Tensor, bottom: Tensor, left: Tensor, right: Tensor
) -> Tensor:
    from regio.kernels.cpu import arrays, memory, pool, threads

    dtype = coordinate_dtype(maps[0])
    out = memory.empty((top.shape[0], maps[0].shape[1], top.shape[1] * left.shape[1]), dtype)
    index = arrays.image_index(image, maps[0].shape[0])
    sides, result = arrays.plain(top, bottom, left, right), out.numpy()
    for x, which in zip(maps, arrays.boxes_of_each_level(level, len(maps)), strict=True):
        fixed = (arrays.cells(x, dtype), tuple(x.shape[1:]), index, which, *sides, result)
        threads.share(partial(pool.forward, *fixed), len(which), shares=4)
    return out.to(maps[0].dtype)


@_pool_max.register_fake
def _(maps, image, level, top, bottom, left, right):  # type: ignore[no-untyped-def]
    return maps[0].new_empty((top.shape[0], maps[0].shape[1], top.shape[1] * left.shape[1]))


@torch.library.custom_op("regio::pool_max_backward", mutates_args=(), device_types="cpu")
def _pool_max_backward(
    grad: Tensor,
    maps: Sequence[Tensor],
    image: Tensor,
    level: Tensor,
    top: Tensor,
    bottom: Tensor,
    left: Tensor,
    right: Tensor,
) -> list[Tensor]:
    from regio.kernels.cpu import arrays, memory, pool, threads

    dtype = coordinate_dtype(maps[0])
    (g,) = arrays.plain(grad.to(dtype))
    index = arrays.image_index(image, maps[0].shape[0])
    sides, grads = arrays.plain(top, bottom, left, right), []
    for x, which in zip(maps, arrays.boxes_of_each_level(level, len(maps)), strict=True):
        n, c, h, w = x.shape
        grad_x = memory.zeros((n, h, w, c), dtype)
        fixed = (arrays.cells(x, dtype), (c, h, w), index, which, *sides, g, grad_x.view(-1).numpy())
        threads.share(partial(pool.backward, *fixed), c, grain=16)
        grads.append(arrays.gradient(grad_x, x))
    return grads


@_pool_max_backward.register_fake
def _(grad, maps, image, level, top, bottom, left, right):  # type: ignore[no-untyped-def]
    return like_maps(maps)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    maps, *others = inputs
    ctx.levels = len(maps)
    ctx.save_for_backward(*maps, *others)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    maps, others = list(ctx.saved_tensors[: ctx.levels]), ctx.saved_tensors[ctx.levels :]
    return _pool_max_backward(grad, maps, *others), *(None,) * len(others)


_pool_max.register_autograd(_backward, setup_context=_setup_context)
