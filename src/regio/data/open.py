"""Opening a dataset by its folder: which format it is, which file is which split.

=================================================  =====================================================================
found                                              read as
=================================================  =====================================================================
the word ``shapes``                                generated scenes: nothing is read
``SPLIT/_annotations.coco.json``                   COCO, images beside it (Roboflow; its ``valid`` is ``val``)
``annotations/instances_SPLIT*.json``              COCO, images in ``SPLIT*/`` or ``images/SPLIT*/`` or ``images/``
``SPLIT.json``, ``NAME_SPLIT.json``, the same in   COCO, images as above, or beside it
``annotations/``
one JSON file, or the path of one                  COCO, images as above; divided by `divide`
``Annotations/*.xml``, ``ImageSets/Main/``         Pascal VOC, images in ``JPEGImages/`` or ``images/``
``Annotations/*.xml`` without ``ImageSets/Main/``  the same; divided by `divide`
=================================================  =====================================================================
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from regio.data.coco import ROBOFLOW_FILE, read_coco
from regio.data.dataset import DetectionDataset
from regio.data.shapes import Shapes
from regio.data.voc import IMAGE_SUFFIXES, read_voc

__all__ = ["divide", "open_dataset"]

_log = logging.getLogger(__name__)

_ALIASES = {"val": ("val", "valid", "validation"), "train": ("train", "training")}
_SHAPES = {"train": (400, 0), "val": (100, 1), "test": (100, 2)}  # scenes, seed


def open_dataset(path: str | Path, split: str = "train", *, strict: bool = False) -> DetectionDataset:
    """The images of `split` in the dataset at `path`: a folder, a COCO JSON file, or the word "shapes".

    split: "train" or "val", or the name of any other that the dataset has ("test", "trainval"). Where there is one
    annotation file, or VOC without lists of images, nothing says which images are for validation: then "train" and
    "val" are the two parts of `divide`, and the dataset's `notes` say so; "all" is both. strict: raise at the first
    doubtful image or annotation instead of listing it in `problems`.

    Raises ValueError when there is no such folder, no known format in it, or no such split (naming those there are).
    """
    if str(path) == "shapes":
        if split not in _SHAPES:
            raise ValueError(f"shapes: no split {split!r}: it has {', '.join(_SHAPES)}")
        count, seed = _SHAPES[split]
        return Shapes(count, seed)
    path = Path(path)
    if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
        raise ValueError(f"{path}: no dataset: expected a folder or a COCO JSON file, got a single image")
    if path.is_file():
        split_of_name = path.stem.removeprefix("instances_")
        folders = [f for root in (path.parent, path.parent.parent) for f in _image_folders(root, split_of_name)]
        return _part(read_coco(path, folders, strict=strict), split, path)
    if not path.is_dir():
        raise ValueError(f'{path}: no such dataset: expected a folder, a COCO JSON file, or the word "shapes"')
    splits = _coco_splits(path)
    if splits:
        return _choose(path, splits, split, strict)
    for folder in (path / "Annotations", path / "annotations", path):
        if folder.is_dir() and next(folder.glob("*.xml"), None):
            return _open_voc(path, folder, split, strict)
    nested = [child for child in sorted(path.iterdir()) if child.is_dir() and _is_dataset(child)]
    hint = f"; try {nested[0]}" if nested else ""
    raise ValueError(
        f"{path}: no dataset found: expected COCO (annotations/instances_train.json, train/_annotations.coco.json or "
        f"one .json file) or Pascal VOC (Annotations/*.xml with JPEGImages/){hint}"
    )


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


def _part(dataset: DetectionDataset, split: str, source: Path) -> DetectionDataset:
    if split == "all":
        return dataset
    if split not in ("train", "val"):
        raise ValueError(f"{source}: no split {split!r}: its images are together, so it has 'train', 'val' and 'all'")
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


def _coco_splits(path: Path) -> dict[str, Path]:
    """COCO files by the name of their split; "" where the file name names none."""
    roboflow = {child.parent.name: child for child in sorted(path.glob(f"*/{ROBOFLOW_FILE}"))}
    if roboflow:
        return roboflow
    for folder in (path / "annotations", path):
        files = sorted(folder.glob("instances_*.json"))
        if files:
            return {file.stem.removeprefix("instances_"): file for file in files}
    files = [file for folder in (path / "annotations", path) for file in sorted(folder.glob("*.json"))]
    return {file.stem: file for file in files}


def _choose(path: Path, splits: dict[str, Path], split: str, strict: bool) -> DetectionDataset:
    names = _ALIASES.get(split, (split,))
    matches = [s for s in splits if s in names] or [s for s in splits if _plain(s).split("_")[-1] in names]
    if len(matches) > 1:
        raise ValueError(f"{path}: split {split!r} may be {' or '.join(matches)}: name one of these")
    if not matches and len(splits) > 1:
        raise ValueError(f"{path}: no split {split!r}: it has {', '.join(splits)}")
    file = splits[matches[0]] if matches else next(iter(splits.values()))
    if file.name == ROBOFLOW_FILE:
        folders = [file.parent]
    else:
        folders = [*_image_folders(path, file.stem.removeprefix("instances_")), file.parent]
    dataset = read_coco(file, folders, strict=strict)
    return dataset if len(splits) > 1 else _part(dataset, split, file)


def _plain(split: str) -> str:
    """The split without its year: train of train2017."""
    return split.rstrip("0123456789")


def _image_folders(path: Path, split: str) -> list[Path]:
    """Where the images of `split` may lie, the likeliest first."""
    names = (split, _plain(split), _plain(split).split("_")[-1])
    candidates = [folder / name for name in names for folder in (path, path / "images")] + [path / "images", path]
    return list(dict.fromkeys(candidates))


def _open_voc(path: Path, annotations: Path, split: str, strict: bool) -> DetectionDataset:
    candidates = [path / "JPEGImages", path / "images", path / "Images", annotations]
    images = next((f for f in candidates if f.is_dir() and _holds_images(f)), None)
    if images is None:
        raise ValueError(f"{path}: no images: expected them in {candidates[0]} or {candidates[1]}")
    lists = {file.stem: file for file in sorted((path / "ImageSets" / "Main").glob("*.txt")) if "_" not in file.stem}
    if not lists:
        return _part(read_voc(annotations, images, strict=strict), split, annotations)
    if split not in lists:
        raise ValueError(f"{path}: no split {split!r} in ImageSets/Main: it has {', '.join(lists)}")
    return read_voc(annotations, images, split_file=lists[split], strict=strict)


def _holds_images(folder: Path) -> bool:
    return any(child.suffix.lower() in IMAGE_SUFFIXES for child in folder.iterdir())


def _is_dataset(path: Path) -> bool:
    return bool(_coco_splits(path)) or any(path.glob("Annotations/*.xml")) or any(path.glob("annotations/*.xml"))
