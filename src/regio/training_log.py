"""The table of a training: one CSV row a logged step, appended as the run goes."""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["TrainingLog"]


class TrainingLog:
    """`metrics.csv` of a run.

    Columns are those of the first row and `later`, which rows of another kind fill: an evaluation fills other columns
    than a training step, and cells without a value are empty. Each row is flushed, so that a killed run leaves all of
    its rows. Where TensorBoard is installed, the same numbers go into its event files beside the table.
    """

    def __init__(self, path: Path, later: list[str]) -> None:
        self.path = path
        self.later = later
        self.columns: list[str] = []
        self._events: Any = None

    def start(self, step: int, evaluated: bool = True) -> None:
        """Begin after `step`: rows of later steps, left by a run that was killed after its last save, are dropped.
        evaluated: whether the evaluation of `step` had ended; where not, its row is dropped too."""
        rows = [row for row in self.rows() if row["step"] <= step] if step and self.path.exists() else []
        if not evaluated:
            rows = [row for row in rows if row["step"] < step or not any(name.startswith("val_") for name in row)]
        if rows:  # a table of an earlier version may lack a column
            self.columns += [name for name in self.later if name not in self.columns]
        with self.path.open("w", newline="") as file:
            if rows:
                writer = csv.DictWriter(file, self.columns)
                writer.writeheader()
                writer.writerows({k: _short(v) for k, v in row.items()} for row in rows)
        if importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            self._events = SummaryWriter(str(self.path.parent), purge_step=step + 1)

    def append(self, row: Mapping[str, float]) -> None:
        """Add a row. Raises ValueError for a column the file does not have."""
        with self.path.open("a", newline="") as file:
            if not self.columns:
                self.columns = list(dict.fromkeys([*row, *self.later]))
                csv.DictWriter(file, self.columns).writeheader()
            csv.DictWriter(file, self.columns).writerow({k: _short(v) for k, v in row.items()})
        for name, value in row.items():
            if self._events is not None and name != "step":
                self._events.add_scalar(name, value, int(row["step"]))

    def seconds(self) -> float:
        """The time of all training steps, without evaluations: what the last row of a step says."""
        return max((row.get("seconds", 0.0) for row in self.rows()), default=0.0)

    def close(self) -> None:
        """End the event files."""
        if self._events is not None:
            self._events.close()

    def rows(self) -> list[dict[str, float]]:
        """All rows, empty cells left out."""
        with self.path.open(newline="") as file:
            reader = csv.DictReader(file)
            rows = [{k: float(v) for k, v in row.items() if v} for row in reader]
            self.columns = list(reader.fieldnames or [])
        return rows


def _short(value: float) -> str:
    return f"{value:.7g}"
