"""`regio proposals`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape

__all__ = ["proposals"]


def proposals(
    data: Annotated[
        str, typer.Argument(help="Folder of a COCO, Pascal VOC or YOLO data set, its JSON or YAML, or 'shapes'.")
    ],
    *,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="selective-search (default), grid, or a checkpoint with a proposal network; several times to compare."
        ),
    ] = None,
    mode: Annotated[Literal["fast", "quality"], typer.Option(help="Of selective search.")] = "fast",
    out: Annotated[
        Path | None, typer.Option(help="File of the boxes (default: one in --project/proposals, named by its content).")
    ] = None,
    compare: Annotated[
        list[Path] | None, typer.Option(help="File of boxes whose recall is measured too; several times for more.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Which images of DATA (default: val, but all of a JSON file).")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="That search at once (default: as many as there are processors).")
    ] = None,
    device: Annotated[str, typer.Option(help="Of a proposal network: cpu, cuda, cuda:1, mps or auto.")] = "auto",
    plot: Annotated[
        Path | None, typer.Option(help="Picture of recall against the number of boxes (default: beside the boxes).")
    ] = None,
    project: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the recall as JSON, and nothing else.")] = False,
) -> None:
    """Find boxes in all images, for detectors that find none themselves, and measure their recall.

    Boxes that a file has already are not searched for again; a start after a kill goes on where it stopped.
    """
    from regio.config.proposals import method_named
    from regio.data import open_dataset
    from regio.devices import pick_device
    from regio.evaluate import ProposalRecall
    from regio.given_proposals import cache_file, data_name, find, read_for
    from regio.processes import processors
    from regio.proposals import ProposalNetwork
    from regio.run import print_problems
    from regio.run_report import ProposalResults
    from regio.visualize import recall_comparison_figure

    console = Console(stderr=as_json, soft_wrap=True)
    words = method or ([] if compare else ["selective-search"])
    if out is not None and len(words) != 1:
        raise ValueError(f"--out: expected one --method, whose boxes it gets, got {len(words)}")
    if out is not None and out.suffix.lower() != ".safetensors":
        raise ValueError(f"--out: expected a file NAME.safetensors, got {out}")
    split = split or ("all" if Path(data).is_file() and Path(data).suffix.lower() == ".json" else "val")
    dataset = open_dataset(data, split)
    print_problems([dataset], console)
    files: dict[str, Path] = {}
    for word in words:
        chosen = method_named("selective-search:quality" if (word, mode) == ("selective-search", "quality") else word)
        count = processes or processors()
        if isinstance(chosen, ProposalNetwork):
            place = pick_device(device)
            chosen.detector.to(place)
            count = count if place.type == "cpu" else 1
        files[word] = out or cache_file(project, data_name(data, split), chosen, dataset)
        find(dataset, chosen, files[word], console, count)
    files |= {str(path): path for path in compare or []}
    boxes = {word: read_for(file, dataset) for word, file in files.items()}
    if not any(len(record) for record in dataset.records):
        console.print("no object is annotated, so recall is not measured", highlight=False)
        return
    recall = ProposalRecall(dataset, limits=(100, 300, 1000, 2000))
    results = {word: ProposalResults(recall, recall.records_of(own)) for word, own in boxes.items()}
    for word, own in results.items():
        console.print(f"\n{word}", highlight=False, markup=False, style="bold")
        own.show(console)
    name = f"recall-{data_name(data, split)}.png" if out is None else f"{out.stem}.png"
    picture = plot or (project / "proposals" if out is None else out.parent) / name
    picture.parent.mkdir(parents=True, exist_ok=True)
    curves = {word: recall.curves(each.records) for word, each in results.items()}
    recall_comparison_figure(curves).savefig(picture, dpi=150)
    console.print(f"Recall against the number of boxes is in [bold]{escape(str(picture))}[/]", highlight=False)
    if as_json:
        print(json.dumps({word: each.to_json() for word, each in results.items()}))
