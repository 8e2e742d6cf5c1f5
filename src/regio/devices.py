"""Devices by the names that a person gives them."""

from __future__ import annotations

import torch

__all__ = ["pick_device"]

KINDS = ("cpu", "cuda", "mps")


def pick_device(name: str) -> torch.device:
    """The device called `name`: cpu, cuda, cuda:1, mps; "auto" is CUDA or MPS where the machine has one, else the CPU.

    Raises ValueError for any other name, and for a device that this machine or this PyTorch does not have.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        return found if found is not None and found.type in KINDS else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in KINDS:
        raise ValueError(f"device: expected cpu, cuda, cuda:1, mps or auto, got '{name}'")
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0].partition(". ")[0]
        raise ValueError(f"device: {name} cannot be used here: {reason}") from error
    return device
