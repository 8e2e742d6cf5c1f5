"""Tensors under other names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

__all__ = ["Rule", "renamed"]

Rule = tuple[str, str]
"""A regular expression for the beginning of their name, and what stands there in ours, with groups as \\1."""


def renamed(state: Mapping[str, Tensor], rules: Sequence[Rule], ignored: Callable[[str], bool]) -> dict[str, Tensor]:
    """`state` under our names, by the first rule that matches; a name without a rule stays. Those `ignored` are left
    out."""
    made: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if ignored(name):
            continue
        for pattern, replacement in rules:
            match = re.match(pattern, name)
            if match:
                name = match.expand(replacement) + name[match.end() :]
                break
        made[name] = tensor
    return made
