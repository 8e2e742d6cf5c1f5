"""Train torchvision's Faster or Mask R-CNN code exactly as `regio train` trains regio's: same data, order of images,
flips, backbone weights, optimizer, schedule and number of steps.

    python benchmarks/train_torchvision.py coco_s320 NAME [model=mask-rcnn] key=value ...

takes the settings of `regio train`, evaluates with its evaluators, and writes runs/NAME/ like it. Both print how long
the steps took, without evaluations.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from rich.console import Console

from regio.config import RunConfig
from regio.progress import RichProgress
from regio.run import open_splits, took, transform
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
    folder, evaluator = Path("runs") / name, config.model.evaluator(validation)
    records = train(
        detector,
        dataset,
        evaluator,
        config.training,
        folder,
        transform=transform(config),
        progress=RichProgress(console),
    ).records
    console.print(took(folder), highlight=False)
    results = config.model.results(evaluator, records)
    results.show(console)
    results.write(folder, as_dict(config))


if __name__ == "__main__":
    main()
