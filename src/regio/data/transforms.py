"""Changes of a sample, for training: image, boxes, masks and class map together.

A transform is called with a `Sample` and a `torch.Generator`, and returns a new sample: what it draws comes from that
generator alone, so a result depends on the seed, the epoch and the index of the image, not on the worker process.
Laws, each held by a test: boxes, proposals, masks and class maps follow the pixels; flipping twice is the identity; the
number of objects stays the same but for `RandomCrop`, which says what it leaves out.

Normalisation and batching belong to the detector, which also resizes what it is given: none of these is needed to
train, and results stay in pixels of the sample's own image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from regio.boxes import area, clip, resize_boxes
from regio.data.dataset import Sample
from regio.types import Targets

__all__ = ["Compose", "HorizontalFlip", "PhotometricJitter", "RandomCrop", "RandomResize", "Resize", "Transform"]

Transform = Callable[[Sample, torch.Generator], Sample]
Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Compose:
    """These transforms, one after the other."""

    transforms: Sequence[Transform]

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        for transform in self.transforms:
            sample = transform(sample, generator)
        return sample


@dataclass(frozen=True)
class HorizontalFlip:
    """Left and right exchanged, with probability `p`: (x1, x2) becomes (W - x2, W - x1). Raises ValueError for no p."""

    p: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ValueError(f"p: expected a probability in [0, 1], got {self.p}")

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        if _uniform(generator, 0.0, 1.0) >= self.p:
            return sample
        width = sample.size[1]

        def mirrored(boxes: Tensor) -> Tensor:
            x1, y1, x2, y2 = boxes.unbind(1)
            return torch.stack([width - x2, y1, width - x1, y2], dim=1)

        return _moved(sample, sample.image.flip(-1), mirrored, lambda masks: masks.flip(-1))


@dataclass(frozen=True)
class PhotometricJitter:
    """Random brightness, contrast, saturation and hue; boxes stay.

    brightness, contrast, saturation: the factor is uniform in [1 - a, 1 + a]. hue: the colours are turned about the
    grey axis by an angle uniform in [-hue, hue] degrees. p: the probability that the image is changed at all.

    All four are linear in RGB, so together they are one 3 x 3 matrix and one offset: the chroma plane is that of YIQ,
    and contrast is about the mean luma of the image. Raises ValueError for an amount outside [0, 1], a hue outside
    [0, 180] or no probability.
    """

    brightness: float = 0.125
    contrast: float = 0.3
    saturation: float = 0.3
    hue: float = 10.0
    p: float = 1.0

    def __post_init__(self) -> None:
        for name, most in (("brightness", 1), ("contrast", 1), ("saturation", 1), ("hue", 180), ("p", 1)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name}: expected a value in [0, {most}], got {getattr(self, name)}")

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        if _uniform(generator, 0.0, 1.0) >= self.p:
            return sample
        brightness, contrast, saturation = (
            1 + _uniform(generator, -amount, amount) for amount in (self.brightness, self.contrast, self.saturation)
        )
        matrix = _chroma_matrix(saturation, _uniform(generator, -self.hue, self.hue)) * (brightness * contrast)
        pixels = sample.image.permute(1, 2, 0).reshape(-1, 3).float()
        mean_luma = brightness * (pixels.mean(0) @ _YIQ[0])
        changed = torch.addmm(((1 - contrast) * mean_luma).expand(3), pixels, matrix.T)
        image = changed.round_().clamp_(0, 255).to(torch.uint8).view(*sample.size, 3).permute(2, 0, 1)
        return replace(sample, image=image)


_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


def _chroma_matrix(saturation: float, degrees: float) -> Tensor:
    """The matrix [3, 3] on RGB that scales and turns the chroma plane and leaves the luma as it is."""
    angle = torch.deg2rad(torch.tensor(degrees))
    cos, sin = float(angle.cos()) * saturation, float(angle.sin()) * saturation
    turn = torch.tensor([[1.0, 0.0, 0.0], [0.0, cos, -sin], [0.0, sin, cos]])
    return torch.linalg.inv(_YIQ) @ turn @ _YIQ


@dataclass(frozen=True)
class Resize:
    """The shorter side made `short_side` pixels, but the longer one at most `long_side`; the aspect ratio is kept.

    Anti-aliased bilinear for the image, nearest for masks and class maps. Boxes are scaled by the exact ratio of the
    new to the old side, each axis by its own, since sides are rounded to whole pixels. A detector resizes what it is
    given to its own sides in any case; doing it here moves that work to the loading processes. Raises ValueError for
    sides below 1 and for ``long_side < short_side``.
    """

    short_side: int
    long_side: int

    def __post_init__(self) -> None:
        if not 1 <= self.short_side <= self.long_side:
            raise ValueError(
                f"short_side: expected 1 <= short_side <= long_side, got {self.short_side}, {self.long_side}"
            )

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        scale = min(self.short_side / min(sample.size), self.long_side / max(sample.size))
        return _resized(sample, scale)


@dataclass(frozen=True)
class RandomResize:
    """Both sides scaled by one factor, log-uniform in `scale` = (least, most).

    Useful before a `RandomCrop`, and for detectors that keep the size they are given. Raises ValueError unless
    0 < least <= most.
    """

    scale: tuple[float, float] = (0.5, 2.0)

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale: expected 0 < least <= most, got {self.scale}")

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        low, high = torch.tensor(self.scale).log().tolist()
        return _resized(sample, float(torch.tensor(_uniform(generator, low, high)).exp()))


@dataclass(frozen=True)
class RandomCrop:
    """A window whose sides are each a random share, uniform in `share` = (least, most), of the image's.

    Boxes are clipped to the window. Objects fully outside are left out. Of the others, one that keeps less than
    `min_visible` of its area becomes a crowd: too little is left to demand that it be found, and it is not background
    either. Masks and class maps are cut; proposals are clipped, those fully outside left out. Raises ValueError unless
    0 < least <= most <= 1 and min_visible is in [0, 1].
    """

    share: tuple[float, float] = (0.5, 1.0)
    min_visible: float = 0.3

    def __post_init__(self) -> None:
        if not 0 < self.share[0] <= self.share[1] <= 1:
            raise ValueError(f"share: expected 0 < least <= most <= 1, got {self.share}")
        if not 0 <= self.min_visible <= 1:
            raise ValueError(f"min_visible: expected a value in [0, 1], got {self.min_visible}")

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        window = [max(1, round(side * _uniform(generator, *self.share))) for side in sample.size]
        height, width = window
        top, left = (
            int(torch.randint(side - cut + 1, (), generator=generator))
            for side, cut in zip(sample.size, window, strict=True)
        )

        def cut(boxes: Tensor) -> Tensor:
            return clip(boxes - boxes.new_tensor([left, top, left, top]), (height, width))

        targets, boxes = sample.targets, cut(sample.targets.boxes)
        proposals = None if sample.proposals is None else cut(sample.proposals)
        kept = area(boxes) > 0
        hidden = area(boxes) < self.min_visible * area(targets.boxes)
        rows, columns = slice(top, top + height), slice(left, left + width)
        masks, class_map = targets.masks, targets.class_map
        return replace(
            sample,
            image=sample.image[:, rows, columns],
            targets=Targets(
                boxes[kept],
                targets.labels[kept],
                (targets.crowd | hidden)[kept],
                targets.difficult[kept],
                None if masks is None else masks[kept, rows, columns],
                None if class_map is None else class_map[rows, columns],
            ),
            proposals=None if proposals is None else proposals[area(proposals) > 0],
        )


def _uniform(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _resized(sample: Sample, scale: float) -> Sample:
    """`sample` with both sides times `scale`, rounded to whole pixels and at least 1."""
    old = sample.size
    new = (max(1, round(old[0] * scale)), max(1, round(old[1] * scale)))
    if new == old:
        return sample
    image = interpolate(sample.image[None], size=new, mode="bilinear", antialias=True, align_corners=False)[0]

    def nearest(masks: Tensor) -> Tensor:
        return interpolate(masks[:, None].to(torch.uint8), size=new, mode="nearest-exact")[:, 0].to(masks.dtype)

    return _moved(sample, image, lambda boxes: resize_boxes(boxes, old, new), nearest)


def _moved(sample: Sample, image: Tensor, move: Change, change: Change) -> Sample:
    """`sample` with another image: `move` takes boxes [R, 4] there, those annotated and the proposals, `change` masks
    and class maps [R, H, W]."""
    old = sample.targets
    targets = replace(
        old,
        boxes=move(old.boxes),
        masks=None if old.masks is None else change(old.masks),
        class_map=None if old.class_map is None else change(old.class_map[None])[0],
    )
    proposals = None if sample.proposals is None else move(sample.proposals)
    return replace(sample, image=image, targets=targets, proposals=proposals)
