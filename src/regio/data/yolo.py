"""Reader of YOLO's text files (Ultralytics' documentation, "Object Detection Datasets Overview").

A line of a label file is a box, ``class cx cy width height``, or a polygon, ``class x1 y1 x2 y2 x3 y3 ...``. Classes
count from 0; all other numbers are parts of the image's width and height. The labels of ``.../images/a/b.jpg`` are in
``.../labels/a/b.txt`` (the last folder called ``images`` counts; without one, beside the image). An empty label file,
or none, means an image without objects.

``data.yaml`` has ``names``, a list or a dictionary by number, and ``train``, ``val`` and ``test``: a folder of images
(with all below it), a text file with an image a line, or a list of these, relative to ``path`` or to the file itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from regio.data.dataset import DetectionDataset
from regio.data.images import IMAGE_SUFFIXES
from regio.data.records import Annotation, Problems, Record, repeated, size_in_file, sound_box, sound_segmentation

__all__ = ["YoloSource", "is_yolo", "label_file", "read_yolo", "yolo_dataset", "yolo_source"]

_SPLITS = ("train", "val", "valid", "validation", "test")


@dataclass(frozen=True)
class YoloSource:
    """What `data.yaml` says.

    file: the file. names: classes by number. splits: folders and text files of images by split. keypoints: numbers
    that follow each box in a data set of poses; they are not read.
    """

    file: Path
    names: Mapping[int, str]
    splits: Mapping[str, Sequence[Path]]
    keypoints: int = 0


def read_yolo(file: str | Path, split: str = "train", *, strict: bool = False) -> DetectionDataset:
    """The images of `split` ("train", "val" or "test") of the dataset that the YAML `file` describes.

    Image ids number the images of the split from 1, and annotation ids are numbers of lines. Category ids are YOLO's
    numbers, from 0. The size of each image is read from its header. strict: raise at the first doubtful image or
    annotation instead of listing it in `problems`; the rules are in `regio.data.records`.

    Raises ValueError when `file` is missing or is none, for a split that it does not have, when a label file has a line
    that is neither a box nor a polygon, and when no image is found, or none with a label file.
    """
    source = yolo_source(Path(file))
    if split not in source.splits:
        raise ValueError(f"{file}: no split {split!r}: it has {', '.join(source.splits)}")
    problems = Problems(strict)
    dataset = yolo_dataset(source, split, problems)
    problems.raise_damage()
    return dataset


def is_yolo(file: Path) -> bool:
    """Whether `file` seems to be a `data.yaml`: it has names and a split."""
    try:
        text = file.read_text(encoding="utf-8-sig", errors="replace")
    except OSError:
        return False
    return bool(re.search(r"^names\s*:", text, re.M) and re.search(rf"^({'|'.join(_SPLITS)})\s*:", text, re.M))


def yolo_source(file: Path) -> YoloSource:
    """Read a `data.yaml`. Raises ValueError where it is missing, no YAML, or lacks what it must have."""
    try:
        page = yaml.load(file.read_bytes(), Loader=yaml.BaseLoader)  # all as text: a class may be called "on" or "1"
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(page, dict) or not page.get("names"):
        raise ValueError(f"{file}: not a YOLO data set: expected names (of classes) and train, val or test")
    names = _names(file, page["names"])
    if page.get("nc") and page["nc"] != str(len(names)):
        raise ValueError(f"{file}: nc is {page['nc']}, but there are {len(names)} names")
    base = file.parent / page["path"] if isinstance(page.get("path"), str) else file.parent
    splits = {}
    for split in _SPLITS:
        places = page.get(split)
        if places:
            texts = places if isinstance(places, list) else [places]
            splits[split] = tuple(_place(file, split, text, base) for text in texts)
    if not splits:
        raise ValueError(f"{file}: not a YOLO data set: expected folders of images under train, val or test")
    return YoloSource(file, names, splits, _keypoints(file, page.get("kpt_shape")))


def _names(file: Path, names: Any) -> dict[int, str]:
    """Names by number, in ascending order."""
    rows = names.items() if isinstance(names, dict) else enumerate(names) if isinstance(names, list) else ()
    found: dict[int, str] = {}
    for number, name in rows:
        if not (isinstance(name, str) and name and str(number).isdecimal()):
            raise ValueError(f"{file}: expected names by number, such as 0: cat, got {number}: {name!r}")
        found[int(number)] = name
    if not found:
        raise ValueError(f"{file}: expected a list of names, or names by number, got {names!r}")
    if len(set(found.values())) != len(found):
        raise ValueError(f"{file}: name {repeated(found.values())!r} is used twice")
    return dict(sorted(found.items()))


def _place(file: Path, split: str, text: Any, base: Path) -> Path:
    """The folder or text file that `text` names. Roboflow writes ``../train/images`` for ``train/images``."""
    if not isinstance(text, str):
        raise ValueError(f"{file}: {split}: expected a folder or a text file, got {text!r}")
    tried = [root / name for root in (base, file.parent) for name in (text, text.removeprefix("../"))]
    for place in tried:
        if place.exists():
            return place
    raise ValueError(f"{file}: {split}: no such folder or file: {tried[0]}; write it relative to this file")


def _keypoints(file: Path, shape: Any) -> int:
    if shape is None:
        return 0
    if not (isinstance(shape, list) and len(shape) == 2 and all(str(n).isdecimal() for n in shape)):
        raise ValueError(f"{file}: expected kpt_shape [keypoints, numbers of each], got {shape!r}")
    return int(shape[0]) * int(shape[1])


def label_file(image: Path) -> Path:
    """Where the labels of `image` are: see the head of this file."""
    parts = list(image.parts)
    folders = [i for i, part in enumerate(parts[:-1]) if part == "images"]
    if folders:
        parts[folders[-1]] = "labels"
    return Path(*parts).with_suffix(".txt")


def yolo_dataset(source: YoloSource, split: str, problems: Problems) -> DetectionDataset:
    """As `read_yolo`, with damaged lines listed in `problems`."""
    labels = {number: label for label, number in enumerate(source.names, start=1)}
    images = list(dict.fromkeys(image for place in source.splits[split] for image in _images(place, problems)))
    places = ", ".join(str(place) for place in source.splits[split])
    if not images:
        raise ValueError(f"{source.file}: {split}: no images in {places}")
    folders = dict.fromkeys(label_file(image).parent for image in images)
    files = {file.with_suffix(".txt"): file for folder in folders for file in _label_files(folder)}
    records = []
    labelled = 0
    for id, path in enumerate(images, start=1):
        file = files.get(label_file(path))
        labelled += file is not None
        size = size_in_file(path, problems)
        if size is None:
            continue
        rows = [] if file is None else _annotations(file, source, size, labels, problems)
        records.append(Record.of(id, path, path.name, size, rows))
    if not labelled:
        raise ValueError(
            f"{source.file}: {split}: none of its {len(images)} images has a label file ({label_file(images[0])}, ...)"
        )
    notes = ["keypoints are not read, only the boxes"] if source.keypoints else []
    return DetectionDataset(
        list(source.names.values()), list(source.names), records, problems=problems.found, notes=notes
    )


def _images(place: Path, problems: Problems) -> Iterable[Path]:
    """The images of a folder with all below it, sorted, or those that a text file lists, in its order."""
    if place.is_dir():
        images = sorted(p for p in place.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        known = {label_file(image) for image in images}
        for folder in sorted({file.parent for file in known if "labels" in file.parts}):
            for file in _label_files(folder):
                if file.with_suffix(".txt") not in known and file.name != "classes.txt":
                    problems.add(file, "", f"no image of this name in {place}; left out")
        return images
    images = []
    for number, line in enumerate(_lines(place, problems), start=1):
        if not line.strip():
            continue
        image = place.parent / line.strip()
        if image.is_file():
            images.append(image)
        else:
            problems.add(place, f"line {number}", f"no such file: {image}; left out")
    return images


def _label_files(folder: Path) -> list[Path]:
    """The text files in `folder`, sorted; none where there is no such folder."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(file for file in found if file.suffix.lower() == ".txt" and file.is_file())


def _lines(file: Path, problems: Problems) -> list[str]:
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except (UnicodeDecodeError, OSError) as error:
        problems.add_damage(file, "", f"cannot be read as text: {error}")
        return []


def _annotations(
    file: Path, source: YoloSource, size: tuple[int, int], labels: dict[int, int], problems: Problems
) -> list[Annotation]:
    rows = (
        _annotation(file, number, line.split(), source, size, labels, problems)
        for number, line in enumerate(_lines(file, problems), start=1)
        if line.strip()
    )
    return [row for row in rows if row is not None]


def _annotation(
    file: Path,
    number: int,
    words: list[str],
    source: YoloSource,
    size: tuple[int, int],
    labels: dict[int, int],
    problems: Problems,
) -> Annotation | None:
    """The object of a line, or None where the rules leave it out."""
    item = f"line {number}"
    try:
        category, *values = (float(word) for word in words)
    except ValueError:
        problems.add_damage(file, item, f"expected numbers, got '{' '.join(words)[:60]}'")
        return None
    count = len(values)
    if source.keypoints and count == 4 + source.keypoints:
        values = values[:4]
    elif source.keypoints or not (count == 4 or (count >= 6 and count % 2 == 0)):
        expected = f"a box and {source.keypoints} numbers" if source.keypoints else "a box (4) or a polygon (6, 8, ...)"
        problems.add_damage(file, item, f"expected a class and the numbers of {expected}, got {count} after the class")
        return None
    if category not in labels:
        known = f"{len(labels)}, {min(labels)} to {max(labels)}"
        problems.add(file, item, f"of unknown class {words[0]} (there are {known}); left out")
        return None
    label = labels[int(category)]
    height, width = size
    segmentation = None
    if len(values) == 4:
        cx, cy, w, h = values
        corners = ((cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height)
    else:
        xs, ys = [x * width for x in values[::2]], [y * height for y in values[1::2]]
        segmentation = [[value for point in zip(xs, ys, strict=True) for value in point]]
        finite = all(abs(value) < float("inf") for value in values)
        corners = (min(xs), min(ys), max(xs), max(ys)) if finite else (float("nan"),) * 4
    box = sound_box(corners, size, file, f"{item} ({source.names[int(category)]})", problems)
    if box is None:
        return None
    kept = sound_segmentation(segmentation, box, size, file, f"{item} ({source.names[int(category)]})", problems)
    area = _polygon_area(segmentation[0]) if segmentation and kept else (box[2] - box[0]) * (box[3] - box[1])
    return Annotation(id=number, box=box, label=label, area=area, segmentation=kept)


def _polygon_area(polygon: Sequence[float]) -> float:
    """Of [x, y, x, y, ...], by the shoelace formula."""
    xs, ys = polygon[::2], polygon[1::2]
    return abs(sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))) / 2
