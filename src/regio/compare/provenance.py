"""With what a comparison was made: versions, commit, machine."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import torch

import regio

__all__ = ["provenance"]


def provenance() -> dict[str, str]:
    """The version of regio, with its commit where it runs from its repository, those of PyTorch and Python, and the
    machine."""
    commit = _commit(Path(regio.__file__).resolve().parent)
    about = {
        "regio": regio.__version__ + (f", commit {commit}" if commit else ""),
        "PyTorch": torch.__version__,
        "Python": platform.python_version(),
        "system": platform.platform(terse=True),
        "processor": f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
    }
    if torch.cuda.is_available():
        about["GPU"] = torch.cuda.get_device_name()
    return about


def _commit(package: Path) -> str | None:
    """The commit of the repository whose src/regio is `package`; None where there is none. An installed package may lie
    in the repository of something else, whose commit would say nothing."""
    try:
        top, commit = (
            subprocess.run(
                ["git", "-C", str(package), *words], capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
            for words in (["rev-parse", "--show-toplevel"], ["describe", "--always", "--dirty", "--exclude=*"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit if package == Path(top).resolve() / "src" / "regio" else None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
