"""What a run leaves for people to look at: numbers in the terminal, plots, pictures, results.json and report.html."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from io import BytesIO
from itertools import tee
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from regio.data import DetectionDataset
from regio.evaluate import (
    BoxEvaluator,
    CocoMetrics,
    MaskEvaluator,
    MeanIoU,
    ProposalRecall,
    Recalled,
    Segmented,
    VocMetrics,
    class_iou,
    confusion_matrix,
    pixel_confusion,
)
from regio.interchange import detections_from_coco
from regio.training_log import TrainingLog
from regio.visualize import (
    comparison_sheet,
    confusion_figure,
    contact_sheet,
    draw_class_map,
    draw_detections,
    draw_targets,
    precision_recall_figure,
    recall_figure,
    training_figure,
    with_legend,
    write_report,
)
from regio.visualize.page import Cell
from regio.whole_files import write_json
from regio.yaml_text import as_yaml

__all__ = ["BoxResults", "MaskResults", "ProposalResults", "Results", "SegmentationResults"]

PICTURES = 8  # images in the sheet of annotations and detections


class Results(Protocol):
    """What was measured, as people look at it."""

    def show(self, console: Console) -> None:
        """Print the numbers."""

    def to_json(self) -> dict[str, Any]:
        """The numbers as plain values."""

    def write(self, folder: Path, configuration: Mapping[str, Any]) -> None:
        """Write, under `folder`: results.json, plots/, pictures.jpg, report.html and what the evaluator saves. A curve
        of the training is drawn where `folder` holds a metrics.csv."""


@dataclass(frozen=True)
class BoxResults:
    """Detections, by the metrics of COCO and Pascal VOC.

    records: those of `evaluator`. shown_score: lowest score of the detections in pictures and in the confusion matrix.
    """

    evaluator: BoxEvaluator
    records: Sequence[list[dict[str, Any]]]
    shown_score: float = 0.5

    @cached_property
    def coco(self) -> CocoMetrics:
        """COCO's metrics."""
        return self.evaluator.coco(self.records)

    @cached_property
    def voc(self) -> VocMetrics:
        """Pascal VOC's metrics."""
        return self.evaluator.voc(self.records)

    def show(self, console: Console) -> None:
        """Print COCO's and VOC's numbers, and a table of the classes (the 20 with the most objects)."""
        metrics, voc = self.coco, self.voc
        table = _table("class", "objects", "AP", "AP50", "AP75", "VOC AP")
        classes = sorted(metrics.per_class.items(), key=lambda item: -item[1].objects)
        for name, one in classes[:20]:
            numbers = (one.ap, one.ap50, one.ap75, voc.per_class[name].ap_area)
            table.add_row(escape(name), str(one.objects), *map(_written, numbers))
        if len(classes) > 20:
            table.add_row(f"and {len(classes) - 20} more", "", "", "", "", "")
        console.print(table)
        console.print(_numbers(metrics), highlight=False)
        console.print(
            f"Pascal VOC, IoU 0.5: mAP {_written(voc.map_area)} (area), {_written(voc.map_11_points)} (eleven points)",
            highlight=False,
        )

    def to_json(self) -> dict[str, Any]:
        """COCO's numbers, and VOC's under "voc"; null where nothing is defined."""
        voc = {"map_area": self.voc.map_area, "map_11_points": self.voc.map_11_points}
        return self.coco.to_json() | {"voc": {name: _or_none(value) for name, value in voc.items()}}

    def write(self, folder: Path, configuration: Mapping[str, Any]) -> None:
        """See `Results`."""
        dataset, predictions = self.evaluator.dataset, self.evaluator.rows(self.records)
        plots = {"Precision and recall at IoU 0.5": ("precision_recall", precision_recall_figure(self.coco))}
        if len(dataset.class_names) > 1:
            caption = (
                f"Confusion matrix at score {self.shown_score:g} and IoU 0.5. Column background: missed. "
                "Row background: false"
            )
            matrix = confusion_matrix(dataset.to_coco(), predictions, self.shown_score)
            plots[caption] = ("confusion", confusion_figure(matrix, dataset.class_names))
        classes: list[dict[str, Cell]] = []
        for name, one in self.coco.per_class.items():
            row: dict[str, Cell] = {"class": name, "objects": one.objects, "AP": one.ap, "AP50": one.ap50}
            classes.append(row | {"AP75": one.ap75, "AR100": one.ar_100, "VOC AP": self.voc.per_class[name].ap_area})
        self.evaluator.save(self.records, _made(folder))
        _write(
            folder,
            self.to_json(),
            _subtitle(dataset) + "AP is COCO's, the mean over IoU 0.50 to 0.95, unless another is named.",
            self.summary(),
            plots,
            ("Validation images: annotated, and detected", _sheet(dataset, predictions, self.shown_score)),
            classes,
            configuration,
        )

    def summary(self) -> dict[str, Cell]:
        """The headline numbers by name."""
        return {
            "AP": self.coco.ap,
            "AP50": self.coco.ap50,
            "AP75": self.coco.ap75,
            "AP small": self.coco.ap_small,
            "AP medium": self.coco.ap_medium,
            "AP large": self.coco.ap_large,
            "AR100": self.coco.ar_100,
            "VOC mAP": self.voc.map_area,
            "VOC 11-point": self.voc.map_11_points,
        }


@dataclass(frozen=True)
class MaskResults(BoxResults):
    """Detections with masks, by COCO's metrics of both. records: those of `evaluator`."""

    evaluator: MaskEvaluator

    @cached_property
    def masks(self) -> CocoMetrics:
        """COCO's metrics of masks."""
        return self.evaluator.masks(self.records)

    def show(self, console: Console) -> None:
        """Print as `BoxResults`, then the numbers of masks."""
        super().show(console)
        console.print(f"masks, on {len(self.evaluator.with_masks)} images: {_numbers(self.masks)}", highlight=False)

    def to_json(self) -> dict[str, Any]:
        """Those of `BoxResults`, and those of masks under "masks"."""
        return super().to_json() | {"masks": self.masks.to_json()}

    def summary(self) -> dict[str, Cell]:
        """The headline numbers by name, those of masks first."""
        masks = {"mask AP": self.masks.ap, "mask AP50": self.masks.ap50, "mask AP75": self.masks.ap75}
        return masks | super().summary()


@dataclass(frozen=True)
class ProposalResults:
    """Proposals, by their recall. records: those of `evaluator`."""

    evaluator: ProposalRecall
    records: Sequence[Recalled]

    @cached_property
    def numbers(self) -> dict[str, float]:
        """What the evaluator measures."""
        return self.evaluator.measure(self.records)

    def show(self, console: Console) -> None:
        """Print recall by the number of proposals."""
        console.print(_recall_table(self.numbers, self.evaluator.limits))

    def to_json(self) -> dict[str, Any]:
        """The numbers by name; null where nothing is defined."""
        return {name: _or_none(value) for name, value in self.numbers.items()}

    def write(self, folder: Path, configuration: Mapping[str, Any]) -> None:
        """See `Results`."""
        dataset = self.evaluator.dataset
        plots = {
            "Recall against the number of proposals": ("recall", recall_figure(self.evaluator.curves(self.records)))
        }
        self.evaluator.save(self.records, _made(folder))
        _write(
            folder,
            self.to_json(),
            _subtitle(dataset) + "Average recall is the mean over IoU 0.50 to 0.95.",
            {_in_words(name): value for name, value in self.numbers.items()},
            plots,
            ("Validation images: annotated, and the best proposals", self._pictures()),
            [],
            configuration,
        )

    def _pictures(self) -> Image.Image:
        dataset, pictures, captions = self.evaluator.dataset, [], []
        for i in _spread(dataset):
            sample, best = dataset[i], self.records[i].best
            objects = replace(sample.targets, labels=torch.ones_like(sample.targets.labels))
            pictures.append(draw_targets(sample.image, objects, ["object"]))
            pictures.append(draw_detections(sample.image, best, ["object"], -math.inf))
            captions += [sample.name, f"{len(best)} best"]
        return contact_sheet(pictures, 2, captions, ["annotated", "best proposals"])


@dataclass(frozen=True)
class SegmentationResults:
    """Class maps, by the overlap of classes. records: those of `evaluator`."""

    evaluator: MeanIoU
    records: Sequence[Segmented]

    @cached_property
    def numbers(self) -> dict[str, float]:
        """What the evaluator measures."""
        return self.evaluator.measure(self.records)

    @cached_property
    def classes(self) -> list[dict[str, Cell]]:
        """A row for each class, the background first: the share of all pixels that are annotated as it, its IoU, and
        the shares that are found of them and right among the predicted. NaN where no pixel has the class."""
        matrix = self.evaluator.confusion(self.records)
        right, annotated, predicted = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
        occurs = annotated > 0
        columns: dict[str, NDArray[np.float64]] = {
            "pixels": annotated / max(annotated.sum(), 1),
            "IoU": np.where(occurs, class_iou(matrix), np.nan),
            "recall": np.divide(right, annotated, out=np.full(len(right), np.nan), where=occurs),
            "precision": np.divide(right, predicted, out=np.full(len(right), np.nan), where=predicted > 0),
        }
        names = ("background", *self.evaluator.dataset.class_names)
        return [
            {"class": name, **{title: float(values[i]) for title, values in columns.items()}}
            for i, name in enumerate(names)
        ]

    def show(self, console: Console) -> None:
        """Print the numbers, and a table of the classes (the background, and the 20 with the most pixels)."""
        background, *others = self.classes
        others.sort(key=lambda row: -_number(row["pixels"]))
        table = _table("class", "pixels", "IoU", "recall", "precision")
        for row in (background, *others[:20]):
            name, *values = row.values()
            table.add_row(escape(str(name)), *(_written(_number(value)) for value in values))
        if len(others) > 20:
            table.add_row(f"and {len(others) - 20} more", "", "", "", "")
        console.print(table)
        console.print("  ".join(f"{name} {_written(value)}" for name, value in self.summary().items()), highlight=False)

    def summary(self) -> dict[str, float]:
        """The headline numbers by name."""
        numbers = self.numbers
        return {
            "mean IoU": numbers["mean_iou"],
            "pixel accuracy": numbers["pixel_accuracy"],
            "mean accuracy": numbers["mean_accuracy"],
        }

    def to_json(self) -> dict[str, Any]:
        """The numbers by name, and the IoU of each class under "iou"; null where nothing is defined."""
        iou = {str(row["class"]): _or_none(_number(row["IoU"])) for row in self.classes}
        return {name: _or_none(value) for name, value in self.numbers.items()} | {"iou": iou}

    def write(self, folder: Path, configuration: Mapping[str, Any]) -> None:
        """See `Results`."""
        dataset = self.evaluator.dataset
        caption = "Confusion matrix of pixels, in thousands. Column background: missed. Row background: false"
        matrix = self.evaluator.confusion(self.records)
        self.evaluator.save(self.records, _made(folder))
        _write(
            folder,
            self.to_json(),
            f"{len(dataset)} images, {len(dataset.class_names)} classes and the background. IoU is counted over the "
            "pixels of all images, and its mean is over the classes that any pixel has.",
            self.summary(),
            {caption: ("confusion", confusion_figure(matrix, dataset.class_names, unit=1000))},
            ("Validation images: the photo, annotated, and predicted", self._pictures()),
            self.classes,
            configuration,
        )

    def _pictures(self) -> Image.Image:
        dataset, pictures, captions = self.evaluator.dataset, [], []
        seen: set[int] = set()
        for i in _spread(dataset):
            sample, record = dataset[i], self.records[i]
            truth = sample.targets.class_map
            assert truth is not None
            predicted = torch.from_numpy(np.array(Image.open(BytesIO(record.png))))
            for labels in (torch.zeros_like(truth), truth, predicted):
                pictures.append(draw_class_map(sample.image, labels))
                seen |= {*labels.unique().tolist()}
            right = pixel_confusion(truth, predicted, len(dataset.class_names) + 1)
            captions += [sample.name, "", f"{np.diag(right).sum() / max(right.sum(), 1):.0%} of the pixels right"]
        sheet = contact_sheet(pictures, 3, captions, ["photo", "annotated", "predicted"], 420)
        return with_legend(sheet, sorted(seen), dataset.class_names)


def _recall_table(numbers: Mapping[str, float], limits: Sequence[int]) -> Table:
    """The numbers of `ProposalRecall`."""
    table = _table("proposals", "average recall", "at IoU 0.5", "at IoU 0.7", "average best overlap")
    for limit in limits:
        row = (numbers[f"{what}_{limit}"] for what in ("ar", "recall50", "recall70", "abo"))
        table.add_row(str(limit), *map(_written, row))
    return table


def _number(value: Cell) -> float:
    return value if isinstance(value, float) else math.nan


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _in_words(name: str) -> str:
    """The name of a number of `ProposalRecall`."""
    return name.replace("recall", "recall at 0.").replace("abo", "best overlap")


def _numbers(metrics: CocoMetrics) -> str:
    main = {"AP": metrics.ap, "AP50": metrics.ap50, "AP75": metrics.ap75}
    sizes = {"small": metrics.ap_small, "medium": metrics.ap_medium, "large": metrics.ap_large}
    return "  ".join(f"{name} {_written(value)}" for name, value in (main | sizes).items())


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in ("class", "proposals") else "right")
    return table


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _subtitle(dataset: DetectionDataset) -> str:
    objects = sum(int((~record.crowd).sum()) for record in dataset.records)
    return f"{len(dataset)} images, {objects} objects, {len(dataset.class_names)} classes. "


def _write(
    folder: Path,
    results: Mapping[str, Any],
    subtitle: str,
    summary: Mapping[str, Cell],
    plots: Mapping[str, tuple[str, Figure]],
    pictures: tuple[str, Image.Image],
    classes: Sequence[Mapping[str, Cell]],
    configuration: Mapping[str, Any],
) -> None:
    """plots: the name of the file and the figure, by caption."""
    write_json(folder / "results.json", results)
    if (folder / "metrics.csv").exists():
        training = training_figure(TrainingLog(folder / "metrics.csv", []).rows())
        plots = {"Losses, learning rate and validation metrics against the step": ("training", training), **plots}
    (folder / "plots").mkdir(exist_ok=True)
    for name, figure in plots.values():
        figure.savefig(folder / "plots" / f"{name}.png", dpi=150)
    pictures[1].save(folder / "pictures.jpg", quality=90)
    write_report(
        folder / "report.html",
        folder.name,
        subtitle=subtitle,
        summary=summary,
        illustrations=[pictures, *((caption, figure) for caption, (_, figure) in plots.items())],
        classes=classes,
        configuration=as_yaml(configuration),
    )


def _written(value: float) -> str:
    """Three decimals; a dash for NaN, the mean over no object at all."""
    return "\N{EN DASH}" if math.isnan(value) else f"{value:.3f}"


def _sheet(dataset: DetectionDataset, predictions: Sequence[Mapping[str, Any]], score_threshold: float) -> Image.Image:
    """Images spread over the data set, as annotated and as detected."""
    chosen, light = _spread(dataset), dataset.without_masks()
    records = [dataset.records[i] for i in chosen]
    own = [[row for row in predictions if row["image_id"] == record.id] for record in records]
    images, targets = tee(light[i] for i in chosen)  # one in memory at a time
    return comparison_sheet(
        (sample.image for sample in images),
        (sample.targets for sample in targets),
        (detections_from_coco(rows, dataset.category_ids) for rows in own),
        dataset.class_names,
        [record.name for record in records],
        score_threshold,
        masks=(dataset.masks_of(i) for i in chosen),
    )


def _spread(dataset: DetectionDataset) -> list[int]:
    """The indices of a few images, spread over the data set."""
    count = min(PICTURES, len(dataset))
    return [i * len(dataset) // count for i in range(count)]
