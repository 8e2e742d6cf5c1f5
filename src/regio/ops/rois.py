"""The arguments that the pooling functions share: boxes in torchvision's two forms, and sizes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regio.kernels.arguments import coordinate_dtype, has_values
from regio.regions.sampling import SamplingExtractor
from regio.types import FeatureMap, Regions

__all__ = ["as_regions", "check_groups", "check_map", "check_scale", "pair", "read", "reading_zeros"]


def check_map(name: str, x: Tensor) -> None:
    """Raise TypeError or ValueError unless `x` is a floating point tensor [N, C, H, W]."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a tensor of shape [N, C, H, W], got {type(x).__name__}")
    if x.ndim != 4:
        raise ValueError(f"{name}: expected shape [N, C, H, W], got {list(x.shape)}")
    if not x.dtype.is_floating_point:
        raise TypeError(f"{name}: expected a floating point dtype, got {x.dtype}")


def check_scale(spatial_scale: float) -> None:
    """Raise ValueError unless the scale is positive."""
    if not spatial_scale > 0:
        raise ValueError(f"spatial_scale: expected a positive number, got {spatial_scale}")


def check_groups(input: Tensor, groups: tuple[int, int]) -> int:
    """The channels of each of rows x columns groups. Raises ValueError where those of `input` do not divide."""
    count = groups[0] * groups[1]
    if input.shape[1] == 0 or input.shape[1] % count:
        raise ValueError(f"input: expected channels divisible by {groups[0]} x {groups[1]}, got {input.shape[1]}")
    return input.shape[1] // count


def pair(name: str, value: int | Sequence[int], least: int = 1) -> tuple[int, int]:
    """`value` as (rows, columns), one number standing for both. Raises ValueError unless both are at least `least`."""
    numbers = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(numbers) != 2 or not all(n == int(n) and n >= least for n in numbers):
        raise ValueError(f"{name}: expected one or two whole numbers, each at least {least}, got {value}")
    return int(numbers[0]), int(numbers[1])


def as_regions(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    spatial_scale: float,
    name: str = "boxes",
    input_name: str = "input",
) -> tuple[FeatureMap, Regions]:
    """The features as a map of stride 1, and the boxes in its cells.

    boxes: [K, 5], each row the image and (x1, y1, x2, y2), or one tensor [L, 4] for each image. They are multiplied by
    `spatial_scale` as they come, in the dtype of coordinates, so that results agree with torchvision's to the last
    digit. Boxes with x2 < x1 or y2 < y1 pass. The names are those of the arguments in errors.

    Raises ValueError or TypeError for shapes, dtypes and devices that do not fit, for coordinates that are not finite
    and for an image that is not in the batch.
    """
    check_map(input_name, input)
    check_scale(spatial_scale)
    if isinstance(boxes, Tensor):
        _check_boxes(name, boxes, 5, input)
        rows = boxes
    else:
        if not boxes:
            raise ValueError(f"{name}: expected a tensor [K, 5] or a tensor [L, 4] for each image, got an empty list")
        for b in boxes:
            _check_boxes(name, b, 4, input)
        wide = coordinate_dtype(input)  # in which the number of an image is exact
        rows = torch.cat([torch.nn.functional.pad(b.to(wide), (1, 0), value=i) for i, b in enumerate(boxes)])
    if has_values(rows):
        _check_values(name, rows.detach(), len(input))
    scaled = rows[:, 1:].to(coordinate_dtype(input)) * spatial_scale
    return FeatureMap(input, 1), Regions(scaled, rows[:, 0].to(torch.int64))


def read(extractor: SamplingExtractor, x: FeatureMap, r: Regions) -> Tensor:
    """Region features [R, C, rows, columns], contiguous as torchvision's: code that calls ``view`` on them goes on.

    An extractor's own `forward` refuses inverted boxes; these functions give what torchvision does.
    """
    level = torch.zeros_like(r.image)
    return extractor.sampling([x], r, level).features([x.data], r.image, level).contiguous()


def reading_zeros(r: Regions, rows: Tensor) -> Regions:
    """The regions, those of `rows` [K] bool moved so far from the map that their features are zeros."""
    return Regions(r.boxes.where(~rows[:, None], -(2.0**30)), r.image)


def _check_boxes(name: str, boxes: Tensor, columns: int, input: Tensor) -> None:
    if not isinstance(boxes, Tensor):
        raise TypeError(f"{name}: expected tensors, got {type(boxes).__name__}")
    if boxes.ndim != 2 or boxes.shape[1] != columns:
        meaning = "[K, 5], the image and the corners" if columns == 5 else "[L, 4] for each image"
        raise ValueError(f"{name}: expected shape {meaning}, got {list(boxes.shape)}")
    if not boxes.dtype.is_floating_point:
        raise TypeError(f"{name}: expected a floating point dtype, got {boxes.dtype}")
    if boxes.device != input.device:
        raise ValueError(f"{name}: expected device {input.device}, that of the input, got {boxes.device}")


def _check_values(name: str, rows: Tensor, images: int) -> None:
    """Of rows [K, 5]: finite, the first column in [0, images). One answer, so that an accelerator waits once."""
    good = torch.isfinite(rows).all(1) & (rows[:, 0] > -1) & (rows[:, 0] < images)
    if not bool(good.all()):
        bad = int((~good).nonzero()[0])
        raise ValueError(
            f"{name}: expected finite coordinates and an image in [0, {images}), got {rows[bad].tolist()} at row {bad}"
        )
