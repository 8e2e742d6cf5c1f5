"""Images of one object each, to train a network to classify them: crops of annotated objects, folders of classes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from regio.data.dataset import DetectionDataset
from regio.data.images import IMAGE_SUFFIXES, image_size
from regio.data.records import Annotation, Record

__all__ = ["object_crops", "read_class_folders"]


def object_crops(dataset: DetectionDataset, min_side: int = 16) -> DetectionDataset:
    """Each object of `dataset` as an image of its own: the whole pixels that its box covers, annotated with its class
    and a box of the whole image. Groups of objects (crowd) and objects with a side under `min_side` pixels are left
    out; `notes` says how many.

    Raises ValueError where no object is left.
    """
    records, sources, small = list[Record](), dict[int, tuple[int, int, int]](), 0
    for index, record in enumerate(dataset.records):
        for row, (x1, y1, x2, y2) in enumerate(record.boxes.tolist()):
            if record.crowd[row]:
                continue
            if min(x2 - x1, y2 - y1) < min_side:
                small += 1
                continue
            left, top, right, bottom = math.floor(x1), math.floor(y1), math.ceil(x2), math.ceil(y2)
            size = min(bottom, record.size[0]) - top, min(right, record.size[1]) - left
            id, label = len(records) + 1, int(record.labels[row])
            name = f"{record.name}#{record.annotation_ids[row]}"
            records.append(_of_one_object(id, record.path, name, size, label))
            sources[id] = (index, left, top)
    if not records:
        raise ValueError(f"dataset: expected objects of {min_side} pixels a side or more, got none")
    crops = DetectionDataset(
        dataset.class_names, dataset.category_ids, records, read=_Crops(dataset, sources), notes=dataset.notes
    )
    return crops.with_note(f"{small} objects with a side under {min_side} pixels are not cropped") if small else crops


def read_class_folders(folder: Path | str) -> DetectionDataset:
    """The images in the subfolders of `folder`, each of which is a class: ImageNet's layout, FOLDER/CLASS/NAME.jpg.
    Classes are sorted by name, images too; each is annotated with its class and a box of the whole image.

    Raises ValueError where there is no image, or one cannot be read, naming it.
    """
    folder = Path(folder)
    files = {
        each.name: [path for path in sorted(each.iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES]
        for each in sorted(folder.iterdir() if folder.is_dir() else [])
        if each.is_dir()
    }
    names = [name for name, paths in files.items() if paths]
    if not names:
        raise ValueError(f"{folder}: expected folders of classes with images in them, got none")
    records = list[Record]()
    for label, name in enumerate(names, 1):
        for path in files[name]:
            place = str(path.relative_to(folder))
            records.append(_of_one_object(len(records) + 1, path, place, image_size(path), label))
    return DetectionDataset(names, range(1, len(names) + 1), records)


def _of_one_object(id: int, path: Path, name: str, size: tuple[int, int], label: int) -> Record:
    height, width = size
    whole = Annotation(id, (0.0, 0.0, float(width), float(height)), label, float(height * width))
    return Record.of(id, path, name, size, [whole])


@dataclass(frozen=True)
class _Crops:
    """Cuts crops out. sources: of each crop by its id, the index of its image, and the first column and row."""

    dataset: DetectionDataset
    sources: Mapping[int, tuple[int, int, int]]

    def __call__(self, record: Record) -> Tensor:
        index, left, top = self.sources[record.id]
        height, width = record.size
        return self.dataset.read_image(index)[:, top : top + height, left : left + width].contiguous()
