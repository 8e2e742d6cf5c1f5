"""What systems give, and so what a comparison measures and shows of them: detections, or class maps."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from regio.compare.figures import class_map_sheet, examples_sheet
from regio.data import DetectionDataset
from regio.evaluate import BoxEvaluator

__all__ = ["CLASS_MAPS", "DETECTIONS", "Kind", "read_predictions"]


@dataclass(frozen=True)
class Kind:
    """What the systems of a comparison give.

    name: in words. metrics: of every run, their titles by the fields of `regio.compare.results.Measured`. headline:
    those of the table of all arms. bars: those that are plotted, and their titles there; the last against time.
    reading: what they mean. numbers: the fields, from the folder of a run and the validation images. examples: the same
    photos as annotated, and as the runs in folders by label see them, or None. shown: what these pictures are.
    """

    name: str
    metrics: Mapping[str, str]
    headline: tuple[str, ...]
    bars: Mapping[str, str]
    reading: str
    numbers: Callable[[Path, DetectionDataset], dict[str, float]]
    examples: Callable[[Mapping[str, Path], DetectionDataset], Image.Image | None]
    shown: str


def read_predictions(folder: Path) -> list[dict[str, Any]]:
    """What the trained detector of the run in `folder` found in the validation images, in COCO's results form."""
    rows: list[dict[str, Any]] = json.loads((folder / "predictions.json").read_text())
    return rows


def _of_detections(folder: Path, validation: DetectionDataset) -> dict[str, float]:
    """The detections that a run left are measured here, all against the same annotations by the same code."""
    evaluator = BoxEvaluator(validation)
    records = [read_predictions(folder)]
    coco, voc = evaluator.coco(records), evaluator.voc(records)
    return {
        "ap": coco.ap,
        "ap50": coco.ap50,
        "ap75": coco.ap75,
        "ap_small": coco.ap_small,
        "ap_medium": coco.ap_medium,
        "ap_large": coco.ap_large,
        "voc_map": voc.map_area,
        "voc_map_11_points": voc.map_11_points,
        "voc_map_70": evaluator.voc(records, 0.7).map_area,
    }


def _of_class_maps(folder: Path, validation: DetectionDataset) -> dict[str, float]:
    """As the run itself has measured the weights after its last step."""
    results = json.loads((folder / "results.json").read_text())
    return {name: math.nan if results[name] is None else results[name] for name in ("mean_iou", "pixel_accuracy")}


DETECTIONS = Kind(
    "detections",
    {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "voc_map": "VOC mAP", "voc_map_11_points": "VOC 11-point"},
    ("ap", "ap50", "voc_map"),
    {"ap": "COCO AP", "voc_map": "VOC mAP (IoU 0.5)"},
    "AP is COCO's, the mean over IoU 0.50 to 0.95; VOC mAP is Pascal VOC's, the area under the curve at IoU 0.5.",
    _of_detections,
    lambda folders, validation: examples_sheet(
        {label: read_predictions(folder) for label, folder in folders.items()}, validation
    ),
    "as many of its detections as objects are annotated, the best ones, whatever their scores",
)

CLASS_MAPS = Kind(
    "class maps",
    {"mean_iou": "mean IoU", "pixel_accuracy": "pixel accuracy"},
    ("mean_iou", "pixel_accuracy"),
    {"pixel_accuracy": "pixel accuracy", "mean_iou": "mean IoU"},
    "mean IoU: intersection over union of the pixels of a class over all images, the mean over the classes that any "
    "pixel has, the background being one; pixel accuracy: the share of pixels of the right class.",
    _of_class_maps,
    class_map_sheet,
    "the class of every pixel",
)
