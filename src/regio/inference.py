"""A detector over many image files: annotated pictures and a JSON file."""

from __future__ import annotations

import glob
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from regio.checkpoints import write_json
from regio.data import read_image
from regio.detector import TwoStageDetector
from regio.evaluate import detections_to_coco
from regio.types import Detections
from regio.visualize import draw_detections

__all__ = ["FileDetections", "detect_files", "find_images"]

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"}


@dataclass(frozen=True)
class FileDetections:
    """What `detect_files` found.

    found: one entry for each image read, as in detections.json: its file, height and width in pixels, and its
    detections, each with name, label, score and box (x1, y1, x2, y2) in pixels. unreadable: a message that names the
    file, for each that could not be read. seconds: the whole took.
    """

    found: list[dict[str, Any]]
    unreadable: list[str]
    seconds: float

    @property
    def objects(self) -> int:
        """Detections in all images."""
        return sum(len(one["detections"]) for one in self.found)


def find_images(inputs: Sequence[str]) -> list[Path]:
    """The image files that `inputs` name: files as they are, folders with all images below them, globs.

    Sorted within each input, each file once. Raises ValueError for an input that names nothing.
    """
    files: list[Path] = []
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            some = sorted(p for p in path.rglob("*") if p.suffix.lower() in _SUFFIXES and p.is_file())
        elif path.exists():
            some = [path]
        else:
            some = sorted(Path(p) for p in glob.glob(text, recursive=True) if Path(p).is_file())  # noqa: PTH207
        if not some:
            raise ValueError(f"{text}: expected an image, a folder with images or a glob that matches some, found none")
        files += some
    return list(dict.fromkeys(files))


def detect_files(
    detector: TwoStageDetector,
    files: Sequence[Path],
    class_names: Sequence[str],
    folder: Path,
    *,
    score_threshold: float = 0.0,
    pictures: bool = True,
    bf16: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> FileDetections:
    """Detect in each of `files`, one at a time, and write ``detections.json`` into `folder`, and with `pictures` also
    ``pictures/NAME.jpg`` with the detections drawn.

    detector: in evaluation mode, on the device to use. score_threshold: lowest score of what is kept. bf16: run under
    bfloat16 autocast. progress: called with the number of files done after each. A file that cannot be read as an image
    is listed in `unreadable`.
    """
    place = next(detector.parameters()).device
    folder.mkdir(parents=True, exist_ok=True)
    if pictures:
        (folder / "pictures").mkdir(exist_ok=True)
    found: list[dict[str, Any]] = []
    unreadable: list[str] = []
    began = time.perf_counter()
    for number, (file, picture_name) in enumerate(zip(files, _picture_names(files), strict=True), start=1):
        try:
            image = read_image(file)
        except (ValueError, OSError) as error:
            unreadable.append(str(error))
        else:
            with torch.inference_mode(), torch.autocast(place.type, torch.bfloat16, enabled=bf16):
                detections = detector([image.to(place)])[0].to("cpu")
            detections = detections[detections.scores >= score_threshold]
            found.append(_as_dict(file, image, detections, class_names))
            if pictures:
                picture = draw_detections(image, detections, class_names, 0.0)
                picture.save(folder / "pictures" / picture_name)
        progress(number)
    result = FileDetections(found, unreadable, time.perf_counter() - began)
    write_json(folder / "detections.json", found)
    return result


def _picture_names(files: Sequence[Path]) -> list[str]:
    """A name for the picture of each file: its own, with a number where two files share it."""
    names: dict[str, None] = {}
    for file in files:
        name, number = f"{file.stem}.jpg", 1
        while name in names:
            number += 1
            name = f"{file.stem}-{number}.jpg"
        names[name] = None
    return list(names)


def _as_dict(file: Path, image: torch.Tensor, detections: Detections, names: Sequence[str]) -> dict[str, Any]:
    rows = zip(detections.boxes.tolist(), detections.labels.tolist(), detections.scores.tolist(), strict=True)
    found: list[dict[str, Any]] = [
        {"name": names[label - 1], "label": label, "score": round(score, 5), "box": [round(v, 2) for v in box]}
        for box, label, score in rows
    ]
    if detections.masks is not None:
        encoded = detections_to_coco(detections, 0, range(len(names)), (image.shape[1], image.shape[2]))
        for one, row in zip(found, encoded, strict=True):
            one["segmentation"] = row["segmentation"]
    return {"file": str(file), "height": image.shape[1], "width": image.shape[2], "detections": found}
