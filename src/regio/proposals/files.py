"""Boxes of all images of a data set, found once and kept in a file."""

from __future__ import annotations

import hashlib
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from regio.data.dataset import DetectionDataset
from regio.data.loading import without_worker_tracebacks
from regio.data.proposals import Boxes, ImageFile, Origin, read_origin, read_scored_proposals, write_proposals
from regio.data.records import Record
from regio.proposals.method import ProposalMethod, method_settings, settings_differences

__all__ = ["missing_images", "propose", "require_same_images"]

PART_SECONDS = 10.0  # of work that a kill may lose
Found = tuple[Boxes, NDArray[np.float32]]


def propose(
    dataset: DetectionDataset,
    method: ProposalMethod,
    file: Path,
    *,
    processes: int = 1,
    progress: Callable[[int, int], None] = lambda done, images: None,
) -> int:
    """Write the boxes that `method` finds in each image of `dataset` to `file`, see `regio.data.write_proposals`;
    returns in how many images it looked. A file that is there already and has all of them is left as it is: 0.

    Images that are done are kept, every ten seconds, in a folder beside the file until it is complete; a start after a
    kill goes on from there. Two processes do not work on one file: the second waits until the first is done. processes:
    how many search, 1 for this one alone; with several, `method` must not use a GPU. progress: called with (images
    done, images).

    Raises ValueError naming the file, or the folder, where it was found by other settings, where it is of other images
    or lacks some, and where an image has changed since (the first that has); ValueError or OSError naming an image
    that cannot be read, or a file that cannot be written: what is done then is kept too.
    """
    settings = method_settings(method)
    parts = file.with_name(f"{file.name}.parts")
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_name(f".{file.name}.lock")):
        if file.exists():
            _require_complete(file, settings, dataset)
            shutil.rmtree(parts, ignore_errors=True)  # of a process that was killed just before it did this
            return 0
        work = _Work(parts, settings, dataset)
        count = len(dataset) - len(work.done)
        work.run(method, processes, progress)
        origin = Origin(settings, {record.id: work.images[record.id] for record in dataset.records})
        write_proposals(file, {record.id: work.done[record.id] for record in dataset.records}, origin)
        shutil.rmtree(parts, ignore_errors=True)
    return count


def require_same_images(file: Path, origin: Origin, dataset: DetectionDataset) -> None:
    """Raise ValueError, naming `file` and the first image that differs, unless the boxes of `origin` are of the images
    of `dataset`; there may be others too. A file of the same length and time is taken to be the same."""
    missing = missing_images(origin, dataset)
    if len(missing) == len(dataset):
        raise ValueError(f"{file}: boxes of another data set: it has none of the {len(dataset)} images")
    if missing:
        raise ValueError(
            f"{file}: has no boxes of {len(missing)} of {len(dataset)} images, the first is {missing[0].name}"
        )
    for index, record in enumerate(dataset.records):
        was = origin.images[record.id]
        if was.name != record.name:
            raise ValueError(f"{file}: boxes of another data set: image {record.id} is {was.name}, got {record.name}")
        if not _same(was, dataset, index):
            what = f"{record.name} has changed since its boxes were found"
            raise ValueError(f"{file}: {what}; remove that file to find them again")


def missing_images(origin: Origin, dataset: DetectionDataset) -> list[Record]:
    """The images of `dataset` that there are no boxes of, by id."""
    return [record for record in dataset.records if record.id not in origin.images]


def _require_complete(file: Path, settings: Mapping[str, object], dataset: DetectionDataset) -> None:
    origin = read_origin(file)
    if origin is None:
        raise ValueError(f"{file}: does not say what found its boxes; give another file, or remove it")
    different = settings_differences(origin.method, settings)
    if different:
        raise ValueError(f"{file}: found by other settings: {different}; give another file, or remove it")
    require_same_images(file, origin, dataset)


def _same(was: ImageFile, dataset: DetectionDataset, index: int) -> bool:
    path = dataset.records[index].path
    if path.is_file():
        status = path.stat()
        if (status.st_size, status.st_mtime_ns) == (was.length, was.modified):
            return True
        if status.st_size != was.length:
            return False
    return _image_file(dataset, index).sha256 == was.sha256


def _image_file(dataset: DetectionDataset, index: int) -> ImageFile:
    record = dataset.records[index]
    if not record.path.is_file():
        pixels = dataset.read_image(index).contiguous().numpy()
        return ImageFile(record.name, hashlib.sha256(pixels.tobytes()).hexdigest(), -1, 0)
    status = record.path.stat()
    digest = hashlib.sha256(record.path.read_bytes()).hexdigest()
    return ImageFile(record.name, digest, status.st_size, status.st_mtime_ns)


class _Work:
    """What is done of a file, and its parts on disk. done, images: by image id."""

    def __init__(self, folder: Path, settings: Mapping[str, object], dataset: DetectionDataset) -> None:
        self.folder, self.settings, self.dataset = folder, settings, dataset
        self.done: dict[int, Found] = {}
        self.images: dict[int, ImageFile] = {}
        self.unsaved: list[int] = []
        self.number = 0
        index_of = {record.id: index for index, record in enumerate(dataset.records)}
        for part in sorted(folder.glob("*.safetensors")):
            origin = read_origin(part)
            assert origin is not None
            different = settings_differences(origin.method, settings)
            if different:
                raise ValueError(f"{folder}: begun with other settings: {different}; remove it, or give another file")
            self.number = int(part.stem) + 1
            for id, found in read_scored_proposals(part).items():
                index, was = index_of.get(id), origin.images[id]
                if index is not None and was.name == dataset.records[index].name and _same(was, dataset, index):
                    self.done[id], self.images[id] = found, was

    def run(self, method: ProposalMethod, processes: int, progress: Callable[[int, int], None]) -> None:
        """Look at what is not done."""
        todo = [i for i, record in enumerate(self.dataset.records) if record.id not in self.done]
        progress(len(self.done), len(self.dataset))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This DataLoader will create")  # more than the machine has processors
            loader = DataLoader(
                _Searched(self.dataset, method),
                batch_size=None,
                sampler=todo,
                num_workers=processes if processes > 1 and len(todo) > 1 else 0,
                collate_fn=_as_it_is,
                worker_init_fn=_ignore_interrupt,
            )
            items = iter(loader)
        saved = time.monotonic()
        try:
            with without_worker_tracebacks():
                for index, boxes, scores, image in items:
                    id = self.dataset.records[index].id
                    self.done[id], self.images[id] = (boxes.numpy().copy(), scores.numpy().copy()), image
                    self.unsaved.append(id)
                    progress(len(self.done), len(self.dataset))
                    if time.monotonic() - saved >= PART_SECONDS:
                        self.save()
                        saved = time.monotonic()
        except BaseException:  # Ctrl-C, too
            self.save()
            raise

    def save(self) -> None:
        """Write what is done and not yet on disk as one more part."""
        if not self.unsaved:
            return
        origin = Origin(self.settings, {id: self.images[id] for id in self.unsaved})
        part = self.folder / f"{self.number:06d}.safetensors"
        write_proposals(part, {id: self.done[id] for id in self.unsaved}, origin)
        self.number += 1
        self.unsaved = []


@dataclass(frozen=True)
class _Searched(Dataset[tuple[int, Tensor, Tensor, ImageFile]]):
    """Item i: i, boxes and scores of image i, and the image's file.

    Boxes are tensors, which come from another process in shared memory: through a pipe, they would fill it, and a
    process whose parent was killed would wait for ever to write to it.
    """

    dataset: DetectionDataset
    method: ProposalMethod

    def __getitem__(self, index: int) -> tuple[int, Tensor, Tensor, ImageFile]:
        image = _image_file(self.dataset, index)
        boxes, scores = self.method(self.dataset.read_image(index))
        if boxes.ndim != 2 or boxes.shape[1] != 4 or scores.shape != boxes.shape[:1]:
            raise ValueError(
                f"method: expected boxes [P, 4] and scores [P], got {list(boxes.shape)} and {list(scores.shape)}"
            )
        return index, boxes.detach().float(), scores.detach().float(), image


def _as_it_is(item: object) -> object:
    return item


def _ignore_interrupt(worker: int) -> None:
    """Ctrl-C reaches the workers too; the main process decides when they end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
