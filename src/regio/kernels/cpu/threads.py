"""Sharing a kernel's work between threads.

Kernels are serial and release the interpreter's lock, so plain threads run them side by side. numba's own
``parallel=True`` is not used: its OpenMP layer ends a forked DataLoader worker that touches it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

__all__ = ["share"]

_pool: ThreadPoolExecutor | None = None


def _drop_pool() -> None:
    """Forget the pool: its threads do not exist in a forked child."""
    global _pool
    _pool = None


os.register_at_fork(after_in_child=_drop_pool)


def _workers() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        # Threads start as work arrives, so the limit costs nothing; `share` decides how many are used.
        _pool = ThreadPoolExecutor(max_workers=max(1, os.cpu_count() or 1), thread_name_prefix="regio")
    return _pool


def share(work: Callable[[int, int], object], total: int, *, grain: int = 1, shares: int = 1) -> None:
    """Call ``work(begin, end)`` on ranges that cover ``[0, total)``, on `torch.get_num_threads()` threads.

    Ranges begin at multiples of `grain`. Each thread gets `shares` of them on average and takes the next when it is
    done, so that uneven work evens out. The calling thread takes part; with one thread, or at most one grain, it does
    everything in one call. An error in any range is raised here, after the others have stopped.
    """
    threads = 1 if total <= grain else min(torch.get_num_threads(), -(-total // grain))
    if threads == 1:
        work(0, total)
        return
    step = -(-total // (threads * shares * grain)) * grain
    begins = iter(range(0, total, step))  # next() on a range iterator is atomic

    def take_turns() -> None:
        for begin in begins:
            work(begin, min(begin + step, total))

    others = [_workers().submit(take_turns) for _ in range(threads - 1)]
    try:
        take_turns()
    finally:
        for other in others:
            if not other.cancel():  # one that has not started by now is not needed
                other.result()
