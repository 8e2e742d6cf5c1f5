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
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from regio.config.proposals import METHODS, method_named, method_of_settings
from regio.data import DetectionDataset
from regio.data.proposals import read_origin, read_proposals
from regio.processes import processors
from regio.proposals import ProposalMethod, method_settings, propose
from regio.proposals.files import require_same_images

__all__ = ["ProposalSource", "find", "source_for", "source_named"]

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
        data set, in words. Raises as `regio.proposals.propose` and `regio.data.read_proposals`, and ValueError naming
        the file where it is of other images.
        """
        if not isinstance(self.origin, Path):
            file = project / "proposals" / f"{name}-{_hash(self.origin, dataset)}.safetensors"
            find(dataset, self.origin, file, console)
            return self._with_boxes(dataset, file, method_settings(self.origin))
        origin = read_origin(self.origin)
        if origin is not None:
            require_same_images(self.origin, origin, dataset)
        return self._with_boxes(dataset, self.origin, {} if origin is None else origin.method)

    def boxes(self, image: Tensor) -> Tensor:
        """Boxes [P, 4] of an image, uint8 [3, H, W]. Raises ValueError for a file, which has none of it."""
        if isinstance(self.origin, Path):
            raise ValueError(f"--proposals: expected what finds boxes in any photo, got the file {self.origin}")
        return self.origin(image)[0][: self.per_image]

    def _with_boxes(self, dataset: DetectionDataset, file: Path, method: Mapping[str, Any]) -> DetectionDataset:
        boxes = read_proposals(file, self.per_image)
        if file.suffix.lower() == ".json":  # a list of boxes cannot say that an image has none
            absent = [record.id for record in dataset.records if record.id not in boxes]
            if len(absent) == len(dataset):
                raise ValueError(f"{file}: boxes of another data set: it has none of the {len(dataset)} images")
            if absent:
                boxes |= dict.fromkeys(absent, np.zeros((0, 4), np.float32))
                dataset = dataset.with_note(f"{file}: no boxes of {len(absent)} of {len(dataset)} images")
        try:
            return dataset.with_proposals(boxes, {"method": dict(method), "per_image": self.per_image})
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error


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


def find(dataset: DetectionDataset, method: ProposalMethod, file: Path, console: Console) -> None:
    """As `regio.proposals.propose`, with all processors, a bar, and a line that says what was done."""
    began = time.perf_counter()
    what = method_settings(method)["name"]
    with Progress(console=console, disable=not console.is_terminal) as bars:
        task = bars.add_task(what, total=len(dataset))

        def show(done: int, images: int) -> None:
            bars.update(task, completed=done)

        found = propose(dataset, method, file, processes=processors(), progress=show)
    seconds = time.perf_counter() - began
    done = f"in {found} images, {seconds:.0f} s" if found else f"of {len(dataset)} images, found before"
    console.print(f"proposals: {what} {done}; in {file}", highlight=False, markup=False)


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


def _hash(method: ProposalMethod, dataset: DetectionDataset) -> str:
    settings = {key: value for key, value in method_settings(method).items() if key != "weights"}
    images = [(record.id, record.name, record.size) for record in dataset.records]
    return hashlib.sha256(json.dumps([settings, images]).encode()).hexdigest()[:12]
