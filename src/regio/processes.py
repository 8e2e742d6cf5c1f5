"""The processes of a training: one, or several that train one model together.

There are several under `torchrun --nproc-per-node N`, or where `devices` is N, when the command starts N - 1 more of
itself. What they do together is written with the functions here; each does nothing but its work where there is one
process.
"""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from lightning_fabric.strategies import DDPStrategy
from torch import nn

from regio.devices import pick_device
from regio.errors import ProcessFailed

if TYPE_CHECKING:
    from regio.config import Precision

__all__ = ["any_process", "entered_by_first", "gather", "launch", "processors", "share_buffers", "together"]

PATIENCE = timedelta(days=30)
"""How long processes wait for each other: for what the first one does alone, such as proposals of all images or the
support vector machines of R-CNN, that may take days. Where a process ends, its connections do, and so do the others."""

T = TypeVar("T")


class _Mixed(MixedPrecision):
    """Mixed precision that leaves the arguments of a model as they are: boxes would be rounded to whole pixels."""

    def convert_input(self, data: T) -> T:
        return data


def launch(device: str = "auto", devices: int = 1, precision: Precision = "32-true") -> Fabric:
    """Start, or join, the processes of a training.

    device: as for `pick_device`. devices: processes on this machine, each with a device of that kind. Under `torchrun`
    their number and that of machines are torchrun's, and `devices` is 1 or the same. precision: of what is done within
    `Fabric.autocast`.

    Raises ValueError for a device that is not there, and for numbers that contradict each other.
    """
    place = pick_device(device)
    nodes = 1
    if torch.distributed.is_available() and torch.distributed.is_torchelastic_launched():
        here, everywhere = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        if devices not in (1, here):
            raise ValueError(f"devices: expected {here}, the processes that torchrun started here, got {devices}")
        devices, nodes = here, everywhere // here
    if devices < 1:
        raise ValueError(f"devices: expected at least 1, got {devices}")
    present = {"cpu": devices, "cuda": torch.cuda.device_count(), "mps": 1}[place.type]
    if devices > present:
        raise ValueError(f"devices: expected at most {present}, those of kind {place.type} here, got {devices}")
    if devices > 1 and place.type == "cuda" and place.index is not None and device != "auto":
        raise ValueError(f"device: expected cuda, of which {devices} are used, got {device}")
    chosen = [place.index or 0] if place.type == "cuda" and devices == 1 else devices
    # Heads and levels that no box of a batch reaches have no gradient in it; normalisation's buffers are shared when
    # they are used, see `share_buffers`, so that no process waits for another in a forward pass.
    alone = devices * nodes == 1
    strategy: Any = "auto"
    if not alone:
        strategy = DDPStrategy(find_unused_parameters=True, broadcast_buffers=False, timeout=PATIENCE)
    mixed: list[Any] = [] if precision == "32-true" else [_Mixed(precision, place.type)]
    fabric = Fabric(accelerator=place.type, strategy=strategy, devices=chosen, num_nodes=nodes, plugins=mixed)
    fabric.launch()
    if not alone:
        atexit.register(_leave)  # before Fabric's own, which was registered earlier
    return fabric


def _leave() -> None:
    """Leave the group at the end of the process, when nothing refers to it any more: with a wrapped module still alive,
    in a cycle, one process in four was aborted by a thread of the group after Python had ended."""
    gc.collect()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def any_process(fabric: Fabric, flag: bool) -> bool:
    """Whether `flag` is True in one process at least: the same answer in all."""
    if fabric.world_size == 1:
        return flag
    total = torch.tensor(float(flag), device=fabric.device)
    torch.distributed.all_reduce(total)
    return bool(total > 0)


@contextmanager
def together(fabric: Fabric) -> Iterator[None]:
    """Within, an error in one process ends the others too, at the end of the block, instead of leaving them waiting.

    The error is raised again in the first of the processes that have one; in all others ProcessFailed is.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        if fabric.world_size == 1:
            raise
        failure = error
    if any_process(fabric, failure is not None):
        failed = [rank for rank, each in enumerate(gather(fabric, failure is not None)) if each]
        if failure is not None and fabric.global_rank == failed[0]:
            raise failure
        raise ProcessFailed(f"process {failed[0]} of {fabric.world_size} failed; its own error is there")


def gather(fabric: Fabric, value: T) -> list[T]:
    """The values of all processes, in their order, in all processes. They are pickled."""
    if fabric.world_size == 1:
        return [value]
    values: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(values, value)
    return values


@contextmanager
def entered_by_first(fabric: Fabric, context: AbstractContextManager[T]) -> Iterator[T]:
    """Enter `context` in the first process alone; all get its value, or end with `together` where it fails."""
    with ExitStack() as stack:
        value: Any = None
        with together(fabric):
            if fabric.is_global_zero:
                value = stack.enter_context(context)
        yield fabric.broadcast(value)


def processors() -> int:
    """How many of this machine this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_buffers(fabric: Fabric, module: nn.Module) -> None:
    """Give all processes the buffers of the first one's `module`, for instance what batch norm has learned."""
    if fabric.world_size > 1:
        for buffer in module.buffers():
            torch.distributed.broadcast(buffer, 0)
