"""The values that travel through a detector, and those of a segmentation network.

The box convention, said once for the whole library:

* A box is ``(x1, y1, x2, y2)`` in image pixels, continuous and half-open. Pixel ``i`` covers ``[i, i + 1)``, so
  ``(0, 0, 4, 4)`` is 4 x 4 pixels; the width is ``x2 - x1``, never ``+ 1``.
* Cell ``i`` of a map with stride ``s`` covers the image pixels ``[i * s, (i + 1) * s)``; its centre is
  ``(i + 0.5) * s``.
* Sizes are ``(height, width)``.
* Label 0 is the background; the classes are ``1 .. C``.

Checks run when a value is made, and cost one pass over shapes and devices; the checks that read data (finite
coordinates, an image index in range) are `Regions.check`, which extractors call.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from regio.kernels.arguments import has_values
from regio.masks import Masks

__all__ = ["IGNORED", "ClassMap", "Detections", "FeatureMap", "Regions", "Targets"]

IGNORED = 255
"""The label of pixels whose class is not known: no class map has more than 254 classes."""


def _require_boxes(name: str, boxes: Tensor) -> None:
    if not isinstance(boxes, Tensor):
        raise TypeError(f"{name}: expected a tensor of shape [R, 4], got {type(boxes).__name__}")
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{name}: expected shape [R, 4], got {list(boxes.shape)}")
    if not boxes.dtype.is_floating_point:
        raise TypeError(f"{name}: expected a floating point dtype, got {boxes.dtype}")


def _require_column(name: str, column: Tensor, rows: int, dtype: torch.dtype, device: torch.device) -> None:
    if column.shape != (rows,):
        raise ValueError(f"{name}: expected shape [{rows}], one entry a box, got {list(column.shape)}")
    if column.dtype != dtype:
        raise TypeError(f"{name}: expected dtype {dtype}, got {column.dtype}")
    if column.device != device:
        raise ValueError(f"{name}: expected device {device}, that of the boxes, got {column.device}")


def _require_map(name: str, labels: Tensor) -> None:
    if labels.ndim != 2 or labels.dtype != torch.uint8:
        raise ValueError(f"{name}: expected [H, W] uint8, got {list(labels.shape)} {labels.dtype}")


@dataclass(frozen=True)
class FeatureMap:
    """A feature map, its stride, and how much of it is image.

    data: [N, C, H, W], floating point. stride: image pixels per cell, the same on both axes. The stride travels with
    the tensor and is never inferred from sizes. sizes: the (height, width) in pixels of each of the N images, which a
    batch pads at the right and at the bottom to one size; None: the whole map is image. A cell belongs to an image that
    covers any part of it. A map made from another keeps its sizes (`dataclasses.replace`).

    Raises ValueError or TypeError when the shape, dtype or stride is not as above, where there is not one size an
    image, and where a size is not positive.
    """

    data: Tensor
    stride: float
    sizes: tuple[tuple[int, int], ...] | None = None

    def __post_init__(self) -> None:
        if self.data.ndim != 4:
            raise ValueError(f"data: expected shape [N, C, H, W], got {list(self.data.shape)}")
        if not self.data.dtype.is_floating_point:
            raise TypeError(f"data: expected a floating point dtype, got {self.data.dtype}")
        if not self.stride > 0:
            raise ValueError(f"stride: expected a positive number of image pixels, got {self.stride}")
        if self.sizes is None:
            return
        if len(self.sizes) != self.data.shape[0]:
            raise ValueError(f"sizes: expected {self.data.shape[0]}, one an image, got {len(self.sizes)}")
        for i, size in enumerate(self.sizes):
            if min(size) < 1:
                raise ValueError(f"sizes[{i}]: expected a positive (height, width) in pixels, got {size}")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in cells."""
        return self.data.shape[2], self.data.shape[3]

    @property
    def image_sizes(self) -> tuple[tuple[int, int], ...]:
        """The (height, width) in pixels of each image: `sizes`, or all that the map covers."""
        if self.sizes is not None:
            return self.sizes
        return ((round(self.size[0] * self.stride), round(self.size[1] * self.stride)),) * self.data.shape[0]

    @property
    def extents(self) -> list[tuple[int, int]]:
        """The (height, width) in cells of each image: ceil(size / stride), but no more than the map has, since some
        backbones drop a border."""
        sides = [[math.ceil(side / self.stride) for side in size] for size in self.image_sizes]
        return [(min(height, self.size[0]), min(width, self.size[1])) for height, width in sides]

    def extents_of(self, image: Tensor) -> Tensor:
        """The (height, width) in cells [R, 2] int64 of the images [R] of the batch."""
        if self.sizes is None:
            return torch.tensor([self.size], device=image.device).expand(image.shape[0], 2)
        return torch.tensor(self.extents, device=image.device)[image]


@dataclass(frozen=True)
class Regions:
    """Boxes and the image that each belongs to.

    boxes: [R, 4] in image pixels. image: [R] int64, an index into the batch. R may be zero.

    Raises ValueError or TypeError when shapes, dtypes or devices do not fit.
    """

    boxes: Tensor
    image: Tensor

    def __post_init__(self) -> None:
        _require_boxes("boxes", self.boxes)
        _require_column("image", self.image, self.boxes.shape[0], torch.int64, self.boxes.device)

    def __len__(self) -> int:
        return len(self.boxes)

    @staticmethod
    def from_list(boxes: list[Tensor]) -> Regions:
        """Regions of a batch from one [R_i, 4] tensor an image. The list must not be empty (it names the device)."""
        if not boxes:
            raise ValueError("boxes: expected one [R, 4] tensor an image, got an empty list")
        image = torch.cat([torch.full((len(b),), i, dtype=torch.int64, device=b.device) for i, b in enumerate(boxes)])
        return Regions(torch.cat(boxes), image)

    def split(self, images: int) -> list[Tensor]:
        """The boxes of each of `images` images, in order: the inverse of `from_list`."""
        return [self.boxes[self.image == i] for i in range(images)]

    def chunks(self, size: int) -> list[Regions]:
        """These regions in order, at most `size` at a time; one part without any where there are none."""
        return [self[rows] for rows in torch.arange(len(self), device=self.boxes.device).split(size)]

    def __getitem__(self, index: Tensor) -> Regions:
        """The regions at `index` (a boolean mask [R] or int64 indices)."""
        return Regions(self.boxes[index], self.image[index])

    def check(self, x: FeatureMap) -> None:
        """Raise ValueError when these regions cannot be read from `x`.

        Every box must be finite and have x2 >= x1 and y2 >= y1; every image index must be in [0, N); devices must
        agree. Boxes of zero size, and boxes partly or fully outside the image, are ordinary input.
        """
        if x.data.device != self.boxes.device:
            raise ValueError(f"boxes: expected device {x.data.device}, that of the features, got {self.boxes.device}")
        if not has_values(self.boxes) or self.boxes.shape[0] == 0:
            return
        boxes = self.boxes.detach()
        # Four numbers in one tensor, so that the usual case costs a single synchronisation on an accelerator. A side of
        # a box with NaN, or between two infinities, is NaN.
        low, high = boxes.chunk(2, 1)
        sides = high - low
        if sides.dtype.itemsize < 4:  # would round the index of an image
            sides = sides.float()
        shortest, longest, first, last = torch.stack([*sides.aminmax(), *self.image.aminmax()]).tolist()
        if 0 <= shortest <= longest < math.inf and 0 <= first <= last < x.data.shape[0]:
            return
        bad_box = ~torch.isfinite(boxes).all(1) | (boxes[:, 2] < boxes[:, 0]) | (boxes[:, 3] < boxes[:, 1])
        bad_image = (self.image < 0) | (self.image >= x.data.shape[0])
        if bool(bad_box.any()):
            row = int(bad_box.nonzero()[0])
            raise ValueError(f"boxes: expected finite x1 <= x2 and y1 <= y2, got {boxes[row].tolist()} at row {row}")
        if bool(bad_image.any()):  # neither, where the sides of finite boxes are too long for their dtype
            row, images = int(bad_image.nonzero()[0]), x.data.shape[0]
            raise ValueError(f"image: expected an index in [0, {images}), got {int(self.image[row])} at row {row}")


def _no_flags() -> Tensor:
    return torch.empty(0, dtype=torch.bool)


@dataclass(frozen=True)
class Targets:
    """What is annotated in one image.

    boxes: [G, 4] in image pixels. labels: [G] int64 in 1 .. C. crowd: [G] bool, a group that is neither object nor
    background (COCO's `iscrowd`). difficult: [G] bool, not counted by VOC's evaluation. masks: [G, H, W] bool, on
    the pixels of the image as annotated, or None; one without a single pixel is not known. class_map: [H, W] uint8 on
    the same pixels, the label of each, 0 the background and `IGNORED` where it is not known; or None. The flags default
    to False.
    """

    boxes: Tensor
    labels: Tensor
    crowd: Tensor = field(default_factory=_no_flags)
    difficult: Tensor = field(default_factory=_no_flags)
    masks: Tensor | None = None
    class_map: Tensor | None = None

    def __post_init__(self) -> None:
        _require_boxes("boxes", self.boxes)
        rows, device = len(self.boxes), self.boxes.device
        for name in ("crowd", "difficult"):
            if getattr(self, name).numel() == 0:
                object.__setattr__(self, name, torch.zeros(rows, dtype=torch.bool, device=device))
            _require_column(name, getattr(self, name), rows, torch.bool, device)
        _require_column("labels", self.labels, rows, torch.int64, device)
        if self.masks is not None and (self.masks.ndim != 3 or len(self.masks) != rows):
            raise ValueError(f"masks: expected shape [{rows}, H, W], got {list(self.masks.shape)}")
        if self.class_map is not None:
            _require_map("class_map", self.class_map)

    def __len__(self) -> int:
        return len(self.boxes)

    def to(self, device: torch.device | str) -> Targets:
        """The same targets on `device`."""
        masks, class_map = (None if each is None else each.to(device) for each in (self.masks, self.class_map))
        return Targets(
            self.boxes.to(device),
            self.labels.to(device),
            self.crowd.to(device),
            self.difficult.to(device),
            masks,
            class_map,
        )


@dataclass(frozen=True)
class Detections:
    """What a detector found in one image, best first.

    boxes: [D, 4] in pixels of the image that was given, or of the batch between the stages of a detector. labels: [D]
    int64 in 1 .. C. scores: [D], probabilities unless the head gives something else (margins). masks: those of the D
    objects in one of the forms of `regio.masks`, or None; ``masks.paste(boxes, size)`` makes them [D, H, W] bool.

    Raises ValueError or TypeError when shapes, dtypes, devices or the number of masks do not fit.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    masks: Masks | None = None

    def __post_init__(self) -> None:
        _require_boxes("boxes", self.boxes)
        _require_column("labels", self.labels, len(self.boxes), torch.int64, self.boxes.device)
        _require_column("scores", self.scores, len(self.boxes), self.scores.dtype, self.boxes.device)
        if self.masks is not None and len(self.masks) != len(self.boxes):
            raise ValueError(f"masks: expected {len(self.boxes)}, one a box, got {len(self.masks)}")

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, rows: Tensor) -> Detections:
        """The detections at `rows` (a boolean mask [D] or int64 indices)."""
        masks = None if self.masks is None else self.masks[rows]
        return Detections(self.boxes[rows], self.labels[rows], self.scores[rows], masks)

    def to(self, device: torch.device | str) -> Detections:
        """The same detections on `device`."""
        masks = None if self.masks is None else self.masks.to(device)
        return Detections(self.boxes.to(device), self.labels.to(device), self.scores.to(device), masks)

    def relabelled(self, label: Tensor) -> Detections:
        """Those that have a new label, under it: label [C + 1] int64 is the new one by the old one, 0 for none."""
        labels = label.to(self.labels.device)[self.labels]
        kept = self[labels > 0]
        return replace(kept, labels=labels[labels > 0])


@dataclass(frozen=True)
class ClassMap:
    """The class of every pixel of one image.

    labels: [H, W] uint8 on the pixels of the image that was given, 1 .. C, 0 for the background. scores: [H, W], the
    probability of that label.

    Raises ValueError when shapes, dtypes or devices do not fit.
    """

    labels: Tensor
    scores: Tensor

    def __post_init__(self) -> None:
        _require_map("labels", self.labels)
        if self.scores.shape != self.labels.shape or self.scores.device != self.labels.device:
            raise ValueError(
                f"scores: expected {list(self.labels.shape)} on {self.labels.device}, "
                f"got {list(self.scores.shape)} on {self.scores.device}"
            )

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.labels.shape[0], self.labels.shape[1]

    def to(self, device: torch.device | str) -> ClassMap:
        """The same map on `device`."""
        return ClassMap(self.labels.to(device), self.scores.to(device))

    def relabelled(self, label: Tensor) -> ClassMap:
        """The same pixels under new labels: label [C + 1] int64 is the new one by the old one, 0, the background, for
        none."""
        return replace(self, labels=label.to(self.labels.device, torch.uint8)[self.labels.long()])
