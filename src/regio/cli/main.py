"""The commands put together, and what happens to their errors."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from regio import __version__
from regio.cli.demo import demo
from regio.cli.detect import detect
from regio.cli.explain import explain
from regio.cli.train import train
from regio.cli.val import val
from regio.processes import ProcessFailed
from regio.train import Interrupted

__all__ = ["app", "main"]

app = typer.Typer(
    name="regio",
    help="Region-based object detection: train, evaluate and use two-stage detectors.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (demo, train, val, detect, explain):
    app.command(no_args_is_help=command is not demo)(command)


@app.callback(invoke_without_command=True)
def _options(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line. Bad input ends with one line on standard error and exit code 2.

    The environment variable REGIO_DEBUG keeps the traceback.
    """
    console = Console(stderr=True, soft_wrap=True)
    try:
        app()
    except Interrupted as stop:
        if all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK")):  # all processes are told to stop
            console.print(f"[yellow]interrupted:[/] {escape(str(stop))}; go on with --resume", highlight=False)
        sys.exit(130)
    except ProcessFailed:  # the one that failed prints why
        sys.exit(2)
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        if os.environ.get("REGIO_DEBUG"):
            raise
        console.print(f"[red]error:[/] {escape(str(error))}", highlight=False)
        sys.exit(2)
