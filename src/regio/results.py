"""What a run leaves for people to look at: plots, pictures, results.json and report.html."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from regio.checkpoints import write_json
from regio.data import DetectionDataset
from regio.evaluate import CocoMetrics, VocMetrics, confusion_matrix
from regio.training_log import TrainingLog
from regio.types import Detections
from regio.visualize import (
    comparison_sheet,
    confusion_figure,
    precision_recall_figure,
    training_figure,
    write_report,
)
from regio.visualize.report import Cell

__all__ = ["as_yaml", "show_metrics", "write_results"]

PICTURES = 8  # images in the sheet of annotations and detections


class _Dumper(yaml.SafeDumper):
    """YAML with each list in one line."""


_Dumper.add_representer(list, lambda dumper, values: dumper.represent_sequence("tag:yaml.org,2002:seq", values, True))


def as_yaml(configuration: Mapping[str, Any]) -> str:
    """`configuration` in YAML, as people read it and as `config.yaml` holds it."""
    return yaml.dump(json.loads(json.dumps(configuration)), Dumper=_Dumper, sort_keys=False)


def show_metrics(metrics: CocoMetrics, voc: VocMetrics, console: Console) -> None:
    """Print COCO's and VOC's numbers, and a table of the classes (the 20 with the most objects)."""
    table = Table(box=None, pad_edge=False)
    for column in ("class", "objects", "AP", "AP50", "AP75", "VOC AP"):
        table.add_column(column, justify="left" if column == "class" else "right")
    classes = sorted(metrics.per_class.items(), key=lambda item: -item[1].objects)
    for name, one in classes[:20]:
        numbers = (one.ap, one.ap50, one.ap75, voc.per_class[name].ap_area)
        table.add_row(escape(name), str(one.objects), *map(_written, numbers))
    if len(classes) > 20:
        table.add_row(f"and {len(classes) - 20} more", "", "", "", "", "")
    console.print(table)
    main = {"AP": metrics.ap, "AP50": metrics.ap50, "AP75": metrics.ap75}
    sizes = {"small": metrics.ap_small, "medium": metrics.ap_medium, "large": metrics.ap_large}
    console.print("  ".join(f"{name} {_written(value)}" for name, value in (main | sizes).items()), highlight=False)
    console.print(
        f"Pascal VOC, IoU 0.5: mAP {_written(voc.map_area)} (area), {_written(voc.map_11_points)} (eleven points)",
        highlight=False,
    )


def _written(value: float) -> str:
    """Three decimals; a dash for NaN, the mean over no object at all."""
    return "\N{EN DASH}" if math.isnan(value) else f"{value:.3f}"


def write_results(
    folder: Path,
    dataset: DetectionDataset,
    predictions: Sequence[Mapping[str, Any]],
    metrics: CocoMetrics,
    voc: VocMetrics,
    configuration: Mapping[str, Any],
) -> None:
    """Write, under `folder`: results.json, predictions.json, plots/, pictures.jpg and report.html.

    predictions are those of `dataset` in COCO's results form. A curve of the training is drawn where `folder` holds a
    metrics.csv.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scores = {"map_area": voc.map_area, "map_11_points": voc.map_11_points}
    write_json(folder / "results.json", metrics.to_json() | {"voc": scores})
    write_json(folder / "predictions.json", list(predictions))
    plots = {"precision_recall": precision_recall_figure(metrics)}
    if len(dataset.class_names) > 1:
        matrix = confusion_matrix(dataset.to_coco(), predictions)
        plots["confusion"] = confusion_figure(matrix, dataset.class_names)
    if (folder / "metrics.csv").exists():
        plots = {"training": training_figure(TrainingLog(folder / "metrics.csv", []).rows()), **plots}
    (folder / "plots").mkdir(exist_ok=True)
    for name, figure in plots.items():
        figure.savefig(folder / "plots" / f"{name}.png", dpi=150)
    sheet = _sheet(dataset, predictions)
    sheet.save(folder / "pictures.jpg", quality=90)
    objects = sum(one.objects for one in metrics.per_class.values())
    subtitle = f"{len(dataset)} images, {objects} objects, {len(dataset.class_names)} classes. "
    _report(folder, subtitle, metrics, voc, plots, sheet, configuration)


def _report(
    folder: Path,
    subtitle: str,
    metrics: CocoMetrics,
    voc: VocMetrics,
    plots: Mapping[str, Figure],
    sheet: Image.Image,
    configuration: Mapping[str, Any],
) -> None:
    captions = {
        "training": "Losses, learning rate and validation AP against the step",
        "precision_recall": "Precision and recall at IoU 0.5",
        "confusion": "Confusion matrix at score and IoU 0.5. Column background: missed. Row background: false",
    }
    classes: list[dict[str, Cell]] = []
    for name, one in metrics.per_class.items():
        row: dict[str, Cell] = {"class": name, "objects": one.objects, "AP": one.ap, "AP50": one.ap50}
        classes.append(row | {"AP75": one.ap75, "AR100": one.ar_100, "VOC AP": voc.per_class[name].ap_area})
    write_report(
        folder / "report.html",
        folder.name,
        subtitle=subtitle + "AP is COCO's, the mean over IoU 0.50 to 0.95, unless another is named.",
        summary={
            "AP": metrics.ap,
            "AP50": metrics.ap50,
            "AP75": metrics.ap75,
            "AP small": metrics.ap_small,
            "AP medium": metrics.ap_medium,
            "AP large": metrics.ap_large,
            "AR100": metrics.ar_100,
            "VOC mAP": voc.map_area,
            "VOC 11-point": voc.map_11_points,
        },
        illustrations=[
            ("Validation images: annotated, and detected", sheet),
            *((captions[name], figure) for name, figure in plots.items()),
        ],
        classes=classes,
        configuration=as_yaml(configuration),
    )


def _sheet(dataset: DetectionDataset, predictions: Sequence[Mapping[str, Any]]) -> Image.Image:
    """Images spread over the data set, as annotated and as detected."""
    label = {category: i + 1 for i, category in enumerate(dataset.category_ids)}
    count = min(PICTURES, len(dataset))
    samples = [dataset[i * len(dataset) // count] for i in range(count)]
    found = []
    for sample in samples:
        rows = [p for p in predictions if p["image_id"] == sample.id]
        boxes = torch.tensor([p["bbox"] for p in rows], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = torch.tensor([label[p["category_id"]] for p in rows], dtype=torch.int64)
        found.append(Detections(boxes, labels, torch.tensor([p["score"] for p in rows], dtype=torch.float32)))
    return comparison_sheet(
        [s.image for s in samples], [s.targets for s in samples], found, dataset.class_names, [s.name for s in samples]
    )
