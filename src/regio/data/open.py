"""Opening a dataset by the path of it, and dividing one that has no validation images."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from regio.data.dataset import DetectionDataset
from regio.data.layout import Layout, Reader, find_layout, same_split
from regio.data.records import Problems
from regio.data.shapes import Shapes

__all__ = ["divide", "open_dataset", "open_split", "open_undivided"]

_log = logging.getLogger(__name__)

_SHAPES = {"train": (400, 0), "val": (100, 1), "test": (100, 2)}  # scenes, seed


def open_dataset(path: str | Path, split: str = "train", *, strict: bool = False) -> DetectionDataset:
    """The images of `split` in the dataset at `path`: a folder, a COCO JSON file, a YOLO YAML file, or "shapes".

    What is found where is in `regio.data.layout`; "shapes" is generated scenes. split: "train" or "val", or the name of
    any other that the dataset has ("test", "trainval"). Where there is only one split, or none, nothing says which
    images are for validation: then "train" and "val" are the two parts of `divide`, and the dataset's `notes` say so;
    "all" is both. strict: raise at the first doubtful image or annotation instead of listing it in `problems`.

    Raises ValueError when there is no such folder, no known format in it, several data sets in it, or no such split
    (naming those there are), and as the readers do.
    """
    if str(path) == "shapes":
        if split not in _SHAPES:
            raise ValueError(f"shapes: no split {split!r}: it has {', '.join(_SHAPES)}")
        count, seed = _SHAPES[split]
        return Shapes(count, seed)
    return open_split(find_layout(Path(path)), split, strict=strict)


def open_undivided(path: str | Path, split: str = "train", *, strict: bool = False) -> DetectionDataset:
    """As `open_dataset`, but a data set that has only one split, or none, is read whole: for two data sets of which one
    is to train on and the other to evaluate on."""
    if str(path) == "shapes":
        return open_dataset(path, split)
    layout = find_layout(Path(path))
    return open_split(layout, "all" if len(layout.splits) == 1 else split, strict=strict)


def open_split(layout: Layout, split: str, *, strict: bool = False) -> DetectionDataset:
    """The images of `split`; as `open_dataset`, which looks for the layout first."""
    if layout.note:
        _log.info(layout.note)
    problems = Problems(strict)
    if len(layout.splits) == 1:
        if split not in ("train", "val", "all"):
            raise ValueError(
                f"{layout.source}: no split {split!r}: its images are together, so it has 'train', 'val' and 'all'"
            )
        (read,) = layout.splits.values()
        dataset = _noted(_read(read, problems), layout.note)
        return dataset if split == "all" else _part(dataset, split, layout.source)
    matches = same_split(layout.splits, split)
    if len(matches) > 1:
        raise ValueError(f"{layout.source}: split {split!r} may be {' or '.join(matches)}: name one of these")
    if not matches:
        raise ValueError(f"{layout.source}: no split {split!r}: it has {', '.join(layout.splits)}")
    return _noted(_read(layout.splits[matches[0]], problems), layout.note)


def divide(dataset: DetectionDataset, split: str) -> DetectionDataset:
    """The "train" part (four fifths) or the "val" part (one fifth, rounded up) of `dataset`.

    Images are ranked by a hash of their file name, and the first fifth is "val": the same on every machine and every
    time, and not the first photos of a series. The order of the dataset is kept.

    Raises ValueError for another split, and for fewer than two images.
    """
    if split not in ("train", "val"):
        raise ValueError(f"split: expected 'train' or 'val', got {split!r}")
    count = len(dataset)
    if count < 2:
        raise ValueError(f"cannot be divided into train and val: expected at least 2 images, got {count}")

    def rank(index: int) -> bytes:
        return hashlib.blake2b(dataset.records[index].name.encode(), digest_size=8).digest()

    held_out = set(sorted(range(count), key=rank)[: -(-count // 5)])
    return dataset.subset(index for index in range(count) if (index in held_out) == (split == "val"))


def _read(read: Reader, problems: Problems) -> DetectionDataset:
    dataset = read(problems)
    problems.raise_damage()
    return dataset


def _noted(dataset: DetectionDataset, note: str | None) -> DetectionDataset:
    return dataset if note is None else dataset.with_note(note)


def _part(dataset: DetectionDataset, split: str, source: Path) -> DetectionDataset:
    try:
        part = divide(dataset, split)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    note = (
        f"{source} has no validation images of its own: {split} is {len(part)} of its {len(dataset)} images, "
        "divided by a hash of the file names"
    )
    _log.info(note)
    return part.with_note(note)
