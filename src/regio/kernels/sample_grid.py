"""Weighted sums of bilinear samples that lie on a grid of rows and columns in each box."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regio.kernels.arguments import Reads, as_pyramid, check_groups, check_shape, coordinate_dtype
from regio.kernels.registration import has_kernel, map_operation
from regio.kernels.sample_points import sample_points_reference

__all__ = ["sample_grid", "sample_grid_reference"]


def sample_grid(
    x: Tensor | Sequence[Tensor],
    image: Tensor,
    rows: Tensor,
    columns: Tensor,
    row_weight: Tensor,
    column_weight: Tensor,
    level: Tensor | None = None,
    groups: Sequence[int] | None = None,
) -> Tensor:
    """``y[r, c, i, j] = sum over s, t of row_weight[r, i, s] column_weight[r, j, t] bilinear(x[image[r], c], point)``
    with ``point = (columns[r, j, t], rows[r, i, s])``.

    It is `sample_points` for the bins of a regular grid, and several times as fast: the samples of a bin share their
    rows and columns.

    x: [N, C, H, W], or a sequence of such maps with `level` [R] int64 naming the map of each box. image: [R] int64.
    A float32 or float64 map that is stored channels-last is read in place; any other is copied to that form first. With
    groups it is the other way on a CPU: maps whose rows and columns come last in memory are read in place.
    rows, row_weight: [R, Kh, S]. columns, column_weight: [R, Kw, T]. Coordinates are in cells, integer i at the centre
    of cell i; outside the map x is zero. Pad a box that has fewer samples with weight 0. groups: Kh * Kw numbers, row
    by row; the maps are then [N, G, C, H, W], and part k reads group groups[k].

    Returns [R, C, Kh, Kw] in the dtype of x; sums are float32 (float64 for float64 features). Differentiable once in
    x, rows, columns and both weights; at an integer coordinate the derivative is that from above.

    Raises ValueError or TypeError for shapes, dtypes, devices or indices that do not fit.
    """
    maps, level = as_pyramid(x, image, level, groups)
    bins = []
    for name, positions, weight in (("row", rows, row_weight), ("column", columns, column_weight)):
        if positions.ndim != 3:
            raise ValueError(f"{name}s: expected shape [R, bins, samples], got {list(positions.shape)}")
        check_shape(f"{name}s", positions, (image.shape[0], *positions.shape[1:]), maps[0])
        check_shape(f"{name}_weight", weight, tuple(positions.shape), maps[0])
        bins.append(positions.shape[1])
    chosen = check_groups(groups, bins[0] * bins[1], maps)
    dtype = coordinate_dtype(maps[0])
    axes = [t if t.dtype == dtype else t.to(dtype) for t in (rows, row_weight, columns, column_weight)]
    if not has_kernel(maps[0]):
        rows, row_weight, columns, column_weight = axes
        return sample_grid_reference(maps, image, rows, columns, row_weight, column_weight, level, chosen)
    return _sample_grid(maps, image, level, axes, chosen).unflatten(2, bins)


def sample_grid_reference(
    x: Tensor | Sequence[Tensor],
    image: Tensor,
    rows: Tensor,
    columns: Tensor,
    row_weight: Tensor,
    column_weight: Tensor,
    level: Tensor | None = None,
    groups: Sequence[int] | None = None,
) -> Tensor:
    """`sample_grid` in plain PyTorch, by `sample_points_reference` on the products of rows and columns."""
    (kh, s), (kw, t) = rows.shape[1:], columns.shape[1:]
    shape = (rows.shape[0], kh, kw, s, t)
    v = rows[:, :, None, :, None].expand(shape)
    u = columns[:, None, :, None, :].expand(shape)
    weight = row_weight[:, :, None, :, None] * column_weight[:, None, :, None, :]
    points = torch.stack([u, v], dim=-1).reshape(rows.shape[0], kh * kw, s * t, 2)
    y = sample_points_reference(x, image, points, weight.reshape(points.shape[:3]), level, groups)
    return y.unflatten(2, (kh, kw))


def _like(reads: Reads) -> Tensor:
    rows, _, columns, _ = reads.arguments
    return reads.maps[0].new_empty((rows.shape[0], reads.channels, rows.shape[1] * columns.shape[1]))


_sample_grid = map_operation("sample_grid", _like, differentiable_arguments=True)
