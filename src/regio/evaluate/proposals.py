"""Recall of proposals: how many objects they cover, whatever the class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regio.boxes import iou
from regio.data.dataset import DetectionDataset, Sample
from regio.types import Detections

__all__ = ["ProposalRecall"]

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # IoU
NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class ProposalRecall:
    """Recall of the best 100, 300 and 1000 proposals of an image, as COCO defines it with classes left out.

    At an IoU threshold, proposals are taken by falling score, and each finds the object it overlaps most among those
    that are not found yet and reach the threshold. Recall is the share of all objects of the data set that are found:
    `recall50_N` at IoU 0.5, `recall70_N` at 0.7, and `ar_N`, the average recall of the papers on proposals, is its mean
    over 0.5, 0.55, ..., 0.95 (Hosang et al. 2015; FPN, table 1). Crowds are ignored: they are no objects to be found.
    NaN where there are no objects.

    Predictions are `Detections` whose labels do not count. A record is, for each object of an image and each threshold,
    the rank of the proposal that found it [G, 10]. selects: the number that chooses the best weights.
    """

    dataset: DetectionDataset
    limits: tuple[int, ...] = (100, 300, 1000)

    @property
    def names(self) -> tuple[str, ...]:
        """For each limit, those of the three numbers."""
        return tuple(f"{what}_{limit}" for limit in self.limits for what in ("ar", "recall50", "recall70"))

    @property
    def selects(self) -> str:
        """The average recall at the largest limit."""
        return f"ar_{max(self.limits)}"

    def record(self, sample: Sample, prediction: Detections) -> NDArray[np.int64]:
        """Ranks [G, 10], counted from 0; the largest integer for an object that no proposal finds."""
        order = prediction.scores.argsort(descending=True, stable=True)[: max(self.limits)]
        objects = sample.targets.boxes[~sample.targets.crowd]
        overlap = iou(prediction.boxes[order].double().cpu(), objects.double()).numpy()
        return _ranks(overlap)

    def measure(self, records: Sequence[NDArray[np.int64]]) -> dict[str, float]:
        """The numbers of `names`."""
        ranks = np.concatenate([np.empty((0, len(THRESHOLDS)), dtype=np.int64), *records])
        numbers: dict[str, float] = {}
        for limit in self.limits:
            recall = (ranks < limit).mean(axis=0) if len(ranks) else np.full(len(THRESHOLDS), np.nan)
            numbers |= {f"ar_{limit}": float(recall.mean())}
            numbers |= {f"recall50_{limit}": float(recall[0]), f"recall70_{limit}": float(recall[4])}
        return numbers

    def save(self, records: Sequence[Any], folder: Path) -> None:
        """Nothing."""


def _ranks(overlap: NDArray[np.float64]) -> NDArray[np.int64]:
    """From the IoU [P, G] of proposals, best first, and objects."""
    ranks = np.full((overlap.shape[1], len(THRESHOLDS)), NEVER)
    near = np.flatnonzero((overlap >= THRESHOLDS[0]).any(axis=1))
    for column, threshold in enumerate(THRESHOLDS):
        for proposal in near:
            free = np.where(ranks[:, column] == NEVER, overlap[proposal], 0.0)
            best = free.argmax()
            if free[best] >= threshold:
                ranks[best, column] = proposal
    return ranks
