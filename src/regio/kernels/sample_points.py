"""Weighted sums of bilinear samples of a feature map: the kernel under aligned and deformable region features."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from regio.kernels.arguments import Reads, as_pyramid, check_groups, check_shape, coordinate_dtype, select_groups
from regio.kernels.registration import has_kernel, map_operation
from regio.rows import joined_rows, rows_of_levels

__all__ = ["sample_points", "sample_points_reference"]


def sample_points(
    x: Tensor | Sequence[Tensor],
    image: Tensor,
    points: Tensor,
    weight: Tensor,
    level: Tensor | None = None,
    groups: Sequence[int] | None = None,
) -> Tensor:
    """``y[r, c, k] = sum over s of weight[r, k, s] sum over q of G(q, points[r, k, s]) x[image[r], c, q]``
    with ``G(q, (u, v)) = max(0, 1 - |q_u - u|) max(0, 1 - |q_v - v|)`` (Dai et al. 2017, Eqs. 3 and 4).

    x: [N, C, H, W], or a sequence of such maps with `level` [R] int64 naming the map of each box. image: [R] int64.
    points: [R, K, S, 2] as (u, v) = (column, row) in cells, integer i at the centre of cell i. weight: [R, K, S].
    Outside the map x is zero, so a point that is not in [-1, W) x [-1, H), or not finite, reads zero. groups: K
    numbers; the maps are then [N, G, C, H, W], and part k reads group groups[k].

    Returns [R, C, K] in the dtype of x, stored with the channels last; sums are float32 (float64 for float64 features).
    Differentiable once in x, points and weight; at an integer coordinate the derivative is that from above.

    Raises ValueError or TypeError for shapes, dtypes, devices or indices that do not fit.
    """
    maps, level = as_pyramid(x, image, level, groups)
    if points.ndim != 4:
        raise ValueError(f"points: expected shape [R, K, S, 2], got {list(points.shape)}")
    check_shape("points", points, (image.shape[0], *points.shape[1:3], 2), maps[0])
    check_shape("weight", weight, tuple(points.shape[:3]), maps[0])
    chosen = check_groups(groups, points.shape[1], maps)
    dtype = coordinate_dtype(maps[0])
    points, weight = points.to(dtype), weight.to(dtype)
    if not has_kernel(maps[0]):
        return sample_points_reference(maps, image, points, weight, level, chosen)
    return _sample_points(maps, image, level, [points, weight], chosen)


def sample_points_reference(
    x: Tensor | Sequence[Tensor],
    image: Tensor,
    points: Tensor,
    weight: Tensor,
    level: Tensor | None = None,
    groups: Sequence[int] | None = None,
) -> Tensor:
    """`sample_points` in plain PyTorch: the four cells about each point, gathered. Holds [R, K, S, C] values."""
    maps, level = as_pyramid(x, image, level, groups)
    if len(maps) > 1:
        rows = rows_of_levels(level, len(maps))
        parts = [
            sample_points_reference(m, image[i], points[i], weight[i], groups=groups)
            for m, i in zip(maps, rows, strict=True)
        ]
        return joined_rows(parts, rows)
    height, width = maps[0].shape[-2:]
    read = maps[0][:, : max(groups) + 1].flatten(1, 2) if groups else maps[0]
    cells = read.permute(0, 2, 3, 1).to(points.dtype)  # [N, H, W, C]
    u, v = points.unbind(-1)
    near = (u >= -1) & (u < width) & (v >= -1) & (v < height)
    u, v = u.where(near, 0), v.where(near, 0)
    left, top = u.detach().floor(), v.detach().floor()
    y = cells.new_zeros((*points.shape[:2], cells.shape[3]))
    for column, column_part in ((left, 1 - (u - left)), (left + 1, u - left)):
        for row, row_part in ((top, 1 - (v - top)), (top + 1, v - top)):
            inside = near & (column >= 0) & (column < width) & (row >= 0) & (row < height)
            product = (weight * column_part * row_part).where(inside, 0)
            index = (row.where(inside, 0).long(), column.where(inside, 0).long())
            y = y + (product[..., None] * cells[image[:, None, None], *index]).sum(2)
    return select_groups(y.transpose(1, 2), groups or ()).to(maps[0].dtype)


def _like(reads: Reads) -> Tensor:
    boxes, parts = reads.arguments[1].shape[:2]
    return reads.maps[0].new_empty((boxes, parts, reads.channels)).transpose(1, 2)


_sample_points = map_operation("sample_points", _like, differentiable_arguments=True)
