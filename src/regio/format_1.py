"""Checkpoints of format 1, in which a detector had one extractor and one head: what they hold, as it is called now."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any

from torch import Tensor

__all__ = ["settings", "tensors"]

_RENAMED = (("extractor.", "roi_heads.0.extractor."), ("head.fc", "roi_heads.0.trunk.fc"), ("head.", "roi_heads.0."))
"""How names of tensors began, and how they begin now."""
_SETTINGS = {"sampled_regions": "regions_per_image", "detections": "detections_per_image"}


def tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` under today's names. Learned region features had no factor on their geometric term, which is
    1 / sqrt(C_g) now; the parts' matrices [K, C_g, C_E] take its inverse, so that the function stays."""
    return {_renamed(name): _unscaled(name, tensor) for name, tensor in state.items()}


def settings(model: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a detector, in today's words. What `learned-grid` added to learned region features was a
    start of their parameters, which the file holds."""
    if not model:
        return {}
    names = {"single": "faster-rcnn", "fpn": "faster-rcnn-fpn"}
    new = {_SETTINGS.get(key, key): value for key, value in model.items() if key not in ("neck", "levels", "extractor")}
    neck, levels = model.get("neck", "fpn"), model.get("levels", [3, 4, 5])
    extractor = {"name": model.get("extractor", "roi-align")}
    if extractor["name"].startswith("learned"):
        extractor = {"name": "learned", "terms": "both", "prior": "none"}
    return {
        "name": names[neck],
        **new,
        **({"level": levels[-1]} if neck == "single" else {"levels": levels}),
        "extractor": extractor,
    }


def _renamed(name: str) -> str:
    for old, new in _RENAMED:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _unscaled(name: str, tensor: Tensor) -> Tensor:
    return tensor * sqrt(tensor.shape[1]) if name.endswith(".part_weight") else tensor
