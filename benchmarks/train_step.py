"""Time of a training step: regio's detector with each extractor, and torchvision's code, in turns in one process.

    python benchmarks/train_step.py coco_s320 [key=value ...]

A step is forward, losses, backward and the optimizer, on the same batches for all. Settings are those of `regio train`,
and so is what the command asks of the C library and of oneDNN, for torchvision's code too.
"""

from __future__ import annotations

import platform
import statistics
import sys
import time
from dataclasses import replace

import torch
import torchvision
from rich.console import Console

import regio
import regio.cli  # sets the process up
from regio.config import RunConfig
from regio.config.extractors import DeformableRoIPool, Learned, RoIAlign, RoIPool
from regio.run import open_splits
from regio.settings import override
from torchvision_peer import TorchvisionDetector

EXTRACTORS = {
    "roi-align": RoIAlign(),
    "roi-pool": RoIPool(),
    "deformable-roi-pool": DeformableRoIPool(),
    "learned": Learned(),
    "learned, both terms": Learned(terms="both"),
    "learned, both terms, not moved": Learned(terms="both", prior="roi-align"),
}
WARM_UP, ROUNDS = 3, 15


def main() -> None:
    """Measure, and print a table."""
    data, *settings = sys.argv[1:]
    config = override(RunConfig(data), settings)
    dataset, _ = open_splits(config, Console(quiet=True))
    classes = len(dataset.class_names)
    detectors = {f"regio {k}": replace(config.model, extractor=each).build(classes) for k, each in EXTRACTORS.items()}
    detectors["torchvision RoIAlign"] = TorchvisionDetector(config.model, classes)
    optimizers = {name: config.training.optimizer.build(detector) for name, detector in detectors.items()}
    times: dict[str, list[float]] = {name: [] for name in detectors}
    size = config.training.batch_size
    for index in range(WARM_UP + ROUNDS):
        samples = [dataset[(index * size + i) % len(dataset)] for i in range(size)]
        images, targets = [s.image for s in samples], [s.targets for s in samples]
        for name, detector in detectors.items():
            began = time.perf_counter()
            torch.stack([*detector.losses(images, targets).values()]).sum().backward()
            optimizers[name].step()
            optimizers[name].zero_grad()
            times[name].append(time.perf_counter() - began)
    print(
        f"regio {regio.__version__}, torch {torch.__version__}, torchvision {torchvision.__version__}, "
        f"{torch.get_num_threads()} threads, {platform.processor() or platform.machine()}"
    )
    print(f"batch {size}, {classes} classes, {ROUNDS} steps each after {WARM_UP}; milliseconds")
    peer = statistics.median(times["torchvision RoIAlign"][WARM_UP:])
    for name, values in times.items():
        low, middle, high = statistics.quantiles(values[WARM_UP:], n=4)
        print(f"{name:37} {middle * 1e3:7.0f}  ({low * 1e3:.0f} to {high * 1e3:.0f})  {peer / middle:5.2f} x as fast")


if __name__ == "__main__":
    main()
