"""What a comparison is: its arms, its seeds, and how many steps each arm takes; kept in `plan.json`.

A comparison is resumed only as it was planned. More arms and more seeds may be added to it, since no run depends on
another.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from regio.compare.arms import Arm, with_seed
from regio.config import RunConfig
from regio.identity import differences
from regio.settings import as_dict, dotted, from_dict
from regio.whole_files import write_json

__all__ = ["Pace", "Plan", "Run"]

MACHINE = ("device", "workers", "save_every", "keep_every", "log_every")
"""Settings of a training on which no result depends."""


@dataclass(frozen=True)
class Pace:
    """How many steps an arm takes in each of its runs. seconds: of a step, as measured when that was decided; None
    where the number was given."""

    steps: int
    seconds: float | None = None


@dataclass(frozen=True)
class Run:
    """One training of a comparison. folder: of all that it leaves."""

    arm: Arm
    seed: int
    folder: Path

    def config(self, steps: int) -> RunConfig:
        """Its settings."""
        return with_seed(self.arm.config, self.seed, steps)

    @property
    def record(self) -> Path:
        """The file that is there when the run has ended."""
        return self.folder / "finished.json"

    @property
    def begun(self) -> bool:
        """Whether the folder holds what a training can go on with."""
        left = ("weights/resume.safetensors", "stages/run.json")
        return any((self.folder / name).is_file() for name in left)


@dataclass(frozen=True)
class Plan:
    """budget: seconds of training for each run, for the arms whose steps are not given. seeds: 0, 1, ... of each arm.
    data: what the images and annotations are (`DetectionDataset.identity`). paces: by label, of the arms whose steps
    are decided. first: networks that are trained before the arms, with seed 0, whose weights arms name
    (`Arm.with_weights`). study, tables, full: of which study all this is, see `regio.compare.study`; None, where it is
    of none.

    Raises ValueError for no arm, for two of one label, for labels that come to the same folder, and for systems of
    which some give detections and others class maps.
    """

    arms: tuple[Arm, ...]
    seeds: int
    budget: float
    data: Mapping[str, str] = field(default_factory=dict)
    paces: Mapping[str, Pace] = field(default_factory=dict)
    first: tuple[Arm, ...] = ()
    study: str | None = None
    tables: tuple[str, ...] = ()
    full: bool = False

    def __post_init__(self) -> None:
        if not self.arms:
            raise ValueError("systems: expected at least one, got none")
        seen: dict[str, str] = {}
        for arm in (*self.first, *self.arms):
            folder = arm.folder.lower()
            if folder in seen:
                raise ValueError(
                    f"systems: expected a label of its own for each, got '{seen[folder]}' and '{arm.label}'; "
                    "give one as LABEL=SYSTEM:key=value"
                )
            seen[folder] = arm.label
        kinds = {arm.config.model.compared_as().name: arm.label for arm in self.arms}
        if len(kinds) > 1:
            both = ", ".join(f"{name} ({label})" for name, label in kinds.items())
            raise ValueError(f"systems: expected all to give the same, got {both}")

    def runs(self, folder: Path) -> Iterator[list[Run]]:
        """The runs of all arms, one seed after the other."""
        for seed in range(self.seeds):
            yield [Run(self.ready(arm, folder), seed, folder / arm.folder / f"seed-{seed}") for arm in self.arms]

    def first_runs(self, folder: Path) -> list[Run]:
        """Those of the networks that are trained before the arms."""
        return [Run(arm, 0, folder / "first" / arm.folder) for arm in self.first]

    def ready(self, arm: Arm, folder: Path) -> Arm:
        """`arm` with the files that it needs of these networks."""
        return arm.with_weights(
            {run.arm.label: run.folder / "weights" / "last.safetensors" for run in self.first_runs(folder)}
        )

    def with_pace(self, arm: Arm, pace: Pace) -> Plan:
        """The same plan with the steps of `arm` decided."""
        return replace(self, paces={**self.paces, arm.label: pace})

    def write(self, folder: Path) -> None:
        """Write plan.json, whole or not at all."""
        arms = [
            {
                **_written(arm),
                "pace": None if arm.label not in self.paces else asdict(self.paces[arm.label]),
            }
            for arm in self.arms
        ]
        about = {"study": self.study, "tables": list(self.tables), "full": self.full}
        write_json(
            folder / "plan.json",
            {
                "budget": self.budget,
                "seeds": self.seeds,
                "data": dict(self.data),
                **about,
                "first": [_written(arm) for arm in self.first],
                "arms": arms,
            },
        )

    @staticmethod
    def read(folder: Path) -> Plan:
        """The plan of the comparison in `folder`. Raises ValueError where there is none."""
        file = folder / "plan.json"
        if not file.is_file():
            raise ValueError(f"{file}: no such file: there is no comparison to go on with")
        values = json.loads(file.read_text())
        try:
            first, arms = (tuple(_read(each) for each in values.get(key, [])) for key in ("first", "arms"))
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        paces = {each["label"]: Pace(**each["pace"]) for each in values["arms"] if each["pace"]}
        return Plan(
            arms,
            values["seeds"],
            values["budget"],
            values["data"],
            paces,
            first,
            values.get("study"),
            tuple(values.get("tables", ())),
            values.get("full", False),
        )

    def agreed(self, folder: Path) -> Plan:
        """This plan with the paces that the comparison in `folder` has decided. Raises ValueError, naming what differs,
        where that is not this one or a smaller part of it."""
        if not (folder / "plan.json").is_file():
            return self
        was = Plan.read(folder)
        labels = [arm.label for arm in self.arms]
        missing = [arm.label for arm in was.arms if arm.label not in labels]
        different = f"without {', '.join(missing)}" if missing else was._differences(self)
        if different:
            raise ValueError(
                f"{folder}: holds another comparison: {different}; go on with it as it was, or give another --name"
            )
        return replace(self, paces=was.paces)

    def _differences(self, now: Plan) -> str:
        """In words, where `now` is not this plan with more arms and seeds."""
        own = {arm.label: arm for arm in (*self.first, *self.arms)}
        for arm in (*now.first, *now.arms):
            if arm.label in own:
                different = differences(_decisive(own[arm.label].config), _decisive(arm.config))
                if different:
                    return f"{arm.label}: {different}"
        if now.seeds < self.seeds:
            return f"seeds {self.seeds}, got {now.seeds}"
        was, given = (
            {"budget": f"{plan.budget:g}", "study": plan.study or "none", "full": str(plan.full), **plan.data}
            for plan in (self, now)
        )
        return differences(was, given)


def _written(arm: Arm) -> dict[str, Any]:
    return {"label": arm.label, "left_out": list(arm.left_out), "config": as_dict(arm.config)}


def _read(values: Mapping[str, Any]) -> Arm:
    return Arm(values["label"], from_dict(RunConfig, values["config"]), tuple(values["left_out"]))


def _decisive(config: RunConfig) -> dict[str, str]:
    """Settings by their dotted names, but for those of the machine."""
    free = {f"training.{name}" for name in MACHINE}
    return {name: value for name, value in dotted(as_dict(config)).items() if name not in free}
