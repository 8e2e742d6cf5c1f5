"""How long a training step of an arm takes, and so how many fit into a budget.

A recipe is run once on a few images, each of its trainings for a few steps; what changes weights by other ways than
gradients is passed over, since its time does not depend on the number of steps.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from regio.compare.plan import Pace
from regio.config import RunConfig, TrainConfig
from regio.data import DetectionDataset
from regio.evaluate import Evaluation
from regio.processes import launch
from regio.recipes import StagedRun
from regio.run import on_kept_maps, transform
from regio.training_log import TrainingLog

__all__ = ["measured_pace", "seconds_a_step"]

WARM_UP, TIMED = 2, 5  # steps of each training: those before the clocks run even, and those that count
NOMINAL = 10_000  # steps of the whole, of which a recipe's stages take their shares


@dataclass(frozen=True)
class _Rehearsal(StagedRun):
    """Runs the stages of a recipe for a few steps each. costs: of each training, its steps of NOMINAL and the seconds
    of each."""

    costs: list[tuple[int, float]] = field(default_factory=list)

    def by_gradients(self, model: nn.Module, folder: Path, *, config: TrainConfig, **others: Any) -> Evaluation:
        steps = WARM_UP + TIMED
        few = replace(config, steps=steps, log_every=1, save_every=steps, keep_every=None, evaluate_every=1e9)
        evaluation = super().by_gradients(model, folder, config=few, **others)
        clock = [row["seconds"] for row in TrainingLog(folder / "metrics.csv", []).rows() if "seconds" in row]
        self.costs.append((config.steps or 0, seconds_a_step(clock)))
        return evaluation

    def make(
        self, name: str, model: nn.Module, change: Callable[[Path], Mapping[str, float] | None]
    ) -> dict[str, float]:
        return {}

    def finish(self, model: nn.Module) -> Evaluation:
        return Evaluation({}, [])


def seconds_a_step(clock: list[float]) -> float:
    """The median time of a step, from the seconds since the start after each, the first few left out."""
    steps = [after - before for before, after in pairwise(clock)][WARM_UP - 1 :]
    return statistics.median(steps)


def measured_pace(config: RunConfig, dataset: DetectionDataset, validation: DetectionDataset, budget: float) -> Pace:
    """The number of steps that take `budget` seconds, by measuring.

    dataset, validation: those of the system. Where a recipe has several stages, each is measured, and the steps of the
    whole are divided between them as the recipe does. Raises what building the model and a step of training raise.
    """
    training = replace(config.training, steps=NOMINAL)
    images = training.batch_size * training.accumulate * (WARM_UP + TIMED)
    dataset = _some(dataset, images)
    model = config.model.build(len(dataset.class_names))
    config.model.prepare(model, dataset)
    validation = _some(validation, 1)
    fabric = launch(training.device, training.devices, training.precision)
    with tempfile.TemporaryDirectory() as folder:
        if config.keep_maps:
            model, dataset, validation = on_kept_maps(
                config, model, dataset, validation, Path(folder), fabric, Console(quiet=True)
            )
        rehearsal = _Rehearsal(
            fabric,
            Path(folder),
            dataset,
            config.model.evaluator(validation),
            training,
            transform=transform(config),
        )
        config.model.recipe()(model, rehearsal)
    seconds = sum(steps * each for steps, each in rehearsal.costs) / NOMINAL
    if seconds == 0:
        return Pace(1, 0.0)  # no training by gradients: a budget decides nothing
    return Pace(max(1, round(budget / seconds)), seconds)


def _some(dataset: DetectionDataset, count: int) -> DetectionDataset:
    """So many images, spread over those with objects where there are any."""
    dataset = dataset.without_empty() if len(dataset.without_empty()) else dataset
    count = min(count, len(dataset))
    return dataset.subset(i * len(dataset) // count for i in range(count))
