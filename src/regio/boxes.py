"""Box arithmetic in the convention of `regio.types`: half-open pixels, width ``x2 - x1``.

Laws, each held by a test: ``decode(encode(b, a), a) == b`` where no side of b is more than 62.5 times that of a; IoU is
symmetric, translation- and scale-invariant, 1 on itself and in [0, 1]; clipping is idempotent and never makes a box
larger.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["BoxCoder", "Coder", "area", "clip", "intersection", "iou", "precise", "resize_boxes", "sides"]


def sides(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Widths [R] and heights [R] of boxes [R, 4]."""
    return boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]


def area(boxes: Tensor) -> Tensor:
    """Areas [R] of boxes [R, 4], in square pixels; in float32 at least, since float16 ends at 255 x 257."""
    width, height = sides(precise(boxes))
    return width * height


def precise(boxes: Tensor) -> Tensor:
    """`boxes` in float32 at least: bfloat16 has no odd numbers above 256."""
    return boxes.to(torch.promote_types(boxes.dtype, torch.float32))


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes [R, 4] cut to an image of `size` (height, width): x to [0, width], y to [0, height]."""
    height, width = size
    x = boxes[..., 0::2].clamp(0, width)
    y = boxes[..., 1::2].clamp(0, height)
    return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], dim=-1)


def resize_boxes(boxes: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Boxes [R, 4] of an image of size `old` (height, width) in pixels of the same image at size `new`."""
    if old == new:
        return boxes
    y, x = new[0] / old[0], new[1] / old[1]
    return boxes * boxes.new_tensor([x, y, x, y])


def intersection(a: Tensor, b: Tensor) -> Tensor:
    """Areas [A, B] of the intersections of boxes [A, 4] with boxes [B, 4], in float32 at least."""
    a, b = precise(a), precise(b)
    corner = torch.maximum(a[:, None, :2], b[None, :, :2])
    extent = (torch.minimum(a[:, None, 2:], b[None, :, 2:]) - corner).clamp(min=0)
    return extent[..., 0] * extent[..., 1]


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union [A, B] of boxes [A, 4] and [B, 4], in float32 at least; 0 where both are empty."""
    inner = intersection(a, b)
    union = area(a)[:, None] + area(b)[None, :] - inner
    return torch.where(union > 0, inner / union.clamp(min=torch.finfo(inner.dtype).tiny), torch.zeros_like(inner))


class Coder(Protocol):
    """How a head writes refinements of boxes: numbers that are learned, four a box."""

    def encode(self, boxes: Tensor, reference: Tensor, labels: Tensor, /) -> Tensor:
        """Deltas [R, 4] that take `reference` [R, 4] to `boxes` [R, 4], of objects of the classes `labels` [R]."""
        ...

    def decode(self, deltas: Tensor, reference: Tensor, labels: Tensor, /) -> Tensor:
        """Boxes [R, 4] from `deltas` [R, 4] for the classes `labels` [R], and `reference` [R, 4]."""
        ...


@dataclass(frozen=True)
class BoxCoder:
    """R-CNN's box parameterisation (R-CNN eqs. 1-4 and 6-9).

    t = (dx / w, dy / h, log(w' / w), log(h' / h)) of the centres and sides, times `weights` (the reciprocal of the
    standard deviations by which targets are divided: (10, 10, 5, 5) is py-faster-rcnn's .1, .1, .2, .2). `decode` caps
    the two logarithms at `max_log_scale` before the exponential, so that an untrained regressor stays finite. All
    classes are alike; `regio.box_targets` has a coder with numbers of each class.
    """

    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    max_log_scale: float = math.log(1000.0 / 16)

    def encode(self, boxes: Tensor, reference: Tensor, labels: Tensor | None = None) -> Tensor:
        """Deltas [R, 4] that take `reference` [R, 4] to `boxes` [R, 4]. Sides of both must be positive."""
        width, height = sides(reference)
        box_width, box_height = sides(boxes)
        dx = (boxes[:, 0] + boxes[:, 2] - reference[:, 0] - reference[:, 2]) / 2 / width
        dy = (boxes[:, 1] + boxes[:, 3] - reference[:, 1] - reference[:, 3]) / 2 / height
        deltas = torch.stack([dx, dy, torch.log(box_width / width), torch.log(box_height / height)], dim=1)
        return deltas * deltas.new_tensor(self.weights)

    def decode(self, deltas: Tensor, reference: Tensor, labels: Tensor | None = None) -> Tensor:
        """Boxes [R, 4] from `deltas` [R, 4] and `reference` [R, 4]; or [R, C, 4] from [R, C, 4] and [R, 4].

        Raises ValueError for other ranks.
        """
        if deltas.ndim == 3:
            reference = reference[:, None]
        elif deltas.ndim != 2:
            raise ValueError(f"deltas: expected shape [R, 4] or [R, C, 4], got {list(deltas.shape)}")
        deltas = deltas / deltas.new_tensor(self.weights)
        width, height = sides(reference)
        x = reference[..., 0] + width / 2 + deltas[..., 0] * width
        y = reference[..., 1] + height / 2 + deltas[..., 1] * height
        half_width = width * deltas[..., 2].clamp(max=self.max_log_scale).exp() / 2
        half_height = height * deltas[..., 3].clamp(max=self.max_log_scale).exp() / 2
        return torch.stack([x - half_width, y - half_height, x + half_width, y + half_height], dim=-1)
