"""`regio compare`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from regio.config import SYSTEMS, RunConfig

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
            "regio train.",
            rich_help_panel=HOW,
        ),
    ] = False,
    name: Annotated[str, typer.Option(help="Folder below --project.", rich_help_panel=FOLDER)] = "compare",
    project: Annotated[Path, typer.Option(help="Folder of all runs.", rich_help_panel=FOLDER)] = Path("runs"),
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with --name as it was planned, without repeating how.", rich_help_panel=FOLDER
        ),
    ] = False,
) -> None:
    """Train systems on the same data for the same time, and put them side by side in a report.

    The same command again goes on where it was stopped. Exit code 1 where a system failed; the others are reported.
    """
    words = settings or []
    if data is not None and "=" in data and not Path(data).exists():
        words, data = [data, *words], None

    from regio.compare import Plan, make_arm, split_arms, system_in
    from regio.compare import compare as run

    if resume:
        given = [data, systems, classes, validation, images, validation_images, budget, steps, seeds, full or None]
        if words or any(each is not None for each in given):
            raise ValueError("--resume: expected --name and --project alone; the plan says the rest")
        plan = Plan.read(project / name)
    else:
        if budget is not None and steps is not None:
            raise ValueError("--budget: expected either seconds or --steps, got both")
        shared = RunConfig(
            data or "shapes",
            validation,
            tuple(each.strip() for each in classes.split(",")) if classes else (),
            images=images or (None if full else IMAGES),
            validation_images=validation_images or (None if full else VALIDATION_IMAGES),
        )
        scenes = shared.data == "shapes"
        sizes = SHAPES if scenes else () if full else SMALL_IMAGES

        def defaults(arm: str) -> list[str]:
            if full:
                return [*FOR_ALL, *sizes]
            scales = ONE_SCALE.get(system_in(arm))
            return [*FOR_ALL, *sizes, *FEW_BOXES, *SMALL_CROPS[scenes], *([scales[scenes]] if scales else [])]

        words = [*([] if steps is None else [f"steps={steps}"]), *words]
        chosen = split_arms(",".join(MILESTONES) if systems is None else systems)
        plan = Plan(
            tuple(make_arm(each, shared, defaults(each), words) for each in chosen),
            seeds or (FULL_SEEDS if full else SEEDS),
            budget or (FULL_BUDGET if full else BUDGET),
        )
        nowhere = [word for word in words if all(word in arm.left_out for arm in plan.arms)]
        if nowhere:
            raise ValueError(f"{nowhere[0].partition('=')[0]}: no such setting in any of the systems")
    console = Console(soft_wrap=True)
    for arm in plan.arms:
        if arm.left_out:
            console.print(f"{arm.label}: without {', '.join(arm.left_out)}, which it does not have", highlight=False)
    folder = project / name
    failures = run(plan, folder, console, shlex.join(["regio", *sys.argv[1:]]))
    console.print(f"Results are in [bold]{folder}[/]: report.html, results.csv, results.json", highlight=False)
    if failures:
        for who, why in failures.items():
            console.print(f"[red]failed:[/] {who}: ", end="", highlight=False)
            console.print(why, highlight=False, markup=False)
        raise typer.Exit(1)
