"""What a recipe trains with: a training of several stages that goes on where it was stopped.

A recipe is a function that is read from top to bottom:

    def alternating(model, run):
        run.begin(model, alternating)                                   # with these weights, also where it is resumed
        run.stage("1-rpn", proposal_network(model), evaluator=recall)   # trained, or loaded where that is done already
        ...
        return run.finish(model)                                    # evaluated, and saved as the result of the run

Started again, it runs from the top: what a stage left is loaded instead of made again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol, cast

from lightning_fabric import Fabric
from torch import nn

from regio.checkpoints import Card, read_weights, save
from regio.config.training import TrainConfig
from regio.data import DetectionDataset, Transform
from regio.evaluate import Evaluation, Evaluator
from regio.identity import describe, differences
from regio.processes import together
from regio.progress import Progress, SilentProgress
from regio.state_dicts import load_exactly
from regio.train import FREE, Trainable, evaluate_together, train
from regio.training_log import TrainingLog
from regio.whole_files import write_json

__all__ = ["Recipe", "StagedRun"]


class Recipe(Protocol):
    """Trains a model; a frozen dataclass, so that a run can be resumed exactly."""

    def __call__(self, model: nn.Module, run: StagedRun, /) -> Evaluation:
        """Train `model`, with what `run` has, and return what its evaluator measured at the end."""
        ...


@dataclass(frozen=True)
class StagedRun:
    """The data, the settings and the folder of a run.

    `stage`, `make` and `finish` leave `folder/stages/NAME/` of each stage, and of the run what `regio.train.train`
    leaves. transform: of training images. configuration: what builds the model again, for the cards of checkpoints.
    resume: go on with what is in `folder`. progress: makes what shows the progress of a stage. say: prints a line for
    people.

    Stages raise ValueError where `folder` holds those of another run, naming what differs, and where it holds any at
    the beginning of a run that is not resumed.
    """

    fabric: Fabric
    folder: Path
    dataset: DetectionDataset
    evaluator: Evaluator
    config: TrainConfig
    transform: Transform | None = None
    configuration: Mapping[str, Any] = field(default_factory=dict)
    resume: bool = False
    progress: Callable[[], Progress] = SilentProgress
    say: Callable[[str], None] = lambda line: None

    def train(self, model: nn.Module) -> Evaluation:
        """The whole run as one training; returns what was measured at its end."""
        return self.by_gradients(
            model,
            self.folder,
            dataset=self.dataset,
            evaluator=self.evaluator,
            config=self.config,
            configuration=self.configuration,
            resume=self.resume,
        )

    def begin(self, model: nn.Module, recipe: Recipe | None = None) -> None:
        """Keep the weights that `model` comes with until `finish`, or take those that were kept: a stage after a
        resumption begins as it would have without. What a recipe of stages calls first, with itself: a run that was
        begun by another one, or with other numbers of it, is not resumed.

        Raises ValueError where there are stages of a run that is not resumed, or of another one.
        """
        start, begun = (self.folder / "stages" / name for name in ("start.safetensors", "run.json"))
        with together(self.fabric):
            if begun.is_file() and not self.resume:
                raise ValueError(f"{self.folder}: expected a folder without stages for a run that is not resumed")
            if not begun.is_file() and (self.folder / "weights").is_dir():
                raise ValueError(f"{self.folder}: expected a run of stages, got one that was trained in one piece")
            if begun.is_file() and start.is_file():
                load_exactly(model, read_weights(start), f"{start}: does not fit this model")
            elif self.fabric.is_global_zero:
                save(start, model, self._card(model, {}))  # before run.json, by which a run is known to have begun
        self.fabric.barrier()
        with together(self.fabric):
            self._require_same_run(recipe)

    def stage(
        self,
        name: str,
        model: nn.Module,
        *,
        dataset: DetectionDataset | None = None,
        evaluator: Evaluator | None = None,
        config: TrainConfig | None = None,
        configuration: Mapping[str, Any] | None = None,
    ) -> dict[str, float]:
        """Train `model`, which has `losses`, by gradients; returns what was measured at the end of the stage.

        dataset, evaluator, config: those of the run unless given. configuration: what builds `model` again, which as a
        rule is a part of the run's model, or more than that; without it the cards of its checkpoints do not say.
        """

        def change(place: Path) -> Mapping[str, float]:
            begun = (place / "weights" / "resume.safetensors").is_file()
            return self.by_gradients(
                model,
                place,
                dataset=dataset or self.dataset,
                evaluator=evaluator or self.evaluator,
                config=config or self.config,
                configuration=configuration or {},
                resume=self.resume and begun,
            ).numbers

        return self._staged(name, model, change)

    def make(
        self, name: str, model: nn.Module, change: Callable[[Path], Mapping[str, float] | None]
    ) -> dict[str, float]:
        """Change the weights of `model` by another way than gradients: `change`, which is called with the folder of the
        stage, in one process alone. Where it was killed it is called again, and may find there what it left. The time
        of the call that ended goes into the stage's metrics.csv, at step 0, and so into the run's."""

        def in_first(place: Path) -> Mapping[str, float]:
            numbers: Mapping[str, float] = {}
            with together(self.fabric):
                if self.fabric.is_global_zero:
                    began = time.perf_counter()
                    numbers = change(place) or {}
                    log = TrainingLog(place / "metrics.csv", [])
                    log.start(0)
                    log.append({"step": 0.0, "seconds": time.perf_counter() - began})
                    log.close()
                    save(place / "weights" / "last.safetensors", model, self._card(model, numbers))
            return numbers

        return self._staged(name, model, in_first)

    def place(self, name: str) -> Path:
        """The folder of the stage `name`."""
        place = self.folder / "stages" / name
        place.mkdir(parents=True, exist_ok=True)
        return place

    def finish(self, model: nn.Module) -> Evaluation:
        """Evaluate `model` and save it as the result of the run."""
        model.to(self.fabric.device)
        evaluation = evaluate_together(
            self.fabric, model, self.evaluator, self.config.batch_size, self.progress().evaluating
        )
        if self.fabric.is_global_zero:
            self.evaluator.save(evaluation.records, self.folder)
            card = self._card(model, evaluation.numbers)
            for name in ("last", "best"):
                save(self.folder / "weights" / f"{name}.safetensors", model, card)
            self._log(evaluation.numbers)
            (self.folder / "stages" / "start.safetensors").unlink(missing_ok=True)
        return evaluation

    def _staged(self, name: str, model: nn.Module, change: Callable[[Path], Mapping[str, float]]) -> dict[str, float]:
        """What the stage left, or what it leaves now; in both cases `model` gets the weights that were saved, on the
        device of the run."""
        place, done = self.place(name), self.folder / "stages" / name / "done.json"
        with together(self.fabric):
            self._require_same_run()
        if done.is_file():
            self.say(f"{name}: done before")
        else:
            self.say(f"{name}")
            numbers = change(place)
            self.fabric.barrier()
            if self.fabric.is_global_zero:
                write_json(done, dict(numbers))
            self.fabric.barrier()
        weights = place / "weights" / "last.safetensors"
        load_exactly(model, read_weights(weights), f"{weights}: does not fit this stage")
        model.to(self.fabric.device)
        return {key: float(value) for key, value in json.loads(done.read_text()).items()}

    def by_gradients(
        self,
        model: nn.Module,
        folder: Path,
        *,
        dataset: DetectionDataset,
        evaluator: Evaluator,
        config: TrainConfig,
        configuration: Mapping[str, Any],
        resume: bool,
    ) -> Evaluation:
        """Each training of the run, that of `train` or those of `stage`: see `regio.train.train`."""
        return train(
            cast(Trainable, model),
            dataset,
            evaluator,
            config,
            folder,
            transform=self.transform,
            configuration=configuration,
            resume=resume,
            progress=self.progress(),
            fabric=self.fabric,
        )

    def _card(self, model: nn.Module, numbers: Mapping[str, float]) -> Card:
        return replace(Card.of(model, self.dataset, self.configuration), metrics=dict(numbers))

    def _log(self, numbers: Mapping[str, float]) -> None:
        """metrics.csv of the run: one row, with the time and the steps of all stages."""
        logs = [TrainingLog(path, []) for path in self.folder.glob("stages/*/metrics.csv")]
        steps = sum(max((row["step"] for row in log.rows()), default=0.0) for log in logs)
        log = TrainingLog(self.folder / "metrics.csv", [])
        log.start(0)
        seconds = sum(log.seconds() for log in logs)
        log.append({"step": steps, "seconds": seconds, **{f"val_{name}": value for name, value in numbers.items()}})
        log.close()

    def _require_same_run(self, recipe: Recipe | None = None) -> None:
        """The settings and the data of the first stage are those of all, and so is the recipe, where it is given."""
        own = {f.name: getattr(self.config, f.name) for f in fields(self.config) if f.name not in FREE}
        now: dict[str, str] = {}
        for name, value in {**own, "transform": self.transform, "model": dict(self.configuration)}.items():
            now |= describe(value, name)
        now["images a step"] = str(self.config.batch_size * self.config.accumulate * self.fabric.world_size)
        now["steps"] = str(self.config.steps or f"{self.config.epochs:g} epochs")
        for name, data in (("data", self.dataset), ("validation", self.evaluator.dataset)):
            now |= {f"{name}.{key}": value for key, value in data.identity().items()}
        if recipe is not None:
            now |= describe(recipe, "recipe")
        file = self.folder / "stages" / "run.json"
        if not file.is_file():
            if self.fabric.is_global_zero:
                write_json(file, now)
            return
        saved = json.loads(file.read_text())
        if recipe is None:
            saved = {key: value for key, value in saved.items() if key.partition(".")[0] != "recipe"}
        different = differences(saved, now)
        if different:
            raise ValueError(f"{self.folder}: a run can only be resumed as it was: {different}")
