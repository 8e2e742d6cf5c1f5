"""Sharing a kernel's work between threads.

Kernels are serial and release the interpreter's lock, so threads of any kind run them side by side. They run on those
that PyTorch's own operations use: libgomp's wait for the next operation with the processor kept busy, for milliseconds,
and threads of ours would have to share it with them. Where there is no libgomp in PyTorch, there are threads of ours.
numba's ``parallel=True`` is not used: its OpenMP layer ends a forked DataLoader worker that touches it.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

__all__ = ["share"]

_REGION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)  # what every thread of a parallel region calls


def _find_region_runner() -> Any:
    """``GOMP_parallel(function, data, threads, flags)`` of the OpenMP library that PyTorch has loaded, or None."""
    try:
        run = ctypes.CDLL(torch._C.__file__).GOMP_parallel
    except (AttributeError, OSError):
        return None
    run.argtypes, run.restype = (_REGION, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
    return run


_run_region = _find_region_runner()
_pool: ThreadPoolExecutor | None = None


def _after_fork() -> None:
    """The threads of the parent do not exist in a forked child, and libgomp would wait for them."""
    global _pool, _run_region
    _pool = _run_region = None


os.register_at_fork(after_in_child=_after_fork)


def share(work: Callable[[int, int], object], total: int, *, grain: int = 1, shares: int = 1) -> None:
    """Call ``work(begin, end)`` on ranges that cover ``[0, total)``, on `torch.get_num_threads()` threads.

    Ranges begin at multiples of `grain`. Each thread gets `shares` of them on average and takes the next when it is
    done, so that uneven work evens out. The calling thread takes part; with one thread, or at most one grain, it does
    everything in one call. An error in any range is raised here, after the others have stopped.
    """
    available = torch.get_num_threads()
    threads = 1 if total <= grain else min(available, -(-total // grain))
    if threads == 1:
        work(0, total)
        return
    step = -(-total // (threads * shares * grain)) * grain
    begins = iter(range(0, total, step))  # next() on a range iterator is atomic

    errors: list[BaseException] = []

    def take_turns(_: object = None) -> None:
        try:
            for begin in begins:
                work(begin, min(begin + step, total))
        except BaseException as error:  # nothing can be raised through libgomp
            errors.append(error)

    # libgomp ends the threads that a smaller team leaves out, and PyTorch would have to start them again.
    if _run_region is not None and threads == available:
        _run_region(_REGION(take_turns), None, threads, 0)
    else:
        _run_in_pool(take_turns, threads)
    if errors:
        raise errors[0]


def _run_in_pool(take_turns: Callable[[], None], threads: int) -> None:
    global _pool
    if _pool is None:
        # Threads start as work arrives, so the limit costs nothing; `share` decides how many are used.
        _pool = ThreadPoolExecutor(max_workers=max(1, os.cpu_count() or 1), thread_name_prefix="regio")
    others = [_pool.submit(take_turns) for _ in range(threads - 1)]
    take_turns()
    for other in others:
        if not other.cancel():  # one that has not started by now is not needed
            other.result()
