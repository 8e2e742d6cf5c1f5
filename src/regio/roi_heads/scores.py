"""What a head's class outputs mean: how they become scores, and how they are trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Margins", "Scores", "Sigmoid", "Softmax"]


class Scores(Protocol):
    """The meaning of class outputs [R, L], L = `outputs(num_classes)`, where `num_classes` counts the background."""

    def outputs(self, num_classes: int) -> int:
        """The number of outputs a region."""
        ...

    def __call__(self, logits: Tensor) -> Tensor:
        """The scores [R, num_classes - 1] of the classes, without the background."""
        ...

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss [R] of each region, for labels [R] int64, 0 for the background."""
        ...


@dataclass(frozen=True)
class Softmax:
    """Probabilities that exclude each other and the background, which is output 0; cross entropy (Fast R-CNN, 2.3)."""

    def outputs(self, num_classes: int) -> int:
        return num_classes

    def __call__(self, logits: Tensor) -> Tensor:
        return logits.softmax(1)[:, 1:]

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, reduction="none")


@dataclass(frozen=True)
class Sigmoid:
    """A probability of its own for each class; binary cross entropy, summed over the classes. No background output."""

    def outputs(self, num_classes: int) -> int:
        return num_classes - 1

    def __call__(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, _one_hot(logits, labels), reduction="none").sum(1)


@dataclass(frozen=True)
class Margins:
    """The signed distances of one linear support vector machine a class (R-CNN, section 2.3), not probabilities.

    The loss is the hinge loss of each machine, ``max(0, 1 - margin)`` for its class and ``max(0, 1 + margin)`` for all
    others, those of the class weighted by `positive_weight` (2 in R-CNN's released code), summed over the machines. A
    score threshold belongs at -1 or so, not at 0.05.
    """

    positive_weight: float = 1.0

    def outputs(self, num_classes: int) -> int:
        return num_classes - 1

    def __call__(self, logits: Tensor) -> Tensor:
        return logits

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        own = _one_hot(logits, labels)
        hinge = F.relu(1 - torch.where(own > 0, logits, -logits))
        return (hinge * (1 + (self.positive_weight - 1) * own)).sum(1)


def _one_hot(logits: Tensor, labels: Tensor) -> Tensor:
    """1 at the class of each region, [R, classes]; the background has none."""
    return F.one_hot(labels, logits.shape[1] + 1)[:, 1:].to(logits.dtype)
