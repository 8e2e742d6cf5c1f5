"""Boxes to start from, in files: what selective search, another detector or a proposal network has found.

Two kinds of file. JSON in COCO's results form (`predictions.json` of a run is one), whose classes are passed over. And
safetensors with `image_id` [N] int64, `boxes` [N, 4] float32 as (x1, y1, x2, y2) in pixels, and `scores` [N] float32: a
tenth of the size, and read in a moment. The latter may say, in its `Origin`, what found the boxes and in which images.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file
from safetensors.numpy import save as to_bytes

from regio.whole_files import write_whole

__all__ = ["ImageFile", "Origin", "read_origin", "read_proposals", "read_scored_proposals", "write_proposals"]

FORMAT = 2
Boxes = NDArray[np.float32]


@dataclass(frozen=True)
class ImageFile:
    """The image that boxes were found in. name: as its data set calls it. sha256: of the bytes of its file, or of the
    pixels of an image that has none. length, modified: bytes, and nanoseconds since 1970, of the file; -1 and 0 of an
    image without one."""

    name: str
    sha256: str
    length: int
    modified: int


@dataclass(frozen=True)
class Origin:
    """What found the boxes of a file, see `regio.proposals.method_settings`, and the images that it looked at by id."""

    method: Mapping[str, Any]
    images: Mapping[int, ImageFile]


def write_proposals(
    path: Path, proposals: Mapping[int, tuple[Boxes, NDArray[np.float32]]], origin: Origin | None = None
) -> None:
    """Write boxes [P, 4] and scores [P] by image id to a safetensors file, whole or not at all. An image with no box
    needs no entry, but is then unknown to whoever reads the file: its id is kept in `images`.

    Raises ValueError where scores and boxes of an image differ in number, OSError naming the file.
    """
    ids = np.array([*proposals], dtype=np.int64)
    boxes = [np.asarray(boxes, np.float32).reshape(-1, 4) for boxes, _ in proposals.values()]
    scores = [np.asarray(scores, np.float32) for _, scores in proposals.values()]
    counts = [len(each) for each in boxes]
    if counts != [len(each) for each in scores]:
        raise ValueError("proposals: expected as many scores as boxes of each image")
    columns = {
        "images": ids,
        "image_id": np.repeat(ids, counts),
        "boxes": np.concatenate([np.zeros((0, 4), np.float32), *boxes]),
        "scores": np.concatenate([np.zeros(0, np.float32), *scores]),
    }
    header = None
    if origin is not None:
        images = {str(id): list(asdict(image).values()) for id, image in origin.images.items()}
        header = {"regio": json.dumps({"version": FORMAT, "proposals": {"method": origin.method, "images": images}})}
    write_whole(Path(path), to_bytes(columns, header))


def read_origin(path: Path | str) -> Origin | None:
    """What found the boxes of the file at `path`; None for a file that does not say it. Raises FileNotFoundError or
    ValueError naming the file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of proposals")
    if path.suffix.lower() == ".json":
        return None
    try:
        with safe_open(path, framework="np") as file:
            header = json.loads((file.metadata() or {}).get("regio", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path}: expected safetensors with image_id, boxes and scores ({error})") from error
    if "proposals" not in header:
        return None
    images = {int(id): ImageFile(*image) for id, image in header["proposals"]["images"].items()}
    return Origin(header["proposals"]["method"], images)


def read_proposals(path: Path | str, most: int | None = None) -> dict[int, Boxes]:
    """Boxes [P, 4] by image id, best first; the best `most` of each image, if given.

    Raises FileNotFoundError or ValueError naming the file and what is wrong with it.
    """
    return {image: boxes[:most] for image, (boxes, _) in read_scored_proposals(path).items()}


def read_scored_proposals(path: Path | str) -> dict[int, tuple[Boxes, NDArray[np.float32]]]:
    """Boxes [P, 4] and scores [P] by image id, best first. Raises as `read_proposals`."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of proposals")
    read = _read_json if path.suffix.lower() == ".json" else _read_safetensors
    known, images, boxes, scores = read(path)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not len(boxes) == len(images) == len(scores):
        raise ValueError(f"{path}: expected boxes [N, 4] with an image and a score each, got {list(boxes.shape)}")
    bad = ~(np.isfinite(boxes).all(1) & np.isfinite(scores)) | (boxes[:, 2:] < boxes[:, :2]).any(1)
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(f"{path}: expected finite scores and boxes with x1 <= x2 and y1 <= y2, row {row} is not")
    order = np.lexsort((-scores, images))
    images, boxes, scores = images[order], boxes[order], scores[order]
    starts, ends = (np.searchsorted(images, known, side) for side in ("left", "right"))
    return {
        int(image): (boxes[start:end], scores[start:end]) for image, start, end in zip(known, starts, ends, strict=True)
    }


_Columns = tuple[NDArray[np.int64], NDArray[np.int64], Boxes, NDArray[np.float32]]


def _read_json(path: Path) -> _Columns:
    try:
        rows = json.loads(path.read_text())
        images = np.array([row["image_id"] for row in rows], dtype=np.int64)
        boxes = np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4)
        scores = np.array([row["score"] for row in rows], dtype=np.float32)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path}: expected COCO's results form, a list of image_id, bbox and score ({error})"
        ) from error
    boxes[:, 2:] += boxes[:, :2]
    return np.unique(images), images, boxes.astype(np.float32), scores


def _read_safetensors(path: Path) -> _Columns:
    try:
        columns = load_file(path)
        images, boxes, scores = columns["image_id"], columns["boxes"], columns["scores"]
    except (SafetensorError, OSError, KeyError) as error:
        raise ValueError(f"{path}: expected safetensors with image_id, boxes and scores ({error})") from error
    return columns.get("images", np.unique(images)), images, boxes, scores
