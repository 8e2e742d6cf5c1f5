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
    source: Annotated[
        str,
        typer.Argument(
            help="Data set: a folder, a COCO JSON file, a YOLO data.yaml, or 'shapes'. With --svd, a checkpoint."
        ),
    ],
    target: Annotated[Path, typer.Argument(help="Folder to write, new or empty. With --svd, a new file.")],
    *,
    to: Annotated[Format | None, typer.Option(help="Format to write the data set in.")] = None,
    svd: Annotated[
        str | None,
        typer.Option(
            help="Layers of the checkpoint's box head to make smaller by truncated SVD, and the ranks to keep: "
            "fc6=1024,fc7=256, or as shares fc6=25%.",
            metavar="LAYER=RANK,...",
        ),
    ] = None,
    link: Annotated[bool, typer.Option("--link", help="Link images by their paths instead of copying them.")] = False,
) -> None:
    """Write a data set in another format, and print what that cannot hold; or a checkpoint made smaller.

    A data set: writes the splits train, val and test; one without splits is divided as regio train does. A checkpoint:
    layers fc6 and fc7 become two thin layers each, with the largest singular values of their weights (Fast R-CNN,
    section 3.1); regio val measures what that costs.
    """
    if (to is None) == (svd is None) or (link and to is None):
        raise ValueError("expected --to FORMAT for a data set, with --link or without, or --svd for a checkpoint")
    console = Console(soft_wrap=True)
    if svd is not None:
        _checkpoint(source, target, svd, console)
    elif to is not None:
        _dataset(source, target, to, link, console)
    console.print(f"Written to [bold]{escape(str(target))}[/]", highlight=False)


def _dataset(source: str, target: Path, to: Format, link: bool, console: Console) -> None:
    from regio.data.convert import convert as convert_dataset
    from regio.data.convert import write_coco, write_voc, write_yolo

    writers = {Format.YOLO: write_yolo, Format.COCO: write_coco, Format.VOC: write_voc}
    result = convert_dataset(source, target, writers[to], link=link)
    for note in result.notes:
        console.print(note, style="dim", highlight=False, markup=False)
    for problem in result.problems:
        console.print(f"[yellow]note:[/] {escape(str(problem))}", highlight=False)
    for what, count in result.losses.items():
        console.print(f"[yellow]lost:[/] {count} {escape(what)}", highlight=False)
    for split, images in result.images.items():
        console.print(f"{split}: {images} images, {result.objects[split]} objects read", highlight=False)


def _checkpoint(source: str, target: Path, svd: str, console: Console) -> None:
    from regio.truncated_svd import compress_checkpoint

    for each in compress_checkpoint(source, target, _ranks(svd)):
        before, after = each.weights
        console.print(
            f"{each.name}: rank {each.rank}, {before:,} weights become {after:,}, "
            f"{each.kept:.1%} of the squares of the singular values kept",
            highlight=False,
        )
        if after >= before:
            console.print(f"[yellow]note:[/] {each.name} has become no smaller", highlight=False)


def _ranks(svd: str) -> dict[str, float]:
    ranks = {}
    for part in svd.split(","):
        name, _, text = part.strip().partition("=")
        try:
            rank = float(text.removesuffix("%")) / 100 if text.endswith("%") else int(text)
        except ValueError:
            rank = 0
        if rank <= 0 or (text.endswith("%") and rank >= 1):
            raise ValueError(f"--svd: expected LAYER=RANK, as fc6=1024 or fc6=25%, got '{part.strip()}'")
        ranks[name] = rank
    return ranks
