"""From images of any size to one batch for the backbone, and boxes back to the images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from regio.boxes import resize_boxes
from regio.types import Detections, Targets

__all__ = ["ImageBatch", "PillowPreprocess", "Preprocess", "ShrinkingPreprocess"]

Size = tuple[int, int]


@dataclass(frozen=True)
class ImageBatch:
    """Normalised images, padded at the right and at the bottom to one size.

    data: [N, 3, H, W] float, channels last in memory. sizes: the (height, width) that each image takes in `data`.
    original: the (height, width) of each image as it was given.
    """

    data: Tensor
    sizes: list[Size]
    original: list[Size]


@dataclass(frozen=True)
class Preprocess:
    """Scale, normalise, pad.

    Each image is scaled so that its shorter side is `short_side`, or less where its longer side would exceed
    `long_side`; bilinear, without antialiasing unless `antialias`. Values in 0..1 become ``(value - mean) / std``.
    The batch is padded with zeros (the mean colour) to a multiple of `divisor`. Sizes, order of operations and
    rounding are those of torchvision's detection models, so that their weights give the same boxes here.
    """

    short_side: int
    long_side: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    divisor: int = 32
    antialias: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.short_side <= self.long_side:
            raise ValueError(
                f"short_side: expected a positive number up to long_side, got {self.short_side} and {self.long_side}"
            )
        if self.divisor < 1:
            raise ValueError(f"divisor: expected a positive number of pixels, got {self.divisor}")

    def size_of(self, size: Size) -> Size:
        """The (height, width) to which an image of `size` is scaled."""
        scale = min(self.short_side / min(size), self.long_side / max(size))
        return max(1, math.floor(size[0] * scale)), max(1, math.floor(size[1] * scale))

    def __call__(self, images: Sequence[Tensor]) -> ImageBatch:
        """The batch of `images`, each [3, H, W]: uint8 in 0..255, or floating point in 0..1.

        Raises ValueError or TypeError when an image has another shape or dtype, or when there is none.
        """
        if not images:
            raise ValueError("images: expected at least one image, got an empty list")
        for i, image in enumerate(images):
            _require_image(f"images[{i}]", image)
        scaled = [self.prepare(image) for image in images]
        sizes = [(image.shape[1], image.shape[2]) for image in scaled]
        height, width = self.padded(sizes)
        data = torch.zeros((len(scaled), 3, height, width), dtype=scaled[0].dtype, device=scaled[0].device).contiguous(
            memory_format=torch.channels_last
        )
        for row, image in zip(data, scaled, strict=True):
            row[:, : image.shape[1], : image.shape[2]] = image
        return ImageBatch(data, sizes, [(image.shape[1], image.shape[2]) for image in images])

    def prepare(self, image: Tensor) -> Tensor:
        """One image [3, H, W], scaled and normalised. Scaling is linear and its weights sum to 1, so it may come first,
        and then there are as a rule fewer pixels to normalise."""
        scaled, largest = self.resize(image), 255 if image.dtype == torch.uint8 else 1
        scaled = scaled if scaled.dtype.is_floating_point else scaled.to(torch.float32)
        mean, std = (scaled.new_tensor(each)[:, None, None] * largest for each in (self.mean, self.std))
        return (scaled - mean).div_(std)

    def padded(self, sizes: Sequence[Size]) -> Size:
        """The (height, width) of a batch of images of these sizes, which are those after scaling."""
        height, width = (math.ceil(max(side) / self.divisor) * self.divisor for side in zip(*sizes, strict=True))
        return height, width

    def targets(self, targets: Sequence[Targets], batch: ImageBatch) -> list[Targets]:
        """`targets`, annotated on the images as given, in pixels of the `batch`. Masks stay on the
        pixels that they were annotated on."""
        _require_one_an_image("targets", targets, batch)
        return [_resize_target(*each) for each in zip(targets, batch.original, batch.sizes, strict=True)]

    def boxes(self, boxes: Sequence[Tensor], batch: ImageBatch) -> list[Tensor]:
        """Boxes [P_i, 4] in the images as given, in pixels of the `batch`."""
        _require_one_an_image("proposals", boxes, batch)
        return [resize_boxes(*each) for each in zip(boxes, batch.original, batch.sizes, strict=True)]

    def restore(self, found: Sequence[Detections], batch: ImageBatch) -> list[Detections]:
        """Detections in pixels of the `batch`, in those of the images as given."""
        return [
            replace(each, boxes=resize_boxes(each.boxes, size, original))
            for each, size, original in zip(found, batch.sizes, batch.original, strict=True)
        ]

    def normalisation(self) -> dict[str, Any]:
        """How images are scaled and normalised, in plain values, as a checkpoint records it."""
        return asdict(self)

    def resize(self, image: Tensor) -> Tensor:
        """One image [3, H, W] scaled, in its range."""
        size = self.size_of((image.shape[1], image.shape[2]))
        if size == image.shape[1:]:
            return image
        image = image if image.dtype.is_floating_point else image.to(torch.float32)
        return F.interpolate(image[None], size, mode="bilinear", align_corners=False, antialias=self.antialias)[0]


@dataclass(frozen=True)
class ShrinkingPreprocess(Preprocess):
    """As `Preprocess`, but only images that are larger are scaled: `short_side` and `long_side` are bounds. For
    detectors that read crops of the image itself (R-CNN), which have nothing from a larger one."""

    def size_of(self, size: Size) -> Size:
        """The (height, width) to which an image of `size` is scaled: its own, within the bounds."""
        return size if min(size) <= self.short_side and max(size) <= self.long_side else super().size_of(size)


@dataclass(frozen=True)
class PillowPreprocess(Preprocess):
    """As `Preprocess`, but images of bytes are scaled as bytes, by Pillow's bilinear filter with antialiasing, before
    they are normalised; and sides are rounded to the nearest whole number, halves up. So detectron2 feeds its models.

    Floating point images are scaled by the same filter without rounding.
    """

    antialias: bool = True  # that of floating point images

    def size_of(self, size: Size) -> Size:
        scale = self.short_side / min(size)
        sides = [self.short_side if side == min(size) else scale * side for side in size]
        if max(sides) > self.long_side:
            scale = self.long_side / max(sides)
            sides = [side * scale for side in sides]
        height, width = (max(1, int(side + 0.5)) for side in sides)
        return height, width

    def resize(self, image: Tensor) -> Tensor:
        """One image [3, H, W] scaled, in its dtype."""
        size = self.size_of((image.shape[1], image.shape[2]))
        if image.dtype != torch.uint8 or size == image.shape[1:]:
            return super().resize(image)
        picture = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
        scaled = np.array(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))
        return torch.from_numpy(scaled).permute(2, 0, 1).to(image.device)


def _resize_target(target: Targets, old: Size, new: Size) -> Targets:
    return target if old == new else replace(target, boxes=resize_boxes(target.boxes, old, new))


def _require_one_an_image(name: str, values: Sequence[Any], batch: ImageBatch) -> None:
    if len(values) != len(batch.sizes):
        raise ValueError(f"{name}: expected {len(batch.sizes)}, one an image, got {len(values)}")


def _require_image(name: str, image: Tensor) -> None:
    if not isinstance(image, Tensor):
        raise TypeError(f"{name}: expected a tensor of shape [3, H, W], got {type(image).__name__}")
    if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
        raise ValueError(f"{name}: expected shape [3, H, W], got {list(image.shape)}")
    if image.dtype != torch.uint8 and not image.dtype.is_floating_point:
        raise TypeError(f"{name}: expected uint8 in 0..255 or floating point in 0..1, got {image.dtype}")
