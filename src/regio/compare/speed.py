"""How long detectors take for an image, all measured in one process and in turns, so that what else the machine does
meanwhile meets all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from regio.data import DetectionDataset
from regio.ready import ReadyDetector

__all__ = ["seconds_an_image"]

LEAST, MOST = 3, 10  # images that are timed
LIMIT = 30.0  # seconds for each detector, after which only LEAST images are timed


@dataclass
class _Clock:
    times: list[float] = field(default_factory=list)
    spent: float = 0.0

    @property
    def enough(self) -> bool:
        return len(self.times) >= LEAST and self.spent > LIMIT

    def time(self, detector: nn.Module, arguments: list[Any], device: torch.device) -> None:
        """One call to warm up for an image of that size, and one that counts."""
        for _ in range(2):
            began = time.perf_counter()
            detector(*arguments)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            took = time.perf_counter() - began
            self.spent += took
        self.times.append(took)


def seconds_an_image(detectors: Mapping[str, ReadyDetector], dataset: DetectionDataset) -> dict[str, float]:
    """The median time that each of `detectors` takes for one image alone, from pixels to detections; reading the image
    is not part of it, nor is finding proposals that are given.

    Up to ten images, spread over the data set, are given to all detectors in turn; slow detectors see three. dataset:
    with the proposals that detectors need.
    """
    clocks = {name: _Clock() for name in detectors}
    count = min(MOST, len(dataset))
    for i in range(count):
        sample = dataset[i * len(dataset) // count]
        arguments = [[sample.image], *([] if sample.proposals is None else [[sample.proposals]])]
        for name, detector in detectors.items():
            if not clocks[name].enough:
                clocks[name].time(detector, arguments, detector.device)
    return {name: statistics.median(clock.times) for name, clock in clocks.items()}
