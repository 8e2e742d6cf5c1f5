"""Boxes, measured as COCO and Pascal VOC do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regio.data.dataset import DetectionDataset, Sample
from regio.evaluate.coco import CocoMetrics, coco_metrics, detections_to_coco
from regio.evaluate.voc import VocMetrics, voc_metrics
from regio.types import Detections
from regio.whole_files import write_json

__all__ = ["BoxEvaluator"]

Rows = list[dict[str, Any]]

COCO = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


@dataclass(frozen=True)
class BoxEvaluator:
    """COCO's AP, at all sizes of objects, and Pascal VOC's mean AP at IoU 0.5, of the `Detections` in each image.

    selects: the number that chooses the best weights, "ap" or, as VOC's papers do, "voc_ap" (the area under the curve)
    or "voc_ap_11_points". A record holds the detections of an image in COCO's results form.

    Raises ValueError for another name.
    """

    dataset: DetectionDataset
    selects: str = "ap"

    @property
    def names(self) -> tuple[str, ...]:
        """Those of the numbers."""
        return (*COCO, "voc_ap", "voc_ap_11_points")

    def __post_init__(self) -> None:
        if self.selects not in self.names:
            raise ValueError(f"selects: expected one of {', '.join(self.names)}, got '{self.selects}'")

    def record(self, sample: Sample, prediction: Detections) -> Rows:
        """The detections in COCO's results form."""
        return detections_to_coco(prediction, sample.id, self.dataset.category_ids, sample.size)

    def rows(self, records: Sequence[Rows]) -> Rows:
        """The detections of all images in COCO's results form."""
        return [row for record in records for row in record]

    def coco(self, records: Sequence[Rows]) -> CocoMetrics:
        """All of COCO's metrics, with those of each class."""
        return coco_metrics(self.dataset.to_coco(), self.rows(records))

    def voc(self, records: Sequence[Rows], iou_threshold: float = 0.5) -> VocMetrics:
        """All of VOC's metrics, with those of each class."""
        return voc_metrics(self.dataset.to_coco(), self.rows(records), iou_threshold)

    def measure(self, records: Sequence[Rows]) -> dict[str, float]:
        """The numbers of `names`."""
        coco, voc = self.coco(records), self.voc(records)
        values = {name: float(getattr(coco, name)) for name in COCO}
        return values | {"voc_ap": voc.map_area, "voc_ap_11_points": voc.map_11_points}

    def save(self, records: Sequence[Rows], folder: Path) -> None:
        """predictions.json: COCO's results form."""
        write_json(folder / "predictions.json", self.rows(records))
