"""`regio convert`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

__all__ = ["convert"]


class Format(StrEnum):
    """The formats there are writers of."""

    YOLO = "yolo"
    COCO = "coco"
    VOC = "voc"


def convert(
    source: Annotated[str, typer.Argument(help="Data set: a folder, a COCO JSON file, a YOLO data.yaml, or 'shapes'.")],
    target: Annotated[Path, typer.Argument(help="Folder to write; new or empty.")],
    *,
    to: Annotated[Format, typer.Option(help="Format to write.")],
    link: Annotated[bool, typer.Option("--link", help="Link images by their paths instead of copying them.")] = False,
) -> None:
    """Write a data set in another format, and print what that format cannot hold.

    Writes the splits train, val and test; a data set without splits is divided as regio train does.
    """
    from regio.data.convert import convert as convert_dataset
    from regio.data.convert import write_coco, write_voc, write_yolo

    writers = {Format.YOLO: write_yolo, Format.COCO: write_coco, Format.VOC: write_voc}
    console = Console(soft_wrap=True)
    result = convert_dataset(source, target, writers[to], link=link)
    for note in result.notes:
        console.print(note, style="dim", highlight=False, markup=False)
    for problem in result.problems:
        console.print(f"[yellow]note:[/] {escape(str(problem))}", highlight=False)
    for what, count in result.losses.items():
        console.print(f"[yellow]lost:[/] {count} {escape(what)}", highlight=False)
    for split, images in result.images.items():
        console.print(f"{split}: {images} images, {result.objects[split]} objects read", highlight=False)
    console.print(f"Written to [bold]{escape(str(target))}[/]", highlight=False)
