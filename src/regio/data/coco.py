"""Reader of COCO's JSON (Lin et al. 2014; the format is described at cocodataset.org, "Data format").

A box is (x, y, width, height) with half-open pixels, so (x, y, x + width, y + height) needs no correction. Category ids
may have gaps; labels follow the ids in ascending order, whatever the order in the file, so that a training and a
validation file agree.
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

from regio.data.dataset import DetectionDataset
from regio.data.masks import Segmentation, mask_area
from regio.data.records import Annotation, Box, Problems, Record, repeated, size_in_file, sound_box, sound_segmentation

__all__ = ["ROBOFLOW_FILE", "coco_dataset", "is_coco", "read_coco"]

ROBOFLOW_FILE = "_annotations.coco.json"

ID_LIMIT = 2**63
"""Ids of annotations are below it, and above its negative."""
_KEYS = ("images", "annotations", "categories")


def read_coco(file: str | Path, folders: Sequence[str | Path], *, strict: bool = False) -> DetectionDataset:
    """The dataset that the COCO JSON `file` describes.

    folders: where the images may lie, the likeliest first; the first that holds one of the images listed is used for
    all. strict: raise at the first doubtful image or annotation instead of listing it in `problems`; the rules are in
    `regio.data.records`.

    Where an image has no width and height, they are read from its header. Where an annotation has no area, it is that
    of its mask, or else of its box. In files named as Roboflow names them, category 0 is left out when it is unused
    and only the `supercategory` of others.

    Raises ValueError when `file` is missing, no JSON or no COCO JSON, when an id is used twice, and when none of the
    images is found.
    """
    problems = Problems(strict)
    dataset = coco_dataset(Path(file), [Path(folder) for folder in folders], problems)
    problems.raise_damage()
    return dataset


def coco_dataset(file: Path, folders: Sequence[Path], problems: Problems) -> DetectionDataset:
    """As `read_coco`, with damage listed in `problems` where the rest can be read without it."""
    source = _load(file)
    categories = _categories(file, source)
    images = {_field(file, "images", image, "id", int): image for image in source["images"]}
    if len(images) != len(source["images"]):
        raise ValueError(f"{file}: image id {repeated([image['id'] for image in source['images']])} is used twice")
    if long := [id for id in images if abs(id) >= ID_LIMIT]:
        raise ValueError(f"{file}: image id {long[0]}: expected a number of 64 bits")
    found = _find_images(file, folders, images, problems)
    of_image = _annotations_of_images(file, source["annotations"], images, problems)
    labels = {id: label for label, id in enumerate(categories, start=1)}
    records = []
    for id, path in found.items():
        size = _size(file, images[id], path, problems)
        if size is None:
            continue
        rows = [_annotation(file, row, size, labels, problems) for row in of_image[id]]
        records.append(Record.of(id, path, images[id]["file_name"], size, [row for row in rows if row is not None]))
    return DetectionDataset(list(categories.values()), list(categories), records, problems=problems.found)


def is_coco(file: Path) -> bool:
    """Whether `file` seems to be COCO JSON: the three keys are in it, looked for as text."""
    try:
        text = file.read_bytes()
    except OSError:
        return False
    return all(f'"{key}"'.encode() in text for key in _KEYS)


def _load(file: Path) -> dict[str, Any]:
    try:
        source = json.loads(file.read_bytes())
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise ValueError(f"{file}: not JSON: {error}") from error
    for key in _KEYS:
        if not isinstance(source, dict) or not isinstance(source.get(key), list):
            found = f"the keys {sorted(source)}" if isinstance(source, dict) else f"a {type(source).__name__}"
            raise ValueError(f"{file}: not COCO: expected a list under {key!r}, got {found}"[:400])
        for entry in source[key]:
            if not isinstance(entry, dict):
                raise ValueError(f"{file}: not COCO: expected objects in {key!r}, got {str(entry)[:80]}")
    return source


def _field(file: Path, key: str, entry: dict[str, Any], name: str, kind: type) -> Any:
    value = entry.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{file}: expected {kind.__name__} {name!r} in each of {key!r}, got {str(entry)[:200]}")
    return value


def _categories(file: Path, source: dict[str, Any]) -> dict[int, str]:
    """Names by id, in ascending order of ids."""
    rows = source["categories"]
    categories = {
        _field(file, "categories", row, "id", int): _field(file, "categories", row, "name", str) for row in rows
    }
    if len(categories) != len(rows):
        raise ValueError(f"{file}: category id {repeated([row['id'] for row in rows])} is used twice")
    if file.name == ROBOFLOW_FILE and 0 in categories:
        is_parent = any(row.get("supercategory") == categories[0] for row in rows if row["id"] != 0)
        if is_parent and all(row.get("category_id") != 0 for row in source["annotations"]):
            del categories[0]
    if not categories:
        raise ValueError(f"{file}: no categories: expected at least one class")
    if len(set(categories.values())) != len(categories):
        raise ValueError(f"{file}: category name {repeated(categories.values())!r} is used twice")
    return dict(sorted(categories.items()))


def _find_images(
    file: Path, folders: Sequence[Path], images: dict[int, dict[str, Any]], problems: Problems
) -> dict[int, Path]:
    """Path by image id, for the images that exist."""
    names = {id: _field(file, "images", image, "file_name", str) for id, image in images.items()}
    listed: dict[Path, set[str]] = {}

    def exists(path: Path) -> bool:
        if path.parent not in listed:  # one listing of a folder instead of a call for each file
            listed[path.parent] = {p.name for p in path.parent.iterdir()} if path.parent.is_dir() else set()
        return path.name in listed[path.parent]

    folder = next((f for f in folders if any(exists(f / name) for name in names.values())), None)
    if folder is None:
        if not names:
            return {}
        searched = ", ".join(str(f) for f in folders)
        raise ValueError(f"{file}: none of its {len(names)} images ({next(iter(names.values()))}, ...) in {searched}")
    found = {}
    for id, name in names.items():
        if exists(folder / name):
            found[id] = folder / name
        else:
            problems.add(file, f"image {id}", f"no such file: {folder / name}; left out")
    return found


def _annotations_of_images(
    file: Path, annotations: list[dict[str, Any]], images: dict[int, dict[str, Any]], problems: Problems
) -> defaultdict[int, list[dict[str, Any]]]:
    of_image: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    ids = [row.get("id") for row in annotations]
    numbers = [id for id in ids if isinstance(id, int)]
    twice = {id for id, count in Counter(numbers).items() if count > 1}
    for id, row in zip(ids, annotations, strict=True):
        if isinstance(id, int) and id in twice:
            problems.add(file, f"annotation {id}", "id used more than once; all kept")
        if isinstance(id, int) and abs(id) >= ID_LIMIT:
            problems.add(file, f"annotation {id}", "id of more than 64 bits; kept without it")
        image_id = row.get("image_id")
        if isinstance(image_id, int) and image_id in images:
            of_image[image_id].append(row)
        elif image_id is None:
            problems.add(file, f"annotation {id}", "without an image_id; left out")
        else:
            problems.add(file, f"annotation {id}", f"of unknown image {image_id!r}; left out")
    return of_image


def _size(file: Path, image: dict[str, Any], path: Path, problems: Problems) -> tuple[int, int] | None:
    height, width = image.get("height"), image.get("width")
    if height is None or width is None:
        return size_in_file(path, problems)
    if not all(_is_number(side) and 0 < side < math.inf and side == int(side) for side in (height, width)):
        raise ValueError(f"{file}: image {image['id']}: expected a whole width and height, got {width!r} x {height!r}")
    return int(height), int(width)


def _annotation(
    file: Path, row: dict[str, Any], size: tuple[int, int], labels: dict[int, int], problems: Problems
) -> Annotation | None:
    """The annotation that `row` describes, or None where the rules leave it out."""
    item = f"annotation {row.get('id')} of image {row['image_id']}"
    category_id = row.get("category_id")
    if not isinstance(category_id, int) or category_id not in labels:
        what = "without a category_id" if category_id is None else f"of unknown category {category_id!r}"
        problems.add(file, item, f"{what}; left out")
        return None
    corner = row.get("bbox")
    if not (isinstance(corner, list) and len(corner) == 4 and all(_is_number(value) for value in corner)):
        problems.add(file, item, f"expected bbox [x, y, width, height], got {str(corner)[:80]}; left out")
        return None
    for name in ("iscrowd", "difficult", "ignore"):
        if row.get(name) not in (None, 0, 1):
            problems.add(file, item, f"expected {name} 0 or 1, got {repr(row[name])[:80]}; left out")
            return None
    x, y, width, height = map(float, corner)
    box = sound_box((x, y, x + width, y + height), size, file, item, problems)
    if box is None:
        return None
    segmentation = sound_segmentation(row.get("segmentation"), box, size, file, item, problems)
    return Annotation(
        id=row["id"] if isinstance(row.get("id"), int) and abs(row["id"]) < ID_LIMIT else -1,
        box=box,
        label=labels[category_id],
        area=_area(row, box, segmentation, size),
        crowd=bool(row.get("iscrowd", 0)),
        difficult=bool(row.get("difficult", row.get("ignore", 0))),
        segmentation=segmentation,
    )


def _is_number(value: Any) -> TypeGuard[int | float]:
    """Whether `value` is a number that a float holds, or no finite one."""
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return whole or isinstance(value, float)


def _area(row: dict[str, Any], box: Box, segmentation: Segmentation | None, size: tuple[int, int]) -> float:
    area = row.get("area")
    if _is_number(area) and math.isfinite(area) and area > 0:
        return float(area)
    if segmentation is None:
        return (box[2] - box[0]) * (box[3] - box[1])
    return mask_area(segmentation, size)
