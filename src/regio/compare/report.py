"""The page of a comparison."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from regio.compare.figures import accuracy_figure, time_figure
from regio.compare.kinds import Kind
from regio.compare.papers import published
from regio.compare.plan import Plan
from regio.compare.results import Measured, spread
from regio.compare.study_report import StudyReport
from regio.config import SYSTEMS
from regio.data import DetectionDataset
from regio.identity import differences
from regio.settings import as_dict, dotted
from regio.visualize.page import (
    Cell,
    Illustration,
    facts,
    figures,
    heading,
    paragraph,
    preformatted,
    table,
    title,
    write_page,
)

__all__ = ["Report", "system_name"]

OFF_BUDGET = 0.25  # share of the budget by which a training may miss it without a remark


def system_name(system: Any) -> str:
    """The name of a system in `regio.config.SYSTEMS`."""
    return next(name for name, kind in SYSTEMS.items() if type(system) is kind)


@dataclass(frozen=True)
class Report:
    """What the page is made of. failures: a line each, by arm or run. examples: the same photos, as all arms see them.
    command: that started the comparison, or went on with it. made: with what each run was made (see
    `regio.compare.provenance`), by run. study: its tables in place of one of all arms, where the plan is of one."""

    plan: Plan
    measured: Sequence[Measured]
    failures: Mapping[str, str]
    validation: DetectionDataset
    training_images: int
    examples: Image.Image | None
    command: str
    made: Mapping[str, Mapping[str, str]]
    study: StudyReport | None = None

    @property
    def kind(self) -> Kind:
        """What its systems give."""
        return self.plan.arms[0].config.model.compared_as()

    def write(self, folder: Path) -> None:
        """Write report.html, and plots/ and pictures.jpg for use elsewhere."""
        names = [arm.label for arm in self.plan.arms]
        named = f"Comparison: {', '.join(names)}" if self.study is None else self.study.title
        parts = [title(named), paragraph(self._summary())]
        if self.failures:
            parts += [heading("What failed"), table([{"run": name, "why": why} for name, why in self.failures.items()])]
        if self.measured and self.study is None:
            parts += [heading("Results"), table(self._arms()), paragraph(self._reading())]
            parts.append(figures(self._plots(folder) + self._photos(folder)))
            parts += self._papers()
        elif self.study is not None:
            parts += self.study.parts(folder)
            parts += [heading("The same photos"), figures(photos)] if (photos := self._photos(folder)) else []
        if self.measured:
            parts += [heading("Every run"), table(self._runs())]
        parts += [heading("How it was made"), facts(self._facts())]
        parts += [paragraph(line) for line in (*self._off_budget(), *self._made_differently())]
        parts += [heading("Settings"), preformatted(self._settings())]
        write_page(folder / "report.html", "Comparison", parts)

    def _summary(self) -> str:
        objects = sum(int((~record.crowd).sum()) for record in self.validation.records)
        seeds = "one seed" if self.plan.seeds == 1 else f"{self.plan.seeds} seeds"
        return (
            f"{self.plan.arms[0].config.data}: trained on {self.training_images} images, measured on "
            f"{len(self.validation)} others with {objects} objects of {len(self.validation.class_names)} classes, "
            f"{seeds} each. The same images, evaluation and machine for all; {self._backbones()}."
        )

    def _backbones(self) -> str:
        used = {arm.label: str(getattr(arm.config.model, "backbone", "its own")) for arm in self.plan.arms}
        if len(set(used.values())) == 1:
            return f"the same backbone, {next(iter(used.values()))}"
        return f"backbones differ ({', '.join(f'{label}: {name}' for label, name in used.items())})"

    def _arms(self) -> list[Mapping[str, Cell]]:
        rows: list[Mapping[str, Cell]] = []
        for label, runs in self._by_label().items():
            row: dict[str, Cell] = {
                "system": label,
                **{
                    self.kind.metrics[name]: str(spread(getattr(run, name) for run in runs))
                    for name in self.kind.headline
                },
                "seeds": len(runs),
                "steps": runs[0].steps,
                "training": _seconds(statistics.fmean(run.training_seconds for run in runs)),
                "an image": _seconds(runs[0].seconds_an_image),
            }
            if any(each.proposal_seconds is not None for each in self.measured):
                row["its proposals"] = _seconds(runs[0].proposal_seconds)
            rows.append(row | {"parameters": f"{runs[0].parameters / 1e6:.1f} M"})
        return rows

    def _by_label(self) -> dict[str, list[Measured]]:
        labels = dict.fromkeys(each.label for each in self.measured)
        return {label: [each for each in self.measured if each.label == label] for label in labels}

    def _reading(self) -> str:
        seeds = (
            "Several seeds: the mean, and in brackets the lowest and the highest; where these overlap, no order shows."
        )
        if self.plan.seeds == 1:
            seeds = "One seed gives no order between systems that are near each other; --seeds 3 shows the spread."
        return (
            f"{self.kind.reading} training: steps and fits of all stages of one run; an image: from pixels to "
            f"{self.kind.name}; its proposals: finding the boxes that a system is given, which comes on top. {seeds}"
        )

    def _plots(self, folder: Path) -> list[Illustration]:
        plots = {
            "Accuracy: mean over seeds; lines from the lowest to the highest, points are seeds": (
                "accuracy",
                accuracy_figure(self.measured, self.kind.bars),
            ),
            "Accuracy against time (logarithmic)": (
                "time",
                time_figure(self.measured, *list(self.kind.bars.items())[-1]),
            ),
        }
        (folder / "plots").mkdir(exist_ok=True)
        for name, figure in plots.values():
            figure.savefig(folder / "plots" / f"{name}.png", dpi=150)
        return [(caption, figure) for caption, (_, figure) in plots.items()]

    def _photos(self, folder: Path) -> list[Illustration]:
        if self.examples is None:
            return []
        self.examples.save(folder / "pictures.jpg", quality=90)
        caption = f"The same validation images as annotated, and as seen by each system (seed 0): {self.kind.shown}"
        return [(caption, self.examples)]

    def _papers(self) -> list[str]:
        rows: list[Mapping[str, Cell]] = []
        for each in published():
            own = {label: runs for label, runs in self._by_label().items() if runs[0].system in each.systems}
            if own:
                rows.append(
                    {
                        "paper": each.paper,
                        "network": each.network,
                        "data": each.data,
                        "paper's figure": f"{each.value:.1f} % {each.measure}",
                        "here": _each({label: _percent(runs, each.measure) for label, runs in own.items()}),
                        "paper's time": _seconds(each.seconds),
                        "time here": _each({label: _seconds(runs[0].seconds_an_image) for label, runs in own.items()}),
                        "source": each.source,
                    }
                )
        if not rows:
            return []
        caption = (
            "What the papers report, for orientation only: other data, other and larger networks, trainings of hours "
            "to days, and GPUs of their time. Neither accuracies nor times are comparable with those here; what can be "
            "asked is whether the systems come in the same order."
        )
        return [heading("Beside the papers"), paragraph(caption), table(rows)]

    def _runs(self) -> list[Mapping[str, Cell]]:
        folders = {(run.arm.label, run.seed): run for runs in self.plan.runs(Path()) for run in runs}
        return [
            {
                "run": str(folders[each.label, each.seed].folder),
                **{title: getattr(each, name) for name, title in self.kind.metrics.items()},
                "steps": each.steps,
                "training": _seconds(each.training_seconds),
                "whole run": _seconds(each.whole_seconds),
                "ended": each.ended,
            }
            for each in self.measured
        ]

    def _facts(self) -> dict[str, str]:
        config = self.plan.arms[0].config
        known = {
            "command": self.command,
            "data": config.data + (f", validation {config.validation}" if config.validation else ""),
            "classes": ", ".join(self.validation.class_names),
            "notes on the data": "; ".join(dict.fromkeys(self.validation.notes)) or "none",
            "budget": self._budget(),
            "accuracy": "of the weights after the last step, so that no validation image chooses any",
            "time for an image": "median over up to ten images after a warm-up, one image at a time, all systems in "
            "turn in one process, as regio detect runs them",
            **next(iter(self.made.values()), {}),
        }
        known |= {
            f"left out for {arm.label}": f"{', '.join(arm.left_out)}: it has no such setting"
            for arm in self.plan.arms
            if arm.left_out
        }
        return known

    def _budget(self) -> str:
        words = []
        for arm in self.plan.arms:
            pace = self.plan.paces.get(arm.label)
            if pace is not None and pace.seconds is None:
                words.append(f"{arm.label}: {pace.steps} steps, as asked for")
            elif pace is not None:
                words.append(f"{arm.label}: {pace.steps} steps of {pace.seconds:.3g} s")
        timed = any(pace.seconds is not None for pace in self.plan.paces.values())
        text = (
            f"about {self.plan.budget:g} s of training by gradients for each run; the steps that fit were counted "
            "once, before the first run, by timing a few of them, and are the same for every seed (of a training in "
            "stages, the time of what all stages do for one step). "
        )
        return (text if timed else "") + "; ".join(words)

    def _off_budget(self) -> list[str]:
        """A line where trainings took another time than their budget."""
        took = {
            label: statistics.fmean(run.training_seconds for run in runs)
            for label, runs in self._by_label().items()
            if self.plan.paces[label].seconds
        }
        budget = self.plan.budget
        off = [f"{label} {seconds:.0f} s" for label, seconds in took.items() if abs(seconds / budget - 1) > OFF_BUDGET]
        if not off:
            return []
        return [
            f"Trainings that did not take the {budget:g} s of the budget: {', '.join(off)}. Either the machine was "
            "busier or less busy than when steps were timed, or stages without steps (features, fits) came on top."
        ]

    def _made_differently(self) -> list[str]:
        """A line where the runs were not made with the same versions on the same machine."""
        (first, own), *others = self.made.items() or [("", {})]
        for name, other in others:
            different = differences(own, other)
            if different:
                return [f"Times are not comparable: {name} was not made as {first} was: {different}."]
        return []

    def _settings(self) -> str:
        """Those that all arms have, and those of each that others do not."""
        flat = {arm.label: dotted(as_dict(arm.config)) for arm in self.plan.arms}
        first = next(iter(flat.values()))
        common = {k: v for k, v in first.items() if all(k in each and each[k] == v for each in flat.values())}
        sections = [("all", common)] + [
            (label, {k: v for k, v in each.items() if k not in common}) for label, each in flat.items()
        ]
        words = {"None": "null", "True": "true", "False": "false"}
        lines = [
            [f"{label}:", *(f"  {k}: {words.get(v, v)}" for k, v in each.items())] for label, each in sections if each
        ]
        return "\n\n".join("\n".join(each) for each in lines)


def _percent(runs: Sequence[Measured], measure: str) -> str:
    """The mean over seeds of what a paper calls `measure`."""
    mean = spread((run.voc_map if measure == "mAP" else run.ap) for run in runs).mean
    return "\N{EN DASH}" if math.isnan(mean) else f"{100 * mean:.1f} %"


def _each(values: Mapping[str, str]) -> str:
    """The value, or where there are several that of each arm."""
    return (
        "; ".join(f"{label} {value}" for label, value in values.items())
        if len(values) > 1
        else "".join(values.values())
    )


def _seconds(value: float | None) -> str:
    """As people write it: 95 s, 1.23 s, 22 ms."""
    if value is None:
        return "\N{EN DASH}"
    if value < 0.9995:
        return f"{1000 * value:.3g} ms"
    return f"{value:.0f} s" if value >= 10 else f"{value:.2f} s"
