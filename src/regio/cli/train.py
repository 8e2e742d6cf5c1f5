"""`regio train`."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml
from rich.console import Console
from rich.markup import escape

from regio.checkpoints import load_weights
from regio.cli.runs import locked, new_run, without_worker_tracebacks
from regio.config import (
    BACKBONES,
    EXTRACTORS,
    NECKS,
    OPTIMIZERS,
    SCHEDULES,
    ModelConfig,
    RunConfig,
    build_detector,
    from_dict,
    named,
    override,
    to_dict,
)
from regio.data import Compose, DetectionDataset, HorizontalFlip, PhotometricJitter, Transform, open_dataset
from regio.detector import TwoStageDetector
from regio.evaluate import BoxEvaluator, CocoMetrics
from regio.optimisation import SGD, AdamW
from regio.processes import entered_by_first, launch, together
from regio.progress import RichProgress
from regio.results import as_yaml, show_metrics, write_results
from regio.train import TrainConfig
from regio.train import train as run_training

__all__ = ["open_splits", "run", "train"]


MODEL, TRAINING = ModelConfig(), TrainConfig()
OPTIONS = {"backbone", "extractor", "neck", "epochs", "batch_size", "precision", "device", "devices", "workers", "seed"}
FEW_STEPS = 300  # fourteen photos of three classes: AP 0.05 after --steps 50, 0.55 after --steps 400


def _one_of(table: dict[str, Any]) -> str:
    return ", ".join(table)


def _settings() -> str:
    """The settings without an option of their own, and their defaults."""
    values = {"flip": 0.5, "jitter": False, "difficult": False} | to_dict(MODEL) | to_dict(TRAINING)
    shown = {name: value for name, value in values.items() if name not in OPTIONS and value is not None}
    return ", ".join(f"{name}={value}" for name, value in shown.items() if not isinstance(value, dict))


def train(
    data: Annotated[
        str, typer.Argument(help="Folder of a COCO or Pascal VOC data set, a COCO JSON file, or 'shapes'.")
    ],
    settings: Annotated[
        list[str] | None, typer.Argument(help=f"Any other setting, as key=value: {_settings()}.")
    ] = None,
    *,
    val: Annotated[str | None, typer.Option(help="Data set to evaluate on (default: the val split of DATA).")] = None,
    classes: Annotated[
        str | None, typer.Option(help="Classes to train on, separated by commas (default: all).")
    ] = None,
    extractor: Annotated[
        str | None, typer.Option(help=f"Region features (default: {MODEL.extractor}): {_one_of(EXTRACTORS)}.")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help=f"{_one_of(BACKBONES)} (default: {MODEL.backbone}); the last two as timm:NAME.")
    ] = None,
    neck: Annotated[
        str | None, typer.Option(help=f"{_one_of(NECKS)}: one map at stride 16, or a pyramid (default: {MODEL.neck}).")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help=f"Passes over the data (default: {TRAINING.epochs:g}).")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps, instead of epochs.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help=f"Images a step (default: {TRAINING.batch_size}).")] = None,
    optimizer: Annotated[str | None, typer.Option(help=f"{_one_of(OPTIMIZERS)} (default: adamw).")] = None,
    lr: Annotated[
        float | None, typer.Option(help=f"Learning rate (default: {AdamW.lr:g} for adamw, {SGD.lr:g} for sgd).")
    ] = None,
    schedule: Annotated[str | None, typer.Option(help=f"{_one_of(SCHEDULES)} (default: cosine).")] = None,
    precision: Annotated[
        str | None, typer.Option(help=f"32-true or bf16-mixed (default: {TRAINING.precision}).")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help=f"cpu, cuda, cuda:1, mps or auto (default: {TRAINING.device}).")
    ] = None,
    devices: Annotated[
        int | None,
        typer.Option(min=1, help=f"Devices, of a process each (default: {TRAINING.devices})."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help=f"Processes that read images (default: {TRAINING.workers}).")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help=f"Two runs of one seed are equal (default: {TRAINING.seed}).")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Checkpoint to start from.")] = None,
    name: Annotated[str | None, typer.Option(help="Folder of the run below --project (default: train).")] = None,
    project: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run --name, exactly as it was.")] = False,
) -> None:
    """Train a detector, evaluate it, and leave checkpoints, metrics, plots and pictures in a folder.

    Ctrl-C stops and saves. To go on: regio train DATA --name NAME --resume.
    """
    console = Console(soft_wrap=True)
    if resume:
        if name is None:
            raise ValueError("--resume: expected --name, the run to go on with")
        config = read_config(project / name)
        if config.data != data:
            raise ValueError(f"--resume: the run {project / name} trains on {config.data}, got {data}")
        if not (project / name / "weights" / "resume.safetensors").is_file():
            raise ValueError(f"--resume: {project / name} ended before its first save; start it again without --resume")
    else:
        config = RunConfig(data, validation=val, weights=weights)
        if classes:
            config = replace(config, classes=tuple(c.strip() for c in classes.split(",")))
    if optimizer is not None:
        chosen = named(OPTIMIZERS, optimizer, "--optimizer")()
        config = replace(config, training=replace(config.training, optimizer=chosen))
    if schedule is not None:
        config = replace(config, training=replace(config.training, schedule=named(SCHEDULES, schedule, "--schedule")()))
    given = {
        "extractor": extractor, "backbone": backbone, "neck": neck, "epochs": epochs, "steps": steps,
        "batch_size": batch, "optimizer.lr": lr, "precision": precision, "device": device, "devices": devices,
        "workers": workers, "seed": seed,
    }  # fmt: skip
    words = [f"{key}={value}" for key, value in given.items() if value is not None]
    folder = locked(project / name) if resume and name is not None else new_run(project, name, "train")
    run(override(config, words + (settings or [])), folder, console, resume=resume)


def run(
    config: RunConfig, folder: AbstractContextManager[Path], console: Console, *, resume: bool = False
) -> CocoMetrics:
    """Train as `config` says, into the folder that `folder` gives, with plots, pictures and a report at the end.

    Where several processes train, all run this; the first takes the folder, prints, and writes the report.
    """
    training = config.training
    fabric = launch(training.device, training.devices, training.precision)
    console.quiet = not fabric.is_global_zero
    with entered_by_first(fabric, folder) as place:
        with together(fabric):
            dataset, validation = open_splits(config, console)
            torch.manual_seed(training.seed)  # the initial weights are part of what a seed decides
            detector = build_detector(config.model, len(dataset.class_names))
            if config.weights is not None and not resume:
                load_weights(config.weights, detector, dataset.class_names)
            if not resume and fabric.is_global_zero:
                (place / "config.yaml").write_text(as_yaml(to_dict(config)))
        _describe(config, dataset, validation, detector, place, fabric.world_size, console)
        evaluator = BoxEvaluator(validation)
        with without_worker_tracebacks():
            records = run_training(
                detector,
                dataset,
                evaluator,
                training,
                place,
                transform=transform(config),
                configuration=to_dict(config.model),
                resume=resume,
                progress=RichProgress(console),
                fabric=fabric,
            ).records
        metrics, voc = evaluator.coco(records), evaluator.voc(records)
        if fabric.is_global_zero:
            show_metrics(metrics, voc, console)
            write_results(place, validation, evaluator.rows(records), metrics, voc, to_dict(config))
        console.print(
            f"Results are in [bold]{escape(str(place))}[/]: report.html, weights/best.safetensors", highlight=False
        )
        return metrics


def open_splits(config: RunConfig, console: Console) -> tuple[DetectionDataset, DetectionDataset]:
    """The data sets to train and to evaluate on, with the problems found in them told."""
    dataset = open_dataset(config.data, "train")
    validation = open_dataset(config.validation or config.data, "val")
    if config.classes:
        dataset, validation = dataset.keep_classes(config.classes), validation.keep_classes(config.classes)
    if not config.difficult:
        dataset = dataset.without_difficult()
    for note in dict.fromkeys([*dataset.notes, *validation.notes]):
        console.print(note, style="dim", highlight=False, markup=False)
    problems = [*dict.fromkeys(str(problem) for which in (dataset, validation) for problem in which.problems)]
    for problem in problems[:5]:
        console.print(f"[yellow]note:[/] {escape(problem)}", highlight=False)
    if len(problems) > 5:
        console.print(f"[yellow]note:[/] and {len(problems) - 5} more like these", highlight=False)
    return dataset, validation


def transform(config: RunConfig) -> Transform:
    """The augmentation of `config`."""
    return Compose([HorizontalFlip(config.flip)] + ([PhotometricJitter()] if config.jitter else []))


def read_config(folder: Path) -> RunConfig:
    """The `config.yaml` of a run. Raises ValueError where it is missing or is none."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{path}: no such file: there is no run to go on with")
    try:
        return from_dict(RunConfig, yaml.safe_load(path.read_text()))
    except (yaml.YAMLError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: not the configuration of a run ({error})") from error


def _describe(
    config: RunConfig,
    dataset: DetectionDataset,
    validation: DetectionDataset,
    detector: TwoStageDetector,
    folder: Path,
    processes: int,
    console: Console,
) -> None:
    trained = sum(p.numel() for p in detector.parameters() if p.requires_grad)
    model, training = config.model, config.training
    images = training.batch_size * training.accumulate * processes
    steps = training.steps or math.ceil(training.epochs * len(dataset) / images)
    console.print(
        f"[bold]{model.backbone}[/], {model.neck}, [bold]{model.extractor}[/]: {trained / 1e6:.1f} M parameters train, "
        f"{len(dataset)} training and {len(validation)} validation images, {len(dataset.class_names)} classes, "
        f"{steps} steps of {images} images; into {escape(str(folder))}",
        highlight=False,
    )
    if steps < FEW_STEPS:
        console.print(
            f"[yellow]note:[/] {steps} steps are few, and a part of them warm-up; --steps 500 finds more",
            highlight=False,
        )
