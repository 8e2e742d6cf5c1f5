"""A detector over many image files: annotated pictures and a JSON file."""

from __future__ import annotations

import glob
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from regio.data.images import IMAGE_SUFFIXES, image_size, read_image
from regio.outputs import DetectionOutput, Output
from regio.processes import processors
from regio.ready import Ready, ReadyDetector
from regio.whole_files import distinct_names, write_json

__all__ = ["FileDetections", "detect_files", "find_images", "find_in_files"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class FileDetections:
    """What `find_in_files` found.

    found: one entry for each image read, as in detections.json: its file, height and width in pixels, and what the
    output says of it; for detections see `DetectionOutput.write`. unreadable: a message that names the file, for each
    that could not be read. seconds: the whole took.
    """

    found: list[dict[str, Any]]
    unreadable: list[str]
    seconds: float


def find_images(inputs: Sequence[str]) -> list[Path]:
    """The image files that `inputs` name: files as they are, folders with all images below them, globs.

    Sorted within each input, each file once. Raises ValueError for an input that names nothing.
    """
    files: list[Path] = []
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            some = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        elif path.exists():
            some = [path]
        else:
            some = sorted(Path(p) for p in glob.glob(text, recursive=True) if Path(p).is_file())  # noqa: PTH207
        if not some:
            raise ValueError(f"{text}: expected an image, a folder with images or a glob that matches some, found none")
        files += some
    return list(dict.fromkeys(files))


def detect_files(
    detector: ReadyDetector,
    files: Sequence[Path],
    class_names: Sequence[str],
    folder: Path,
    *,
    score_threshold: float = -math.inf,
    batch_size: int = 4,
    pictures: bool = True,
    proposals: Callable[[Tensor], Tensor] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> FileDetections:
    """Detect in each of `files`, and write ``detections.json`` into `folder`, and with `pictures` also
    ``pictures/NAME.jpg`` with the detections drawn.

    score_threshold: lowest score of what is kept. The others: see `find_in_files`.
    """
    return find_in_files(
        detector,
        files,
        DetectionOutput(class_names, score_threshold),
        folder,
        batch_size=batch_size,
        pictures=pictures,
        proposals=proposals,
        progress=progress,
    )


def find_in_files(
    network: Ready,
    files: Sequence[Path],
    output: Output,
    folder: Path,
    *,
    batch_size: int = 4,
    pictures: bool = True,
    proposals: Callable[[Tensor], Tensor] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> FileDetections:
    """Ask `network` about each of `files`, and write into `folder` what `output` makes of it.

    batch_size: images at once at most; only images that come to one size are, so that none is padded for another.
    proposals: gives boxes [P, 4] for an image, uint8 [3, H, W], for a detector that finds none itself. progress: called
    with the number of files done after each batch. A file that cannot be read as an image is listed in `unreadable`.

    While the network works on some images, the next ones are read, with boxes found in them, and those before are
    drawn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for place in output.folders(pictures):
        (folder / place).mkdir(exist_ok=True)
    names = distinct_names(files, "")
    found: dict[int, dict[str, Any]] = {}
    unreadable: dict[int, str] = {}
    began = time.perf_counter()

    def finish(number: int, image: Tensor, result: Any) -> None:
        entry = output.write(image, result, folder, names[number], pictures)
        height, width = image.shape[1:]
        found[number] = {"file": str(files[number]), "height": height, "width": width, **entry}

    with _background(1 if proposals is None else processors()) as reader, _background() as drawer:
        batches = _of_one_size(files, network.padded_size, batch_size, unreadable)
        done, drawn = len(unreadable), deque[Future[None]]()
        progress(done)
        reads = _ahead(reader, partial(_read, files, proposals), batches, 1 if proposals is None else processors())
        for batch, reading in zip(batches, reads, strict=True):
            images, boxes, errors = reading.result()
            unreadable |= errors
            given = [] if proposals is None else [[boxes[number] for number in images]]
            results = network(list(images.values()), *given) if images else []
            for (number, image), each in zip(images.items(), results, strict=True):
                drawn.append(drawer.submit(finish, number, image, each.to("cpu")))
            while len(drawn) > 2 * batch_size:
                drawn.popleft().result()
            done += len(batch)
            progress(done)
        for last in drawn:
            last.result()
    in_order = [found[number] for number in sorted(found)]
    result = FileDetections(in_order, [unreadable[i] for i in sorted(unreadable)], time.perf_counter() - began)
    write_json(folder / output.listing, in_order)
    return result


def _of_one_size(
    files: Sequence[Path],
    padded_size: Callable[[tuple[int, int]], tuple[int, int]],
    most: int,
    unreadable: dict[int, str],
) -> list[list[int]]:
    """The numbers of the files, up to `most` images of one padded size together; of what is no image, why in
    `unreadable`. Sizes of few images go one by one: what oneDNN builds for a new number of images takes as long as two
    images do."""
    sizes: dict[tuple[int, int], list[int]] = {}
    for number, file in enumerate(files):
        try:
            sizes.setdefault(padded_size(image_size(file)), []).append(number)
        except (ValueError, OSError) as error:
            unreadable[number] = str(error)
    batches = []
    for numbers in sizes.values():
        count = most if len(numbers) >= 2 * most else 1
        batches += [numbers[i : i + count] for i in range(0, len(numbers), count)]
    return batches


def _read(
    files: Sequence[Path], proposals: Callable[[Tensor], Tensor] | None, numbers: Sequence[int]
) -> tuple[dict[int, Tensor], dict[int, Tensor], dict[int, str]]:
    """The images of these numbers, boxes in them where something finds some, and why of those that cannot be read."""
    images, boxes, errors = {}, {}, {}
    for number in numbers:
        try:
            images[number] = read_image(files[number])
        except (ValueError, OSError) as error:
            errors[number] = str(error)
            continue
        if proposals is not None:
            boxes[number] = proposals(images[number])
    return images, boxes, errors


def _background(threads: int = 1) -> ThreadPoolExecutor:
    """Threads of the lowest priority, where threads have one of their own."""
    return ThreadPoolExecutor(threads, initializer=_yield_to_detector)


def _yield_to_detector() -> None:
    """Give this thread the lowest priority, where threads have one of their own. The detector's threads work in steps
    of a fraction of a millisecond; one that finds its processor taken keeps the others waiting."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def _ahead(
    pool: ThreadPoolExecutor, function: Callable[[_Item], _Result], items: Sequence[_Item], count: int = 1
) -> Iterator[Future[_Result]]:
    """``function(item)`` of each of `items`, in order, each begun when that `count` places before is given."""
    futures = deque[Future[_Result]]()
    for item in items:
        futures.append(pool.submit(function, item))
        if len(futures) > count:
            yield futures.popleft()
    yield from futures
