"""`regio analyse`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from regio.data import DetectionDataset

__all__ = ["analyse"]


def analyse(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs that were trained with keep_every.")],
    *,
    data: Annotated[
        str | None,
        typer.Option(help="Data set of the photos, with masks to measure these too (default: the first run's)."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Which images of --data (default: val, but all of a JSON file).")
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Photos that are measured at most.")] = 40,
    objects: Annotated[
        str | None,
        typer.Option(
            help="Those that are drawn: names of photos with commas between them, for the largest object of each, or "
            "NAME:N for its N-th (default: one of each size)."
        ),
    ] = None,
    parts: Annotated[
        str | None,
        typer.Option(help="Parts that are drawn alone: their numbers row by row, from 1, with commas (default: two)."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of what is made (default: a new one in runs/).")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps or auto.")] = "auto",
    dpi: Annotated[int, typer.Option(min=30, max=600, help="Pixels per inch of the pictures.")] = 150,
) -> None:
    """Measure and draw what the extractors of runs have learned to read, over the steps of their trainings.

    Train with keep_every=N, which keeps checkpoints, then give one run or several, which are measured on the same
    objects by the same measure, whatever their extractors.

    Writes divergence.csv and divergence.png (how far the weights of a region's parts are from each other, and from the
    object's mask, by the size of the object), and for each run weights-RUN.png (the weights before and after training,
    over photos).
    """
    from regio.analysis import divergence_over_training, measured_images, write_divergences
    from regio.checkpoints import kept_checkpoints
    from regio.devices import pick_device
    from regio.run_folders import new_folder
    from regio.visualize import divergence_figure
    from regio.visualize.before_and_after import initial_and_final_figure, objects_named, typical_objects

    console = Console(soft_wrap=True)
    place = pick_device(device)
    named = _names(runs)
    alone = None if parts is None else _part_numbers(parts)
    kept = {name: kept_checkpoints(folder) for name, folder in named.items()}
    first = next(iter(kept.values()))
    photos = _photos(runs[0], first[min(first)], data, split, console)
    measured = measured_images(photos, images)
    drawn = typical_objects(measured) if objects is None else objects_named(photos, objects.split(","))
    console.print(f"{len(measured)} photos with {sum(map(len, measured.records))} objects", highlight=False)
    series, figures = {}, {}
    for name, folder in named.items():
        console.print(f"{name}: steps {', '.join(map(str, kept[name]))}", highlight=False, markup=False)
        of = measured if objects is None else photos
        figures[f"weights-{name}.png"] = initial_and_final_figure(folder, of, objects=drawn, parts=alone, device=place)
        series[name] = divergence_over_training(folder, measured, device=place)
    figures["divergence.png"] = divergence_figure(series)
    into = new_folder(Path("runs"), "analyse") if output is None else output
    into.mkdir(parents=True, exist_ok=True)
    write_divergences(into / "divergence.csv", series)
    for name, figure in figures.items():
        figure.savefig(into / name, dpi=dpi)
    console.print(f"divergence.csv, {', '.join(figures)} in {into}", highlight=False)


def _names(runs: Sequence[Path]) -> dict[str, Path]:
    """The folders by what tells them apart: their own names, or the paths below the folder that they share."""
    paths = [folder.resolve() for folder in runs]
    shared = Path(os.path.commonpath([path.parent for path in paths]))
    named = {"-".join(path.relative_to(shared).parts): folder for path, folder in zip(paths, runs, strict=True)}
    if len(named) < len(runs):
        raise ValueError(f"RUNS: expected folders of different names, got {', '.join(map(str, runs))}")
    return named


def _photos(folder: Path, checkpoint: Path, data: str | None, split: str | None, console: Console) -> DetectionDataset:
    """The images of `data`, with the classes that `checkpoint` knows, or those that its run was evaluated on."""
    from regio.checkpoints import read_card
    from regio.config import read_config
    from regio.data import open_dataset
    from regio.run import open_data, print_problems

    if data is None:
        if split is not None:
            raise ValueError("--split: expected --data, of which it is a part")
        return open_data(read_config(folder / "config.yaml"), console)[1]
    dataset = open_dataset(data, split or ("all" if Path(data).suffix.lower() == ".json" else "val"))
    known = read_card(checkpoint).class_names
    shared = [name for name in known if name in dataset.class_names]
    if not shared:
        raise ValueError(f"{data}: expected classes among those of {folder}, {', '.join(known[:8])}, got none of them")
    dataset = dataset.keep_classes(shared)
    print_problems([dataset], console)
    return dataset


def _part_numbers(text: str) -> list[int]:
    """Counted from 0."""
    try:
        return [int(number) - 1 for number in text.split(",")]
    except ValueError:
        raise ValueError(f"--parts: expected whole numbers with commas between them, got '{text}'") from None
