"""Tensors under other names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

__all__ = ["Rule", "load_exactly", "renamed"]

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


def load_exactly(model: nn.Module, given: Mapping[str, Tensor], what: str) -> None:
    """Load `given` into `model`. Raises ValueError naming each tensor that is missing, not a part of it, or of another
    shape (the first ten, and how many there are); `what` begins the message."""
    own = model.state_dict()
    wrong = [f"{name} is missing" for name in own if name not in given]
    wrong += [f"{name} is not a part of it" for name in given if name not in own]
    wrong += [
        f"{name} has shape {list(given[name].shape)}, expected {list(own[name].shape)}"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    if wrong:
        more = f"; and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        raise ValueError(f"{what}: {'; '.join(wrong[:10])}{more}")
    model.load_state_dict(dict(given))
