"""What the map operations (`sample_points`, `sample_grid`, `pool_max`) have in common: one map or a pyramid, and where
each box reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

__all__ = [
    "Reads",
    "as_pyramid",
    "autocast_off",
    "by_group",
    "check_groups",
    "check_rows",
    "check_shape",
    "coordinate_dtype",
    "has_values",
    "is_channels_last",
    "like_maps",
    "select_groups",
]


class Reads(NamedTuple):
    """What a map operation reads: the one argument of all its kernels, on every device.

    maps: one [N, C, H_l, W_l] for each level of a pyramid, of one dtype; with groups [N, G, C, H_l, W_l]. image: [R]
    int64, the image of each box. level: [R] int64, the map of each box. arguments: the tensors [R, ...] that define
    where the boxes read, and with what weights; see the operation. groups: the channel group of each of the K parts, or
    empty where all parts read all channels.
    """

    maps: Sequence[Tensor]
    image: Tensor
    level: Tensor
    arguments: Sequence[Tensor]
    groups: Sequence[int]

    @property
    def channels(self) -> int:
        """C, the channels that a part reads."""
        return self.maps[0].shape[-3]

    @property
    def dtype(self) -> torch.dtype:
        """That of coordinates, weights and sums, see `coordinate_dtype`."""
        return coordinate_dtype(self.maps[0])


def as_pyramid(
    x: Tensor | Sequence[Tensor], image: Tensor, level: Tensor | None, groups: Sequence[int] | None = None
) -> tuple[list[Tensor], Tensor]:
    """`x` as a list of maps [N, C, H_l, W_l], with groups [N, G, C, H_l, W_l], and the `level` [R] of each box in it
    (0 for a single map).

    Raises ValueError or TypeError where ranks, batch sizes, channels, dtypes or devices do not fit.
    """
    maps = [x] if isinstance(x, Tensor) else list(x)
    shape = "[N, G, C, H, W]" if groups else "[N, C, H, W]"
    if not maps:
        raise ValueError(f"x: expected one map {shape} or several, got an empty sequence")
    first = maps[0]
    for m in maps:
        if m.ndim != (5 if groups else 4):
            raise ValueError(f"x: expected shape {shape}, got {list(m.shape)}")
        if not m.dtype.is_floating_point:
            raise TypeError(f"x: expected a floating point dtype, got {m.dtype}")
        if m is first:
            continue
        if m.shape[:-2] != first.shape[:-2] or m.dtype != first.dtype or m.device != first.device:
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


def has_values(x: Tensor) -> bool:
    """Whether numbers can be looked at: not those of the meta device, or of a fake tensor, nor while PyTorch compiles
    or exports a graph, which looking would break."""
    return not (torch.compiler.is_compiling() or x.is_meta or isinstance(x, FakeTensor))


def check_rows(name: str, value: Tensor, expected: str, bad: Callable[[Tensor], Tensor]) -> None:
    """Raise ValueError if `bad` holds for a number of `value` [R] or [R, C], where numbers can be looked at."""
    if has_values(value) and bool((rows := bad(value.detach())).any()):
        row = int(rows.nonzero()[0, 0])
        raise ValueError(f"{name}: expected {expected}, got {value[row].tolist()} at row {row}")


def autocast_off(x: Tensor) -> AbstractContextManager[Any]:
    """No autocast for the device of `x`; the meta device has none."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def check_groups(groups: Sequence[int] | None, parts: int, maps: Sequence[Tensor]) -> list[int]:
    """The channel group of each of `parts` parts, none for None. Raises ValueError unless there is one a part, each a
    group that the maps [N, G, C, H, W] have."""
    if not groups:
        return []
    if len(groups) != parts or not all(0 <= g < maps[0].shape[1] for g in groups):
        raise ValueError(f"groups: expected {parts} numbers in [0, {maps[0].shape[1]}), one a part, got {list(groups)}")
    return list(groups)


def by_group(x: Tensor) -> Tensor:
    """A map as [N, G, C, H, W]; without groups there is one."""
    return x if x.ndim == 5 else x.unsqueeze(1)


def select_groups(y: Tensor, groups: Sequence[int]) -> Tensor:
    """From features [R, G * C, K] of the channels of all groups, those of each part's group: [R, C, K]."""
    if not groups:
        return y
    of_groups = y.unflatten(1, (max(groups) + 1, -1))
    return torch.stack([of_groups[:, g, :, k] for k, g in enumerate(groups)], 2)


def coordinate_dtype(x: Tensor) -> torch.dtype:
    """The dtype of coordinates, weights and sums: float64 for float64 features, float32 for all others."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def is_channels_last(x: Tensor) -> bool:
    """Whether the cells of `x` [N, C, H, W] are stored one after the other, each with all its channels. Not known, and
    False, while a graph for any sizes is exported."""
    return not torch.compiler.is_exporting() and x.permute(0, 2, 3, 1).is_contiguous()


def like_maps(maps: Sequence[Tensor]) -> list[Tensor]:
    """Empty tensors for the gradients of `maps`, stored in the order of the map's own dimensions in memory."""
    return [torch.empty_like(x) for x in maps]
