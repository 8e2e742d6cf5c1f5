"""What is left of what a network finds in photos: pictures, files and entries of a JSON list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from regio.evaluate import detections_to_coco
from regio.types import ClassMap, Detections
from regio.visualize import class_map_image, draw_class_map, draw_detections, enlarged, with_legend

__all__ = ["ClassMapOutput", "DetectionOutput", "Output"]


class Output(Protocol):
    """What becomes of what is found in an image. listing: the name of the JSON file of all entries. folders: those that
    files are written to, by whether pictures are asked for."""

    @property
    def listing(self) -> str: ...

    def folders(self, pictures: bool) -> Sequence[str]: ...

    def write(self, image: Tensor, found: Any, folder: Path, name: str, pictures: bool) -> dict[str, Any]:
        """Write what belongs to `image`, uint8 [3, H, W], into the folders below `folder`, under `name` with a suffix;
        returns the entry, to which its file and size are added."""

    def summary(self, entries: Sequence[Mapping[str, Any]]) -> str:
        """In words, what was found, for a line that goes on with "in 3 images"."""

    def hint(self, entries: Sequence[Mapping[str, Any]]) -> str | None:
        """What to try where nothing was found."""


@dataclass(frozen=True)
class DetectionOutput:
    """Detections of at least `score_threshold`: boxes drawn on pictures/NAME.jpg (.png where a side has more than
    65,500 pixels), and listed in detections.json. Label l is class_names[l - 1]. weak_score: one that weak detections
    have too."""

    class_names: Sequence[str]
    score_threshold: float
    weak_score: float = 0.05

    listing = "detections.json"

    def folders(self, pictures: bool) -> Sequence[str]:
        """That of the pictures."""
        return ["pictures"] if pictures else []

    def write(self, image: Tensor, found: Detections, folder: Path, name: str, pictures: bool) -> dict[str, Any]:
        """See `Output`; the entry has `picture`, the file, where there are pictures, and `detections`, each with name,
        label, score, box (x1, y1, x2, y2) in pixels, and where there are masks its segmentation as COCO's run-length
        encoding."""
        found = found[found.scores >= self.score_threshold]
        picture = {}
        if pictures:
            drawn = draw_detections(image, found, self.class_names, -float("inf"))
            picture = {"picture": _save(drawn, folder, name)}
        rows = zip(found.boxes.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True)
        entries: list[dict[str, Any]] = [
            {
                "name": self.class_names[label - 1],
                "label": label,
                "score": round(score, 5),
                "box": [round(v, 2) for v in box],
            }
            for box, label, score in rows
        ]
        if found.masks is not None:
            ids = range(len(self.class_names))
            encoded = detections_to_coco(found, 0, ids, (image.shape[1], image.shape[2]))
            for one, row in zip(entries, encoded, strict=True):
                one["segmentation"] = row["segmentation"]
        return {**picture, "detections": entries}

    def summary(self, entries: Sequence[Mapping[str, Any]]) -> str:
        """How many objects."""
        objects = _objects(entries)
        return f"{objects} object{'' if objects == 1 else 's'} of score {self.score_threshold:g} and above"

    def hint(self, entries: Sequence[Mapping[str, Any]]) -> str | None:
        """A lower score."""
        if not entries or _objects(entries) or self.score_threshold <= self.weak_score:
            return None
        return f"Nothing has that score; --score {self.weak_score:g} keeps weaker detections too"


@dataclass(frozen=True)
class ClassMapOutput:
    """Class maps: class_maps/NAME.png, an image with a palette whose value l is class_names[l - 1] and 0 the
    background; the classes over the photo, with their names, on pictures/NAME.jpg (.png where a side has more than
    65,500 pixels); and their shares in segmentation.json."""

    class_names: Sequence[str]

    listing = "segmentation.json"

    def folders(self, pictures: bool) -> Sequence[str]:
        """That of the class maps, and that of the pictures."""
        return ["class_maps", "pictures"] if pictures else ["class_maps"]

    def write(self, image: Tensor, found: ClassMap, folder: Path, name: str, pictures: bool) -> dict[str, Any]:
        """See `Output`; the entry has `class_map` and, where there are pictures, `picture`, the files, and `classes`,
        the share of the pixels of each class that there is, the background being one, from the largest."""
        class_map_image(found.labels).save(folder / "class_maps" / f"{name}.png")
        counts = torch.bincount(found.labels.flatten().int(), minlength=1)
        shares = counts / found.labels.numel()
        largest = shares.argsort(descending=True, stable=True)
        labels = [label for label in largest.tolist() if counts[label]]
        picture = {}
        if pictures:
            drawn = with_legend(enlarged(draw_class_map(image, found.labels)), labels, self.class_names, below=True)
            picture = {"picture": _save(drawn, folder, name)}
        names = ("background", *self.class_names)
        return {
            "class_map": f"class_maps/{name}.png",
            **picture,
            "classes": {names[label]: round(float(shares[label]), 5) for label in labels},
        }

    def summary(self, entries: Sequence[Mapping[str, Any]]) -> str:
        """How many classes there are anywhere."""
        found = {name for entry in entries for name in entry["classes"]} - {"background"}
        return f"{len(found)} class{'' if len(found) == 1 else 'es'} beside the background"

    def hint(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """None: every pixel has a class."""


def _save(picture: Image.Image, folder: Path, name: str) -> str:
    """As pictures/NAME.jpg, or .png where a side is longer than a JPEG file can have; returns which."""
    file = f"pictures/{name}.{'jpg' if max(picture.size) <= 65500 else 'png'}"
    picture.save(folder / file)
    return file


def _objects(entries: Sequence[Mapping[str, Any]]) -> int:
    return sum(len(entry["detections"]) for entry in entries)
