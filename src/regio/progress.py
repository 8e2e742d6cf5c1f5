"""What a training tells while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

__all__ = ["Progress", "RichProgress", "SilentProgress"]


class Progress(Protocol):
    """Receives the events of a training, in order."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def start(self, step: int, steps: int) -> None:
        """Training begins (or goes on) at `step` of `steps`."""

    def step(self, step: int, losses: dict[str, float], images_per_second: float) -> None:
        """`step` steps are done."""

    def evaluating(self, done: int, images: int) -> None:
        """`done` of `images` validation images are evaluated."""

    def evaluated(self, step: int, numbers: Mapping[str, float]) -> None:
        """An evaluation is done."""


class SilentProgress:
    """Says nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def start(self, step: int, steps: int) -> None:
        """Nothing."""

    def step(self, step: int, losses: dict[str, float], images_per_second: float) -> None:
        """Nothing."""

    def evaluating(self, done: int, images: int) -> None:
        """Nothing."""

    def evaluated(self, step: int, numbers: Mapping[str, float]) -> None:
        """Nothing."""


class RichProgress:
    """A bar with the loss, images per second and time left; a line for each evaluation.

    Without a terminal (a log file, CI) the bar would be lost, so a plain line, with the parts of the loss, is printed
    every `every` steps instead.
    """

    def __init__(self, console: Console, every: int = 50) -> None:
        self.console = console
        self.every = every
        self.bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.steps = 0
        self.speed = 0.0
        self.loss = 0.0
        self.training: TaskID | None = None
        self.evaluation: TaskID | None = None

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def start(self, step: int, steps: int) -> None:
        """Show the bar."""
        self.steps = steps
        self.training = self.bars.add_task("train", total=steps, completed=step, detail="")

    def step(self, step: int, losses: dict[str, float], images_per_second: float) -> None:
        """Move the bar; the loss and the speed shown are moving averages."""
        loss = sum(losses.values())
        self.loss = 0.95 * self.loss + 0.05 * loss if self.loss else loss
        self.speed = 0.95 * self.speed + 0.05 * images_per_second if self.speed else images_per_second
        if self.training is not None:
            detail = f"loss {self.loss:.3f}  {self.speed:.1f} images/s"
            self.bars.update(self.training, completed=step, detail=detail)
        if not self.console.is_terminal and (step % self.every == 0 or step == self.steps):
            parts = " ".join(f"{name} {value:.2f}" for name, value in losses.items())
            text = f"step {step}/{self.steps}  loss {self.loss:.3f}  ({parts})  {self.speed:.1f} images/s"
            self.console.print(text, highlight=False, soft_wrap=True)

    def evaluating(self, done: int, images: int) -> None:
        """Show a second bar while an evaluation runs."""
        if self.evaluation is None:
            self.evaluation = self.bars.add_task("evaluate", total=images, detail="")
        self.bars.update(self.evaluation, completed=done)

    def evaluated(self, step: int, numbers: Mapping[str, float]) -> None:
        """Print the first three numbers in one line."""
        if self.evaluation is not None:
            self.bars.remove_task(self.evaluation)
            self.evaluation = None
        shown = "  ".join(f"{name} {number:.3f}" for name, number in list(numbers.items())[:3])
        self.console.print(f"step {step}: {shown}", highlight=False)
