"""Studies: the experiments of a paper as data, in studies/*.yaml: arms, the tables that they stand in, what the paper
reports in these, and the networks that are trained first."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from regio.compare.arms import Arm, build_arm, require_classes
from regio.config import RunConfig

__all__ = ["COCO_METRICS", "METRICS", "Form", "Learnt", "Member", "Row", "Study", "Table", "read_study", "study_names"]

METRICS = {
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "small",
    "ap_medium": "medium",
    "ap_large": "large",
    "voc_map": "mAP@0.5",
    "voc_map_70": "mAP@0.7",
    "mean_iou": "mean IoU",
}
"""What a paper's table may report: the name of each field of `regio.compare.results.Measured` in a table."""
COCO_METRICS = tuple(METRICS)[:6]
KNOWN = ConfigDict(extra="forbid")
Count = Annotated[int, Field(ge=1)]
Percent = Annotated[float, Field(ge=0, le=100)]


@dataclass(frozen=True)
class Form:
    """The short or the long version of a study. about: what is particular to it. images, validation_images: at most;
    None for all. steps, epochs: of each training, one of the two. settings: of all arms that have them, over those of
    the study."""

    __pydantic_config__ = KNOWN

    about: str
    seeds: Count = 1
    images: Count | None = None
    validation_images: Count | None = None
    steps: Count | None = None
    epochs: Annotated[float, Field(gt=0)] | None = None
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Member:
    """An arm of a study, or a network that is trained first. settings: its own, which win over all others; short, full:
    those of one form alone, None where the arm is not in that form. epochs: its own, where the form counts epochs."""

    __pydantic_config__ = KNOWN

    system: str
    settings: tuple[str, ...] = ()
    short: tuple[str, ...] | None = ()
    full: tuple[str, ...] | None = ()
    epochs: Annotated[float, Field(gt=0)] | None = None

    def own(self, full: bool) -> tuple[str, ...] | None:
        """Its settings in the long or the short form; None where it is not in that."""
        more = self.full if full else self.short
        return None if more is None else self.settings + more


@dataclass(frozen=True)
class Row:
    """A line of a table. paper: what the paper reports there, by the metrics of the table, in percent; None where it
    has no such line. also: other numbers of that line, by the names of the columns. reference: the arm that this one is
    compared with, in place of that of the table."""

    __pydantic_config__ = KNOWN

    arm: str
    name: str
    group: str = ""
    paper: tuple[Percent, ...] | None = None
    also: Mapping[str, float] | None = None
    reference: str | None = None


@dataclass(frozen=True)
class Table:
    """A table of the paper. about: what to know of it. reference: the arm that the others are compared with. metrics:
    what the paper reports there, of METRICS; arms are compared by the first. analysis: one of
    `regio.compare.analyses.ANALYSES`, which gives it more columns."""

    __pydantic_config__ = KNOWN

    title: str
    about: str
    reference: str
    rows: Annotated[tuple[Row, ...], Field(min_length=1)]
    metrics: tuple[str, ...] = COCO_METRICS
    analysis: str | None = None


@dataclass(frozen=True)
class Learnt:
    """What is looked at in the weights of the extractors of `arms`, see `regio.compare.learnt`; their settings have
    keep_every."""

    __pydantic_config__ = KNOWN

    title: str
    about: str
    arms: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """See the module. paper_data: with what the paper's figures were made. settings: of all arms and networks that have
    them. first: networks that are trained before the arms, with one seed; `<NAME>` in a setting stands for the weights
    of one. pictures: arms whose detections are shown. learnt: those whose weights are looked at."""

    __pydantic_config__ = KNOWN

    title: str
    source: str
    paper_data: str
    about: str
    short: Form
    full: Form
    arms: Mapping[str, Member]
    tables: Mapping[str, Table]
    settings: tuple[str, ...] = ()
    first: Mapping[str, Member] = Field(default_factory=dict)
    pictures: tuple[str, ...] = ()
    learnt: Learnt | None = None

    def form(self, full: bool) -> Form:
        """The long or the short one."""
        return self.full if full else self.short

    def rows(self, table: str, labels: Collection[str]) -> list[Row]:
        """Those of a table whose arms are among `labels`."""
        return [row for row in self.tables[table].rows if row.arm in labels]

    def chosen_tables(self, names: Sequence[str] | None) -> tuple[str, ...]:
        """`names` in the order of the study, all where that is None. Raises ValueError for one that is none of its."""
        if names is None:
            return tuple(self.tables)
        for name in names:
            if name not in self.tables:
                raise ValueError(f"--tables: expected one of {', '.join(self.tables)}, got '{name}'")
        return tuple(name for name in self.tables if name in names)

    def plan_arms(
        self, tables: Sequence[str], shared: RunConfig, settings: Sequence[str], *, full: bool, images: int
    ) -> tuple[tuple[Arm, ...], tuple[Arm, ...]]:
        """The networks that are trained first, and the arms of `tables`, each once however many tables it is in.

        shared: what all have, such as the data. settings: of whoever runs the study, over those of the study but for
        what makes an arm what it is. images: to train on, of which the number of steps follows where the form counts
        epochs. Raises ValueError for settings that do not fit.
        """
        form = self.form(full)
        wanted = [
            label
            for name in tables
            for row in self.tables[name].rows
            for label in (row.arm, row.reference or self.tables[name].reference)
        ]

        def made(label: str, member: Member, own: tuple[str, ...]) -> Arm:
            return build_arm(label, member.system, own, shared, [*self.settings, *form.settings], settings)

        arms = {
            label: made(label, self.arms[label], own)
            for label in self.arms
            if label in wanted and (own := self.arms[label].own(full)) is not None
        }
        for arm in arms.values():
            require_classes(arm)
        named = {name for arm in arms.values() for name in arm.first}
        unknown = named - self.first.keys()
        if unknown:
            raise ValueError(f"<{min(unknown)}>: expected one of {', '.join(self.first)}")
        first = {
            label: made(label, member, own)
            for label, member in self.first.items()
            if label in named and (own := member.own(full)) is not None
        }
        return (
            tuple(self._paced(arm, self.first[label], form, images) for label, arm in first.items()),
            tuple(self._paced(arm, self.arms[label], form, images) for label, arm in arms.items()),
        )

    def _paced(self, arm: Arm, member: Member, form: Form, images: int) -> Arm:
        """`arm` with a number of steps, unless its settings have one."""
        training = arm.config.training
        if training.steps is not None:
            return arm
        steps = form.steps
        if steps is None:
            assert form.epochs is not None
            over = replace(training, epochs=member.epochs or form.epochs)
            steps = over.steps_over(images, training.batch_size * training.accumulate)
        return replace(arm, config=replace(arm.config, training=replace(training, steps=steps)))


def study_names() -> tuple[str, ...]:
    """Of the studies that come with regio."""
    found = files("regio.compare").joinpath("studies").iterdir()
    return tuple(sorted(each.name.removesuffix(".yaml") for each in found if each.name.endswith(".yaml")))


@cache
def read_study(name: str) -> Study:
    """The study `name`, one of `study_names` or a YAML file of such. Raises ValueError for another name, and for a file
    that does not describe a study, naming what is wrong."""
    if name in study_names():
        text = files("regio.compare").joinpath("studies", f"{name}.yaml").read_text(encoding="utf-8")
    elif Path(name).is_file():
        text = Path(name).read_text(encoding="utf-8")
    else:
        raise ValueError(f"--study: expected {', '.join(study_names())}, or a file, got '{name}'")
    try:
        study = TypeAdapter(Study).validate_python(yaml.safe_load(text))
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{name}: {' '.join(str(error).split())}") from None
    _require_consistent(name, study)
    return study


def _require_consistent(name: str, study: Study) -> None:
    """Raise ValueError where a table or another part names an arm that the study does not have."""
    from regio.compare.analyses import ANALYSES

    for which, form in (("short", study.short), ("full", study.full)):
        if (form.steps is None) == (form.epochs is None):
            raise ValueError(f"{name}: {which}: expected either steps or epochs")
    for key, table in study.tables.items():
        _require_metrics(f"{name}: tables.{key}", table)
    labels: set[tuple[str, str | None]] = {("pictures", label) for label in study.pictures}
    labels |= {("learnt", label) for label in (() if study.learnt is None else study.learnt.arms)}
    for key, table in study.tables.items():
        labels |= {(f"tables.{key}", each) for row in table.rows for each in (row.arm, row.reference, table.reference)}
        if table.analysis is not None and table.analysis not in ANALYSES:
            raise ValueError(f"{name}: tables.{key}: expected one of {', '.join(ANALYSES)}, got '{table.analysis}'")
    for where, label in sorted(labels, key=str):
        if label is not None and label not in study.arms:
            raise ValueError(f"{name}: {where}: expected an arm, one of {', '.join(study.arms)}, got '{label}'")


def _require_metrics(name: str, table: Table) -> None:
    """Raise ValueError for metrics that there are not, and for a row with other numbers than those."""
    if not table.metrics:
        raise ValueError(f"{name}.metrics: expected one at least")
    for metric in table.metrics:
        if metric not in METRICS:
            raise ValueError(f"{name}.metrics: expected some of {', '.join(METRICS)}, got '{metric}'")
    for place, row in enumerate(table.rows):
        if row.paper is not None and len(row.paper) != len(table.metrics):
            raise ValueError(
                f"{name}.rows.{place}.paper: expected {len(table.metrics)} numbers, those of "
                f"{', '.join(table.metrics)}, got {len(row.paper)}"
            )
