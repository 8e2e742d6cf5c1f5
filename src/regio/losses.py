"""Losses of single regions, and how they become one number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["HardExamples", "MeanLoss", "Reduction", "smooth_l1"]


def smooth_l1(deltas: Tensor, targets: Tensor, beta: float) -> Tensor:
    """Smooth L1 of `deltas` [R, 4] against `targets` [R, 4], summed over the coordinates: [R].

    Per coordinate ``x**2 / (2 beta)`` where |x| < beta and ``|x| - beta / 2`` elsewhere (Fast R-CNN, eq. 3: beta 1);
    beta 0 is L1.
    """
    return F.smooth_l1_loss(deltas, targets, beta=beta, reduction="none").sum(1)


class Reduction(Protocol):
    """Makes the two losses of a head from those of its regions."""

    def __call__(self, of_class: Tensor, of_box: Tensor, image: Tensor, /) -> tuple[Tensor, Tensor]:
        """Scalars from the class losses [R], the weighted box losses [R] (0 for background) and the image [R] of each
        region."""
        ...


@dataclass(frozen=True)
class MeanLoss:
    """The sum over all regions of the mini-batch, divided by their number; 0 where there are none.

    The box loss too is divided by the number of all regions, not of objects, so that an image with few objects weighs
    less, as in the released Fast and Faster R-CNN.
    """

    def __call__(self, of_class: Tensor, of_box: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        count = max(len(of_class), 1)
        return of_class.sum() / count, of_box.sum() / count


@dataclass(frozen=True)
class HardExamples:
    """Online hard example mining: of each image only the `per_image` regions with the largest sum of both losses are
    learnt from (Shrivastava et al. 2016; 128 in R-FCN). Both losses are divided by the number of regions chosen.

    For a head whose sampler takes all regions, `regio.matching.TakeAll`: the choice replaces that sample. Suppressing
    overlapping regions before the choice, as that paper does and R-FCN's released code does not, is not done.

    Raises ValueError unless per_image is positive.
    """

    per_image: int = 128

    def __post_init__(self) -> None:
        if self.per_image < 1:
            raise ValueError(f"per_image: expected a positive number of regions, got {self.per_image}")

    def __call__(self, of_class: Tensor, of_box: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        hardest = (of_class + of_box).detach().argsort(descending=True, stable=True)
        of_image = [hardest[image[hardest] == i][: self.per_image] for i in image.unique()]
        rows = torch.cat(of_image) if of_image else hardest
        return MeanLoss()(of_class[rows], of_box[rows], image[rows])
