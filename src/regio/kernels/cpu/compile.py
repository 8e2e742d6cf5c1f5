"""How the CPU kernels are compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba

__all__ = ["compiled", "strict"]

# Sums may be reordered and multiply-adds fused, which is what lets the compiler use vector instructions. NaN and
# infinity keep their meaning.
_FAST = {"contract", "nsz", "arcp", "reassoc"}


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` as a serial kernel that releases the interpreter's lock.

    Compiled at the first call for each combination of dtypes (a second or two) and kept on disk, beside the source or
    in the user's cache directory; where neither can be written it is compiled once in every process. The file on disk
    is renewed when the kernel's own source file changes, not when a helper in another file does.
    """
    return _compile(function, fastmath=_FAST)


def strict(function: Callable[..., Any]) -> Callable[..., Any]:
    """As `compiled`, with every rounding as it is written."""
    return _compile(function, fastmath=False)


def _compile(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    options |= {"nogil": True, "error_model": "numpy", "boundscheck": False}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no directory for the cache can be written
        return numba.njit(**options)(function)
