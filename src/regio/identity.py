"""What an object is, in words that can be compared after a restart."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["describe", "differences", "weights_hash"]

_PLAIN = (type(None), bool, int, float, str, PurePath, Enum, torch.dtype)


def describe(value: Any, name: str) -> dict[str, str]:
    """The types and numbers that `value` is made of, by their dotted paths below `name`.

    `{"model.neck": "FPN", "model.neck.channels": "128", ...}`: fields of dataclasses, entries of lists and
    dictionaries, and of modules and other objects all attributes whose names do not begin with an underscore; of
    functions the name. Of tensors the shape and the dtype alone: weights are not part of what a module is.
    """
    found: dict[str, str] = {}
    _describe(value, name, found, frozenset())
    return found


def _describe(value: Any, name: str, found: dict[str, str], above: frozenset[int]) -> None:
    if id(value) in above:  # an object that holds itself
        return
    above |= {id(value)}
    if isinstance(value, _PLAIN):
        found[name] = repr(value)
        return
    if isinstance(value, Tensor):
        found[name] = f"{value.dtype} {list(value.shape)}"
        return
    if isinstance(value, (list, tuple)) and all(isinstance(each, _PLAIN) for each in value):
        found[name] = repr(list(value))
        return
    if isinstance(value, type) or not hasattr(value, "__dict__") or hasattr(value, "__code__"):
        found[name] = getattr(value, "__qualname__", type(value).__qualname__)
    else:
        found[name] = type(value).__qualname__
    for key, part in _parts(value).items():
        _describe(part, f"{name}.{key}", found, above)


def _parts(value: Any) -> Mapping[str, Any]:
    """What `value` is put together of."""
    if isinstance(value, Mapping):
        return {str(key): part for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return {str(i): part for i, part in enumerate(value)}
    if isinstance(value, (set, frozenset)):
        return {"of": sorted(map(repr, value))}
    if isinstance(value, functools.partial):
        return {"function": value.func, "arguments": value.args, "keywords": value.keywords}
    if dataclasses.is_dataclass(value) and not isinstance(value, (type, nn.Module)):
        return {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    if isinstance(value, type) or not hasattr(value, "__dict__") or hasattr(value, "__code__"):
        return {}
    own = {key: part for key, part in vars(value).items() if not key.startswith("_")}
    return own | dict(value.named_children()) if isinstance(value, nn.Module) else own


def differences(was: Mapping[str, str], now: Mapping[str, str], count: int = 5) -> str:
    """In words, where `now` differs from `was`, the first `count` of them; empty where nowhere."""
    names = [name for name in {**was, **now} if was.get(name) != now.get(name)]
    shown = [f"{name} {was.get(name, 'absent')}, got {now.get(name, 'nothing')}" for name in names[:count]]
    return "; ".join(shown) + (f"; and {len(names) - count} more" if len(names) > count else "")


def weights_hash(*modules: nn.Module) -> str:
    """Sixteen characters that are equal for equal state dicts, to the last bit."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in module.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
