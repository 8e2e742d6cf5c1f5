"""The arguments that the sampling and pooling kernels share: one map or a pyramid, and where each box reads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "as_pyramid",
    "check_groups",
    "check_shape",
    "coordinate_dtype",
    "group_count",
    "is_channels_last",
    "like_maps",
    "select_groups",
]


def as_pyramid(x: Tensor | Sequence[Tensor], image: Tensor, level: Tensor | None) -> tuple[list[Tensor], Tensor]:
    """`x` as a list of maps [N, C, H_l, W_l], and the `level` [R] of each box in it (0 for a single map).

    Raises ValueError or TypeError where ranks, batch sizes, channels, dtypes or devices do not fit.
    """
    maps = [x] if isinstance(x, Tensor) else list(x)
    if not maps:
        raise ValueError("x: expected one map [N, C, H, W] or several, got an empty sequence")
    first = maps[0]
    for m in maps:
        if m.ndim != 4:
            raise ValueError(f"x: expected shape [N, C, H, W], got {list(m.shape)}")
        if not m.dtype.is_floating_point:
            raise TypeError(f"x: expected a floating point dtype, got {m.dtype}")
        if m is first:
            continue
        if m.shape[:2] != first.shape[:2] or m.dtype != first.dtype or m.device != first.device:
            raise ValueError(
                "x: expected maps that agree in batch size, channels, dtype and device, "
                f"got {list(first.shape)} {first.dtype} {first.device} and {list(m.shape)} {m.dtype} {m.device}"
            )
    if level is None:
        if len(maps) > 1:
            raise ValueError(f"level: expected [R] int64 with {len(maps)} maps, got None")
        level = torch.zeros_like(image)
    for name, column in (("image", image), ("level", level)):
        if column.ndim != 1 or column.dtype != torch.int64:
            raise ValueError(f"{name}: expected [R] int64, got {list(column.shape)} {column.dtype}")
        check_shape(name, column, image.shape, first)
    return maps, level


def check_shape(name: str, value: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    """Raise ValueError unless `value` has `shape` and the device of `like`."""
    if value.shape != shape:
        raise ValueError(f"{name}: expected shape {list(shape)}, got {list(value.shape)}")
    if value.device != like.device:
        raise ValueError(f"{name}: expected device {like.device}, that of x, got {value.device}")


def check_groups(groups: Sequence[int] | None, parts: int, maps: Sequence[Tensor]) -> list[int]:
    """The channel group of each of `parts` parts; none, as for None, is one group of all channels.

    Raises ValueError unless there is one a part, none is negative, and the channels divide into max(groups) + 1.
    """
    if groups is None:
        return []
    if len(groups) != parts or any(g < 0 for g in groups):
        raise ValueError(f"groups: expected {parts} numbers from 0, one a part, got {list(groups)}")
    if maps[0].shape[1] % group_count(groups):
        raise ValueError(f"x: expected channels in {group_count(groups)} equal groups, got {maps[0].shape[1]} channels")
    return list(groups)


def group_count(groups: Sequence[int]) -> int:
    """Into how many groups the channels are divided."""
    return max(groups) + 1 if len(groups) else 1


def select_groups(y: Tensor, groups: Sequence[int]) -> Tensor:
    """From features [R, G * C, K] of all channels, those of each part's group: [R, C, K]."""
    if not any(groups):
        return y
    by_group = y.unflatten(1, (group_count(groups), -1))
    return torch.stack([by_group[:, g, :, k] for k, g in enumerate(groups)], 2)


def coordinate_dtype(x: Tensor) -> torch.dtype:
    """The dtype of coordinates, weights and sums: float64 for float64 features, float32 for all others."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def is_channels_last(x: Tensor) -> bool:
    """Whether the cells of `x` [N, C, H, W] are stored one after the other, each with all its channels."""
    return x.permute(0, 2, 3, 1).is_contiguous()


def like_maps(maps: Sequence[Tensor]) -> list[Tensor]:
    """Empty tensors for the gradients of `maps`: channels-last where the map is, contiguous otherwise."""
    formats = (torch.channels_last if is_channels_last(x) else torch.contiguous_format for x in maps)
    return [torch.empty_like(x, memory_format=f) for x, f in zip(maps, formats, strict=True)]
