"""Training, to be read from top to bottom: set up, step, evaluate, save."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from regio.checkpoints import Card, read_resume, save, save_resume, write_json
from regio.data import Batch, DetectionDataset, EpochBatches, TrainingSet, Transform, collate
from regio.detector import TwoStageDetector
from regio.errors import Interrupted, NonFiniteLoss
from regio.evaluate import CocoMetrics, coco_metrics, predict
from regio.metrics import MetricsFile
from regio.optimisation import AdamW, Cosine, OptimizerSpec, Schedule
from regio.progress import Progress, SilentProgress

__all__ = ["Interrupted", "NonFiniteLoss", "TrainConfig", "train"]

Evaluation = tuple[CocoMetrics, list[dict[str, Any]]]
EVALUATED = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    epochs: passes over the data; steps: optimizer steps instead, if given. batch_size: images read at once by each
    process; accumulate: how many such batches make one optimizer step. clip_norm: largest norm of the gradient, None
    for no clipping. ema: decay of a moving average of the weights, which is then what is evaluated and saved; 0 for
    none. precision, accelerator, devices: Lightning Fabric's, for instance "bf16-mixed". workers: processes that read
    images. evaluate_every: epochs between evaluations. save_every: steps between saves of the resume file, which is
    also written at evaluations.
    """

    epochs: float = 12
    steps: int | None = None
    batch_size: int = 4
    accumulate: int = 1
    optimizer: OptimizerSpec = field(default_factory=AdamW)
    schedule: Schedule = field(default_factory=Cosine)
    clip_norm: float | None = 10.0
    ema: float = 0.0
    precision: Any = "32-true"
    accelerator: str = "auto"
    devices: int = 1
    seed: int = 0
    workers: int = 2
    evaluate_every: float = 1.0
    save_every: int = 500
    log_every: int = 10


def train(
    detector: TwoStageDetector,
    dataset: DetectionDataset,
    validation: DetectionDataset,
    config: TrainConfig,
    folder: Path,
    *,
    transform: Transform | None = None,
    model: dict[str, Any] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> tuple[CocoMetrics, list[dict[str, Any]]]:
    """Train `detector` on `dataset`, evaluate it on `validation`; returns the metrics and the predictions (COCO's
    results form) of the last evaluation.

    Leaves under `folder`: metrics.csv, predictions.json (COCO results of the last evaluation), the checkpoints
    weights/best.safetensors (by AP) and weights/last.safetensors, and weights/resume.safetensors, the whole state.
    `model` goes onto the cards of the checkpoints: the configuration that builds this detector again.

    With `resume` the run continues from the resume file. On a CPU the result is then, bit for bit, that of a run that
    was never stopped: augmentation depends on (seed, epoch, image) alone, the schedule and the random samples of the
    losses on (seed, step) alone. Two runs of one seed are equal for the same reason.

    Raises NonFiniteLoss naming the images of the batch; Interrupted after SIGINT or SIGTERM, once the state is saved;
    ValueError where the classes of the data sets differ, or where a resumed run is not configured as it was.
    """
    if dataset.class_names != validation.class_names:
        raise ValueError(f"validation: expected the classes {dataset.class_names}, got {validation.class_names}")
    if len(dataset) < config.batch_size:
        raise ValueError(f"batch_size: expected at most the {len(dataset)} images of the data, got {config.batch_size}")
    card = Card(dataset.class_names, dataset.category_ids, model or {}, asdict(detector.preprocess))
    run = _Run(detector, dataset, validation, config, folder, card, progress or SilentProgress())
    if resume:
        run.resume()
    return run.train(transform)


class _Run:
    """The state of a training."""

    def __init__(
        self,
        detector: TwoStageDetector,
        dataset: DetectionDataset,
        validation: DetectionDataset,
        config: TrainConfig,
        folder: Path,
        card: Card,
        progress: Progress,
    ) -> None:
        self.dataset, self.validation, self.config, self.card = dataset, validation, config, card
        self.folder, self.weights, self.progress = folder, folder / "weights", progress
        self.fabric = Fabric(accelerator=config.accelerator, devices=config.devices, precision=config.precision)
        self.fabric.launch()
        torch.manual_seed(config.seed)

        self.images_a_step = config.batch_size * config.accumulate * self.fabric.world_size
        self.epoch_steps = len(dataset) / self.images_a_step
        self.steps = config.steps or math.ceil(config.epochs * self.epoch_steps)
        self.step, self.best = 0, -math.inf

        optimizer = config.optimizer.build(detector)
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.average: AveragedModel | None = None
        if config.ema:
            self.average = AveragedModel(detector, multi_avg_fn=get_ema_multi_avg_fn(config.ema))
            self.average.to(self.fabric.device)
        self.detector: TwoStageDetector = detector
        self.model, self.optimizer = self.fabric.setup(detector, optimizer)
        self.model.mark_forward_method("losses")
        self.table = MetricsFile(folder / "metrics.csv", [f"val_{name}" for name in EVALUATED])

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        """What the resume file holds."""
        return {"model": self.detector} | ({} if self.average is None else {"average": self.average})

    @property
    def evaluated(self) -> TwoStageDetector:
        """The detector that is evaluated and saved: the moving average where there is one."""
        return self.detector if self.average is None else cast(TwoStageDetector, self.average.module)

    def train(self, transform: Transform | None) -> Evaluation:
        """Run from the current step to the last one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.fabric.is_global_zero:
            self.table.start(self.step)
        evaluation: Evaluation | None = None
        evaluate_steps = max(1, round(self.config.evaluate_every * self.epoch_steps))
        with _stop_requests() as stop_requested, self.progress, closing(self.table):
            self.progress.start(self.step, self.steps)
            batches = iter(self.loader(transform))
            while self.step < self.steps:
                try:
                    self.optimizer_step(batches)
                except (OSError, ValueError):  # a photo that cannot be read: repaired, the run can go on from here
                    self.save()
                    raise
                done = self.step % evaluate_steps == 0 or self.step == self.steps
                if done:
                    evaluation = self.evaluate()
                stop = stop_requested() and self.step < self.steps
                if done or stop or self.step % self.config.save_every == 0:
                    self.save()
                if stop:
                    where = self.weights / "resume.safetensors"
                    raise Interrupted(f"stopped at step {self.step} of {self.steps}; the state is in {where}")
        return evaluation or self.evaluate()  # a run that is resumed after its last step is evaluated again

    def loader(self, transform: Transform | None) -> DataLoader[Any]:
        """The batches from the current step to the last one."""
        config = self.config
        batches = EpochBatches(
            len(self.dataset),
            config.batch_size,
            config.seed,
            start=self.step * config.accumulate,
            stop=self.steps * config.accumulate,
            rank=self.fabric.global_rank,
            world_size=self.fabric.world_size,
        )
        return DataLoader(
            TrainingSet(self.dataset, transform, config.seed),
            batch_sampler=batches,
            collate_fn=collate,
            num_workers=config.workers,
            worker_init_fn=_ignore_interrupt,
        )

    def optimizer_step(self, batches: Iterator[Batch]) -> None:
        """One step: `accumulate` batches forward and backward, then the optimizer."""
        began = time.perf_counter()
        seed = np.random.SeedSequence([self.config.seed, self.fabric.global_rank, self.step])
        torch.manual_seed(int(seed.generate_state(1)[0]))
        config, losses = self.config, dict[str, float]()
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * config.schedule(self.step, self.steps)
        for micro in range(config.accumulate):
            batch = next(batches)
            images = [image.to(self.fabric.device) for image in batch.images]
            targets = [target.to(self.fabric.device) for target in batch.targets]
            with self.fabric.no_backward_sync(self.model, enabled=micro + 1 < config.accumulate):
                parts: dict[str, Tensor] = self.model.losses(images, targets)
                values = {name: float(loss.detach()) for name, loss in parts.items()}
                self._require_finite(values, batch)
                self.fabric.backward(torch.stack([*parts.values()]).sum() / config.accumulate)
            losses = {name: losses.get(name, 0.0) + value / config.accumulate for name, value in values.items()}
        if config.clip_norm is not None:
            self.fabric.clip_gradients(self.model, self.optimizer, max_norm=config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update_parameters(self.detector)
        self.step += 1
        speed = self.images_a_step / (time.perf_counter() - began)
        self.progress.step(self.step, losses, speed)
        if self.fabric.is_global_zero and (
            self.step == 1 or self.step % config.log_every == 0 or self.step == self.steps
        ):
            self._record({"loss": sum(losses.values()), **losses, "images_per_second": speed})

    def evaluate(self) -> Evaluation:
        """Evaluate, and write the checkpoints: each process detects its share of the images."""
        share = range(self.fabric.global_rank, len(self.validation), self.fabric.world_size)
        predictions = predict(
            self.evaluated,
            self.validation.subset(share) if self.fabric.world_size > 1 else self.validation,
            batch_size=self.config.batch_size,
            device=self.fabric.device,
            progress=self.progress.evaluating,
        )
        if self.fabric.world_size > 1:
            gathered: list[Any] = [None] * self.fabric.world_size
            torch.distributed.all_gather_object(gathered, predictions)
            predictions = [one for part in gathered for one in part]
        metrics = coco_metrics(self.validation.to_coco(), predictions)
        if self.fabric.is_global_zero:
            scores = {name: float(getattr(metrics, name)) for name in EVALUATED}
            self._record({f"val_{name}": score for name, score in scores.items()})
            self.progress.evaluated(self.step, metrics)
            write_json(self.folder / "predictions.json", predictions)
            card = replace(self.card, step=self.step, metrics=scores)
            save(self.weights / "last.safetensors", self.evaluated, card)
            if not metrics.ap <= self.best:
                self.best = metrics.ap
                save(self.weights / "best.safetensors", self.evaluated, card)
        return metrics, predictions

    def save(self) -> None:
        """Write the resume file."""
        if self.fabric.is_global_zero:
            state = {"step": self.step, "best": self.best, "config": self._identity()}
            save_resume(self.weights / "resume.safetensors", self.modules, self.optimizer, state)

    def resume(self) -> None:
        """Take the state of the resume file."""
        path = self.weights / "resume.safetensors"
        state = read_resume(path, self.modules, self.optimizer)
        was, now = state["config"], self._identity()
        differences = [f"{name} {was[name]}, got {now[name]}" for name in now if was[name] != now[name]]
        if differences:
            raise ValueError(f"{path}: a run can only be resumed as it was: {'; '.join(differences)}")
        self.step, self.best = state["step"], state["best"]

    def _identity(self) -> dict[str, str]:
        """What must be the same for a resumed run to be the run it was."""
        c = self.config
        identity = {
            "steps": self.steps,
            "batch": f"{c.batch_size} x {c.accumulate} x {self.fabric.world_size}",
            "optimizer": c.optimizer,
            "schedule": c.schedule,
            "clip": c.clip_norm,
            "ema": c.ema,
            "precision": c.precision,
            "seed": c.seed,
            "images": len(self.dataset),
            "classes": len(self.dataset.class_names),
        }
        return {name: str(value) for name, value in identity.items()}

    def _record(self, row: dict[str, float]) -> None:
        rate = self.optimizer.param_groups[0]["lr"]
        self.table.append({"step": self.step, "epoch": self.step / self.epoch_steps, "lr": rate, **row})

    def _require_finite(self, losses: dict[str, float], batch: Batch) -> None:
        for name, loss in losses.items():
            if not math.isfinite(loss):
                images = ", ".join(batch.names)
                raise NonFiniteLoss(f"loss '{name}' is {loss} at step {self.step}, on the images {images}")


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Within, the first SIGINT or SIGTERM only makes the given function return True; a second acts as usual."""
    requested = False
    previous: dict[int, Any] = {}

    def request(number: int, frame: FrameType | None) -> None:
        nonlocal requested
        requested = True
        signal.signal(number, previous[number])

    try:
        for each in (signal.SIGINT, signal.SIGTERM):
            previous[each] = signal.signal(each, request)
    except ValueError:  # not the main thread: signals stay as they are
        previous.clear()
    try:
        yield lambda: requested
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _ignore_interrupt(worker: int) -> None:
    """Ctrl-C reaches the workers too; the main process decides when they end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
