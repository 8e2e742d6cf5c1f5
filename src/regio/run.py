"""A whole run: data and model as configured, training, evaluation, and what people look at afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import torch
from lightning_fabric import Fabric
from rich.console import Console
from rich.markup import escape
from torch import nn

from regio.checkpoints import load_all_but_classes, read_card, read_weights
from regio.config import RunConfig, System, model_to_dict
from regio.data import (
    Compose,
    DetectionDataset,
    HorizontalFlip,
    PhotometricJitter,
    Transform,
    open_dataset,
    open_undivided,
)
from regio.data.loading import without_worker_tracebacks
from regio.detector import TwoStageDetector
from regio.given_proposals import data_name, is_list_of_boxes, source_named
from regio.identity import differences
from regio.kept_maps import KeptMaps, MappedDetector, MappedSegmentationNetwork
from regio.processes import entered_by_first, launch, together
from regio.progress import RichProgress
from regio.recipes import StagedRun
from regio.run_report import Results
from regio.segmentation import SegmentationNetwork
from regio.settings import as_dict, dotted
from regio.state_dicts import load_exactly
from regio.training_log import TrainingLog
from regio.weights import load_trained, published
from regio.yaml_text import as_yaml

__all__ = ["on_kept_maps", "open_data", "open_splits", "print_problems", "run", "took", "transform"]

FREE = {"backbone_weights", "short_side", "long_side", "score_threshold"}  # settings that no weight depends on
FEW_STEPS = 300  # fourteen photos of three classes: AP 0.05 after --steps 50, 0.55 after --steps 400


def run(
    config: RunConfig,
    folder: AbstractContextManager[Path],
    console: Console,
    *,
    resume: bool = False,
    project: Path | None = None,
) -> Results:
    """Train as `config` says, into the folder that `folder` gives, with plots, pictures and a report at the end.

    project: the folder in which boxes that are found for the images are kept, that above `folder` unless given.

    Where several processes train, all run this; the first takes the folder, prints, and writes the report.
    """
    training = config.training
    fabric = launch(training.device, training.devices, training.precision)
    console.quiet = not fabric.is_global_zero
    with entered_by_first(fabric, folder) as place:
        with together(fabric):
            dataset, validation = open_splits(config, console, project or place.parent)
            torch.manual_seed(training.seed)  # the initial weights are part of what a seed decides
            model = config.model.build(len(dataset.class_names), pretrained=config.weights is None)
            if not resume:
                for note in config.model.prepare(model, dataset):
                    console.print(f"[yellow]note:[/] {escape(note)}", highlight=False)
            if config.weights is not None and not resume:
                _begin_from(config.weights, config.model, model, dataset.class_names, console)
            if not resume and fabric.is_global_zero:
                (place / "config.yaml").write_text(as_yaml(as_dict(config)))
        _describe(config, dataset, validation, model, place, fabric.world_size, console)
        evaluator = config.model.evaluator(validation)
        if config.keep_maps:
            model, dataset, validation = on_kept_maps(
                config, model, dataset, validation, project or place.parent, fabric, console
            )
        stages = StagedRun(
            fabric,
            place,
            dataset,
            config.model.evaluator(validation),
            training,
            transform=transform(config),
            configuration=model_to_dict(config.model),
            resume=resume,
            progress=lambda: RichProgress(console),
            say=lambda line: console.print(line, highlight=False, markup=False),
        )
        with without_worker_tracebacks():
            records = config.model.recipe()(model, stages).records
        results = config.model.results(evaluator, records)
        if fabric.is_global_zero:
            console.print(took(place), highlight=False)
            results.show(console)
            results.write(place, as_dict(config))
        console.print(
            f"Results are in [bold]{escape(str(place))}[/]: report.html, weights/best.safetensors", highlight=False
        )
        return results


def _begin_from(weights: str, chosen: System, model: nn.Module, class_names: tuple[str, ...], console: Console) -> None:
    """Load what `weights` names, see `regio.weights.load_trained`; of other classes, all but the layers that depend on
    them. Raises ValueError naming what differs where it is of another architecture."""
    found = published(weights)
    if found is None:
        card, state = read_card(weights), read_weights(weights)
        theirs, settings = card.class_names, card.model
    else:
        name, own, wanted = weights.partition("=")[0], model_to_dict(chosen), model_to_dict(found[0])
        if any(own.get(key) != wanted[key] for key in ("name", "detector")):
            got = " ".join(str(own[key]) for key in ("name", "detector") if key in own)
            raise ValueError(f"--weights {name}: a detector of that architecture alone; leave --model out, got {got}")
        trained = load_trained(weights)
        theirs, state, settings = trained.class_names, trained.model.state_dict(), {}
    what = f"{weights}: does not fit this detector"
    try:
        if theirs == class_names:
            load_exactly(model, state, what)
            return
        layers = load_all_but_classes(state, model, what)
    except ValueError as error:
        was, now = (
            {name: value for name, value in dotted(each).items() if name not in FREE}
            for each in (settings, model_to_dict(chosen))
        )
        different = differences(was, now) if was else ""
        raise ValueError(f"{what}: {different}" if different else str(error)) from error
    same = sorted(theirs) == sorted(class_names)
    others = "in another order here" if same else f"these are {len(class_names)} others"
    anew = f"; {', '.join(layers)} start anew" if layers else ""
    console.print(
        f"{weights}: of {len(theirs)} classes, {others}{anew}",
        highlight=False,
        markup=False,
    )


def open_splits(
    config: RunConfig, console: Console, project: Path = Path("runs")
) -> tuple[DetectionDataset, DetectionDataset]:
    """The data sets that the system of `config` is trained and evaluated on: those of `open_data`, with what the system
    needs. For one that needs boxes with its images, both have them: they are found at the first call and kept in a
    folder of `project`, see `regio.given_proposals`.

    Raises ValueError where the data do not have what the system needs.
    """
    dataset, validation = open_data(config, console)
    dataset, validation = _of_both(config, config.model.dataset, dataset, validation)
    given = config.proposals, config.validation_proposals or config.proposals
    if not config.model.needs_proposals:
        if given != (None, None):
            raise ValueError(
                f"proposals: expected null for a model that finds its own boxes, got {given[0] or given[1]}"
            )
        return dataset, validation
    _require_own_boxes(config, dataset, validation)
    train, val = (source_named(word, config.proposals_per_image) for word in given)
    names = data_name(config.data, "train"), data_name(config.validation or config.data, "val")
    return train.attached(dataset, names[0], project, console), val.attached(validation, names[1], project, console)


def _require_own_boxes(config: RunConfig, dataset: DetectionDataset, validation: DetectionDataset) -> None:
    """Raise ValueError for one file of boxes for both data sets that knows images by their ids alone, where one id is
    that of two images: one would be given the boxes of the other."""
    file = config.proposals
    if file is None or config.validation_proposals is not None or not is_list_of_boxes(Path(file)):
        return
    paths = {record.id: record.path for record in dataset.records}
    for record in validation.records:
        if paths.get(record.id, record.path) != record.path:
            raise ValueError(
                f"{file}: image id {record.id} is that of {paths[record.id]} and of {record.path}; name the boxes of "
                "the validation images with validation_proposals=FILE"
            )


def open_data(config: RunConfig, console: Console) -> tuple[DetectionDataset, DetectionDataset]:
    """The data sets for training and evaluation that `config` names, of their images those that its system can use;
    prints the problems found in them.

    Two data sets are used whole where they have no splits of their own; one data set is divided. Raises ValueError
    where none of the images can be used.
    """
    if config.validation is None or Path(config.validation).resolve() == Path(config.data).resolve():
        dataset, validation = (open_dataset(config.data, split) for split in ("train", "val"))
    else:
        dataset, validation = open_undivided(config.data, "train"), open_undivided(config.validation, "val")
    if config.classes:
        dataset, validation = dataset.keep_classes(config.classes), validation.keep_classes(config.classes)
    if config.model.drops_difficult and not config.difficult:
        dataset = dataset.without_difficult()
    dataset, validation = _of_both(config, config.model.images, dataset, validation)
    dataset, validation = _few(dataset, config.images), _few(validation, config.validation_images)
    print_problems([dataset, validation], console)
    if len(validation) == 0:
        raise ValueError(f"{config.validation or config.data}: no images to evaluate on")
    return dataset, validation


def _few(dataset: DetectionDataset, most: int | None) -> DetectionDataset:
    """At most so many images, spread over the data set."""
    if most is None or most >= len(dataset):
        return dataset
    few = dataset.subset(i * len(dataset) // most for i in range(most))
    return few.with_note(f"{most} of {len(dataset)} images are used, spread over all")


def _of_both(
    config: RunConfig,
    of: Callable[[DetectionDataset], DetectionDataset],
    dataset: DetectionDataset,
    validation: DetectionDataset,
) -> tuple[DetectionDataset, DetectionDataset]:
    """`of` both data sets; ValueError that names the file or folder of the one that it raises one for."""
    made = []
    for path, each in ((config.data, dataset), (config.validation or config.data, validation)):
        try:
            made.append(of(each))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return made[0], made[1]


def print_problems(datasets: Sequence[DetectionDataset], console: Console) -> None:
    """Print what a person should know of how `datasets` were read: their notes, and the first of their problems."""
    for note in dict.fromkeys(note for each in datasets for note in each.notes):
        console.print(note, style="dim", highlight=False, markup=False)
    problems = [*dict.fromkeys(str(problem) for each in datasets for problem in each.problems)]
    for problem in problems[:5]:
        console.print(f"[yellow]note:[/] {escape(problem)}", highlight=False)
    if len(problems) > 5:
        more = f"and {len(problems) - 5} more like these; regio doctor lists all"
        console.print(f"[yellow]note:[/] {more}", highlight=False)


def took(folder: Path) -> str:
    """How long the steps of the training in `folder` took, for people."""
    return f"training took {TrainingLog(folder / 'metrics.csv', []).seconds():.0f} s, evaluations not counted"


def transform(config: RunConfig) -> Transform:
    """The augmentation of `config`."""
    return Compose([HorizontalFlip(config.flip)] + ([PhotometricJitter()] if config.jitter else []))


def on_kept_maps(
    config: RunConfig,
    model: nn.Module,
    dataset: DetectionDataset,
    validation: DetectionDataset,
    project: Path,
    fabric: Fabric,
    console: Console,
) -> tuple[MappedDetector | MappedSegmentationNetwork, DetectionDataset, DetectionDataset]:
    """`model` and the two data sets with the maps of its backbone in place of photos, kept in a folder of `project`.

    Raises ValueError where the photos themselves are needed, or the backbone is trained; see `regio.kept_maps`.
    """
    if config.jitter:
        raise ValueError("keep_maps: expected jitter=false, which changes photos that are not read")
    if not isinstance(model, TwoStageDetector | SegmentationNetwork):
        raise ValueError(
            f"keep_maps: expected a detector of two stages or a segmentation network, got {type(model).__name__}"
        )
    mapped: list[DetectionDataset] = []
    for data, path, split in (
        (dataset, config.data, "train"),
        (validation, config.validation or config.data, "val"),
    ):
        folder = project / "maps" / data_name(path, split)
        opened = partial(KeptMaps, folder, model, data, mirrored=split == "train" and config.flip > 0)
        kept = None
        with together(fabric):
            if fabric.is_global_zero:  # alone, since opening begins the files
                kept = opened()
                if kept.missing:
                    size = f"{kept.nbytes / 1e9:.2f} GB"
                    console.print(f"maps of {len(data)} images: {size}, in {folder}", highlight=False, markup=False)
                    with RichProgress(console) as bar:
                        kept.make(device=fabric.device, progress=bar.evaluating)
        fabric.barrier()
        mapped.append((kept or opened()).in_place_of_images())
    network = MappedDetector.of(model) if isinstance(model, TwoStageDetector) else MappedSegmentationNetwork.of(model)
    return network, mapped[0], mapped[1]


def _describe(
    config: RunConfig,
    dataset: DetectionDataset,
    validation: DetectionDataset,
    model: nn.Module,
    folder: Path,
    processes: int,
    console: Console,
) -> None:
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    training, chosen = config.training, model_to_dict(config.model)
    images = training.batch_size * training.accumulate * processes
    steps = training.steps_over(len(dataset), images)
    reads = f", [bold]{chosen['extractor']['name']}[/]" if "extractor" in chosen else ""
    base = chosen.get("backbone") or chosen["detector"]
    console.print(
        f"[bold]{chosen['name']}[/], {base}{reads}: {trained / 1e6:.1f} M parameters train, "
        f"{len(dataset)} training and {len(validation)} validation images, {len(dataset.class_names)} classes, "
        f"{steps} steps of {images} images; into {escape(str(folder))}",
        highlight=False,
    )
    if steps < FEW_STEPS:
        console.print(
            f"[yellow]note:[/] {steps} steps are few, and a part of them warm-up; --steps 500 finds more",
            highlight=False,
        )
