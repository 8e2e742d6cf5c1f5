"""`regio analyse`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from regio.data import DetectionDataset
    from regio.detector import TwoStageDetector
    from regio.weights.named import Trained

__all__ = ["analyse"]


def analyse(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of runs that were trained with keep_every, or checkpoints alone.")
    ],
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
    """Measure and draw what extractors and deformable layers learn to read, over the steps of a training.

    Train with keep_every=N, which keeps checkpoints, then give one run or several, which are measured on the same
    objects by the same measure, whatever their extractors. A checkpoint alone is measured as it is.

    Of extractors writes divergence.csv and divergence.png (how far the weights of a region's parts are from each other,
    and from the object's mask, by the size of the object), and for each run weights-RUN.png (the weights before and
    after training, over photos).

    Of deformable convolutions and deformable pooling writes dilation.csv (the effective dilation of filters on small,
    medium and large objects and on the background), offsets.csv and offsets.png (the lengths of offsets), and
    without-offsets.csv (what the trained detector finds with its offsets, and with none); of deformable convolutions
    also points-RUN.png (where the last three of them read, one on the other).
    """
    from regio.analysis import (
        deformable_backbone,
        divergence_over_training,
        divergence_rows,
        has_measurable_weights,
        has_offsets,
        measured_images,
        offsets_over_training,
        write_dilation,
        write_divergences,
        write_offset_lengths,
        write_without_offsets,
    )
    from regio.checkpoints import kept_checkpoints
    from regio.cli.offset_tables import dilation_table, length_table, without_offsets_table
    from regio.devices import pick_device
    from regio.run_folders import new_folder
    from regio.visualize import divergence_figure, offset_length_figure
    from regio.visualize.before_and_after import initial_and_final_figure, objects_named, typical_objects
    from regio.visualize.sampling_points import typical_photos
    from regio.weights import load_trained

    console = Console(soft_wrap=True)
    place = pick_device(device)
    named = _names(runs)
    alone = None if parts is None else _part_numbers(parts)
    kept = {name: kept_checkpoints(folder) for name, folder in named.items()}
    first = next(iter(kept.values()))
    photos, called = _photos(runs[0], first[min(first)], data, split, console)
    measured = measured_images(photos, images)
    drawn = typical_objects(measured) if objects is None else objects_named(photos, objects.split(","))
    of = measured if objects is None else photos
    seen = typical_photos(measured) if objects is None else list(dict.fromkeys(image for image, _ in drawn))
    console.print(f"{len(measured)} photos with {sum(map(len, measured.records))} objects", highlight=False)
    for name, folder in named.items():
        _require_measurable(folder, load_trained(kept[name][max(kept[name])]), measured)
    divergences, offsets, worth, figures = {}, {}, {}, {}
    for name, folder in named.items():
        console.print(f"{name}: steps {', '.join(map(str, kept[name]))}", highlight=False, markup=False)
        trained = load_trained(kept[name][max(kept[name])])
        trained.detector.to(place)
        if has_measurable_weights(trained.detector):
            figures[f"weights-{name}.png"] = initial_and_final_figure(
                folder, of, objects=drawn, parts=alone, device=place
            )
            divergences[name] = divergence_over_training(folder, measured, device=place)
        if has_offsets(trained.detector):
            offsets[name] = offsets_over_training(folder, measured, device=place)
            boxed = _with_boxes(trained, kept[name][max(kept[name])], measured, called, console)
            known = trained.shared(boxed)
            if len(known.class_names) < len(boxed.class_names):
                console.print(f"{name}: {known.notes[-1]}", highlight=False, markup=False)
            worth[name] = _without_offsets(trained, known)
        if deformable_backbone(trained.detector):
            figures[f"points-{name}.png"] = _points(trained.detector, of, seen, name)
    into = new_folder(Path("runs"), "analyse") if output is None else output
    into.mkdir(parents=True, exist_ok=True)
    tables = []
    if divergences:
        if divergence_rows(divergences):
            figures["divergence.png"] = divergence_figure(divergences)
        write_divergences(into / "divergence.csv", divergences)
        tables.append("divergence.csv")
    if offsets:
        figures["offsets.png"] = offset_length_figure(offsets)
        write_offset_lengths(into / "offsets.csv", offsets)
        tables.append("offsets.csv")
        console.print(length_table(offsets))
    if any(found.dilation for steps in offsets.values() for found in steps.values()):
        write_dilation(into / "dilation.csv", offsets)
        tables.append("dilation.csv")
        console.print(dilation_table(offsets))
    if worth:
        write_without_offsets(into / "without-offsets.csv", worth)
        tables.append("without-offsets.csv")
        console.print(without_offsets_table(worth, len(measured)))
    for name, figure in figures.items():
        figure.savefig(into / name, dpi=dpi)
    console.print(f"{', '.join([*tables, *figures])} in {into}", highlight=False, markup=False)


def _require_measurable(folder: Path, trained: Trained, dataset: DetectionDataset) -> None:
    """Raises ValueError, naming the run, for a detector without what is measured here, and for one with deformable
    layers that knows no class of `dataset`: what it finds with and without offsets is measured too."""
    from regio.analysis import MOST_PARTS, has_measurable_weights, has_offsets

    if has_offsets(trained.detector):
        try:
            trained.shared(dataset)
        except ValueError as error:
            raise ValueError(f"{folder}, which knows no class of the photos: {error}") from error
    elif not has_measurable_weights(trained.detector):
        raise ValueError(
            f"{folder}: expected deformable layers, or an extractor of up to {MOST_PARTS} parts, got neither"
        )


def _with_boxes(
    trained: Trained, weights: Path, dataset: DetectionDataset, name: str, console: Console
) -> DetectionDataset:
    """`dataset`, called `name`, with the boxes that the detector needs with its images, if it needs any: found by the
    method of its training. Raises ValueError where that cannot be found again."""
    from regio.given_proposals import source_for

    if not trained.system.needs_proposals:
        return dataset
    return source_for(weights, trained.proposals).attached(dataset, name, Path("runs"), console)


def _without_offsets(trained: Trained, dataset: DetectionDataset) -> dict[str, dict[str, float]]:
    """What the system's evaluator measures of the detector with and without offsets, by variant. dataset: of classes
    that the detector knows."""
    from regio.analysis import offset_variants
    from regio.evaluate import evaluate

    evaluator = trained.system.evaluator(dataset)
    device = next(trained.detector.parameters()).device
    return {
        variant: evaluate(trained.predict(dataset.class_names, detector.eval()), evaluator, device=device).numbers
        for variant, detector in offset_variants(trained.detector).items()
    }


def _points(detector: TwoStageDetector, dataset: DetectionDataset, photos: Sequence[int], name: str) -> Figure:
    """Where stacked deformable layers read on the annotated objects of some photos of `dataset`."""
    import torch

    from regio.visualize.sampling_points import points_on_objects, sampling_points_figure

    found = []
    for index in photos:
        record = dataset.records[index]
        boxes, area = (torch.from_numpy(each[~record.crowd]).float() for each in (record.boxes, record.area))
        found.append(points_on_objects(detector, dataset.read_image(index), record.name, boxes, area))
    return sampling_points_figure(found, f"Where {found[0].layers} read, one on the other", name)


def _names(runs: Sequence[Path]) -> dict[str, Path]:
    """Folders and files by what tells them apart: their own names, or the paths below the folder that they share."""
    paths = [folder.resolve() for folder in runs]
    shared = Path(os.path.commonpath([path.parent for path in paths]))
    names = (path.with_suffix("") if path.is_file() else path for path in paths)
    named = {"-".join(name.relative_to(shared).parts): folder for name, folder in zip(names, runs, strict=True)}
    if len(named) < len(runs):
        raise ValueError(f"RUNS: expected folders of different names, got {', '.join(map(str, runs))}")
    return named


def _photos(
    folder: Path, checkpoint: Path, data: str | None, split: str | None, console: Console
) -> tuple[DetectionDataset, str]:
    """The images of `data`, with the classes that `checkpoint` knows, or those that its run was evaluated on; and what
    they are called in the name of a file."""
    from regio.checkpoints import read_card
    from regio.config import read_config
    from regio.data import open_dataset
    from regio.given_proposals import data_name
    from regio.run import open_data, print_problems

    if data is None:
        if split is not None:
            raise ValueError("--split: expected --data, of which it is a part")
        run = folder.parent.parent if folder.is_file() else folder
        if run != folder and not (run / "config.yaml").is_file():
            raise ValueError(f"--data: expected a data set, as {folder} is not in the folder of a run")
        config = read_config(run / "config.yaml")
        return open_data(config, console)[1], data_name(config.validation or config.data, "val")
    split = split or ("all" if Path(data).suffix.lower() == ".json" else "val")
    dataset = open_dataset(data, split)
    known = read_card(checkpoint).class_names
    shared = [name for name in known if name in dataset.class_names]
    if not shared:
        raise ValueError(f"{data}: expected classes among those of {folder}, {', '.join(known[:8])}, got none of them")
    dataset = dataset.keep_classes(shared)
    print_problems([dataset], console)
    return dataset, data_name(data, split)


def _part_numbers(text: str) -> list[int]:
    """Counted from 0."""
    try:
        return [int(number) - 1 for number in text.split(",")]
    except ValueError:
        raise ValueError(f"--parts: expected whole numbers with commas between them, got '{text}'") from None
