"""Checkpoints of format 1, in which a detector had one extractor and one head: what they hold, as it is called now."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any

from torch import Tensor

__all__ = ["settings", "tensors"]

_RENAMED = (("extractor.", "roi_heads.0.extractor."), ("head.fc", "roi_heads.0.trunk.fc"), ("head.", "roi_heads.0."))
"""How names of tensors began, and how they begin now."""


def tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` under today's names. Learned region features had no factor on their geometric term, which is
    1 / sqrt(C_g) now; the parts' matrices [K, C_g, C_E] take its inverse, so that the function stays."""
    return {_renamed(name): _unscaled(name, tensor) for name, tensor in state.items()}


def settings(model: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a detector, in today's words. What `learned-grid` added to learned region features was a
    start of their parameters, which the file holds."""
    return {**model, "extractor": "learned"} if model.get("extractor") == "learned-grid" else dict(model)


def _renamed(name: str) -> str:
    for old, new in _RENAMED:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _unscaled(name: str, tensor: Tensor) -> Tensor:
    return tensor * sqrt(tensor.shape[1]) if name.endswith(".part_weight") else tensor
