"""Moving averages of weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

__all__ = ["average_decay", "moving_average"]


def average_decay(decay: float, updates: int) -> float:
    """What is kept of a moving average at its next update, after `updates` of them: min(decay, (1 + n) / (10 + n)).

    With a constant decay of 0.999 the weights of the first step would be half of the average after 700 steps; with
    this ramp (TensorFlow's ExponentialMovingAverage) their share falls with the ninth power of the number of steps.
    """
    return min(decay, (1 + updates) / (10 + updates))


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """A moving average of the parameters and the buffers of `model`, to be updated after each step.

    The first update copies; at later ones `average_decay` is kept, which follows from the number of updates alone, so a
    resumed average goes on exactly. Buffers that are no floating point numbers are copied.
    """

    @torch.no_grad()
    def blend(averages: Sequence[Tensor], values: Sequence[Tensor], updates: Tensor | int) -> None:
        kept = average_decay(decay, int(updates))
        for average, value in zip(averages, values, strict=True):
            if average.is_floating_point():
                average.lerp_(value, 1 - kept)
            else:
                average.copy_(value)

    return AveragedModel(model, multi_avg_fn=blend, use_buffers=True)
