"""What finds boxes in an image, for detectors whose boxes are given: selective search, a grid, a proposal network, or
any object of a user's."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from regio.identity import describe, differences

__all__ = ["ProposalMethod", "method_settings", "settings_differences"]


class ProposalMethod(Protocol):
    """Called with an image, uint8 RGB [3, H, W], returns boxes [P, 4] float32 in its pixels and scores [P] float32,
    best first. P may be zero. The same image gives the same boxes every time."""

    def __call__(self, image: Tensor, /) -> tuple[Tensor, Tensor]: ...


def method_settings(method: ProposalMethod) -> dict[str, Any]:
    """What decides what `method` finds, as plain values for JSON: the `name` of its type, and the fields of a dataclass
    or the attributes of another object. A module among them is known by a hash of its weights and of its parts."""
    if is_dataclass(method) and not isinstance(method, type):
        values = {each.name: getattr(method, each.name) for each in fields(method) if each.init}
    else:
        values = {key: value for key, value in getattr(method, "__dict__", {}).items() if not key.startswith("_")}
    name = getattr(method, "__qualname__", type(method).__qualname__)  # of a function its own
    return {"name": name} | {key: _plain(value) for key, value in values.items()}


def settings_differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """In words, where the settings of two methods differ; empty where nowhere. The place that weights were read from
    makes no difference."""
    one, other = ({key: str(value) for key, value in each.items() if key != "weights"} for each in (was, now))
    return differences(one, other)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, nn.Module):
        return _digest(value)
    return describe(value, type(value).__qualname__)


def _digest(module: nn.Module) -> str:
    found = hashlib.sha256(repr(sorted(describe(module, "module").items())).encode())
    for name, tensor in module.state_dict().items():
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:32]
