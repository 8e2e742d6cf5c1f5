"""Optimizers and learning-rate schedules, as functions of nothing but their numbers and the step.

A schedule holds no state: the factor of step `s` is a function of `s`, so that a resumed run cannot drift from one
that was never stopped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from regio.settings import setting

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["SGD", "AdamW", "Cosine", "OptimizerSpec", "Schedule", "Step", "rate_groups"]


class OptimizerSpec(Protocol):
    """Makes an optimizer for the parameters of a model that require gradients, in `rate_groups`.

    fused: whether its step may take one pass over the weights. On a CPU that of AdamW then takes a quarter of the time;
    a training in "16-mixed", whose gradients are unscaled before they are clipped, cannot have it.
    """

    def build(self, model: nn.Module, *, fused: bool = True) -> torch.optim.Optimizer: ...


def rate_groups(model: nn.Module, lr: float) -> list[dict[str, Any]]:
    """The parameters of `model` that require gradients, grouped by learning rate, the rate of most first.

    A module whose parts learn at rates of their own has an attribute `rate_factors`: the names of submodules of it,
    and the factor on the rate of each. Deformable RoI pooling, for example, has ``{"offset": 0.01}``.
    """
    factors = {
        parameter: factor
        for module in model.modules()
        for name, factor in getattr(module, "rate_factors", {}).items()
        for parameter in module.get_submodule(name).parameters()
    }
    groups: dict[float, list[nn.Parameter]] = {1.0: []}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups.setdefault(factors.get(parameter, 1.0), []).append(parameter)
    return [{"params": members, "lr": lr * factor} for factor, members in groups.items() if members]


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with the momentum and the weight decay of FPN and Mask R-CNN.

    Fast and Faster R-CNN and R-FCN have the momentum, but a weight decay of 5e-4. The rate is for a few images a step;
    these papers have 0.001 for two, FPN 0.02 for sixteen.
    """

    lr: float = setting(0.01, "learning rate", ge=0)
    momentum: float = setting(0.9, "share of the step before that is kept", ge=0, lt=1)
    weight_decay: float = setting(1e-4, "share of a weight that its gradient gains", ge=0)

    def build(self, model: nn.Module, *, fused: bool = True) -> torch.optim.Optimizer:
        """The optimizer for `model`. It is never fused: PyTorch's fails where a weight has its first gradient after
        others have had theirs."""
        import torch

        groups = rate_groups(model, self.lr)
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay: reaches a working detector in far fewer steps than SGD."""

    lr: float = setting(4e-4, "learning rate", ge=0)
    weight_decay: float = setting(0.02, "share of a weight that a step takes off, times the rate", ge=0)

    def build(self, model: nn.Module, *, fused: bool = True) -> torch.optim.Optimizer:
        """The optimizer for `model`."""
        import torch

        groups = rate_groups(model, self.lr)
        return torch.optim.AdamW(groups, lr=self.lr, weight_decay=self.weight_decay, fused=fused)


class Schedule(Protocol):
    """The factor on the learning rate at step `step` (from 0) of `steps`."""

    def __call__(self, step: int, steps: int) -> float: ...


def _warm_up(step: int, steps: int, warmup: int) -> float:
    """At most a fifth of the run: a short one on few photos would otherwise be nothing but warm-up."""
    return min(1.0, (step + 1) / (min(warmup, steps // 5) + 1))


@dataclass(frozen=True)
class Cosine:
    """Linear warm-up over `warmup` steps (a fifth of the run at most), then half a cosine from 1 down to `final`."""

    warmup: int = setting(100, "steps of linear warm-up, a fifth of the run at most", ge=0)
    final: float = setting(0.01, "factor at the end", ge=0)

    def __call__(self, step: int, steps: int) -> float:
        """The factor on the learning rate."""
        warmup = min(self.warmup, steps // 5)
        progress = max(0.0, (step - warmup) / max(1, steps - warmup))
        return _warm_up(step, steps, warmup) * (self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2)


@dataclass(frozen=True)
class Step:
    """Linear warm-up as in `Cosine`; times `factor` at each of `milestones`, which are fractions of the run.

    The default drops are those of the 12-epoch schedule of FPN and learned region features: after 8 and 10.667 epochs.
    """

    warmup: int = setting(100, "steps of linear warm-up, a fifth of the run at most", ge=0)
    milestones: tuple[float, ...] = setting((2 / 3, 8 / 9), "shares of the run after which the rate drops")
    factor: float = setting(0.1, "of each drop", ge=0)

    def __call__(self, step: int, steps: int) -> float:
        """The factor on the learning rate."""
        drops = sum(step >= milestone * steps for milestone in self.milestones)
        return _warm_up(step, steps, self.warmup) * self.factor**drops
