"""Room for large results."""

from __future__ import annotations

import ctypes
import mmap

import torch
from torch import Tensor

__all__ = ["empty", "zeros"]

_PAGE = 2 << 20  # bytes of a huge page


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """`torch.empty`, asking Linux to back it with huge pages.

    A fresh result of 50 MB is 12 000 small pages, and their first touch takes longer than the kernel that fills them.
    Where the system has no huge pages, or does not give any, this is `torch.empty`.
    """
    tensor = torch.empty(shape, dtype=dtype)
    begin = -(-tensor.data_ptr() // _PAGE) * _PAGE
    end = (tensor.data_ptr() + tensor.nbytes) // _PAGE * _PAGE
    if end > begin and hasattr(mmap, "MADV_HUGEPAGE"):
        advise = ctypes.CDLL(None).madvise
        advise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), ctypes.c_int(mmap.MADV_HUGEPAGE))
    return tensor


def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """`torch.zeros`, as `empty`."""
    return empty(shape, dtype).zero_()
