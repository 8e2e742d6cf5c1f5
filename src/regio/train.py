"""Training, to be read from top to bottom: set up, step, evaluate, save."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import fields, replace
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from regio.averaging import moving_average
from regio.checkpoints import Card, kept_name, read_resume, save, save_resume
from regio.config.training import TrainConfig
from regio.data import Batch, DetectionDataset, EpochBatches, TrainingSet, Transform, collate
from regio.errors import Interrupted, NonFiniteLoss, ProcessFailed
from regio.evaluate import Evaluation, Evaluator, predict
from regio.identity import describe
from regio.processes import any_process, gather, launch, share_buffers, together
from regio.progress import Progress, SilentProgress
from regio.training_log import TrainingLog
from regio.types import Targets

__all__ = [
    "FREE",
    "Interrupted",
    "NonFiniteLoss",
    "TrainConfig",
    "Trainable",
    "evaluate_together",
    "stop_requests",
    "train",
]

FREE = {
    *("epochs", "steps", "batch_size", "accumulate"),
    *("device", "devices", "workers", "save_every", "keep_every", "log_every"),
}
"""Settings of `TrainConfig` that a resumed run may change, since no result depends on them: those of the machine and of
how often it writes. (The first four count by what follows from them: the number of steps and the images of each.)"""
SAME_SIGNAL = 2.0  # seconds: under torchrun Ctrl-C comes twice, from the terminal and from torchrun


class Trainable(Protocol):
    """What can be trained: a module with these two methods. A detector, a proposal network, a segmentation network.

    Where the data set has proposals, both are given them as one more argument: boxes [P_i, 4] in pixels of each image.
    """

    def losses(self, images: list[Tensor], targets: list[Targets], /) -> dict[str, Tensor]:
        """Scalars, whose sum is minimised; each a mean, over what is sampled from these images. uint8 [3, H_i, W_i]."""

    def __call__(self, images: list[Tensor], /) -> Sequence[Any]:
        """What the evaluator of the training measures: a prediction for each image."""


def train(
    model: Trainable,
    dataset: DetectionDataset,
    evaluator: Evaluator,
    config: TrainConfig,
    folder: Path,
    *,
    transform: Transform | None = None,
    configuration: Mapping[str, Any] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    fabric: Fabric | None = None,
) -> Evaluation:
    """Train `model` on `dataset`; returns what `evaluator` measured at the end.

    Leaves under `folder`: metrics.csv (`seconds` is the time of all steps so far, reading of images included and
    evaluations not), the checkpoints weights/best.safetensors (by the number that the evaluator
    selects) and weights/last.safetensors, weights/resume.safetensors, the whole state, and what the evaluator saves.
    With `keep_every` also weights/step-00000.safetensors, the initial weights, and such a checkpoint each so many
    steps.
    `configuration` goes onto the cards of the checkpoints: what builds this model again. Modules are trained in the
    modes they come in, and predict in evaluation mode.

    With `resume` the run continues from the resume file. On a CPU the result is then, bit for bit, that of a run that
    was never stopped: augmentation depends on (seed, epoch, image) alone, the random samples of the losses on (seed,
    batch), the schedule on the step. Two runs of one seed are equal for the same reason, if the models were: seed
    before they are built. What must be as it was: the model in all its parts and numbers, the data and that of the
    evaluator (`DetectionDataset.identity`), the transform, and all of `config` but `FREE`; `evaluate_every` decides
    among which steps the best is chosen, so it is not free.

    Several processes (`fabric`, which `regio.processes.launch` makes, by default from `config`) train one model: the
    gradient of a step is the mean of those of all `accumulate` batches of all processes. N processes train as one that
    accumulates N times as many batches: on the same batches with the same random samples, so that the two differ by
    rounding alone, and by running statistics where batch norm is trained, of which the first process's count. A resumed
    run may divide its batches between other processes. The first process writes the files; where there are several
    machines, all need to read them.

    Raises NonFiniteLoss naming the images of the batch; Interrupted after SIGINT or SIGTERM in any process, once the
    state is saved, in all processes at the same step; ProcessFailed where another process failed; TypeError for a model
    that cannot be trained; ValueError where the classes of the data sets differ, or where a resumed run is not the run
    it was, naming what differs.
    """
    if not isinstance(model, nn.Module) or not callable(getattr(model, "losses", None)):
        raise TypeError(f"model: expected a module with `losses` and `forward`, got {type(model).__name__}")
    names = evaluator.dataset.class_names
    if dataset.class_names != names:
        raise ValueError(f"evaluator: expected images with the classes {dataset.class_names}, got {names}")
    if len(dataset) < config.batch_size:
        raise ValueError(f"batch_size: expected at most the {len(dataset)} images of the data, got {config.batch_size}")
    if fabric is None:
        fabric = launch(config.device, config.devices, config.precision)
    card = Card.of(model, dataset, configuration)
    run = _Run(fabric, model, dataset, transform, evaluator, config, folder, card, progress or SilentProgress())
    if resume:
        with together(fabric):
            run.resume()
    return run.train()


def evaluate_together(
    fabric: Fabric,
    module: nn.Module,
    evaluator: Evaluator,
    batch_size: int,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """What `evaluator` measures of `module`, each process of `fabric` predicting for its share of the images."""
    size = fabric.world_size
    share_buffers(fabric, module)
    with together(fabric):
        own = predict(
            cast(Trainable, module),
            evaluator,
            share=range(fabric.global_rank, len(evaluator.dataset), size) if size > 1 else None,
            batch_size=batch_size,
            device=fabric.device,
            progress=progress,
        )
    shares = gather(fabric, own)
    records = [shares[i % size][i // size] for i in range(len(evaluator.dataset))]
    return Evaluation(evaluator.measure(records), records)


class _Run:
    """The state of a training."""

    def __init__(
        self,
        fabric: Fabric,
        model: nn.Module,
        dataset: DetectionDataset,
        transform: Transform | None,
        evaluator: Evaluator,
        config: TrainConfig,
        folder: Path,
        card: Card,
        progress: Progress,
    ) -> None:
        self.fabric, self.dataset, self.transform, self.evaluator = fabric, dataset, transform, evaluator
        self.config, self.folder, self.weights, self.card, self.progress = (
            config,
            folder,
            folder / "weights",
            card,
            progress,
        )
        self.batches_a_step = config.accumulate * fabric.world_size
        self.images_a_step = config.batch_size * self.batches_a_step
        self.epoch_steps = len(dataset) / self.images_a_step
        self.steps = config.steps_over(len(dataset), self.images_a_step)
        self.step, self.best, self.seconds = 0, -math.inf, 0.0  # seconds: of all steps, without evaluations
        self.due = False  # whether the evaluation of this step is still to come
        self.whole = True  # False within a step, when running statistics and weights are between those of two
        self.module = model
        self.identity = self._identity()

        optimizer = config.optimizer.build(model, fused=config.precision != "16-mixed")
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.average: AveragedModel | None = None
        if config.ema:
            self.average = moving_average(model, config.ema).to(fabric.device)
        self.model, self.optimizer = fabric.setup(model, optimizer)
        self.model.mark_forward_method("losses")
        self.log = TrainingLog(folder / "metrics.csv", ["seconds", *(f"val_{name}" for name in evaluator.names)])

    @property
    def modules(self) -> dict[str, nn.Module]:
        """What the resume file holds."""
        return {"model": self.module} | ({} if self.average is None else {"average": self.average})

    @property
    def evaluated(self) -> nn.Module:
        """The module that is evaluated and saved: the moving average where there is one."""
        return self.module if self.average is None else self.average.module

    def train(self) -> Evaluation:
        """Run from the current step to the last one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.fabric.is_global_zero:
            self.log.start(self.step, evaluated=not self.due)
        evaluation: Evaluation | None = None
        evaluate_steps = max(1, round(self.config.evaluate_every * self.epoch_steps))
        with stop_requests() as stop_requested, self.progress, closing(self.log):
            self.progress.start(self.step, self.steps)
            if self.step == 0 and self.config.keep_every:
                self.save()  # first: a folder that holds checkpoints holds a run that can go on
                self.keep()
            if self.due:
                evaluation = self.evaluate()
                self.save()
            batches = iter(self.loader())
            while self.step < self.steps:
                try:
                    self.optimizer_step(batches)
                except (OSError, ValueError, ProcessFailed):  # a photo that cannot be read: once it is repaired, the
                    if self.whole:  # run can go on from here
                        self.save()
                    raise
                except RuntimeError as error:
                    if not stop_requested():
                        raise
                    if self.whole:  # a signal to the whole process group ends the processes that read images first
                        self.save()
                    raise self._interrupted() from error
                if self.config.keep_every and self.step % self.config.keep_every == 0:
                    self.keep()
                done = self.step % evaluate_steps == 0 or self.step == self.steps
                if done:
                    self.due = True
                    self.save()  # whatever ends the evaluation, the run can go on from here
                    evaluation = self.evaluate()
                stop = any_process(self.fabric, stop_requested()) and self.step < self.steps
                if done or stop or self.step % self.config.save_every == 0:
                    self.save()
                if stop:
                    self.fabric.barrier()  # no process ends before the state is saved
                    raise self._interrupted()
        return evaluation or self.evaluate()  # a run that is resumed after its last step is evaluated again

    def _interrupted(self) -> Interrupted:
        where = self.weights / "resume.safetensors"
        at, state = ("at", "the state") if self.whole else ("after", "the state that was last saved")
        return Interrupted(f"stopped {at} step {self.step} of {self.steps}; {state} is in {where}; go on with --resume")

    def loader(self) -> DataLoader[Any]:
        """This process's batches from the current step to the last one."""
        config = self.config
        batches = EpochBatches(
            len(self.dataset),
            config.batch_size,
            config.seed,
            sizes=self.dataset.sizes,
            start=self.step * config.accumulate,
            stop=self.steps * config.accumulate,
            rank=self.fabric.global_rank,
            world_size=self.fabric.world_size,
        )
        return DataLoader(
            TrainingSet(self.dataset, self.transform, config.seed),
            batch_sampler=batches,
            collate_fn=collate,
            num_workers=config.workers,
            worker_init_fn=_ignore_interrupt,
        )

    def optimizer_step(self, batches: Iterator[Batch]) -> None:
        """One step: `accumulate` batches forward and backward, then the optimizer."""
        began = time.perf_counter()
        config, losses = self.config, dict[str, float]()
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * config.schedule(self.step, self.steps)
        with together(self.fabric):  # before the first forward, so that what cannot be read has changed nothing
            step = [next(batches) for _ in range(config.accumulate)]
        self.whole = False
        for micro, read in enumerate(step):
            self._seed(micro)
            with self.fabric.no_backward_sync(self.model, enabled=micro + 1 < config.accumulate):
                with together(self.fabric), self.fabric.autocast():
                    batch = read.to(self.fabric.device)
                    parts: dict[str, Tensor] = self.model.losses(batch.images, batch.targets, *batch.given)
                    values = {name: float(loss.detach()) for name, loss in parts.items()}
                    self._require_finite(values, batch)
                self.fabric.backward(torch.stack([*parts.values()]).sum() / config.accumulate)
            losses = {name: losses.get(name, 0.0) + value / config.accumulate for name, value in values.items()}
        if config.clip_norm is not None:
            norm = self.fabric.clip_gradients(
                self.model, self.optimizer, max_norm=config.clip_norm, error_if_nonfinite=False
            )
            # a step whose gradients overflow in float16 is left out, and losses are scaled by half as much from then on
            if config.precision != "16-mixed" and norm is not None and not math.isfinite(norm):
                images = ", ".join(name for batch in step for name in batch.names)
                raise NonFiniteLoss(f"the gradient is {float(norm)} at step {self.step}, on the images {images}")
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update_parameters(self.module)
        self.step += 1
        self.whole = True
        took = time.perf_counter() - began
        self.seconds += took
        speed = self.images_a_step / took
        self.progress.step(self.step, losses, speed)
        if self.step == 1 or self.step % config.log_every == 0 or self.step == self.steps:
            everywhere = gather(self.fabric, losses)
            losses = {name: sum(each[name] for each in everywhere) / len(everywhere) for name in losses}
            self._record({"loss": sum(losses.values()), **losses, "images_per_second": speed, "seconds": self.seconds})

    def _seed(self, micro: int) -> None:
        """Make the random samples of a batch depend on the seed and the number of that batch in the whole run."""
        number = self.step * self.batches_a_step + micro * self.fabric.world_size + self.fabric.global_rank
        torch.manual_seed(int(np.random.SeedSequence([self.config.seed, number]).generate_state(1)[0]))

    def evaluate(self) -> Evaluation:
        """Evaluate, each process its share of the images, and write the checkpoints. Then it is no longer due."""
        fabric = self.fabric
        evaluation = evaluate_together(
            fabric, self.evaluated, self.evaluator, self.config.batch_size, self.progress.evaluating
        )
        records = evaluation.records
        numbers, result = evaluation.numbers, evaluation.numbers[self.evaluator.selects]
        better = not result <= self.best  # also where it is not defined
        if better:
            self.best = result
        self.progress.evaluated(self.step, numbers)
        self._record({f"val_{name}": number for name, number in numbers.items()})
        if fabric.is_global_zero:
            self.evaluator.save(records, self.folder)
            card = replace(self.card, step=self.step, metrics=numbers)
            for name in ("last", "best") if better else ("last",):
                save(self.weights / f"{name}.safetensors", self.evaluated, card)
        self.due = False
        return evaluation

    def keep(self) -> None:
        """Write the checkpoint of this step."""
        if self.fabric.is_global_zero:
            save(self.weights / kept_name(self.step), self.evaluated, replace(self.card, step=self.step))

    def save(self) -> None:
        """Write the resume file."""
        if self.fabric.is_global_zero:
            scaling = self.fabric.strategy.precision.state_dict()
            state = {"step": self.step, "due": self.due, "best": self.best, "seconds": self.seconds, "scaling": scaling}
            save_resume(self.weights / "resume.safetensors", self.modules, self.optimizer, state, self.identity)

    def resume(self) -> None:
        """Take the state of the resume file."""
        path = self.weights / "resume.safetensors"
        state = read_resume(path, self.modules, self.optimizer, self.identity)
        self.step, self.best = state["step"], state["best"]
        self.due = state.get("due", False)  # files of earlier versions have none, no seconds, and no scaling
        self.seconds = state.get("seconds", 0.0)
        if "scaling" in state:
            self.fabric.strategy.precision.load_state_dict(state["scaling"])

    def _identity(self) -> dict[str, str]:
        """What must be the same for a resumed run to be the run it was."""
        kept = {f.name: getattr(self.config, f.name) for f in fields(self.config) if f.name not in FREE}
        identity = {"steps": str(self.steps), "batch": f"{self.config.batch_size} x {self.batches_a_step}"}
        for name, value in kept.items():
            identity |= describe(value, name)
        identity |= describe(self.transform, "transform")
        for name, data in (("data", self.dataset), ("validation", self.evaluator.dataset)):
            identity |= {f"{name}.{key}": value for key, value in data.identity().items()}
        selects = {"evaluator": type(self.evaluator).__qualname__, "evaluator.selects": self.evaluator.selects}
        return identity | selects | describe(self.module, "model")

    def _record(self, row: dict[str, float]) -> None:
        if self.fabric.is_global_zero:
            rate = self.optimizer.param_groups[0]["lr"]
            self.log.append({"step": self.step, "epoch": self.step / self.epoch_steps, "lr": rate, **row})

    def _require_finite(self, losses: dict[str, float], batch: Batch) -> None:
        for name, loss in losses.items():
            if not math.isfinite(loss):
                images = ", ".join(batch.names)
                raise NonFiniteLoss(f"loss '{name}' is {loss} at step {self.step}, on the images {images}")


_requests: list[Any] = []  # the handlers of all `stop_requests` that are entered


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Within, the first SIGINT or SIGTERM only makes the given function return True; a later one acts as usual. One
    within another makes both return True, so that what goes on after a training knows too."""
    requested: float | None = None
    previous: dict[int, Any] = {}

    def request(number: int, frame: FrameType | None) -> None:
        nonlocal requested
        now = time.monotonic()
        if requested is None or now - requested < SAME_SIGNAL:
            requested = now if requested is None else requested
            if previous[number] in _requests:
                previous[number](number, frame)
            return
        signal.signal(number, previous[number])
        signal.raise_signal(number)

    _requests.append(request)
    try:
        for each in (signal.SIGINT, signal.SIGTERM):
            previous[each] = signal.signal(each, request)
    except ValueError:  # not the main thread: signals stay as they are
        previous.clear()
    try:
        yield lambda: requested is not None
    finally:
        _requests.remove(request)
        for number, handler in previous.items():
            signal.signal(number, handler)


def _ignore_interrupt(worker: int) -> None:
    """Ctrl-C reaches the workers too; the main process decides when they end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
