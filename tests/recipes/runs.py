"""A small run, on a CPU, for tests of recipes."""

from collections.abc import Callable
from pathlib import Path

from regio.data import DetectionDataset, HorizontalFlip, Shapes
from regio.evaluate import BoxEvaluator
from regio.processes import launch
from regio.progress import Progress, SilentProgress
from regio.recipes import StagedRun
from regio.train import TrainConfig

__all__ = ["CONFIG", "staged"]

CONFIG = TrainConfig(steps=4, batch_size=2, evaluate_every=100, log_every=1, workers=0, device="cpu", seed=3)


def staged(
    folder: Path,
    dataset: DetectionDataset | None = None,
    validation: DetectionDataset | None = None,
    *,
    config: TrainConfig = CONFIG,
    resume: bool = False,
    progress: Callable[[], Progress] = SilentProgress,
    lines: list[str] | None = None,
) -> StagedRun:
    """A run in `folder`, by default on a few scenes of shapes. lines: gets what the run says."""
    return StagedRun(
        launch("cpu"),
        folder,
        dataset or Shapes(6),
        BoxEvaluator(validation or Shapes(3, seed=1)),
        config,
        transform=HorizontalFlip(),
        resume=resume,
        progress=progress,
        say=([] if lines is None else lines).append,
    )
