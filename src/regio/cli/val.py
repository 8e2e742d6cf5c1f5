"""`regio val`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from regio.cli.augmentation import BoxVoting, Flip, Rounds, Scales, augmented

__all__ = ["val"]


def val(
    data: Annotated[
        str, typer.Argument(help="Folder of a COCO, Pascal VOC or YOLO data set, its JSON or YAML, or 'shapes'.")
    ],
    *,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Checkpoint (default: the newest best.safetensors), or torchvision:NAME, detectron2:NAME; NAME=FILE "
            "where its weights lie in a file."
        ),
    ] = None,
    proposals: Annotated[
        str | None,
        typer.Option(
            help="Boxes for a detector that finds none itself (default: by the method of its training): "
            "selective-search, selective-search:quality, grid, a file of regio proposals, or a checkpoint."
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Which images of DATA (default: val, but all of a JSON file).")
    ] = None,
    scales: Scales = None,
    flip: Flip = False,
    rounds: Rounds = 1,
    box_voting: BoxVoting = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at once.")] = 4,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read images.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps or auto.")] = "auto",
    precision: Annotated[
        str | None, typer.Option(help="32-true or bf16-mixed (default: bf16-mixed where the device is fast in it).")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the results (default: a new one in --project).")
    ] = None,
    project: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the metrics as JSON, and nothing else.")] = False,
) -> None:
    """Evaluate a checkpoint: COCO's and Pascal VOC's AP, recall of proposals, or mean IoU of class maps.

    Classes are matched by name: those of the data that the detector knows are measured.

    Leaves results.json, predictions.json (COCO results; class maps are PNG files in predictions/), plots, pictures and
    report.html in a folder.
    """
    from regio.data import open_dataset
    from regio.data.loading import without_worker_tracebacks
    from regio.devices import pick_device
    from regio.evaluate import evaluate
    from regio.given_proposals import data_name, source_for
    from regio.ready import inference_precision
    from regio.run import print_problems
    from regio.run_folders import latest_checkpoint, new_folder
    from regio.weights import load_trained

    console = Console(stderr=as_json, soft_wrap=True)
    path = weights or latest_checkpoint(project)
    place = pick_device(device)
    chosen = inference_precision(place, precision)
    trained = load_trained(path)
    ready = trained.system.ready(augmented(trained.model, scales, flip, rounds, box_voting), place, chosen)
    split = split or ("all" if Path(data).is_file() and Path(data).suffix.lower() == ".json" else "val")
    dataset = open_dataset(data, split)
    try:
        dataset = trained.shared(dataset)
    except ValueError as error:
        raise ValueError(f"{data}, of which {path} knows no class: {error}") from error
    if trained.system.needs_proposals:
        source = source_for(path, trained.proposals, proposals)
        dataset = source.attached(dataset, data_name(data, split), project, console)
    elif proposals is not None:
        raise ValueError(f"--proposals: {path} finds its own boxes")
    evaluator = trained.system.evaluator(dataset)
    dataset = evaluator.dataset
    print_problems([dataset], console)
    if len(dataset) == 0:
        raise ValueError(f"{data}: no images to evaluate on in {split}")
    if output is not None and (output / "weights").is_dir():
        raise ValueError(f"--output: expected a folder that is not that of a training, got {output}")
    folder = new_folder(project, "val") if output is None else output
    about = f"{path} on {len(dataset)} images of {data}, {split}, {len(dataset.class_names)} classes, in {chosen}"
    console.print(about, highlight=False, markup=False)
    with without_worker_tracebacks(), Progress(console=console, disable=not console.is_terminal) as bars:
        task = bars.add_task("evaluate", total=len(dataset))
        records = evaluate(
            trained.predict(dataset.class_names, ready),
            evaluator,
            batch_size=batch_size,
            workers=workers,
            device=place,
            progress=lambda done, images: bars.update(task, completed=done),
        ).records
    results = trained.system.results(evaluator, records)
    results.show(console)
    results.write(folder, {"weights": str(path), "data": data, "split": split})
    console.print(f"Results are in [bold]{escape(str(folder))}[/]: report.html", highlight=False)
    if as_json:
        print(json.dumps(results.to_json()))
