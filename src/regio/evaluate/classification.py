"""How often a network names the right class of an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from regio.data.dataset import DetectionDataset, Sample

__all__ = ["ClassAccuracy"]


@dataclass(frozen=True)
class ClassAccuracy:
    """The share of images whose class has the highest score, `accuracy`, and the mean of that over the classes,
    `class_accuracy`, which chooses the best weights; NaN without images.

    dataset: images of one object each (`regio.data.object_crops`). Predictions are scores [C]. A record is the label,
    and whether it was found.
    """

    dataset: DetectionDataset

    @property
    def names(self) -> tuple[str, ...]:
        """Those of the numbers."""
        return ("accuracy", "class_accuracy")

    @property
    def selects(self) -> str:
        """The mean over classes."""
        return "class_accuracy"

    def record(self, sample: Sample, prediction: Tensor) -> tuple[int, bool]:
        """The label of the sample's object, and whether `prediction` [C] is highest there."""
        label = int(sample.targets.labels[0])
        return label, int(prediction.argmax()) + 1 == label

    def measure(self, records: Sequence[tuple[int, bool]]) -> dict[str, float]:
        """The numbers of `names`."""
        of_class: dict[int, list[bool]] = {}
        for label, right in records:
            of_class.setdefault(label, []).append(right)
        shares = [sum(own) / len(own) for own in of_class.values()]
        return {
            "accuracy": sum(right for _, right in records) / len(records) if records else float("nan"),
            "class_accuracy": sum(shares) / len(shares) if shares else float("nan"),
        }

    def save(self, records: Sequence[tuple[int, bool]], folder: Path) -> None:
        """Nothing."""
