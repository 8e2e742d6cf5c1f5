"""`regio doctor`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

if TYPE_CHECKING:
    from regio.data.doctor import Examination

__all__ = ["doctor"]

SHOWN = 5  # of what need not be mended


def doctor(
    data: Annotated[str, typer.Argument(help="Folder of a COCO, Pascal VOC or YOLO data set, or its JSON or YAML.")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON, and nothing else.")] = False,
) -> None:
    """Examine a data set: name every bad file and annotation, and what to do about it.

    Decodes every image. The exit code is 1 where something must be mended.
    """
    from regio.data.doctor import examine

    console = Console(stderr=as_json, soft_wrap=True)
    with Progress(console=console, disable=not console.is_terminal) as bars:
        task = bars.add_task("read images", total=None)
        result = examine(data, progress=lambda done, images: bars.update(task, completed=done, total=images))
    if as_json:
        print(json.dumps(result.to_json()))
    else:
        _show(result, console)
    if not result.sound:
        raise typer.Exit(1)


def _show(result: Examination, console: Console) -> None:
    if result.note:
        console.print(result.note, style="dim", highlight=False, markup=False)
    for check in sorted({each.check for each in result.findings}, key=lambda check: (check.is_fault, check.name)):
        found = result.of(check)
        colour = "red" if check.is_fault else "yellow"
        console.print(f"[{colour}]{check.name}[/], {len(found)}: {check.advice}", highlight=False)
        shown = found if check.is_fault else found[:SHOWN]
        for each in shown:
            console.print(f"  {each.split}: {each}", highlight=False, markup=False)
        if len(shown) < len(found):
            console.print(f"  and {len(found) - len(shown)} more; --json lists all", style="dim", highlight=False)
    table = Table(title=f"{escape(result.path)}, {result.format}", title_justify="left")
    table.add_column("split")
    for heading in ("images", "without objects", "objects", "crowds", "difficult", "classes"):
        table.add_column(heading, justify="right")
    for name, split in result.splits.items():
        numbers = (split.images, split.empty, split.objects, split.crowds, split.difficult, len(split.per_class))
        table.add_row(escape(name), *map(str, numbers))
    console.print(table)
    table = Table(title="objects by class", title_justify="left")
    table.add_column("class")
    for name in result.splits:
        table.add_column(escape(name), justify="right")
    classes = dict.fromkeys(label for split in result.splits.values() for label in split.per_class)
    for label in classes:
        table.add_row(escape(label), *(str(split.per_class.get(label, "-")) for split in result.splits.values()))
    console.print(table)
    faults = sum(each.check.is_fault for each in result.findings)
    console.print(
        "[green]sound:[/] nothing must be mended" if result.sound else f"[red]to be mended:[/] {faults}",
        highlight=False,
    )
