"""`regio compare`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from regio.config import SYSTEMS, RunConfig

if TYPE_CHECKING:
    from regio.compare import Plan

__all__ = ["MILESTONES", "compare"]

MILESTONES = ("rcnn", "sppnet", "fast-rcnn", "faster-rcnn", "faster-rcnn-fpn")
"""What is compared unless something else is asked for, in the order of the papers."""

FOR_ALL = (
    "backbone=efficientnet_lite0",  # whose weights come with the installation
    *("training.evaluate_every=1e9", "training.save_every=100"),  # measured at the end: no epoch is chosen
)
SHAPES = (
    *("short_side=160", "long_side=240", "anchor_sizes=[16,32,64,128]", "channels=64", "hidden=256"),
    *("regions_per_image=64", "batch_size=8", "optimizer.lr=1e-3"),
)
"""For the generated scenes, which are small: the demo's settings."""
SMALL_IMAGES = ("short_side=240", "long_side=320")
FEW_BOXES = ("proposals_per_image=300",)
SMALL_CROPS = ("crop=96", "context=7"), ("crop=64", "context=4")  # of photos, and of scenes: R-CNN's, of each box
ONE_SCALE = {"sppnet": ("sides=[240]", "sides=[160]")}  # in place of five, up to 1200 pixels
"""Settings of the short version, for systems that have them."""

BUDGET, SEEDS, IMAGES, VALIDATION_IMAGES = 300.0, 1, 400, 200
FULL_BUDGET, FULL_SEEDS = 3600.0, 3
WHAT, HOW, FOLDER = "What is compared", "How long", "Where"


def compare(
    data: Annotated[
        str | None,
        typer.Argument(
            help="Folder of a COCO, Pascal VOC or YOLO data set, its JSON or YAML, or 'shapes', generated scenes "
            "(default)."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="Any setting of regio train, as key=value, for all systems that have it."),
    ] = None,
    *,
    systems: Annotated[
        str | None,
        typer.Option(
            help=f"Names with commas between them (default: {','.join(MILESTONES)}). With settings of its own: "
            "faster-rcnn:extractor=roi-pool, and with a label: pooled=faster-rcnn:extractor=roi-pool. There are "
            f"{', '.join(SYSTEMS)}.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    study: Annotated[
        str | None,
        typer.Option(
            help="In place of --systems: the experiments of a paper and its tables. There are region-features "
            "(Learning Region Features) and deformable-convnets (Deformable ConvNets); or a YAML file of such.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    tables: Annotated[
        str | None,
        typer.Option(help="Tables of the study, separated by commas (default: all).", rich_help_panel=WHAT),
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Classes, separated by commas (default: all).", rich_help_panel=WHAT)
    ] = None,
    validation: Annotated[
        str | None,
        typer.Option(help="Data set to evaluate on (default: the val split of DATA).", rich_help_panel=WHAT),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(min=1, help=f"Training images at most (default: {IMAGES}).", rich_help_panel=WHAT),
    ] = None,
    validation_images: Annotated[
        int | None,
        typer.Option(min=1, help=f"Validation images at most (default: {VALIDATION_IMAGES}).", rich_help_panel=WHAT),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            min=1.0,
            help=f"Seconds of training for each system and seed (default: {BUDGET:g}). How many steps these are is "
            "decided once for each system.",
            rich_help_panel=HOW,
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimizer steps, in place of seconds.", rich_help_panel=HOW)
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(min=1, help=f"Trainings of each system (default: {SEEDS}).", rich_help_panel=HOW),
    ] = None,
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help=f"The long version: {FULL_BUDGET:g} s, {FULL_SEEDS} seeds, all images and boxes, in the sizes of "
            "regio train. Of a study: the paper's.",
            rich_help_panel=HOW,
        ),
    ] = False,
    name: Annotated[
        str | None,
        typer.Option(help="Folder below --project (default: compare, or the study's name).", rich_help_panel=FOLDER),
    ] = None,
    project: Annotated[Path, typer.Option(help="Folder of all runs.", rich_help_panel=FOLDER)] = Path("runs"),
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with --name as it was planned, without repeating how.", rich_help_panel=FOLDER
        ),
    ] = False,
) -> None:
    """Train systems on the same data for the same time, and put them side by side in a report.

    With --study, the systems and tables are those of a paper.

    The same command again goes on where it was stopped. Exit code 1 where a system failed; the others are reported.
    """
    name = name or ("compare" if study is None else Path(study).stem)
    words = settings or []
    if data is not None and "=" in data and not Path(data).exists():
        words, data = [data, *words], None

    from regio.compare import Plan
    from regio.compare import compare as run
    from regio.compare.arms import split_settings

    if resume:
        given = [data, systems, study, tables, classes, validation, images, validation_images]
        if words or full or any(each is not None for each in [*given, budget, steps, seeds]):
            raise ValueError("--resume: expected --name and --project alone; the plan says the rest")
        plan = Plan.read(project / name)
    else:
        if budget is not None and steps is not None:
            raise ValueError("--budget: expected either seconds or --steps, got both")
        shared = RunConfig(
            data or "shapes",
            validation,
            tuple(each.strip() for each in classes.split(",")) if classes else (),
            images=images,
            validation_images=validation_images,
        )
        shared, words = split_settings(shared, words)
        words = [*([] if steps is None else [f"steps={steps}"]), *words]
        if study is None:
            if tables is not None:
                raise ValueError("--tables: expected with --study alone")
            plan = _plan_of_systems(systems, shared, words, seeds, budget, full=full)
        else:
            if systems is not None or budget is not None:
                raise ValueError(f"--study: expected without --{'systems' if budget is None else 'budget'}")
            plan = _plan_of_study(study, tables, shared, words, seeds, full=full)
        everywhere = (*plan.first, *plan.arms)
        nowhere = [word for word in words if all(word in arm.left_out for arm in everywhere)]
        if nowhere:
            raise ValueError(f"{nowhere[0].partition('=')[0]}: no such setting in any of the systems")
    console = Console(soft_wrap=True)
    for arm in plan.arms:
        if arm.left_out:
            line = f"{arm.label}: without {', '.join(arm.left_out)}, which it does not have"
            console.print(line, highlight=False, markup=False)
    folder = project / name
    failures = run(plan, folder, console, shlex.join(["regio", *sys.argv[1:]]))
    where = escape(str(folder))
    console.print(f"Results are in [bold]{where}[/]: report.html, results.csv, results.json", highlight=False)
    if failures:
        for who, why in failures.items():
            console.print(f"[red]failed:[/] {escape(who)}: ", end="", highlight=False)
            console.print(why, highlight=False, markup=False)
        raise typer.Exit(1)


def _plan_of_systems(
    systems: str | None, shared: RunConfig, words: Sequence[str], seeds: int | None, budget: float | None, *, full: bool
) -> Plan:
    from regio.compare import Plan, make_arm, split_arms, system_in

    shared = _at_most(shared, *(None, None) if full else (IMAGES, VALIDATION_IMAGES))
    scenes = shared.data == "shapes"
    sizes = SHAPES if scenes else () if full else SMALL_IMAGES

    def defaults(arm: str) -> list[str]:
        if full:
            return [*FOR_ALL, *sizes]
        scales = ONE_SCALE.get(system_in(arm))
        return [*FOR_ALL, *sizes, *FEW_BOXES, *SMALL_CROPS[scenes], *([scales[scenes]] if scales else [])]

    chosen = split_arms(",".join(MILESTONES) if systems is None else systems)
    return Plan(
        tuple(make_arm(each, shared, defaults(each), words) for each in chosen),
        seeds or (FULL_SEEDS if full else SEEDS),
        budget or (FULL_BUDGET if full else BUDGET),
    )


def _plan_of_study(
    study: str, tables: str | None, shared: RunConfig, words: Sequence[str], seeds: int | None, *, full: bool
) -> Plan:
    from regio.compare import Plan
    from regio.compare.study import read_study
    from regio.run import open_data

    found = read_study(study)
    form = found.form(full)
    shared = _at_most(shared, form.images, form.validation_images)
    chosen = found.chosen_tables(None if tables is None else [each.strip() for each in tables.split(",")])
    counted = form.epochs is not None
    images = len(open_data(shared, Console(quiet=True))[0]) if counted else 0
    first, arms = found.plan_arms(chosen, shared, words, full=full, images=images)
    return Plan(arms, seeds or form.seeds, BUDGET, first=first, study=study, tables=chosen, full=full)


def _at_most(shared: RunConfig, images: int | None, validation_images: int | None) -> RunConfig:
    """`shared` with these numbers of images where it has none."""
    return replace(
        shared,
        images=shared.images or images,
        validation_images=shared.validation_images or validation_images,
    )
