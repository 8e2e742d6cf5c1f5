"""A set of annotated images, the same whatever format it was read from."""

from __future__ import annotations

import copy
import difflib
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from regio.data.class_maps import paint_class_map, read_label_image
from regio.data.images import read_image
from regio.data.masks import decode_masks
from regio.data.records import Problem, Record, repeated
from regio.masks import EncodedMasks
from regio.types import IGNORED, Targets

__all__ = ["DetectionDataset", "Sample", "read_record"]


@dataclass(frozen=True)
class Sample:
    """One image with what is annotated in it.

    image: uint8 RGB [3, H, W]. targets: boxes in pixels of this image. id, name: those of the record. proposals: boxes
    [P, 4] in pixels of this image for a detector to start from, best first, or None.
    """

    image: Tensor
    targets: Targets
    id: int
    name: str
    proposals: Tensor | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.image.shape[1], self.image.shape[2]


def read_record(record: Record) -> Tensor:
    """The image of `record`, uint8 RGB [3, H, W], read from its file. Raises as `read_image`."""
    return read_image(record.path, record.size)


class DetectionDataset(Dataset[Sample]):
    """Annotated images: `dataset[i]` is a `Sample`.

    class_names: C names, without the background; label l is ``class_names[l - 1]``, and ``category_ids[l - 1]`` is its
    id in the source, where ids may have gaps. records: one for each image. problems: what the reader left out or
    changed (the rules are in `regio.data.records`). notes: what a user should know of how the dataset was read, for
    instance that it was split. read: gives the image of a record.

    A dataset is never changed: its methods return another.

    Raises ValueError when names and ids differ in number, or a name, an id or an image id occurs twice.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        category_ids: Sequence[int],
        records: Sequence[Record],
        *,
        problems: Sequence[Problem] = (),
        notes: Sequence[str] = (),
        read: Callable[[Record], Tensor] = read_record,
    ) -> None:
        if len(class_names) != len(category_ids):
            raise ValueError(f"category_ids: expected {len(class_names)}, one a class, got {len(category_ids)}")
        _require_unique("class_names", class_names)
        _require_unique("category_ids", category_ids)
        _require_unique("records: image ids", [record.id for record in records])
        self.class_names = tuple(class_names)
        self.category_ids = tuple(category_ids)
        self.records = tuple(records)
        self.problems = tuple(problems)
        self.notes = tuple(notes)
        self._read = read
        self._masks = self._class_maps = False
        self._proposals: Mapping[int, NDArray[np.float32]] | None = None
        self._proposal_source: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        """The sample of record `index`, with masks if this is a dataset `with_masks`, with a class map
        if one `with_class_maps`, with boxes `with_proposals`.

        Raises ValueError, naming the file, when the image is missing, damaged or of another size than annotated, or a
        segmentation cannot be decoded.
        """
        record = self.records[index]
        image = self._read(record)  # first: it refuses a size that no memory holds
        targets = Targets(
            torch.from_numpy(record.boxes.astype(np.float32)),
            torch.from_numpy(record.labels.copy()),
            torch.from_numpy(record.crowd.copy()),
            torch.from_numpy(record.difficult.copy()),
            _masks_of(record) if self._masks else None,
            _class_map_of(record) if self._class_maps else None,
        )
        boxes = self.proposals_of(index)
        proposals = None if boxes is None else torch.from_numpy(boxes.copy())
        return Sample(image, targets, record.id, record.name, proposals)

    def __repr__(self) -> str:
        objects = sum(len(record) for record in self.records)
        return f"DetectionDataset({len(self)} images, {objects} objects, {len(self.class_names)} classes)"

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each image in pixels, without reading any."""
        return [record.size for record in self.records]

    @property
    def has_masks(self) -> bool:
        """Whether any object has a segmentation."""
        return any(each is not None for record in self.records for each in record.segmentations)

    def read_image(self, index: int) -> Tensor:
        """The image of record `index` alone, uint8 RGB [3, H, W]. Raises as reading the sample."""
        return self._read(self.records[index])

    def subset(self, indices: Iterable[int]) -> Self:
        """The images at `indices`, in that order."""
        return self._with(records=tuple(self.records[index] for index in indices))

    def without_empty(self) -> Self:
        """The images with at least one object that is not a crowd."""
        return self._with(records=tuple(record for record in self.records if not record.crowd.all()))

    def without_difficult(self) -> Self:
        """The objects that are not marked as difficult. Every image is kept; a dataset without such objects is given
        back as it is, and `notes` says how many were left out."""
        count = sum(int(record.difficult.sum()) for record in self.records)
        if count == 0:
            return self

        def kept(record: Record) -> Record:
            rows = np.flatnonzero(~record.difficult)
            return record.select(rows, record.labels[rows])

        note = f"{count} difficult objects are not trained on (difficult=true trains on them)"
        return self._with(records=tuple(kept(record) for record in self.records)).with_note(note)

    def keep_classes(self, names: Sequence[str]) -> Self:
        """The objects of these classes, with labels 1 .. len(names) in the order given. Every image is kept.

        Raises ValueError for no name, a name given twice, and an unknown name, with the names closest to it.
        """
        if isinstance(names, str):
            raise TypeError(f"names: expected a sequence of class names, got the string {names!r}")
        if not names:
            raise ValueError("names: expected at least one class, got none")
        _require_unique("names", names)
        for name in names:
            if name not in self.class_names:
                raise ValueError(f"unknown class {name!r}; {_suggestion(name, self.class_names)}")
        old = [self.class_names.index(name) for name in names]
        new_label = np.zeros(len(self.class_names) + 1, dtype=np.int64)
        new_label[np.array(old) + 1] = np.arange(1, len(names) + 1)

        def kept(record: Record) -> Record:
            rows = np.flatnonzero(new_label[record.labels])
            labels = None if record.label_image is None else record.label_image.relabelled(new_label)
            return replace(record.select(rows, new_label[record.labels[rows]]), label_image=labels)

        return self._with(
            class_names=tuple(names),
            category_ids=tuple(self.category_ids[i] for i in old),
            records=tuple(kept(record) for record in self.records),
        )

    def with_masks(self) -> Self:
        """The same dataset whose samples have masks [G, H, W], decoded when a sample is read.

        Raises ValueError when an object has no segmentation.
        """
        missing = [(r, row) for r in self.records for row, s in enumerate(r.segmentations) if s is None]
        if missing:
            record, row = missing[0]
            raise ValueError(
                f"masks: {len(missing)} objects have no segmentation, the first is annotation "
                f"{record.annotation_ids[row]} of {record.name}"
            )
        return self._with(_masks=True)

    def with_known_masks(self) -> Self:
        """As `with_masks`, but the mask of an object without a segmentation has not one pixel.

        Raises ValueError when no object has a segmentation.
        """
        if not self.has_masks:
            raise ValueError(
                f"masks: expected segmentations, and none of {sum(map(len, self.records))} objects has one"
            )
        return self._with(_masks=True)

    def without_masks(self) -> Self:
        """The same dataset whose samples have no masks: a hundred on a photo of 12 megapixels take 1.2 GB. Records keep
        their segmentations."""
        return self._with(_masks=False)

    def with_class_maps(self) -> Self:
        """The images of which the class of every pixel is known, whose samples have class maps [H, W], made when a
        sample is read: those with a file of it, where any has one, and otherwise those all of whose objects have a
        segmentation (see `regio.data.class_maps`). `notes` says how many others are left out.

        Raises ValueError when there is none, for more than 254 classes, and for a class called background.
        """
        if "background" in self.class_names:
            raise ValueError(
                "class maps: expected no class 'background', the name of all other pixels; leave it out with --classes"
            )
        if len(self.class_names) >= IGNORED:
            raise ValueError(f"class maps: expected at most {IGNORED - 1} classes, got {len(self.class_names)}")
        from_files = any(record.label_image is not None for record in self.records)
        if not from_files and not self.has_masks:
            objects = sum(map(len, self.records))
            raise ValueError(
                f"class maps: expected segmentations, or files of the class of every pixel (Pascal VOC's "
                f"SegmentationClass), and none of {objects} objects in {len(self)} images has one"
            )

        def known(record: Record) -> bool:
            return record.label_image is not None if from_files else None not in record.segmentations

        kept = [record for record in self.records if known(record)]
        if not kept:
            raise ValueError(f"class maps: each of the {len(self)} images has an object without a segmentation")
        made = self._with(records=tuple(kept), _class_maps=True)
        if len(kept) == len(self):
            return made
        what = "no class map" if from_files else "an object without a segmentation"
        return made.with_note(f"{len(self) - len(kept)} of {len(self)} images have {what} and are left out")

    def masks_of(self, index: int) -> EncodedMasks | None:
        """The masks of the objects of record `index`, decoded one at a time where they are asked for, if this is a
        dataset `with_masks`; None if it is not."""
        return EncodedMasks(self.records[index].segmentations) if self._masks else None

    @property
    def proposal_source(self) -> dict[str, Any]:
        """Of a dataset `with_proposals`, where its boxes come from: `method`, the settings of what found them, and
        `per_image`, how many of an image are used at most. Empty where that is not known, or where there are none."""
        return dict(self._proposal_source)

    def with_proposals(
        self, proposals: Mapping[int, NDArray[np.float32]], source: Mapping[str, Any] | None = None
    ) -> Self:
        """The same dataset whose samples have boxes to start from: by image id, [P, 4] float32 in pixels of the image,
        as `regio.data.read_proposals` gives them. There may be boxes of images that are not in this dataset. source:
        see `proposal_source`; the card of a checkpoint that is trained on them has it.

        Raises ValueError for an image without an entry (no box at all is an entry of shape [0, 4]), and for boxes that
        are not finite or of another shape.
        """
        for record in self.records:
            boxes = proposals.get(record.id)
            if boxes is None:
                raise ValueError(
                    f"proposals: expected boxes of every image, got none of image {record.id}, {record.name}"
                )
            if boxes.ndim != 2 or boxes.shape[1] != 4 or not np.isfinite(boxes).all():
                raise ValueError(
                    f"proposals of image {record.id}: expected finite [P, 4], got shape {list(boxes.shape)}"
                )
        return self._with(_proposals=proposals, _proposal_source=dict(source or {}))

    def proposals_of(self, index: int) -> NDArray[np.float32] | None:
        """The boxes [P, 4] to start from in the image of record `index`, if this is a dataset `with_proposals`; None if
        it is not. The image is not read."""
        return None if self._proposals is None else self._proposals[self.records[index].id]

    def with_images(self, read: Callable[[Record], Tensor]) -> Self:
        """The same dataset whose images `read` gives, of each record."""
        return self._with(_read=read)

    def with_note(self, note: str) -> Self:
        """The same dataset with one more of `notes`."""
        return self._with(notes=(*self.notes, note))

    def to_coco(self) -> dict[str, Any]:
        """The annotations as a COCO dictionary, whatever the source.

        Boxes are (x, y, width, height) as read, that is, after the rules for doubtful ones. Annotation ids count from
        1 in the order of the records, since evaluators take 0 for "unmatched" and need them unique. `ignore` and
        `difficult` are both VOC's `difficult`.
        """
        annotations: list[dict[str, Any]] = []
        for record in self.records:
            for row, (x1, y1, x2, y2) in enumerate(record.boxes.tolist()):
                annotation = {
                    "id": len(annotations) + 1,
                    "image_id": record.id,
                    "category_id": self.category_ids[record.labels[row] - 1],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(record.area[row]),
                    "iscrowd": int(record.crowd[row]),
                    "ignore": int(record.difficult[row]),
                    "difficult": int(record.difficult[row]),
                }
                if record.segmentations[row] is not None:
                    annotation["segmentation"] = record.segmentations[row]
                annotations.append(annotation)
        images = [
            {"id": record.id, "file_name": record.name, "height": record.size[0], "width": record.size[1]}
            for record in self.records
        ]
        categories = [{"id": i, "name": n} for i, n in zip(self.category_ids, self.class_names, strict=True)]
        return {"images": images, "annotations": annotations, "categories": categories}

    def identity(self) -> dict[str, str]:
        """What this data set is, in words that are equal for equal content: `images`, `classes`, and hashes of its
        `annotations` (ids, sizes, boxes, labels and flags; segmentations if it is `with_masks` or `with_class_maps`,
        boxes if it is `with_proposals`) and `files`.

        Files are known by their names and lengths, not by a hash of all their bytes, which would read the whole data
        set: a photo that is exchanged for another of the same name and length in bytes is not noticed. Where a folder
        lies and when it was copied makes no difference.
        """
        annotations, files = hashlib.sha256(), hashlib.sha256()
        for record in self.records:
            annotations.update(repr((record.id, record.size, len(record))).encode())
            for column in (record.boxes, record.labels, record.crowd, record.difficult):
                annotations.update(np.ascontiguousarray(column).tobytes())
            if self._masks or self._class_maps:
                annotations.update(repr(record.segmentations).encode())
            if self._class_maps and record.label_image is not None:
                path, label = record.label_image.path, record.label_image.label
                annotations.update(repr((path.name, path.stat().st_size, label.tolist())).encode())
            if self._proposals is not None:
                annotations.update(np.ascontiguousarray(self._proposals[record.id]).tobytes())
            length = record.path.stat().st_size if record.path.is_file() else None  # None: made, not read
            files.update(repr((record.name, length)).encode())
        return {
            "images": str(len(self)),
            "classes": ", ".join(f"{i} {name}" for i, name in zip(self.category_ids, self.class_names, strict=True)),
            "annotations": annotations.hexdigest()[:16],
            "files": files.hexdigest()[:16],
        }

    def _with(self, **changes: Any) -> Self:
        other = copy.copy(self)
        for name, value in changes.items():
            setattr(other, name, value)
        return other


def _masks_of(record: Record) -> Tensor:
    masks = torch.zeros((len(record), *record.size), dtype=torch.bool)
    for row, segmentation in enumerate(record.segmentations):
        if segmentation is None:  # of a dataset with_known_masks
            continue
        try:
            masks[row] = decode_masks([segmentation], record.size)[0]
        except ValueError as error:
            raise ValueError(f"{record.path}: annotation {record.annotation_ids[row]}: {error}") from error
    return masks


def _class_map_of(record: Record) -> Tensor:
    if record.label_image is not None:
        return read_label_image(record.label_image, record.size)
    masks = [each for each in record.segmentations if each is not None]
    try:
        return paint_class_map(masks, record.labels.tolist(), record.crowd.tolist(), record.size)
    except ValueError as error:
        raise ValueError(f"{record.path}: {error}") from error


def _require_unique(what: str, values: Sequence[Any]) -> None:
    if len(set(values)) != len(values):
        raise ValueError(f"{what}: {repeated(values)!r} occurs twice")


def _suggestion(name: str, known: Sequence[str]) -> str:
    lowered = {other.lower(): other for other in known}
    close = [lowered[match] for match in difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.5)]
    if close:
        return f"did you mean {' or '.join(close)}?"
    shown = ", ".join(known[:10]) + (", ..." if len(known) > 10 else "")
    return f"the dataset has {len(known)}: {shown}"
