"""Boxes for the systems that do not find their own: from a file, or found by a method once and kept beside the runs."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from regio.config.proposals import METHODS, method_named, method_of_settings
from regio.data import DetectionDataset
from regio.data.proposals import Boxes, read_origin, read_scored_proposals
from regio.errors import Interrupted
from regio.processes import processors
from regio.proposals import ProposalMethod, method_settings, propose
from regio.proposals.files import require_same_images

__all__ = ["ProposalSource", "cache_file", "data_name", "find", "read_for", "source_for", "source_named"]

PER_IMAGE = 2000  # of a card that does not say it


@dataclass(frozen=True)
class ProposalSource:
    """Where boxes come from: `origin`, a file of them or a method that finds them; and how many of an image are used at
    most, the best."""

    origin: Path | ProposalMethod
    per_image: int

    def attached(self, dataset: DetectionDataset, name: str, project: Path, console: Console) -> DetectionDataset:
        """`dataset` with these boxes.

        Those of a method are found by all processors and kept in `project`/proposals/NAME-HASH.safetensors, of which
        HASH stands for the method and the images, and read from there the next time; a line says so. name: that of the
        data set, see `data_name`. Raises as `regio.proposals.propose` and `read_for`.
        """
        if isinstance(self.origin, Path):
            return self._with_boxes(dataset, self.origin, console)
        file = cache_file(project, name, self.origin, dataset)
        find(dataset, self.origin, file, console, processors())
        return self._with_boxes(dataset, file, console)

    def boxes(self, image: Tensor) -> Tensor:
        """Boxes [P, 4] of an image, uint8 [3, H, W]. Raises ValueError for a file, which has none of it."""
        if isinstance(self.origin, Path):
            raise ValueError(f"--proposals: expected what finds boxes in any photo, got the file {self.origin}")
        return self.origin(image)[0][: self.per_image]

    def _with_boxes(self, dataset: DetectionDataset, file: Path, console: Console) -> DetectionDataset:
        found, origin = read_for(file, dataset), read_origin(file)
        boxes = {image: boxes[: self.per_image] for image, (boxes, _) in found.items()}
        absent = sum(record.id not in boxes for record in dataset.records)
        if absent:
            boxes |= {record.id: boxes.get(record.id, np.zeros((0, 4), np.float32)) for record in dataset.records}
            console.print(
                f"{file}: no boxes of {absent} of {len(dataset)} images", style="dim", highlight=False, markup=False
            )
        method = {} if origin is None else dict(origin.method)
        return dataset.with_proposals(boxes, {"method": method, "per_image": self.per_image})


def source_named(word: str | None, per_image: int) -> ProposalSource:
    """What `word` names: one of `regio.config.proposals.METHODS`, a file of boxes, or a checkpoint with a proposal
    network; None is selective search in its fast mode. Raises ValueError for anything else."""
    if word is None:
        word = next(iter(METHODS))
    if word not in METHODS and (Path(word).suffix.lower() == ".json" or _holds_boxes(Path(word))):
        return ProposalSource(Path(word), per_image)
    return ProposalSource(method_named(word), per_image)


def source_for(weights: str | Path, card: Mapping[str, Any], word: str | None = None) -> ProposalSource:
    """Where the boxes of a trained detector come from: `word`, as for `source_named`, or where that is None the method
    that found those it was trained on. card: what the checkpoint `weights` says of them, see
    `regio.data.DetectionDataset.proposal_source`. Raises ValueError where that cannot be found again."""
    per_image = int(card.get("per_image", PER_IMAGE))
    if word is not None:
        return source_named(word, per_image)
    try:
        return ProposalSource(method_of_settings(card.get("method", {})), per_image)
    except ValueError as error:
        raise ValueError(f"{weights}: {error}; name what finds boxes with --proposals") from error


def find(dataset: DetectionDataset, method: ProposalMethod, file: Path, console: Console, processes: int) -> None:
    """As `regio.proposals.propose`, with a bar, and a line that says what was done. Raises Interrupted after Ctrl-C."""
    began = time.perf_counter()
    what = method_settings(method)["name"]
    with Progress(console=console, disable=not console.is_terminal) as bars:
        task = bars.add_task(what, total=len(dataset))

        def show(done: int, images: int) -> None:
            bars.update(task, completed=done)

        try:
            found = propose(dataset, method, file, processes=processes, progress=show)
        except KeyboardInterrupt:
            raise Interrupted(f"{file}: not all images are searched; the same command goes on with the rest") from None
    seconds = time.perf_counter() - began
    done = f"in {found} images, {seconds:.0f} s" if found else f"of {len(dataset)} images, found before"
    console.print(f"proposals: {what} {done}; in {file}", highlight=False, markup=False)


def read_for(file: Path, dataset: DetectionDataset) -> dict[int, tuple[Boxes, NDArray[np.float32]]]:
    """Boxes and scores by image id, see `regio.data.proposals.read_scored_proposals`, of all images of `dataset`; in a
    list of boxes (JSON) an image without an entry has no box.

    Raises ValueError naming the file where it is of other images, lacks some, or where an image has changed since.
    """
    origin, found = read_origin(file), read_scored_proposals(file)
    if origin is not None:
        require_same_images(file, origin, dataset)
    absent = [record for record in dataset.records if record.id not in found]
    if absent and len(absent) == len(dataset):
        raise ValueError(f"{file}: boxes of another data set: it has none of the {len(dataset)} images")
    if absent and file.suffix.lower() != ".json":
        raise ValueError(
            f"{file}: has no boxes of {len(absent)} of {len(dataset)} images, the first is {absent[0].name}"
        )
    return found


def cache_file(project: Path, name: str, method: ProposalMethod, dataset: DetectionDataset) -> Path:
    """Where the boxes of `method` in the images of `dataset`, called `name`, are kept."""
    settings = {key: value for key, value in method_settings(method).items() if key != "weights"}
    images = [(record.id, record.name, record.size) for record in dataset.records]
    digest = hashlib.sha256(json.dumps([settings, images]).encode()).hexdigest()[:12]
    return project / "proposals" / f"{name}-{digest}.safetensors"


def data_name(path: str, split: str) -> str:
    """A split of the data set at `path`, in the name of a file."""
    return f"{Path(path).resolve().stem}-{split}"


def is_list_of_boxes(path: Path) -> bool:
    """Whether `path` is a file of boxes that does not say of which images they are, but for their ids."""
    is_json = path.suffix.lower() == ".json" and path.is_file()
    return is_json or (_holds_boxes(path) and read_origin(path) is None)


def _holds_boxes(path: Path) -> bool:
    """Whether `path` is a file of boxes, and no checkpoint."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return False
    try:
        with safe_open(path, framework="np") as file:
            return {"image_id", "boxes", "scores"} <= set(file.keys())
    except (SafetensorError, OSError):
        return False
