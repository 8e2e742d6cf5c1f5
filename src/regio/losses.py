"""The loss of Fast R-CNN."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

__all__ = ["box_loss", "class_loss"]


def class_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Softmax cross entropy, the mean over R boxes, of `logits` [R, C] and `labels` [R]; 0 when R is 0."""
    return F.cross_entropy(logits, labels, reduction="sum") / max(len(labels), 1)


def box_loss(deltas: Tensor, targets: Tensor, beta: float, count: int) -> Tensor:
    """Smooth L1 of `deltas` [P, 4] against `targets` [P, 4], summed and divided by `count`.

    Per coordinate ``x**2 / (2 beta)`` where |x| < beta and ``|x| - beta / 2`` elsewhere (Fast R-CNN, eq. 3: beta 1);
    beta 0 is L1. P are the boxes that stand for objects; `count` is the number of all boxes of the mini-batch, so that
    an image with few objects weighs less, as in the released Fast and Faster R-CNN. 0 when P is 0.
    """
    return F.smooth_l1_loss(deltas, targets, beta=beta, reduction="sum") / max(count, 1)
