"""What the commands share: where results go, which checkpoint, which device, and how errors of workers read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

__all__ = ["latest_checkpoint", "new_folder", "pick_device", "without_worker_tracebacks"]


def new_folder(project: Path, name: str | None, default: str) -> Path:
    """The folder of a new run: `project/name`, which must not hold a run yet; without a name, the first free one of
    `default`, `default-2`, ... Raises ValueError where the named one is taken."""
    if name is not None:
        folder = project / name
        if _holds_a_run(folder):
            raise ValueError(f"{folder}: there is a run of this name; give --resume to go on, or another --name")
        return folder
    number, folder = 1, project / default
    while _holds_a_run(folder):
        number += 1
        folder = project / f"{default}-{number}"
    return folder


def _holds_a_run(folder: Path) -> bool:
    """Whether `folder` has anything but what a training leaves that ended before its first save."""
    return folder.exists() and any(
        path.name not in ("config.yaml", "metrics.csv") and not path.name.startswith("events.")
        for path in folder.iterdir()
    )


def latest_checkpoint(project: Path) -> Path:
    """The newest `weights/best.safetensors` of the runs in `project`. Raises ValueError where there is none."""
    found = sorted(project.glob("*/weights/best.safetensors"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise ValueError(f"--weights: no run in {project} has a checkpoint; name one, or train first (regio train)")
    return found[-1]


def pick_device(name: str) -> torch.device:
    """The device called `name`; "auto" is the accelerator where there is one.

    Raises ValueError for an unknown name, and for a device that this machine or this PyTorch does not have.
    """
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device: expected cpu, cuda, cuda:1, mps or auto, got '{name}'") from error
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0].partition(". ")[0]
        raise ValueError(f"--device: {name} cannot be used here: {reason}") from error
    return device


@contextmanager
def without_worker_tracebacks() -> Iterator[None]:
    """Within, an error of a process that reads images has its own message alone.

    PyTorch raises such an error again with the traceback of the process as the text of its message, of which the last
    line is the message that was meant.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        text = str(error).strip()
        if not text.startswith(f"Caught {type(error).__name__} in DataLoader worker"):
            raise
        raise type(error)(text.splitlines()[-1].removeprefix(f"{type(error).__name__}: ")) from error
