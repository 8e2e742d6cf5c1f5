"""The part of a comparison's page that is a study's: its tables and their plots, and the networks trained first."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from regio.compare.plan import Plan
from regio.compare.results import Measured
from regio.compare.study import Study
from regio.compare.tables import TableResult, table_figure, table_result, write_table
from regio.visualize.page import facts, figures, heading, paragraph, table

__all__ = ["StudyReport"]


@dataclass(frozen=True)
class StudyReport:
    """What is made of a plan of `study`. columns: of the analyses of its tables, by table and arm. learnt: the section
    of `regio.compare.learnt`."""

    study: Study
    plan: Plan
    measured: Sequence[Measured]
    columns: Mapping[str, Mapping[str, Mapping[str, float]]]
    learnt: Sequence[str] = ()

    @property
    def title(self) -> str:
        """Of the page."""
        return f"{self.study.title} ({self.study.source})"

    def results(self) -> list[TableResult]:
        """The tables that are chosen, but for those none of whose arms is in this form of the study."""
        labels = [arm.label for arm in self.plan.arms]
        found = [(name, self.study.tables[name], self.study.rows(name, labels)) for name in self.plan.tables]
        return [
            table_result(name, each, rows, self.measured, self.columns.get(name)) for name, each, rows in found if rows
        ]

    def parts(self, folder: Path) -> list[str]:
        """A section a table; each is written to tables/ as CSV and to plots/ as PNG, too."""
        form = self.study.form(self.plan.full)
        parts = [paragraph(text) for text in (self.study.about, form.about, _READING)]
        parts.append(paragraph(f"The paper's figures: {self.study.paper_data}."))
        for result in self.results():
            figure, name = table_figure(result), f"table-{result.name}"
            figure.savefig(folder / "plots" / f"{name}.png", dpi=150)
            write_table(folder / "tables" / f"{name}.csv", result)
            parts += [
                heading(result.table.title),
                paragraph(result.table.about),
                paragraph(self._compared(result)),
                table(result.accuracy()),
                figures([(f"{result.table.title}: {result.main}, and differences here and in the paper", figure)]),
            ]
            if len(result.table.metrics) > 1:
                parts += [paragraph("The other metrics: here, and in the paper."), table(result.other_metrics())]
        return [*parts, *self.learnt, *self._first(folder)]

    def _compared(self, result: TableResult) -> str:
        references = dict.fromkeys(line.row.reference or result.table.reference for line in result.lines)
        text = f"Differences are to {', or in their group to '.join(references)}"
        if math.isnan(result.deviation):
            return f"{text}. No arm has two seeds, so there is no spread to measure them by."
        return (
            f"{text}; in brackets, in standard deviations of a seed (sd), which is {result.deviation:.2f} pooled over "
            "the arms of the table."
        )

    def _first(self, folder: Path) -> list[str]:
        known = {}
        for run in self.plan.first_runs(folder):
            file = run.folder / "results.json"
            if file.is_file():
                numbers = {k: v for k, v in json.loads(file.read_text()).items() if isinstance(v, float)}
                known[run.arm.label] = ", ".join(f"{k} {v:.3f}" for k, v in numbers.items())
        if not known:
            return []
        words = (
            "The networks that find the proposals, trained once; average recall (ar), recall and average best overlap."
        )
        return [heading("Trained before the arms"), paragraph(words), facts(known)]


_READING = (
    "All in percent. The first metric: mean over the seeds, in brackets the lowest and the highest. a step: the median "
    "training step, an image: detection in one image. The paper's figures are of other data, a larger network and a "
    "longer training; what can be compared is the order of the arms and their differences."
)
