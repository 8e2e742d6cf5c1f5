"""How to train."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from regio.optimisation import SGD, AdamW, Cosine, OptimizerSpec, Schedule, Step
from regio.settings import setting

__all__ = ["OPTIMIZERS", "SCHEDULES", "Precision", "TrainConfig"]

OPTIMIZERS: dict[str, type] = {"adamw": AdamW, "sgd": SGD}
SCHEDULES: dict[str, type] = {"cosine": Cosine, "step": Step}
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


@dataclass(frozen=True)
class TrainConfig:
    """How to train; `regio config` prints what each setting means.

    In Python, optimizer and schedule can be any objects of these protocols, frozen dataclasses for exact resuming.
    """

    epochs: float = setting(12.0, "passes over the data", gt=0)
    steps: int | None = setting(None, "optimizer steps, instead of epochs", ge=1)
    batch_size: int = setting(4, "images read at once by each process", ge=1)
    accumulate: int = setting(1, "such batches of each process that make one optimizer step", ge=1)
    optimizer: OptimizerSpec = setting(AdamW(), "what changes the weights", choices=OPTIMIZERS)
    schedule: Schedule = setting(Cosine(), "factor on the learning rate", choices=SCHEDULES)
    clip_norm: float | None = setting(10.0, "largest norm of the gradient; null for any", gt=0)
    ema: float = setting(
        0.0, "decay of a moving average of the weights, which is then evaluated and saved; 0 for none", ge=0, lt=1
    )
    precision: Precision = setting(
        "32-true", "of products and convolutions: float32, bfloat16 or float16; weights are float32"
    )
    device: str = setting("auto", "cpu, cuda, cuda:1, mps or auto")
    devices: int = setting(1, "devices, of a process each", ge=1)
    seed: int = setting(0, "two runs of one seed are equal", ge=0, le=2**63 - 1)
    workers: int = setting(2, "processes that read images, for each process that trains", ge=0)
    evaluate_every: float = setting(1.0, "epochs between evaluations", gt=0)
    save_every: int = setting(500, "steps between saves of the resume file, which is also written at evaluations", ge=1)
    keep_every: int | None = setting(
        None,
        "steps between checkpoints that are kept, weights/step-00200.safetensors, the first of them that of step 0, "
        "before training; null for none",
        ge=1,
    )
    log_every: int = setting(10, "steps between rows of metrics.csv", ge=1)

    def steps_over(self, images: int, images_a_step: int) -> int:
        """Optimizer steps of a training on so many images: `steps`, or what `epochs` come to, rounded up."""
        return self.steps or math.ceil(self.epochs * images / images_a_step)
