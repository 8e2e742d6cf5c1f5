"""`regio config`."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from regio.config import EXTRACTORS, OPTIMIZERS, SCHEDULES, SYSTEMS, RunConfig, read_config
from regio.settings import Setting, as_dict, override, settings_of

__all__ = ["config"]


def config(
    settings: Annotated[
        list[str] | None, typer.Argument(help="Settings as regio train takes them, as key=value.")
    ] = None,
    *,
    model: Annotated[str | None, typer.Option(help=f"{', '.join(SYSTEMS)}.")] = None,
    extractor: Annotated[str | None, typer.Option(help=f"{', '.join(EXTRACTORS)}.")] = None,
    optimizer: Annotated[str | None, typer.Option(help=f"{', '.join(OPTIMIZERS)}.")] = None,
    schedule: Annotated[str | None, typer.Option(help=f"{', '.join(SCHEDULES)}.")] = None,
    file: Annotated[Path | None, typer.Option("--config", help="YAML file of settings to begin with.")] = None,
    as_file: Annotated[bool, typer.Option("--yaml", help="Print a file for regio train --config instead.")] = False,
) -> None:
    """Print every setting of a training: its value, its type and what it means.

    In regio train, a setting is given as key=value; the groups before the key may be left out where that leaves no
    doubt: channels=64 is model.channels=64.
    """
    given = {"model": model, "extractor": extractor, "optimizer": optimizer, "schedule": schedule}
    words = [f"{key}={value}" for key, value in given.items() if value is not None]
    chosen = override(RunConfig() if file is None else read_config(file), words + (settings or []))
    if as_file:
        from regio.yaml_text import as_yaml

        print(as_yaml(as_dict(chosen)), end="")
        return
    console = Console(soft_wrap=not Console().is_terminal)
    for group, members in groupby(_in_groups(settings_of(chosen)), key=lambda each: each.path[:-1]):
        console.print(f"\n[bold]{'.'.join(group) or 'the run'}[/]", highlight=False)
        table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2))
        for each in members:
            meaning = f"{each.meaning}; [dim]{escape(each.kind)}[/]"
            table.add_row(f"  {each.path[-1]}", escape(_written(each.value)), meaning)
        console.print(table)


def _in_groups(settings: Iterable[Setting]) -> list[Setting]:
    """Each group's own settings before those of its parts."""
    every = list(settings)
    groups = list(dict.fromkeys(each.path[:-1] for each in every))
    return [each for group in groups for each in every if each.path[:-1] == group]


def _written(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple):
        return f"[{', '.join(map(_written, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)
