"""Checkpoints of format 2, in which the appearance term of learned region features read features as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["settings"]


def settings(model: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a detector, in today's words."""
    return {key: _as_given(value) for key, value in model.items()}


def _as_given(value: Any) -> Any:
    learned = isinstance(value, Mapping) and value.get("name") == "learned"
    return {"feature_encoding": "as-given", **value} if learned else value
