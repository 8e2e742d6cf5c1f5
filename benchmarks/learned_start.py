"""What learned region features read after a short training on generated scenes: by where their parts begin, by the
factor on their geometric term, and by whether their appearance term reads normalised features.

    python benchmarks/learned_start.py --steps 400 --seeds 0 1 --variants align moved prior as-given grid default

For each variant and seed: AP on 100 scenes that were not seen; and of 24 of these, before and after training, the mean
KL between parts (nats) and the share of a part's weight on the cells that the box covers.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from regio.analysis.divergence import kl_between_parts
from regio.analysis.trained import extractor_of, weights_by_level
from regio.config import RunConfig
from regio.data import DetectionDataset, HorizontalFlip, Shapes
from regio.detector import TwoStageDetector
from regio.evaluate import BoxEvaluator
from regio.kernels.attend import readable
from regio.regions import (
    BoxSupport,
    DeformablePrior,
    GridPrior,
    LearnedRegionFeatures,
    Levels,
    RegionExtractor,
    RoIAlign,
    RoIAlignPrior,
)
from regio.regions.learned import as_given
from regio.settings import override
from regio.train import train
from regio.types import Regions

VARIANTS: dict[str, Callable[[int], RegionExtractor]] = {
    "align": lambda channels: RoIAlign(7, samples=2),
    "default": LearnedRegionFeatures,
    "printed": lambda channels: LearnedRegionFeatures(channels, scale=1),
    "grid": lambda channels: LearnedRegionFeatures(channels, prior=GridPrior()),
    "prior": lambda channels: LearnedRegionFeatures(channels, prior=RoIAlignPrior()),
    "moved": lambda channels: LearnedRegionFeatures(channels, geometry=False, prior=DeformablePrior(channels)),
    "as-given": lambda channels: LearnedRegionFeatures(channels, prior=RoIAlignPrior(), feature_encoding=as_given),
}
SIZE = (128, 128)


def config(steps: int, seed: int) -> RunConfig:
    """Small scenes, the default optimizer and schedule."""
    model = ["short_side=128", "long_side=192", "channels=64", "hidden=256", "anchor_sizes=[16, 32, 64, 128]"]
    training = ["batch_size=4", "regions_per_image=64", "evaluate_every=1000", "workers=0", "device=cpu"]
    return override(RunConfig("shapes"), [*model, *training, f"steps={steps}", f"seed={seed}"])


@torch.no_grad()
def reads(detector: TwoStageDetector, scenes: DetectionDataset) -> str:
    """Mean KL between parts and share of the weight in the box, over the objects of `scenes`."""
    levels = extractor_of(detector)
    divergences, shares = [], []
    for sample in scenes:
        batch, maps = detector.features([sample.image])
        targets = detector.preprocess.targets([sample.targets], batch)[0]
        r = Regions.from_list([targets.boxes])
        for level, rows, weights in weights_by_level(levels, maps, r):
            inside = readable(BoxSupport()(maps[level], r[rows]), None, maps[level].size)[:, None, None]
            shares += (weights * inside).sum((3, 4)).mean((1, 2)).tolist()
            read = (weights.sum((3, 4)) > 0).all(2).all(1)
            divergences += kl_between_parts(weights[read]).tolist()
    return f"KL between parts {sum(divergences) / len(divergences):.2f}, in the box {sum(shares) / len(shares):.0%}"


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args()
    validation = Shapes(100, seed=1, size=SIZE)
    few = validation.subset(range(24))
    for seed in arguments.seeds:
        for name in arguments.variants:
            run = config(arguments.steps, seed)
            torch.manual_seed(seed)
            detector = run.model.build(6)
            detector.roi_heads[0].extractor = Levels(VARIANTS[name](run.model.channels))
            before = reads(detector, few)
            with TemporaryDirectory() as folder:
                scenes, evaluator = Shapes(1600, size=SIZE), BoxEvaluator(validation)
                found = train(detector, scenes, evaluator, run.training, Path(folder), transform=HorizontalFlip())
            ap, ap50 = found.numbers["ap"], found.numbers["ap50"]
            print(f"{name}, seed {seed}: AP {ap:.3f}, AP50 {ap50:.3f}; {reads(detector.eval(), few)}", end="")
            print(f" (before training {before})", flush=True)


if __name__ == "__main__":
    main()
