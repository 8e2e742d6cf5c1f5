"""A module that is in evaluation mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["evaluation_mode"]


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Within, `module` is in evaluation mode: no dropout, no stochastic depth, and batch norm neither uses the batch
    nor learns from it. Afterwards each submodule is in the mode it was in, also where modes were mixed."""
    modes = [(each, each.training) for each in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for each, training in modes:
            each.training = training
