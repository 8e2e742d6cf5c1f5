"""Numbers of arrays that may be bfloat16, which NumPy lacks: those of uint16 arrays are the upper halves of float32
numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from regio.kernels.cpu.compile import strict

__all__ = ["as_array", "number", "put", "to_bfloat16"]

Array = np.ndarray[Any, Any]


def as_array(x: Tensor) -> Array:
    """A tensor on a CPU as an array that shares its memory."""
    return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()


@strict
def number(array: Array, at: int) -> Any:
    """The element `at`."""
    if array.itemsize == 2:
        return np.uint32(np.uint32(array[at]) << np.uint32(16)).view(np.float32)
    return array[at]


@strict
def put(array: Array, at: int, value: float) -> None:
    """``array[at] = value``."""
    if array.itemsize == 2:
        array[at] = to_bfloat16(np.float32(value))
    else:
        array[at] = value


@strict
def to_bfloat16(value: np.float32) -> np.uint16:
    """The nearest bfloat16 number, of two the even one; NaN stays NaN."""
    if value != value:
        return np.uint16(0x7FC0)
    bits = np.float32(value).view(np.uint32)
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))
