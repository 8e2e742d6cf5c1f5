"""How long detectors take for an image, all measured in one process and in turns, so that what else the machine does
meanwhile meets all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regio.data import DetectionDataset
from regio.ready import Ready

__all__ = ["Speed", "Timed", "seconds_an_image"]

LEAST, MOST = 3, 10  # images that are timed
LIMIT = 30.0  # seconds for each detector, after which only LEAST images are timed


class Speed(NamedTuple):
    """Seconds for one image, the median: of the detector, and of finding the boxes that it is given, if it is."""

    detector: float
    proposals: float | None = None


@dataclass
class Timed:
    """A detector, or another network, to be timed on images of `dataset`, which has the boxes that it needs. propose:
    finds such boxes in an image, for a detector that is given boxes by a method."""

    detector: Ready
    dataset: DetectionDataset
    propose: Callable[[Tensor], Any] | None = None
    _times: list[float] = field(default_factory=list)
    _proposing: list[float] = field(default_factory=list)
    _spent: float = 0.0

    def time(self, index: int) -> None:
        """One call to warm up for an image of that size, and one that counts; no more than LEAST of slow ones."""
        if len(self._times) >= LEAST and self._spent > LIMIT:
            return
        sample = self.dataset[index]
        arguments = [[sample.image], *([] if sample.proposals is None else [[sample.proposals]])]
        began = time.perf_counter()
        _seconds(self.detector, arguments, self.detector.device)
        self._times.append(_seconds(self.detector, arguments, self.detector.device))
        if self.propose is not None and len(self._proposing) < LEAST:
            self.propose(sample.image)
            self._proposing.append(_seconds(self.propose, [sample.image], self.detector.device))
        self._spent += time.perf_counter() - began

    @property
    def speed(self) -> Speed:
        """The medians so far."""
        return Speed(statistics.median(self._times), statistics.median(self._proposing) if self._proposing else None)


def _seconds(call: Callable[..., Any], arguments: list[Any], device: torch.device) -> float:
    began = time.perf_counter()
    call(*arguments)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def seconds_an_image(timed: Mapping[str, Timed]) -> dict[str, Speed]:
    """The time that each of `timed`, on data sets of the same images, takes for one image alone, from pixels to
    detections; reading the image is not part of it, and finding boxes that are given is a number of its own.

    Up to ten images, spread over the data set, are given to all detectors in turn; slow detectors see three.
    """
    counts = {len(each.dataset) for each in timed.values()}
    for images in counts:
        for i in range(min(MOST, images)):
            for each in timed.values():
                each.time(i * images // min(MOST, images))
    return {name: each.speed for name, each in timed.items()}
