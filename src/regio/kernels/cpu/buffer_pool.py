"""Room for large results, which is kept and used again.

A fresh result of 50 MB has to be mapped and zeroed by the system page by page, which takes as long as the kernel that
fills it. PyTorch keeps freed memory on a GPU for the same reason, but not on a CPU.
"""

from __future__ import annotations

import weakref
from collections import deque
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["empty", "release"]

_LINE = 64  # bytes: vectors that begin at a multiple of a cache line are read faster
_SMALL = 1 << 20  # bytes; below that the allocator keeps memory by itself
_MOST = 512 << 20  # bytes that are kept in all

# Buffers that no tensor uses, the oldest first. Single operations on a deque are atomic, so threads, and garbage
# collections in the midst of anything, need no lock.
_free: deque[np.ndarray[Any, Any]] = deque()


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """`torch.empty` on a CPU, in memory that an earlier result has left where there is some of about that size."""
    size = torch.Size(shape).numel() * dtype.itemsize
    if size < _SMALL:
        return torch.empty(shape, dtype=dtype)
    buffer = _take(size)
    begin = -buffer.ctypes.data % _LINE
    view = buffer[begin : begin + size]
    weakref.finalize(view, _keep, buffer).atexit = False  # when the last tensor that uses the view is gone
    return torch.from_numpy(view).view(dtype).view(shape)


def release() -> None:
    """Give the memory that is kept back to the system."""
    _free.clear()


def _take(size: int) -> np.ndarray[Any, Any]:
    for _ in range(len(_free)):
        try:
            buffer = _free.pop()  # the last used, which may still be in a cache
        except IndexError:  # another thread was here
            break
        if size + _LINE <= buffer.nbytes <= 2 * size:
            return buffer
        _free.appendleft(buffer)
    return np.empty(size + size // 8 + _LINE, np.uint8)  # with room for the next, which may be of a few boxes more


def _keep(buffer: np.ndarray[Any, Any]) -> None:
    _free.append(buffer)
    while sum(b.nbytes for b in tuple(_free)) > _MOST:
        try:
            _free.popleft()
        except IndexError:
            break
