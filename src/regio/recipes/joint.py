"""All parts of a model trained together."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from regio.evaluate import Evaluation
from regio.recipes.staged_run import StagedRun

__all__ = ["Joint"]


@dataclass(frozen=True)
class Joint:
    """One training by gradients of the sum of all losses (Faster R-CNN, section 3.2: approximate joint training)."""

    def __call__(self, model: nn.Module, run: StagedRun) -> Evaluation:
        return run.train(model)
