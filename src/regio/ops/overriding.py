"""Functions that PyTorch treats as its own: whoever overrides functions for some kind of argument is asked first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import Any, ParamSpec

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

__all__ = ["overridable"]

P = ParamSpec("P")


def overridable(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """A function that follows PyTorch's protocol ``__torch_function__``.

    So `torch.fx` records a call as one node of its graph: the values that it traces have no shapes, which the checks of
    arguments read. Subclasses of tensors and `torch.overrides.TorchFunctionMode` see the call too.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        given = tuple(_flat((*args, *kwargs.values())))
        if has_torch_function(given):
            return handle_torch_function(call, given, *args, **kwargs)
        return function(*args, **kwargs)

    return call


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flat(value)
        elif isinstance(value, dict):
            yield from _flat(value.values())
        else:
            yield value
