"""State dicts that must fit."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor, nn

__all__ = ["load_exactly"]

SHOWN = 5  # tensors that a message names


def load_exactly(module: nn.Module, given: Mapping[str, Tensor], what: str, kept: Collection[str] = ()) -> None:
    """Load `given` into `module`, of which the tensors `kept` keep what they have.

    Raises ValueError, its message beginning with `what`, naming the first tensors that are missing, no part of the
    module, or of another shape, and how many there are.
    """
    own = module.state_dict()
    wrong = [f"{name} is missing" for name in own if name not in given and name not in kept]
    wrong += [f"{name} is not a part of it" for name in given if name not in own]
    wrong += [
        f"{name} has shape {list(given[name].shape)}, expected {list(tensor.shape)}"
        for name, tensor in own.items()
        if name in given and given[name].shape != tensor.shape
    ]
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise ValueError(f"{what}: {', '.join(wrong[:SHOWN])}{more}")
    module.load_state_dict({**{name: own[name] for name in kept}, **given})
