"""Where the commands put their results: a folder of `runs/` for each run."""

from __future__ import annotations

from pathlib import Path

import torch

__all__ = ["latest_checkpoint", "new_folder", "pick_device"]


def new_folder(project: Path, name: str | None, default: str) -> Path:
    """The folder of a new run: `project/name`, which must not hold a run yet; without a name, the first free one of
    `default`, `default-2`, ... Raises ValueError where the named one is taken."""
    if name is not None:
        folder = project / name
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder}: there is a run of this name; give --resume to go on, or another --name")
        return folder
    number, folder = 1, project / default
    while folder.exists() and any(folder.iterdir()):
        number += 1
        folder = project / f"{default}-{number}"
    return folder


def latest_checkpoint(project: Path) -> Path:
    """The newest `weights/best.safetensors` of the runs in `project`. Raises ValueError where there is none."""
    found = sorted(project.glob("*/weights/best.safetensors"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise ValueError(f"--weights: no run in {project} has a checkpoint; name one, or train first (regio train)")
    return found[-1]


def pick_device(name: str) -> torch.device:
    """The device called `name`; "auto" is the accelerator where there is one. Raises ValueError for an unknown name."""
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device: expected cpu, cuda, cuda:1, mps or auto, got '{name}'") from error
