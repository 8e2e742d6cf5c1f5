"""The commands put together, and what happens to their errors.

A command's module is imported when the command runs or its own help is asked for: PyTorch alone takes longer to import
than `regio --help` should take.
"""

from __future__ import annotations

import os
import sys
import warnings
from importlib import import_module
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from regio import __version__
from regio.errors import Interrupted, ProcessFailed

__all__ = ["COMMANDS", "app", "main"]

COMMANDS = {
    "demo": "Train a Faster R-CNN on generated scenes, evaluate it on scenes it has not seen, and draw what it finds.",
    "doctor": "Examine a data set: name every bad file and annotation, and what to do about it.",
    "convert": "Write a data set in another format, and print what that cannot hold; or a checkpoint made smaller.",
    "train": "Train a detector, evaluate it, and leave checkpoints, metrics, plots and pictures in a folder.",
    "compare": "Train systems on the same data for the same time, and put them side by side in a report.",
    "config": "Print every setting of a training: its value, its type and what it means.",
    "val": "Evaluate a checkpoint: COCO's and Pascal VOC's AP, recall of proposals, or mean IoU of class maps.",
    "proposals": "Find boxes in all images, for detectors that find none themselves, and measure their recall.",
    "detect": "Detect objects in photos: annotated pictures, and detections.json with boxes in pixels; or class maps.",
    "export": "Write a trained model as one file that other programs run: ONNX, or an exported program of PyTorch.",
    "explain": "Draw which cells of the feature map an extractor reads for a box, and where deformable layers read.",
    "analyse": "Measure and draw what extractors and deformable layers learn to read, over the steps of a training.",
}
"""The first line of each command's help. The command NAME is the function NAME of the module `regio.cli.NAME`."""


class _CommandsAtUse(TyperGroup):
    """Lists the commands without importing them."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command that only has a help text, or None where there is no such command."""
        if cmd_name not in COMMANDS:
            return None
        listed = typer.Typer(add_completion=False)
        listed.command(cmd_name, help=COMMANDS[cmd_name])(lambda: None)
        return typer.main.get_command(listed)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As click's: the name of the command to run, the command, and the words after it."""
        name, _, rest = super().resolve_command(ctx, args)
        return name, _imported(name) if name else None, rest


def _imported(name: str) -> Any:
    """The command, from its module."""
    alone = typer.Typer(add_completion=False, context_settings=_SETTINGS)
    alone.command(name, no_args_is_help=name not in ("demo", "config", "compare"))(
        getattr(import_module(f"regio.cli.{name}"), name)
    )
    return typer.main.get_command(alone)


_SETTINGS = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    name="regio",
    cls=_CommandsAtUse,
    help="Region-based object detection: train, evaluate and use two-stage detectors.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings=_SETTINGS,
)


@app.callback(invoke_without_command=True)
def _options(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line. Bad input ends with one line on standard error and exit code 2.

    The environment variable REGIO_DEBUG keeps the traceback.
    """
    warnings.filterwarnings("ignore", r"Image size \(\d+ pixels\) exceeds limit")  # twice of it is refused
    console = Console(stderr=True, soft_wrap=True)
    try:
        app()
    except Interrupted as stop:
        if all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK")):  # all processes are told to stop
            console.print(f"[yellow]interrupted:[/] {escape(str(stop))}", highlight=False)
        sys.exit(130)
    except ProcessFailed:  # the one that failed prints why
        sys.exit(2)
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        if os.environ.get("REGIO_DEBUG"):
            raise
        console.print(f"[red]error:[/] {escape(str(error))}", highlight=False)
        sys.exit(2)
