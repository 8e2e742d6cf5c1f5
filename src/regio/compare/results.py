"""The numbers of a comparison: those of each run, and their spread over the seeds."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from regio.compare.plan import Run
from regio.compare.speed import Speed
from regio.csv_files import write_csv
from regio.data import DetectionDataset
from regio.training_log import TrainingLog
from regio.whole_files import write_json

__all__ = ["Measured", "Spread", "measure", "spread", "write_results"]

ACCURACIES = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "voc_map", "voc_map_11_points", "voc_map_70"),
    *("mean_iou", "pixel_accuracy"),
)
SPREADS = (*ACCURACIES, "training_seconds", "step_seconds")
"""What results.json has the spread of."""


@dataclass(frozen=True)
class Measured:
    """What was measured of one run.

    ap, ap50, ap75, ap_small, ap_medium, ap_large: COCO's. voc_map, voc_map_11_points: Pascal VOC's, at IoU 0.5;
    voc_map_70: that at 0.7. training_seconds: of all its steps and fits. step_seconds: of a step, the median over the
    lines of its log; NaN where these are less than two. whole_seconds: from its start to its own report; None for a run
    that was stopped in between. seconds_an_image: of its arm's detector, from pixels and the boxes that it is given;
    proposal_seconds: of finding these; both are measured once for all seeds, None where they were not. parameters: of
    the model. ended: when, by the clock of the machine that ended it. mean_iou, pixel_accuracy: of class maps. What is
    not measured of what a system gives is NaN."""

    label: str
    system: str
    seed: int
    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    voc_map: float
    voc_map_11_points: float
    voc_map_70: float
    steps: int
    training_seconds: float
    step_seconds: float
    whole_seconds: float | None
    seconds_an_image: float | None
    proposal_seconds: float | None
    parameters: int
    ended: str
    mean_iou: float = math.nan
    pixel_accuracy: float = math.nan


@dataclass(frozen=True)
class Spread:
    """Of numbers, of which NaN do not count: their mean, lowest, highest, and standard deviation (with n - 1; NaN for
    one number). All are NaN where there is none."""

    mean: float
    low: float
    high: float
    deviation: float
    count: int

    def __str__(self) -> str:
        """As in a table: 0.137 (0.127 to 0.144)."""
        if not self.count:
            return "\N{EN DASH}"
        return f"{self.mean:.3f}" + (f" ({self.low:.3f} to {self.high:.3f})" if self.count > 1 else "")


def spread(values: Iterable[float]) -> Spread:
    """See `Spread`."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return Spread(math.nan, math.nan, math.nan, math.nan, 0)
    deviation = statistics.stdev(known) if len(known) > 1 else math.nan
    return Spread(statistics.fmean(known), min(known), max(known), deviation, len(known))


def measure(run: Run, validation: DetectionDataset, system: str, speed: Speed | None) -> Measured:
    """The numbers of a run that has ended, see `regio.compare.kinds`."""
    numbers = run.arm.config.model.compared_as().numbers(run.folder, validation)
    log = TrainingLog(run.folder / "metrics.csv", [])
    record = json.loads(run.record.read_text())
    values: dict[str, Any] = {
        "label": run.arm.label,
        "system": system,
        "seed": run.seed,
        **dict.fromkeys(ACCURACIES, math.nan),
        **numbers,
        "steps": int(max(row["step"] for row in log.rows())),
        "training_seconds": log.seconds(),
        "step_seconds": seconds_a_step(log.rows()),
        "whole_seconds": record["whole_seconds"],
        "seconds_an_image": None if speed is None else speed.detector,
        "proposal_seconds": None if speed is None else speed.proposals,
        "parameters": record["parameters"],
        "ended": record["ended"],
    }
    return Measured(**values)


def seconds_a_step(rows: Sequence[Mapping[str, float]]) -> float:
    """The median over the lines of a training's log of the time of a step since the line before; NaN of less than two
    lines."""
    clock = [(row["step"], row["seconds"]) for row in rows if not math.isnan(row.get("seconds", math.nan))]
    times = [(after - before) / (step - last) for (last, before), (step, after) in pairwise(clock) if step > last]
    return statistics.median(times) if times else math.nan


def write_results(
    folder: Path, measured: Sequence[Measured], failures: Mapping[str, str], about: Mapping[str, Any]
) -> None:
    """results.json: `about`, every run, the spread of each arm, and what failed, by run. results.csv: a row a run."""
    labels = dict.fromkeys(each.label for each in measured)
    write_json(
        folder / "results.json",
        {
            **about,
            "runs": [_plain(asdict(each)) for each in measured],
            "arms": {
                label: {
                    name: _plain(asdict(spread(getattr(each, name) for each in measured if each.label == label)))
                    for name in SPREADS
                }
                for label in labels
            },
            "failed": dict(failures),
        },
    )
    columns = [field.name for field in fields(Measured)]
    write_csv(folder / "results.csv", columns, [_plain(asdict(each)) for each in measured])


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """NaN is None, for which JSON has a word."""
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}
