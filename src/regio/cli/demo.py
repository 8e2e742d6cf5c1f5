"""`regio demo`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from regio.config import RunConfig, read_config
from regio.settings import override

__all__ = ["CONFIG", "demo"]

CONFIG = override(
    RunConfig("shapes"),
    [
        *("short_side=160", "long_side=240", "channels=64", "hidden=256", "anchor_sizes=[16, 32, 64, 128]"),
        *("steps=600", "batch_size=8", "optimizer.lr=1e-3", "evaluate_every=4", "regions_per_image=64"),
    ],
)
"""The run of the demo: a few minutes on two cores."""


def demo(
    project: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs"),
    steps: Annotated[
        int | None, typer.Option(min=1, help=f"Optimizer steps (default: {CONFIG.training.steps}).")
    ] = None,
) -> None:
    """Train a Faster R-CNN on generated scenes, evaluate it on scenes it has not seen, and draw what it finds.

    Needs no data and no download. Replaces the results of an earlier demo in the folder demo of --project, and nothing
    else.
    """
    from regio.run import run
    from regio.run_folders import emptied

    console = Console(soft_wrap=True)
    began = time.perf_counter()
    folder = project / "demo"
    if folder.is_dir() and any(folder.iterdir()) and not _is_a_demo(folder):
        raise ValueError(f"{folder}: expected an earlier demo or no such folder, got something else; give --project")
    config = CONFIG if steps is None else override(CONFIG, [f"steps={steps}"])
    run(config, emptied(folder), console)
    console.print(f"The demo took {time.perf_counter() - began:.0f} s. Open {folder / 'report.html'}", highlight=False)


def _is_a_demo(folder: Path) -> bool:
    """Whether `folder` is that of a demo, or of one that ended as it began."""
    from regio.run_folders import LOCK

    if not (folder / "config.yaml").is_file():
        return all(path.name == LOCK for path in folder.iterdir())
    try:
        config = read_config(folder / "config.yaml")
    except ValueError:  # of another version
        return False
    return (config.data, config.model) == (CONFIG.data, CONFIG.model)
