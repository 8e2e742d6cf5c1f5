"""Semantic segmentation, measured by the overlap of classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from regio.data.dataset import DetectionDataset, Sample
from regio.types import IGNORED, ClassMap
from regio.whole_files import distinct_names

__all__ = ["MeanIoU", "Segmented", "class_iou", "pixel_confusion"]


@dataclass(frozen=True)
class Segmented:
    """Of one image. pairs [P] int64 and counts [P] int64: how many pixels of known class have each pair of classes that
    occurs, as (C + 1) x annotated + predicted. png: the predicted class map as a file."""

    pairs: NDArray[np.int64]
    counts: NDArray[np.int64]
    png: bytes


@dataclass(frozen=True)
class MeanIoU:
    """The mean over classes of the intersection over union of their pixels, `mean_iou`, which chooses the best weights;
    the share of pixels of the right class, `pixel_accuracy`; and the mean of that over classes, `mean_accuracy`.

    Pixels are counted over all images together, and those whose class is not known not at all, as for Pascal VOC. IoU
    of a class: pixels that have it and are predicted so, over those that have it or are predicted so. The mean is over
    the classes that any pixel has, the background being one: for Pascal VOC all 21. A class that no pixel has counts
    through the pixels that are wrongly predicted to be of it. NaN without a pixel.

    dataset: one `with_class_maps`. Predictions are `ClassMap`s on the pixels of the images.
    """

    dataset: DetectionDataset

    @property
    def names(self) -> tuple[str, ...]:
        """Those of the numbers."""
        return ("mean_iou", "pixel_accuracy", "mean_accuracy")

    @property
    def selects(self) -> str:
        """The mean over classes."""
        return "mean_iou"

    def record(self, sample: Sample, prediction: ClassMap) -> Segmented:
        """The counts of an image, and its predicted class map. Raises ValueError for a prediction of another size, and
        for a sample without a class map."""
        truth = sample.targets.class_map
        if truth is None:
            raise ValueError("dataset: expected one with class maps; see DetectionDataset.with_class_maps")
        from regio.visualize.class_maps import class_map_image  # here, as the plots of that package need this one

        matrix = pixel_confusion(truth, prediction.labels.cpu(), len(self.dataset.class_names) + 1).ravel()
        pairs = np.flatnonzero(matrix)
        png = BytesIO()
        class_map_image(prediction.labels).save(png, "PNG")
        return Segmented(pairs, matrix[pairs], png.getvalue())

    def confusion(self, records: Sequence[Segmented]) -> NDArray[np.int64]:
        """Pixels [C + 1, C + 1] of all images: row = class annotated, column = class predicted; 0 is the background."""
        side = len(self.dataset.class_names) + 1
        total = np.zeros(side * side, dtype=np.int64)
        for record in records:
            total[record.pairs] += record.counts
        return total.reshape(side, side)

    def measure(self, records: Sequence[Segmented]) -> dict[str, float]:
        """The numbers of `names`."""
        matrix = self.confusion(records)
        right, annotated = np.diag(matrix), matrix.sum(axis=1)
        occurs = annotated > 0
        if not occurs.any():
            return dict.fromkeys(self.names, float("nan"))
        return {
            "mean_iou": float(class_iou(matrix)[occurs].mean()),
            "pixel_accuracy": float(right.sum() / annotated.sum()),
            "mean_accuracy": float((right[occurs] / annotated[occurs]).mean()),
        }

    def save(self, records: Sequence[Segmented], folder: Path) -> None:
        """predictions/NAME.png: the predicted class map of each image, in the palette of the pictures; a pixel of value
        l is of class l, 0 is the background."""
        (folder / "predictions").mkdir(parents=True, exist_ok=True)
        names = distinct_names([record.name for record in self.dataset.records], ".png")
        for name, record in zip(names, records, strict=True):
            (folder / "predictions" / name).write_bytes(record.png)


def pixel_confusion(truth: Tensor, predicted: Tensor, classes: int) -> NDArray[np.int64]:
    """How many pixels have each pair of labels: [classes, classes], row = truth, column = predicted. Both are [H, W]
    uint8; pixels of which `truth` is `IGNORED` do not count.

    Raises ValueError for sizes that differ and for labels that are no classes.
    """
    if truth.shape != predicted.shape:
        raise ValueError(f"predicted: expected the size {list(truth.shape)} of the truth, got {list(predicted.shape)}")
    known = truth != IGNORED
    rows, columns = truth[known].numpy().astype(np.int64), predicted[known].numpy()
    for name, labels in (("truth", rows), ("predicted", columns)):
        if labels.size and labels.max() >= classes:
            raise ValueError(f"{name}: expected labels of 0 .. {classes - 1}, got {labels.max()}")
    return np.bincount(rows * classes + columns, minlength=classes**2).reshape(classes, classes)


def class_iou(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Intersection over union [C + 1] of each class, from `MeanIoU.confusion`; NaN for a class that no pixel has and
    none is predicted to have."""
    right = np.diag(confusion).astype(np.float64)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - right
    return np.divide(right, union, out=np.full(len(right), np.nan), where=union > 0)
