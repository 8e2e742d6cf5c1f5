"""Boxes to start from, in files: what selective search, another detector or a proposal network has found.

Two kinds of file. JSON in COCO's results form (`predictions.json` of a run is one), whose classes are passed over. And
safetensors with `image_id` [N] int64, `boxes` [N, 4] float32 as (x1, y1, x2, y2) in pixels, and `scores` [N] float32: a
tenth of the size, and read in a moment.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

__all__ = ["read_proposals", "write_proposals"]

Boxes = NDArray[np.float32]


def write_proposals(path: Path, proposals: Mapping[int, tuple[Boxes, NDArray[np.float32]]]) -> None:
    """Write boxes [P, 4] and scores [P] by image id to a safetensors file. An image with no box needs no entry, but is
    then unknown to whoever reads the file: its id is kept in `images`."""
    ids = np.array([*proposals], dtype=np.int64)
    boxes = [np.asarray(boxes, np.float32).reshape(-1, 4) for boxes, _ in proposals.values()]
    scores = [np.asarray(scores, np.float32) for _, scores in proposals.values()]
    counts = [len(each) for each in boxes]
    if counts != [len(each) for each in scores]:
        raise ValueError("proposals: expected as many scores as boxes of each image")
    save_file(
        {
            "images": ids,
            "image_id": np.repeat(ids, counts),
            "boxes": np.concatenate([np.zeros((0, 4), np.float32), *boxes]),
            "scores": np.concatenate([np.zeros(0, np.float32), *scores]),
        },
        path,
    )


def read_proposals(path: Path | str, most: int | None = None) -> dict[int, Boxes]:
    """Boxes [P, 4] by image id, best first; the best `most` of each image, if given.

    Raises FileNotFoundError or ValueError naming the file and what is wrong with it.
    """
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
    images, boxes = images[order], boxes[order]
    starts, ends = (np.searchsorted(images, known, side) for side in ("left", "right"))
    return {int(image): boxes[start:end][:most] for image, start, end in zip(known, starts, ends, strict=True)}


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
