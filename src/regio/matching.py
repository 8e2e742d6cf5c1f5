"""Which object, if any, a box stands for, and which boxes enter a mini-batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from regio.boxes import area, intersection, iou
from regio.types import Regions, Targets

__all__ = ["BACKGROUND", "IGNORED", "BalancedSampler", "Matcher", "RegionSample", "RegionSampler", "Sampler", "TakeAll"]

BACKGROUND = -1
IGNORED = -2


@dataclass(frozen=True)
class Matcher:
    """Assigns boxes to objects by intersection over union (IoU).

    A box whose best IoU is `positive` or more is assigned to that object; one whose best IoU lies in
    [`background_low`, `background`) is background; any other is ignored. With `allow_low_quality_matches`, the boxes
    that have the highest IoU of all with some object (every one of a tie, unless it is 0) are positive too, each for
    its own best object, which may be another one (Faster R-CNN, section 3.1.2, and its released code).

    Crowd regions are never matched. A box that would be background, but of whose area `crowd_overlap` or more lies in a
    crowd region, is ignored.
    """

    positive: float
    background: float
    background_low: float = 0.0
    allow_low_quality_matches: bool = False
    crowd_overlap: float = 0.7

    def __post_init__(self) -> None:
        if not 0 <= self.background_low <= self.background <= self.positive <= 1:
            raise ValueError(
                "thresholds: expected 0 <= background_low <= background <= positive <= 1, got "
                f"{self.background_low}, {self.background}, {self.positive}"
            )

    def __call__(self, boxes: Tensor, targets: Targets) -> Tensor:
        """For each of `boxes` [R, 4], the index [R] int64 of its object in `targets`, or BACKGROUND, or IGNORED."""
        objects = (~targets.crowd).nonzero()[:, 0]
        if len(objects) > 0:
            overlap = iou(targets.boxes[objects], boxes)
            best, object_index = overlap.max(0)
            match = objects[object_index]
            is_positive = best >= self.positive
            if self.allow_low_quality_matches and len(boxes) > 0:
                highest = overlap.amax(1, keepdim=True)
                is_positive |= ((overlap == highest) & (highest > 0)).any(0)
        else:
            best = boxes.new_zeros(len(boxes))
            match = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
            is_positive = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
        is_background = ~is_positive & (best < self.background) & (best >= self.background_low)
        if bool(targets.crowd.any()):
            inside = intersection(targets.boxes[targets.crowd], boxes).amax(0)
            is_background &= inside < self.crowd_overlap * area(boxes)
        unmatched = torch.where(is_background, BACKGROUND, IGNORED)
        return torch.where(is_positive, match, unmatched)


class SampledRows(NamedTuple):
    """Row indices int64 of the boxes that were drawn."""

    positive: Tensor
    background: Tensor


class Sampler(Protocol):
    """Draws the boxes of an image that enter the mini-batch, from a `match` [R] as `Matcher` gives it."""

    def __call__(self, match: Tensor, /) -> SampledRows: ...


@dataclass(frozen=True)
class TakeAll:
    """Draws every box that is not ignored: for a loss that chooses by itself (`regio.losses.HardExamples`)."""

    def __call__(self, match: Tensor) -> SampledRows:
        return SampledRows((match >= 0).nonzero()[:, 0], (match == BACKGROUND).nonzero()[:, 0])


@dataclass(frozen=True)
class BalancedSampler:
    """Draws `size` boxes of an image, of which at most `positive_fraction` stand for objects, the rest background.

    Without replacement; positives that are missing are made up for by background, missing background by nothing.
    Draws from PyTorch's global generator. Raises ValueError for a size below 1 and a fraction outside [0, 1].
    """

    size: int
    positive_fraction: float

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size: expected a number of boxes of at least 1, got {self.size}")
        if not 0 <= self.positive_fraction <= 1:
            raise ValueError(f"positive_fraction: expected a number from 0 to 1, got {self.positive_fraction}")

    def __call__(self, match: Tensor) -> SampledRows:
        """The rows drawn from a `match` [R] as `Matcher` gives it."""
        positive = _draw((match >= 0).nonzero()[:, 0], int(self.size * self.positive_fraction))
        background = _draw((match == BACKGROUND).nonzero()[:, 0], self.size - len(positive))
        return SampledRows(positive, background)


def _draw(rows: Tensor, count: int) -> Tensor:
    if len(rows) <= count:
        return rows
    return rows[torch.randperm(len(rows), device=rows.device)[:count]]


class RegionSample(NamedTuple):
    """What a head is trained on.

    regions: R boxes of the batch. labels: [R] int64, 0 for background. objects: [R, 4], the boxes of the objects they
    stand for, zero for background. match: [R] int64, the object's index in its image's targets, or BACKGROUND.
    """

    regions: Regions
    labels: Tensor
    objects: Tensor
    match: Tensor


@dataclass(frozen=True)
class RegionSampler:
    """Labels boxes and draws the mini-batch of a head (Fast R-CNN, section 2.3).

    With `append_objects` the annotated boxes, without crowd regions, are appended to the boxes first, so that there are
    positives from the first step on.
    """

    matcher: Matcher
    sampler: Sampler
    append_objects: bool = True

    def __call__(self, boxes: Sequence[Tensor], targets: Sequence[Targets]) -> RegionSample:
        """A sample of `boxes`, one [P_i, 4] an image, labelled by `targets`."""
        samples = [self._of_image(*each) for each in zip(boxes, targets, strict=True)]
        sampled, labels, objects, match = zip(*samples, strict=True)
        return RegionSample(Regions.from_list(list(sampled)), torch.cat(labels), torch.cat(objects), torch.cat(match))

    def _of_image(self, boxes: Tensor, target: Targets) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if self.append_objects:
            boxes = torch.cat([boxes, target.boxes[~target.crowd].to(boxes.dtype)])
        match = self.matcher(boxes.detach(), target)
        positive, background = self.sampler(match)
        rows = torch.cat([positive, background])
        boxes, match = boxes[rows], match[rows]
        labels = torch.zeros_like(match)
        labels[: len(positive)] = target.labels[match[: len(positive)]]
        objects = torch.zeros_like(boxes)
        objects[: len(positive)] = target.boxes[match[: len(positive)]].to(boxes.dtype)
        return boxes, labels, objects, match
