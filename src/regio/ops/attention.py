"""Multi-scale deformable attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regio.kernels.arguments import coordinate_dtype, has_values
from regio.kernels.sample_points import sample_points
from regio.ops.overriding import overridable

__all__ = ["ms_deform_attn"]


@overridable
def ms_deform_attn(
    value: Tensor,
    value_spatial_shapes: Tensor | Sequence[tuple[int, int]],
    value_level_start_index: Tensor | Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int = 64,
) -> Tensor:
    """For each query and head, the weighted sum of bilinear samples at a few points of every level, [N, Lq, heads * C]
    (Zhu et al. 2021, Deformable DETR, Eq. 3). The arguments are those of mmcv's `MultiScaleDeformableAttnFunction`.

    value: [N, sum of h * w, heads, C], the cells of level 0 row by row, then those of level 1, and so on.
    value_spatial_shapes: [L, 2], the (h, w) of each level. value_level_start_index: [L], the first cell of each level.
    Both may be plain numbers, which `torch.compile` needs for one graph, as it cannot read a tensor.
    sampling_locations: [N, Lq, heads, L, points, 2] as (x, y), (0, 0) the top left corner of a level and (1, 1) its
    bottom right corner; outside, a level is zero. attention_weights: [N, Lq, heads, L, points]. im2col_step: how mmcv's
    kernel divides a batch; without effect here.

    Differentiable in value, locations and weights; the result has the dtype of `value`, sums are float32 or float64.

    Raises ValueError or TypeError for shapes, dtypes and devices that do not fit, and for locations that are not
    finite.
    """
    shapes = [(int(h), int(w)) for h, w in _numbers(value_spatial_shapes)]
    _check(value, shapes, [int(i) for i in _numbers(value_level_start_index)], sampling_locations, attention_weights)
    images, _, heads, channels = value.shape
    queries = sampling_locations.shape[1]
    image = torch.arange(images, device=value.device).repeat_interleave(queries)
    locations = sampling_locations.to(coordinate_dtype(value)).flatten(0, 1)
    weights = attention_weights.flatten(0, 1)
    out = locations.new_zeros((len(image), heads, channels))
    for level, (cells, (h, w)) in enumerate(zip(value.split([h * w for h, w in shapes], 1), shapes, strict=True)):
        x = cells.to(locations.dtype).unflatten(1, (h, w)).permute(0, 3, 4, 1, 2)
        points = locations[:, :, level] * locations.new_tensor([w, h]) - 0.5
        out = out + sample_points(x, image, points, weights[:, :, level], groups=range(heads)).transpose(1, 2)
    return out.reshape(images, queries, heads * channels).to(value.dtype)


def _numbers(value: Tensor | Sequence[Any]) -> list[Any]:
    return value.tolist() if isinstance(value, Tensor) else list(value)


def _check(value: Tensor, shapes: list[tuple[int, int]], starts: list[int], locations: Tensor, weights: Tensor) -> None:
    if value.ndim != 4:
        raise ValueError(f"value: expected shape [N, cells, heads, C], got {list(value.shape)}")
    for name, tensor in (("value", value), ("sampling_locations", locations), ("attention_weights", weights)):
        if not tensor.dtype.is_floating_point:
            raise TypeError(f"{name}: expected a floating point dtype, got {tensor.dtype}")
        if tensor.device != value.device:
            raise ValueError(f"{name}: expected device {value.device}, that of value, got {tensor.device}")
    ends = [0]
    for h, w in shapes:
        ends.append(ends[-1] + h * w)
    if ends[-1] != value.shape[1]:
        raise ValueError(
            f"value_spatial_shapes: expected {value.shape[1]} cells, those of value, got {shapes}: {ends[-1]}"
        )
    if starts != ends[:-1]:
        raise ValueError(f"value_level_start_index: expected {ends[:-1]}, the running sums of h * w, got {starts}")
    n, _, heads, _ = value.shape
    expected = [n, "Lq", heads, len(shapes), "points", 2]
    if locations.ndim != 6 or [*locations.shape[:1], *locations.shape[2:4], locations.shape[5]] != [
        n, heads, len(shapes), 2
    ]:  # fmt: skip
        raise ValueError(f"sampling_locations: expected shape {expected}, got {list(locations.shape)}")
    if weights.shape != locations.shape[:5]:
        raise ValueError(f"attention_weights: expected shape {list(locations.shape[:5])}, got {list(weights.shape)}")
    if has_values(locations) and not bool(torch.isfinite(locations.detach()).all()):
        raise ValueError("sampling_locations: expected finite numbers")
