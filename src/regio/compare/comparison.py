"""A comparison, to be read from top to bottom: plan, train each arm with each seed, measure, report."""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from regio.compare.analyses import ANALYSES
from regio.compare.learnt import learnt_parts
from regio.compare.pace import measured_pace
from regio.compare.plan import Pace, Plan, Run
from regio.compare.provenance import provenance
from regio.compare.report import Report, system_name
from regio.compare.results import measure, write_results
from regio.compare.speed import Speed, Timed, seconds_an_image
from regio.compare.study import Study, read_study
from regio.compare.study_report import StudyReport
from regio.data import DetectionDataset
from regio.devices import pick_device
from regio.errors import Interrupted
from regio.given_proposals import source_for
from regio.ready import inference_precision
from regio.run import open_data, open_splits, run
from regio.run_folders import emptied, holds_a_run, locked
from regio.train import stop_requests
from regio.visualize.page import heading, paragraph
from regio.weights import load_trained
from regio.whole_files import write_json

__all__ = ["compare"]

QUIET = Console(quiet=True)
BEFORE = ("first", "maps", "proposals")
"""What a folder may have before a comparison, of others: networks, maps and boxes that need not be made again."""


def compare(plan: Plan, folder: Path, console: Console, command: str = "") -> dict[str, str]:
    """Train and measure every arm of `plan` with every seed, each in a folder of its own below `folder`, and report.

    Runs that have ended are passed over, one that was stopped goes on. A report is written after each seed, as
    report.html, results.json and results.csv. What fails, in building or in training, ends no other run: returned is
    why, in a line, by arm or run. command: by which the comparison was started, for the report.

    Raises ValueError where `folder` holds another comparison or another run, for data that cannot be read, and where
    there are several processes; Interrupted after SIGINT or SIGTERM, when the run that was going on has saved its
    state.
    """
    if (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise ValueError(f"regio compare: expected one process, got {processes}, those of torchrun")
    with locked(folder), stop_requests() as stop_requested:
        if not (folder / "plan.json").is_file() and holds_a_run(folder, besides=BEFORE):
            raise ValueError(f"{folder}: there is a run of this name that is no comparison; give another --name")
        dataset, validation = open_data(plan.arms[0].config, console)
        identity = {
            f"{name}.{key}": value
            for name, data in (("data", dataset), ("validation", validation))
            for key, value in data.identity().items()
        }
        plan = replace(plan, data=identity).agreed(folder)
        plan.write(folder)
        made = provenance()
        _train_first(plan, folder, made, stop_requested, console)
        plan, failures = _with_paces(plan, folder, console)
        speed: dict[str, Speed] = {}
        rounds = list(plan.runs(folder))
        total = sum(map(len, rounds))
        for number, runs in enumerate(rounds):
            for place, each in enumerate(runs, 1 + number * len(plan.arms)):
                if each.arm.label in plan.paces:
                    _say(console, f"{place} of {total}: {_name(each)}")
                    _end(each, plan.paces[each.arm.label], folder, made, failures, console)
                if stop_requested():  # while a run was evaluated or reported, which goes on to its end
                    raise Interrupted("stopped between two runs; go on with --resume")
            ended = [run for some in rounds[: number + 1] for run in some if run.record.is_file()]
            speed = _speed(ended, speed, folder, failures, console)
            _report(plan, ended, failures, dataset, validation, speed, command, folder)
        return failures


def _train_first(
    plan: Plan, folder: Path, made: Mapping[str, str], stop_requested: Callable[[], bool], console: Console
) -> None:
    """Train the networks that arms need the weights of. Raises ValueError where that fails, since no arm can do without
    them."""
    for each in plan.first_runs(folder):
        failures: dict[str, str] = {}
        _say(console, f"before the arms: {each.arm.label}")
        steps = each.arm.config.training.steps
        assert steps is not None
        _end(each, Pace(steps), folder, made, failures, console)
        if failures:
            raise ValueError(f"{each.arm.label}, which is trained before the arms: {failures[_name(each)]}")
        if stop_requested():
            raise Interrupted(f"stopped after {each.arm.label}; go on with --resume")


def _with_paces(plan: Plan, folder: Path, console: Console) -> tuple[Plan, dict[str, str]]:
    """The plan with the steps of all arms decided, but of those that fail; and why these do."""
    failures: dict[str, str] = {}
    for arm in plan.arms:
        given = arm.config.training.steps
        if arm.label in plan.paces:
            continue
        if given is not None:
            plan = plan.with_pace(arm, Pace(given))
        else:
            _say(console, f"{arm.label}: timing a few steps")
            try:
                shown = console if arm.config.model.needs_proposals else QUIET  # finding boxes takes long
                config = plan.ready(arm, folder).config
                pace = measured_pace(config, *open_splits(config, shown, folder), plan.budget)
            except Interrupted:
                raise Interrupted(f"stopped while steps of {arm.label} were timed; go on with --resume") from None
            except Exception as error:
                _failed(arm.label, error, failures, console)
                continue
            _say(console, f"{arm.label}: {pace.steps} steps, of {pace.seconds:.3g} s each")
            plan = plan.with_pace(arm, pace)
        plan.write(folder)
    return plan, failures


def _end(
    each: Run, pace: Pace, folder: Path, made: Mapping[str, str], failures: dict[str, str], console: Console
) -> None:
    """Make the run, or go on with it, or leave it as it is where it has ended. Boxes that are found for the images are
    kept below `folder`, for all runs."""
    if each.record.is_file():
        _say(console, "done before")
        return
    begun, clock = each.begun, time.monotonic()
    try:
        place = (locked if begun else emptied)(each.folder)
        run(each.config(pace.steps), place, console, resume=begun, project=folder)
        whole = None if begun else time.monotonic() - clock
        model = load_trained(each.folder / "weights" / "last.safetensors").model
        parameters = sum(parameter.numel() for parameter in model.parameters())
        ended = datetime.now(UTC).isoformat(" ", "minutes").removesuffix("+00:00") + " UTC"
        values = {"parameters": parameters, "whole_seconds": whole, "ended": ended, "made": dict(made)}
        write_json(each.record, values)
        for state in each.folder.rglob("resume.safetensors"):
            state.unlink()  # half of what a run leaves, and there is nothing to go on with
    except Exception as error:
        _failed(_name(each), error, failures, console)


def _failed(name: str, error: Exception, failures: dict[str, str], console: Console) -> None:
    """Print why, and go on with the others; the environment variable REGIO_DEBUG keeps the traceback."""
    if isinstance(error, Interrupted):
        raise error
    expected = isinstance(error, (ValueError, TypeError, OSError, FloatingPointError))
    words = " ".join(str(error).split())
    failures[name] = words if expected else f"{type(error).__name__}: {words}"
    console.print(f"{name} failed: {failures[name]}", style="red", highlight=False, markup=False)
    if os.environ.get("REGIO_DEBUG"):
        traceback.print_exception(error)


def _speed(
    ended: Sequence[Run], known: dict[str, Speed], folder: Path, failures: dict[str, str], console: Console
) -> dict[str, Speed]:
    """Of the detectors of the arms with a run that has ended, by label; `known` where it has all of them."""
    first = {each.arm.label: each for each in reversed(ended)}
    if first.keys() == known.keys():
        return known
    _say(console, "timing the detectors")
    timed: dict[str, Timed] = {}
    for label, each in first.items():
        weights, place = each.folder / "weights" / "last.safetensors", pick_device(each.arm.config.training.device)
        try:
            trained = load_trained(weights)
            propose = None
            if trained.system.needs_proposals:
                given = each.arm.config.validation_proposals or each.arm.config.proposals
                source = source_for(weights, trained.proposals, given)
                propose = None if isinstance(source.origin, Path) else source.boxes
            _, validation = open_splits(each.arm.config, QUIET, folder)
            timed[label] = Timed(trained.ready(place, inference_precision(place)), validation, propose)
        except Exception as error:
            _failed(f"{label}, timing", error, failures, console)
    try:
        return seconds_an_image(timed)
    except Exception as error:  # one of them all: nothing is known of their order then
        _failed("timing", error, failures, console)
        return known


def _report(
    plan: Plan,
    ended: Sequence[Run],
    failures: Mapping[str, str],
    dataset: DetectionDataset,
    validation: DetectionDataset,
    speed: Mapping[str, Speed],
    command: str,
    folder: Path,
) -> None:
    order = [arm.label for arm in plan.arms]
    ended = sorted(ended, key=lambda each: (order.index(each.arm.label), each.seed))
    measured = [
        measure(each, validation, system_name(each.arm.config.model), speed.get(each.arm.label)) for each in ended
    ]
    found = {each.arm.label: each for each in reversed(ended)}
    made = {_name(each): json.loads(each.record.read_text())["made"] for each in ended}
    about = {"command": command, "budget": plan.budget, "seeds": plan.seeds, "data": dict(plan.data)}
    write_results(folder, measured, failures, {**about, "made": made})
    study = None if plan.study is None else read_study(plan.study)
    shown = [label for label in order if label in found and (study is None or label in study.pictures)]
    kind = plan.arms[0].config.model.compared_as()
    examples = kind.examples({label: found[label].folder for label in shown}, validation) if shown else None
    tables = None
    if study is not None:
        for name in ("plots", "tables"):
            (folder / name).mkdir(exist_ok=True)
        first = {each.arm.label: each for each in ended if each.seed == 0}
        learnt: list[str] = []
        if study.learnt is not None and any(each.seed == plan.seeds - 1 for each in ended):
            place = pick_device(plan.arms[0].config.training.device)
            try:
                learnt = learnt_parts(study.learnt, first, validation, folder, place)
            except (ValueError, TypeError) as error:
                learnt = [heading(study.learnt.title), paragraph(str(error))]
        tables = StudyReport(study, plan, measured, _analysed(study, plan, first, folder), learnt)
    Report(plan, measured, failures, validation, len(dataset), examples, command, made, tables).write(folder)


def _analysed(
    study: Study, plan: Plan, first: Mapping[str, Run], folder: Path
) -> dict[str, dict[str, Mapping[str, float]]]:
    """What the analyses of the tables find in the detectors of the first seed, by table and arm. first: their runs."""
    found: dict[str, dict[str, Mapping[str, float]]] = {}
    for name in plan.tables:
        asked = study.tables[name].analysis
        for row in study.rows(name, first.keys()) if asked is not None else []:
            assert asked is not None
            run = first[row.arm]
            trained = load_trained(run.folder / "weights" / "last.safetensors")
            _, validation = open_splits(run.arm.config, QUIET, folder)
            found.setdefault(name, {})[row.arm] = ANALYSES[asked](trained.detector.eval(), validation)
    return found


def _name(each: Run) -> str:
    return f"{each.arm.label}, seed {each.seed}"


def _say(console: Console, text: str) -> None:
    console.print(text, style="bold", highlight=False, markup=False)
