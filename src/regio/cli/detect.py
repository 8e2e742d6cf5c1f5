"""`regio detect`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from regio.cli.augmentation import BoxVoting, Flip, Rounds, Scales, augmented

__all__ = ["detect"]


def detect(
    inputs: Annotated[list[str], typer.Argument(help="Photos: files, folders (with all below them) and globs.")],
    *,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Checkpoint (default: the newest best.safetensors), or torchvision:NAME, detectron2:NAME such as "
            "torchvision:maskrcnn_resnet50_fpn_v2; NAME=FILE where its weights lie in a file."
        ),
    ] = None,
    proposals: Annotated[
        str | None,
        typer.Option(
            help="What finds boxes for a detector that finds none itself (default: the method of its training): "
            "selective-search, selective-search:quality, grid, or a checkpoint with a proposal network."
        ),
    ] = None,
    score: Annotated[
        float | None,
        typer.Option(
            help="Lowest score of a detection, drawn or listed (default: 0.5; -0.5 for R-CNN and SPPnet, whose scores "
            "are margins)."
        ),
    ] = None,
    scales: Scales = None,
    flip: Flip = False,
    rounds: Rounds = 1,
    box_voting: BoxVoting = False,
    pictures: Annotated[bool, typer.Option(help="Write annotated pictures.")] = True,
    precision: Annotated[
        str | None, typer.Option(help="32-true or bf16-mixed (default: bf16-mixed where the device is fast in it).")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at once, of those that have one size.")] = 4,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps or auto.")] = "auto",
    output: Annotated[
        Path | None, typer.Option(help="Folder of the results (default: a new one in --project).")
    ] = None,
    project: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the detections as JSON, and nothing else.")] = False,
) -> None:
    """Detect objects in photos: annotated pictures, and detections.json with boxes in pixels; or class maps.

    A segmentation network leaves pictures, class_maps/ with a PNG file of the class of every pixel, and
    segmentation.json with the share of each class.

    An image that cannot be read is passed over, named at the end, and makes the exit code 1.
    """
    from regio.devices import pick_device
    from regio.given_proposals import source_for
    from regio.inference import find_images, find_in_files
    from regio.ready import inference_precision
    from regio.run_folders import latest_checkpoint, new_folder
    from regio.weights import load_trained, system_of

    console = Console(stderr=as_json, soft_wrap=True)
    files = find_images(inputs)
    path = weights or latest_checkpoint(project)
    place = pick_device(device)
    chosen = inference_precision(place, precision)
    lowest = system_of(path).shown_score if score is None else score
    # Boxes below what is shown take part where boxes vote or are looked at again, as they do in regio val.
    looks_again = box_voting or (rounds or 1) > 1
    trained = load_trained(path, score_threshold=None if looks_again else lowest)
    own = getattr(trained.system, "score_threshold", None)
    if looks_again and lowest is not None and own is not None and lowest < own:
        trained = load_trained(path, score_threshold=lowest)
    if proposals is not None and not trained.system.needs_proposals:
        raise ValueError(f"--proposals: {path} finds its own boxes")
    source = source_for(path, trained.proposals, proposals) if trained.system.needs_proposals else None
    if source is not None and isinstance(source.origin, Path):
        raise ValueError(f"--proposals: expected what finds boxes in any photo, got the file {source.origin}")
    model = augmented(trained.model, scales, flip, rounds, box_voting)
    network, kept = trained.system.ready(model, place, chosen), trained.system.output(trained.labels, lowest)
    folder = new_folder(project, "detect") if output is None else output
    console.print(
        f"{path}, {_count(len(trained.labels), 'label')}, on {place} in {chosen}, {_count(len(files), 'image')}",
        highlight=False,
        markup=False,
    )
    with Progress(console=console, disable=not console.is_terminal) as bars:
        task = bars.add_task("detect", total=len(files))
        result = find_in_files(
            network,
            files,
            kept,
            folder,
            pictures=pictures,
            batch_size=batch_size,
            proposals=None if source is None else source.boxes,
            progress=lambda done: bars.update(task, completed=done),
        )
    if as_json:
        print(json.dumps(result.found))
    speed = len(result.found) / result.seconds if result.seconds > 0 else 0.0
    places = ", ".join([*(f"{place}/" for place in kept.folders(pictures)), kept.listing])
    console.print(
        f"{kept.summary(result.found)} in {_count(len(result.found), 'image')}, "
        f"{speed:.1f} images/s; in [bold]{escape(str(folder))}[/]: {places}",
        highlight=False,
    )
    hint = kept.hint(result.found)
    if hint is not None:
        console.print(hint, style="dim", highlight=False)
    if result.unreadable:
        console.print(f"[red]{_count(len(result.unreadable), 'image')} could not be read:[/]", highlight=False)
        for line in result.unreadable:
            printable = line.encode(errors="backslashreplace").decode()  # names of files are bytes
            console.print(f"  {printable}", highlight=False, markup=False)
        raise typer.Exit(1)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
