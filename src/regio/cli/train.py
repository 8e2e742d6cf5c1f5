"""`regio train`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from regio.config import EXTRACTORS, OPTIMIZERS, SCHEDULES, SYSTEMS, RunConfig, TrainConfig, model_to_dict, read_config
from regio.config.run import names_a_model
from regio.optimisation import SGD, AdamW
from regio.settings import dotted, override

__all__ = ["train"]

TRAINING = TrainConfig()
MODEL, HOW, MACHINE, FOLDER = "What to train", "How", "On which machine", "Where"


def train(
    data: Annotated[
        str | None,
        typer.Argument(help="Folder of a COCO, Pascal VOC or YOLO data set, its JSON or YAML, or 'shapes'."),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Argument(help="Any other setting, as key=value: regio config prints them all.")
    ] = None,
    *,
    model: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(SYSTEMS)} (default: {next(iter(SYSTEMS))}).", rich_help_panel=MODEL),
    ] = None,
    extractor: Annotated[
        str | None,
        typer.Option(help=f"Region features (default: roi-align): {', '.join(EXTRACTORS)}.", rich_help_panel=MODEL),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="efficientnet_lite0 (default), or one of other libraries: torchvision:NAME, timm:NAME.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Checkpoint to start from, or torchvision:NAME, detectron2:NAME (NAME=FILE where its weights lie in a "
            "file); of other classes, all but the last layers. Without --model, its model is trained.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    validation: Annotated[
        str | None,
        typer.Option(help="Data set to evaluate on (default: the val split of DATA).", rich_help_panel=MODEL),
    ] = None,
    proposals: Annotated[
        str | None,
        typer.Option(
            help="Boxes for a model that finds none itself: selective-search (default), selective-search:quality, "
            "grid, a file of regio proposals, or a checkpoint with a proposal network.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(help="Classes to train on, separated by commas (default: all).", rich_help_panel=MODEL),
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(help=f"Passes over the data (default: {TRAINING.epochs:g}).", rich_help_panel=HOW)
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimizer steps, instead of epochs.", rich_help_panel=HOW)
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help=f"Images a step (default: {TRAINING.batch_size}).", rich_help_panel=HOW),
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option(help=f"{', '.join(OPTIMIZERS)} (default: adamw).", rich_help_panel=HOW)
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            help=f"Learning rate (default: {AdamW().lr:g} for adamw, {SGD().lr:g} for sgd).", rich_help_panel=HOW
        ),
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(help=f"{', '.join(SCHEDULES)} (default: cosine).", rich_help_panel=HOW)
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help=f"Two runs of one seed are equal (default: {TRAINING.seed}).", rich_help_panel=HOW),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file of settings, such as a run's config.yaml; words here win.", rich_help_panel=HOW),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help=f"32-true or bf16-mixed (default: {TRAINING.precision}).", rich_help_panel=MACHINE),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help=f"cpu, cuda, cuda:1, mps or auto (default: {TRAINING.device}).", rich_help_panel=MACHINE),
    ] = None,
    devices: Annotated[
        int | None,
        typer.Option(min=1, help=f"Devices, of a process each (default: {TRAINING.devices}).", rich_help_panel=MACHINE),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help=f"Processes that read images (default: {TRAINING.workers}).", rich_help_panel=MACHINE),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Folder of the run below --project (default: train).", rich_help_panel=FOLDER)
    ] = None,
    project: Annotated[Path, typer.Option(help="Folder of all runs.", rich_help_panel=FOLDER)] = Path("runs"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run --name, exactly as it was.", rich_help_panel=FOLDER)
    ] = False,
) -> None:
    """Train a detector, evaluate it, and leave checkpoints, metrics, plots and pictures in a folder.

    Ctrl-C stops and saves. To go on: regio train DATA --name NAME --resume.
    """
    words = settings or []
    if data is not None and "=" in data and not Path(data).exists():  # of --config's data
        words, data = [data, *words], None
    own: dict[str, Any] = {"validation": validation, "weights": weights}
    own["classes"] = tuple(each.strip() for each in classes.split(",")) if classes else None
    own = {option: value for option, value in own.items() if value is not None}
    if resume:
        if name is None or config is not None:
            raise ValueError("--resume: expected --name, the run to go on with, and no --config: it has its own")
        chosen = _resumed(project / name, data, own)
    else:
        chosen = RunConfig() if config is None else read_config(config)
        chosen = chosen if data is None else replace(chosen, data=data)
        if not chosen.data:
            raise ValueError("DATA: expected a data set; see regio train --help")
        chosen = replace(chosen, **own)
        named = model is not None or any(word.partition("=")[0] == "model" for word in words)
        if weights is not None and not named and not (config is not None and names_a_model(config)):
            from regio.weights import system_of

            chosen = replace(chosen, model=system_of(weights))
    given = {
        "model": model, "extractor": extractor, "backbone": backbone, "epochs": epochs, "steps": steps,
        "batch_size": batch_size, "optimizer": optimizer, "optimizer.lr": lr, "schedule": schedule,
        "precision": precision, "device": device, "devices": devices, "workers": workers, "seed": seed,
        "proposals": proposals,
    }  # fmt: skip
    options = [f"{key}={value}" for key, value in given.items() if value is not None]
    settled = chosen
    chosen = override(chosen, _with_a_length(options + words))
    if resume and name is not None:
        _require_same_model(project / name, settled, chosen)

    from regio.run import run
    from regio.run_folders import locked, new_run

    folder = locked(project / name) if resume and name is not None else new_run(project, name, "train")
    run(chosen, folder, Console(soft_wrap=True), resume=resume)


def _resumed(folder: Path, data: str | None, own: Mapping[str, Any]) -> RunConfig:
    """The settings of a run that can go on. own: options by the names of the settings that they must agree with."""
    if not (folder / "config.yaml").is_file():
        raise ValueError(f"{folder / 'config.yaml'}: no such file: there is no run to go on with")
    config = read_config(folder / "config.yaml")
    if data is not None and Path(config.data).resolve() != Path(data).resolve():
        raise ValueError(f"--resume: the run {folder} trains on {config.data}, got {data}")
    for option, value in own.items():
        was = getattr(config, option)
        if was != value and not (option == "validation" and was and Path(was).resolve() == Path(value).resolve()):
            expected, got = (", ".join(each) if isinstance(each, tuple) else each for each in (was, value))
            raise ValueError(f"--{option}: expected {expected or 'none'}, as in the run {folder}, got {got}")
    if not (folder / "stages" / "run.json").is_file() and not (folder / "weights" / "resume.safetensors").is_file():
        raise ValueError(f"--resume: {folder} ended before its first save; start it again without --resume")
    return config


def _require_same_model(folder: Path, was: RunConfig, now: RunConfig) -> None:
    """A run goes on with its own model, and the boxes that it was given; ValueError naming what differs. (What else may
    not differ is compared when the training begins.)"""
    from regio.identity import differences

    first, second = (
        dotted({**model_to_dict(each.model), "backbone_weights": None, "proposals": each.proposals})
        for each in (was, now)
    )
    if different := differences(first, second):
        raise ValueError(f"--resume: the run {folder} can only go on as it was: {different}")


def _with_a_length(words: list[str]) -> list[str]:
    """`words`, of which one that gives epochs takes the place of the steps of a --config. Raises ValueError where both
    are given."""
    keys = [word.partition("=")[0].removeprefix("training.") for word in words]
    if "epochs" not in keys:
        return words
    if "steps" in keys:
        raise ValueError("epochs: expected either epochs or steps, got both")
    return ["steps=null", *words]
