"""`regio detect`."""

from __future__ import annotations

import glob
import json
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from regio.checkpoints import write_json
from regio.cli.runs import latest_checkpoint, new_folder
from regio.config import load_detector
from regio.data import read_image
from regio.devices import pick_device
from regio.types import Detections
from regio.visualize import draw_detections

__all__ = ["SUFFIXES", "detect", "find_images"]

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"}


def detect(
    inputs: Annotated[list[str], typer.Argument(help="Photos: files, folders (with all below them) and globs.")],
    *,
    weights: Annotated[Path | None, typer.Option(help="Checkpoint (default: the newest best.safetensors).")] = None,
    score: Annotated[float, typer.Option(min=0, max=1, help="Lowest score of a detection, drawn or listed.")] = 0.5,
    pictures: Annotated[bool, typer.Option(help="Write annotated pictures.")] = True,
    bf16: Annotated[
        bool, typer.Option("--bf16", help="Convolve in bfloat16: faster where the processor has it.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps or auto.")] = "auto",
    output: Annotated[
        Path | None, typer.Option(help="Folder of the results (default: a new one in --project).")
    ] = None,
    project: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the detections as JSON, and nothing else.")] = False,
) -> None:
    """Detect objects in photos: annotated pictures, and detections.json with boxes in pixels.

    An image that cannot be read is passed over, named at the end, and makes the exit code 1.
    """
    console = Console(stderr=as_json, soft_wrap=True)
    files = find_images(inputs)
    path = weights or latest_checkpoint(project)
    place = pick_device(device)
    detector, card = load_detector(path, score_threshold=score)
    detector.to(place).eval()
    folder = new_folder(project, "detect") if output is None else output
    console.print(
        f"{path}, {len(card.class_names)} classes, on {place}, {_count(len(files), 'image')}",
        highlight=False,
        markup=False,
    )

    found: list[dict[str, Any]] = []
    unreadable: list[str] = []
    began = time.perf_counter()
    names = _picture_names(files)
    for file in track(files, "detect", console=console, disable=not console.is_terminal):
        try:
            image = read_image(file)
        except (ValueError, OSError) as error:
            unreadable.append(str(error))
            continue
        with torch.inference_mode(), torch.autocast(place.type, torch.bfloat16, enabled=bf16):
            detections = detector([image.to(place)])[0].to("cpu")
        found.append(_as_dict(file, image, detections, card.class_names))
        if pictures:
            (folder / "pictures").mkdir(parents=True, exist_ok=True)
            picture = draw_detections(image, detections, card.class_names, score)
            picture.save(folder / "pictures" / names[file])
    took = time.perf_counter() - began
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "detections.json", found)
    if as_json:
        print(json.dumps(found))
    objects = sum(len(one["detections"]) for one in found)
    speed = len(found) / took if took > 0 else 0.0
    console.print(
        f"{_count(objects, 'object')} of score {score:g} and above in {_count(len(found), 'image')}, "
        f"{speed:.1f} images/s; in [bold]{escape(str(folder))}[/]{': pictures/, detections.json' if pictures else ''}",
        highlight=False,
    )
    if found and not objects and score > 0.05:
        console.print("Nothing has that score; --score 0.05 keeps weaker detections too", style="dim", highlight=False)
    if unreadable:
        console.print(f"[red]{_count(len(unreadable), 'image')} could not be read:[/]", highlight=False)
        for line in unreadable:
            console.print(f"  {line}", highlight=False, markup=False)
        raise typer.Exit(1)


def find_images(inputs: list[str]) -> list[Path]:
    """The image files that `inputs` name: files as they are, folders with all images below them, globs.

    Sorted within each input, each file once. Raises ValueError for an input that names nothing.
    """
    files: list[Path] = []
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            some = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        elif path.exists():
            some = [path]
        else:
            some = sorted(Path(p) for p in glob.glob(text, recursive=True) if Path(p).is_file())  # noqa: PTH207
        if not some:
            raise ValueError(f"{text}: expected an image, a folder with images or a glob that matches some, found none")
        files += some
    return list(dict.fromkeys(files))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _picture_names(files: list[Path]) -> dict[Path, str]:
    """A name for the picture of each file: its own, with a number where two files share it."""
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for file in files:
        name, number = f"{file.stem}.jpg", 1
        while name in taken:
            number += 1
            name = f"{file.stem}-{number}.jpg"
        taken.add(name)
        names[file] = name
    return names


def _as_dict(file: Path, image: torch.Tensor, detections: Detections, names: tuple[str, ...]) -> dict[str, Any]:
    rows = zip(detections.boxes.tolist(), detections.labels.tolist(), detections.scores.tolist(), strict=True)
    return {
        "file": str(file),
        "height": image.shape[1],
        "width": image.shape[2],
        "detections": [
            {"name": names[label - 1], "label": label, "score": round(score, 5), "box": [round(v, 2) for v in box]}
            for box, label, score in rows
        ],
    }
