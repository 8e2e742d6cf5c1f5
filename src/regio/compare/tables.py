"""The tables of a study: what was measured here next to what the paper reports, in percent."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from regio.compare.results import Measured, Spread, spread
from regio.compare.study import METRICS, Row, Table
from regio.csv_files import write_csv
from regio.visualize.page import Cell
from regio.visualize.plots import FAINT, INK, line_colour, style_axes
from regio.visualize.text import literal

__all__ = ["Line", "TableResult", "pooled_deviation", "table_figure", "table_result", "write_table"]

DASH = "\N{EN DASH}"


@dataclass(frozen=True)
class Line:
    """A line of a table. here: by the metrics of the table, over the seeds of its arm, in percent. difference: of the
    mean of the first of them to that of the arm it is compared with, in percent; deviations: the same in pooled
    standard deviations of a seed. paper, paper_difference: what the paper reports. All are NaN where they are not
    known. step_seconds, seconds_an_image: of a training step and of the detector. columns: of the analysis of the
    table."""

    row: Row
    here: Mapping[str, Spread]
    difference: float
    deviations: float
    paper: Mapping[str, float]
    paper_difference: float
    step_seconds: float
    seconds_an_image: float | None
    columns: Mapping[str, float]

    @property
    def name(self) -> str:
        """Of the line, with its group."""
        return f"{self.row.group}: {self.row.name}" if self.row.group else self.row.name


@dataclass(frozen=True)
class TableResult:
    """A table with its lines. deviation: of the first metric of a seed, pooled over the arms of the table, in percent;
    NaN where no arm has two seeds."""

    name: str
    table: Table
    lines: tuple[Line, ...]
    deviation: float

    @property
    def main(self) -> str:
        """The name of the first metric."""
        return METRICS[self.table.metrics[0]]

    def accuracy(self) -> list[dict[str, Cell]]:
        """The first metric here and in the paper, and the difference to the arm that a line is compared with; time, and
        what the analysis of the table found."""
        first = self.table.metrics[0]
        extra = dict.fromkeys(name for line in self.lines for name in line.columns)
        rows: list[dict[str, Cell]] = []
        for line in self.lines:
            row: dict[str, Cell] = {
                "": line.name,
                self.main: _spread(line.here[first]),
                "difference": _difference(line),
                f"{self.main}, paper": _number(line.paper[first]),
                "difference, paper": _signed(line.paper_difference),
                "seeds": line.here[first].count,
                "a step": _time(line.step_seconds),
                "an image": _time(line.seconds_an_image),
            }
            for name in extra:
                known = (line.row.also or {}).get(name, math.nan)
                row[name] = _short(line.columns.get(name, math.nan))
                if any(name in (each.row.also or {}) for each in self.lines):
                    row[f"{name}, paper"] = _short(known)
            rows.append(row)
        return rows

    def other_metrics(self) -> list[dict[str, Cell]]:
        """Those after the first, each here and in the paper."""
        rows: list[dict[str, Cell]] = []
        for line in self.lines:
            row: dict[str, Cell] = {"": line.name}
            for metric in self.table.metrics[1:]:
                row[METRICS[metric]] = _number(line.here[metric].mean)
                row[f"{METRICS[metric]}, paper"] = _number(line.paper[metric])
            rows.append(row)
        return rows


def table_result(
    name: str,
    table: Table,
    rows: Sequence[Row],
    measured: Sequence[Measured],
    columns: Mapping[str, Mapping[str, float]] | None = None,
) -> TableResult:
    """The lines of `rows` from the runs of their arms. columns: of the analysis of the table, by arm."""
    metrics, first = table.metrics, table.metrics[0]
    runs = {row.arm: [each for each in measured if each.label == row.arm] for row in rows}
    references = [row.reference or table.reference for row in rows]
    papers = {row.arm: row.paper[0] for row in rows if row.paper is not None}
    deviation = pooled_deviation([100 * getattr(each, first) for each in own] for own in runs.values())
    lines = []
    for row, reference in zip(rows, references, strict=True):
        own = runs[row.arm]
        here = {metric: spread(100 * getattr(each, metric) for each in own) for metric in metrics}
        base = spread(100 * getattr(each, first) for each in measured if each.label == reference).mean
        difference = math.nan if row.arm == reference else here[first].mean - base
        paper = dict(zip(metrics, row.paper or [math.nan] * len(metrics), strict=True))
        lines.append(
            Line(
                row,
                here,
                difference,
                difference / deviation if deviation > 0 else math.nan,
                paper,
                math.nan if row.arm == reference else paper[first] - papers.get(reference, math.nan),
                spread(each.step_seconds for each in own).mean,
                own[0].seconds_an_image if own else None,
                (columns or {}).get(row.arm, {}),
            )
        )
    return TableResult(name, table, tuple(lines), deviation)


def pooled_deviation(groups: Iterable[Sequence[float]]) -> float:
    """The standard deviation within groups of numbers: the root of the sum of all squared distances to the mean of the
    own group, divided by the number of numbers less that of groups. NaN where no group has two."""
    squares, freedom = 0.0, 0
    for group in groups:
        known = [value for value in group if not math.isnan(value)]
        if len(known) > 1:
            squares += spread(known).deviation ** 2 * (len(known) - 1)
            freedom += len(known) - 1
    return math.sqrt(squares / freedom) if freedom else math.nan


def write_table(file: Path, result: TableResult) -> None:
    """A line each, with all numbers as they are; empty where one is not known."""
    rows = []
    for line in result.lines:
        row: dict[str, object] = {"group": line.row.group, "name": line.row.name, "arm": line.row.arm}
        for metric in result.table.metrics:
            found = line.here[metric]
            row |= {metric: found.mean, f"{metric}_low": found.low, f"{metric}_high": found.high}
            row |= {f"{metric}_paper": line.paper[metric]}
        row |= {
            "difference": line.difference,
            "difference_in_deviations": line.deviations,
            "difference_paper": line.paper_difference,
            "seeds": line.here[result.table.metrics[0]].count,
            "step_seconds": line.step_seconds,
            "seconds_an_image": math.nan if line.seconds_an_image is None else line.seconds_an_image,
        }
        row |= line.columns
        row |= {f"{name} paper": value for name, value in (line.row.also or {}).items()}
        rows.append({k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()})
    columns = list(dict.fromkeys(name for row in rows for name in row))
    write_csv(file, columns, rows)


def table_figure(result: TableResult) -> Figure:
    """The first metric of each line, its mean with a line from the lowest to the highest seed; and its
    difference to the arm it is compared with, here and in the paper."""
    count = len(result.lines)
    figure = Figure(figsize=(10.4, 1.1 + 0.36 * count), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    style_axes(left, f"{result.main} in percent")
    style_axes(right, f"difference in {result.main}")
    for place, line in enumerate(result.lines):
        found = line.here[result.table.metrics[0]]
        if found.count:
            left.barh(place, found.mean, 0.62, color=line_colour(0), alpha=0.85)
            left.annotate(
                f"{found.mean:.1f}", (found.high, place), (4, 0), textcoords="offset points", va="center", fontsize=8
            )
        if found.count > 1:
            reach = [[found.mean - found.low], [found.high - found.mean]]
            left.errorbar(found.mean, place, xerr=reach, color=INK, capsize=3, linewidth=1.1)
    for offset, colour, name, values in (
        (-0.19, line_colour(0), "here", [line.difference for line in result.lines]),
        (0.19, FAINT, "paper", [line.paper_difference for line in result.lines]),
    ):
        known = [(place + offset, value) for place, value in enumerate(values) if not math.isnan(value)]
        if known:
            places, heights = zip(*known, strict=True)
            right.barh(places, heights, 0.36, color=colour, label=name)
    if result.deviation > 0:
        right.axvspan(
            -result.deviation,
            result.deviation,
            color="#e8e8e8",
            zorder=0,
            label="\N{PLUS-MINUS SIGN}1 deviation of a seed",
        )
    right.axvline(0, color=INK, linewidth=0.8)
    left.set_yticks(range(count), [literal(line.name) for line in result.lines], fontsize=8)
    left.set_ylim(count - 0.4, -0.6)
    left.margins(x=0.12)
    for axes in (left, right):
        axes.grid(visible=False, axis="y")
    if right.get_legend_handles_labels()[0]:
        right.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _number(value: float) -> str:
    return DASH if math.isnan(value) else f"{value:.1f}"


def _signed(value: float) -> str:
    if math.isnan(value):
        return DASH
    return "0.0" if abs(value) < 0.05 else f"{value:+.1f}".replace("-", "\N{MINUS SIGN}")


def _short(value: float) -> str:
    return DASH if math.isnan(value) else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _spread(found: Spread) -> str:
    if not found.count:
        return DASH
    return f"{found.mean:.1f}" + (f" ({found.low:.1f} to {found.high:.1f})" if found.count > 1 else "")


def _difference(line: Line) -> str:
    """+0.9, and how many standard deviations of a seed that is."""
    text = _signed(line.difference)
    return text if math.isnan(line.deviations) else f"{text} ({_signed(line.deviations)} sd)"


def _time(seconds: float | None) -> str:
    if seconds is None or math.isnan(seconds):
        return DASH
    return f"{1000 * seconds:.3g} ms" if seconds < 0.9995 else f"{seconds:.3g} s"
