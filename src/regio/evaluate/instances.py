"""Masks of instances, measured as COCO does, next to their boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from regio.data.dataset import DetectionDataset
from regio.evaluate.boxes import COCO, BoxEvaluator, Rows
from regio.evaluate.coco import CocoMetrics, coco_metrics

__all__ = ["MaskEvaluator"]


@dataclass(frozen=True)
class MaskEvaluator(BoxEvaluator):
    """COCO's AP of masks, `mask_ap`, `mask_ap50`, ..., and all that `BoxEvaluator` measures of their boxes.

    Masks are measured on the images all of whose objects have one annotated: a mask that finds an object without one
    would count as wrong. A record holds the detections of an image in COCO's results form, with run-length encodings.
    """

    selects: str = "mask_ap"

    @property
    def names(self) -> tuple[str, ...]:
        """Those of the numbers, of masks first."""
        return (*(f"mask_{name}" for name in COCO), *super().names)

    @cached_property
    def with_masks(self) -> DetectionDataset:
        """The images all of whose objects have a mask."""
        known = [i for i, record in enumerate(self.dataset.records) if None not in record.segmentations]
        return self.dataset.subset(known)

    def masks(self, records: Sequence[Rows]) -> CocoMetrics:
        """All of COCO's metrics of masks, with those of each class."""
        images = {record.id for record in self.with_masks.records}
        rows = [
            {k: v for k, v in row.items() if k != "bbox"} for row in self.rows(records) if row["image_id"] in images
        ]
        return coco_metrics(self.with_masks.to_coco(), rows, "segm")

    def measure(self, records: Sequence[Rows]) -> dict[str, float]:
        """The numbers of `names`."""
        masks = self.masks(records)
        return {f"mask_{name}": float(getattr(masks, name)) for name in COCO} | super().measure(records)
