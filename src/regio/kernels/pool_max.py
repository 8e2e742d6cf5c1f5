"""The largest cell of each bin, channel by channel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regio.kernels.arguments import Reads, as_pyramid, check_groups, check_shape, select_groups
from regio.kernels.registration import has_kernel, map_operation

__all__ = ["pool_max", "pool_max_reference"]


def pool_max(
    x: Tensor | Sequence[Tensor],
    image: Tensor,
    top: Tensor,
    bottom: Tensor,
    left: Tensor,
    right: Tensor,
    level: Tensor | None = None,
    groups: Sequence[int] | None = None,
) -> Tensor:
    """``y[r, c, i, j] = max of x[image[r], c, v, u] over
    top[r, i] <= v < bottom[r, i], left[r, j] <= u < right[r, j]``.

    x: [N, C, H, W], or a sequence of such maps with `level` [R] int64 naming the map of each box. image: [R] int64.
    top, bottom: [R, Kh] int64; left, right: [R, Kw] int64, in cells; what lies outside the map is left out. groups:
    Kh * Kw numbers, row by row; the maps are then [N, G, C, H, W], and part k reads group groups[k].

    Returns [R, C, Kh, Kw] in the dtype of x. A bin without cells gives 0 and has no gradient. Among equal cells the
    gradient goes to the first in row-major order. NaN in a bin gives NaN. Differentiable once in x.

    Raises ValueError or TypeError for shapes, dtypes, devices or indices that do not fit.
    """
    maps, level = as_pyramid(x, image, level, groups)
    sides = (("top", top, top), ("bottom", bottom, top), ("left", left, left), ("right", right, left))
    for name, side, like in sides:
        if side.ndim != 2 or side.dtype != torch.int64:
            raise ValueError(f"{name}: expected [R, bins] int64, got {list(side.shape)} {side.dtype}")
        check_shape(name, side, (image.shape[0], like.shape[1]), maps[0])
    bins = (top.shape[1], left.shape[1])
    chosen = check_groups(groups, bins[0] * bins[1], maps)
    if not has_kernel(maps[0]):
        return pool_max_reference(maps, image, top, bottom, left, right, level, chosen)
    return _pool_max(maps, image, level, [top, bottom, left, right], chosen).unflatten(2, bins)


def pool_max_reference(
    x: Tensor | Sequence[Tensor],
    image: Tensor,
    top: Tensor,
    bottom: Tensor,
    left: Tensor,
    right: Tensor,
    level: Tensor | None = None,
    groups: Sequence[int] | None = None,
) -> Tensor:
    """`pool_max` in plain PyTorch, bin by bin."""
    maps, level = as_pyramid(x, image, level, groups)
    y = []
    sides = zip(
        image.tolist(), level.tolist(), top.tolist(), bottom.tolist(), left.tolist(), right.tolist(), strict=True
    )
    for n, l, v0, v1, u0, u1 in sides:
        cells = maps[l][n, : max(groups) + 1].flatten(0, 1) if groups else maps[l][n]
        for i in range(len(v0)):
            for j in range(len(u0)):
                block = cells[:, max(v0[i], 0) : max(v1[i], 0), max(u0[j], 0) : max(u1[j], 0)].flatten(1)
                y.append(block.max(1).values if block.shape[1] else cells.new_zeros(len(cells)))
    channels = maps[0].shape[-3] * (max(groups) + 1 if groups else 1)
    shape = (image.shape[0], top.shape[1], left.shape[1], channels)
    features = (torch.stack(y) if y else maps[0].new_zeros(0)).reshape(shape).permute(0, 3, 1, 2)
    return select_groups(features.flatten(2), groups or ()).unflatten(2, shape[1:3])


def _like(reads: Reads) -> Tensor:
    top, _, left, _ = reads.arguments
    return reads.maps[0].new_empty((top.shape[0], reads.channels, top.shape[1] * left.shape[1]))


_pool_max = map_operation("pool_max", _like, differentiable_arguments=False)
