"""Optimizers and learning-rate schedules, as functions of nothing but their numbers and the step.

A schedule holds no state: the factor of step `s` is a function of `s`, so that a resumed run cannot drift from one
that was never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

__all__ = ["SGD", "AdamW", "Cosine", "OptimizerSpec", "Schedule", "Step"]


class OptimizerSpec(Protocol):
    """Makes an optimizer for parameters."""

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer: ...


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with momentum; the numbers of Fast R-CNN, section 2.3, but for the rate."""

    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer for `parameters`."""
        return torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay: reaches a working detector in far fewer steps than SGD."""

    lr: float = 4e-4
    weight_decay: float = 0.02

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer for `parameters`."""
        return torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay)


class Schedule(Protocol):
    """The factor on the learning rate at step `step` (from 0) of `steps`."""

    def __call__(self, step: int, steps: int) -> float: ...


def _warm_up(step: int, warmup: int) -> float:
    return min(1.0, (step + 1) / (warmup + 1))


@dataclass(frozen=True)
class Cosine:
    """Linear warm-up over `warmup` steps, then half a cosine from 1 down to `final`."""

    warmup: int = 100
    final: float = 0.01

    def __call__(self, step: int, steps: int) -> float:
        """The factor on the learning rate."""
        progress = max(0.0, (step - self.warmup) / max(1, steps - self.warmup))
        return _warm_up(step, self.warmup) * (self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2)


@dataclass(frozen=True)
class Step:
    """Linear warm-up over `warmup` steps; times `factor` at each of `milestones`, fractions of the run.

    The default drops are those of the 12-epoch schedule of FPN and learned region features: after 8 and 10.667 epochs.
    """

    warmup: int = 100
    milestones: tuple[float, ...] = (2 / 3, 8 / 9)
    factor: float = 0.1

    def __call__(self, step: int, steps: int) -> float:
        """The factor on the learning rate."""
        drops = sum(step >= milestone * steps for milestone in self.milestones)
        return _warm_up(step, self.warmup) * self.factor**drops
