"""Train torchvision's Faster R-CNN code exactly as `regio train` trains regio's: same data, order of images, flips,
backbone weights, optimizer, schedule and number of steps.

    python benchmarks/train_torchvision.py ../shared/data/coco_s320 NAME key=value ...

takes the settings of `regio train` and writes runs/NAME/ like it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from rich.console import Console

from regio.config import RunConfig
from regio.evaluate import BoxEvaluator
from regio.progress import RichProgress
from regio.run import open_splits, transform
from regio.run_report import BoxResults
from regio.settings import as_dict, override
from regio.train import train
from torchvision_peer import TorchvisionDetector


def main() -> None:
    """Train and evaluate."""
    data, name, *settings = sys.argv[1:]
    console = Console()
    config = override(RunConfig(data), settings)
    dataset, validation = open_splits(config, console)
    torch.manual_seed(config.training.seed)
    detector = TorchvisionDetector(config.model, len(dataset.class_names))
    folder, evaluator = Path("runs") / name, BoxEvaluator(validation)
    records = train(
        detector,
        dataset,
        evaluator,
        config.training,
        folder,
        transform=transform(config),
        progress=RichProgress(console),
    ).records
    results = BoxResults(evaluator, records)
    results.show(console)
    results.write(folder, as_dict(config))


if __name__ == "__main__":
    main()
