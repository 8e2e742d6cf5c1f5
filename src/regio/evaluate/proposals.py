"""Recall of proposals: how many objects they cover, whatever the class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regio.boxes import iou
from regio.data.dataset import DetectionDataset, Sample
from regio.types import Detections

__all__ = ["ProposalRecall", "Recalled"]

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # IoU
NEVER = np.iinfo(np.int64).max
SHOWN = 10  # proposals of an image that a record keeps for pictures


class Recalled(NamedTuple):
    """Of one image. ranks: [G, 10], for each object and each threshold the rank, from 0, of the proposal that found it;
    the largest integer where none does. overlaps: [G, L], the largest IoU of each object with the best proposals up to
    each of the L limits. proposals: how many, up to the largest limit. best: the
    first few of them."""

    ranks: NDArray[np.int64]
    overlaps: NDArray[np.float64]
    proposals: int
    best: Detections


@dataclass(frozen=True)
class ProposalRecall:
    """Recall of the best 100, 300 and 1000 proposals of an image, as COCO defines it with classes left out.

    At an IoU threshold, proposals are taken by falling score, and each finds the object it overlaps most among those
    that are not found yet and reach the threshold. Recall is the share of all objects of the data set that are found:
    `recall50_N` at IoU 0.5, `recall70_N` at 0.7, and `ar_N`, the average recall of the papers on proposals, is its mean
    over 0.5, 0.55, ..., 0.95 (Hosang et al. 2015; FPN, table 1). `abo_N`, the average best overlap, is the mean over
    all objects of the largest IoU with a proposal (Uijlings et al. 2013, equation 7; their MABO is the mean of it over
    classes). Crowds are ignored: they are no objects to be found. NaN where there are no objects.

    Predictions are `Detections` whose labels do not count. selects: the number that chooses the best weights.
    """

    dataset: DetectionDataset
    limits: tuple[int, ...] = (100, 300, 1000)

    @property
    def names(self) -> tuple[str, ...]:
        """For each limit, those of the four numbers."""
        return tuple(f"{what}_{limit}" for limit in self.limits for what in ("ar", "recall50", "recall70", "abo"))

    @property
    def selects(self) -> str:
        """The average recall at the largest limit."""
        return f"ar_{max(self.limits)}"

    def record(self, sample: Sample, prediction: Detections) -> Recalled:
        """Which proposals find the objects of an image."""
        return self._record(sample.targets.boxes[~sample.targets.crowd], prediction)

    def records_of(self, proposals: Mapping[int, tuple[NDArray[np.float32], NDArray[np.float32]]]) -> list[Recalled]:
        """A record for each image of the data set, from boxes [P, 4] and scores [P] by image id, as
        `regio.data.proposals.read_scored_proposals` gives them; no image is read. Raises KeyError for an image without
        an entry."""
        found = []
        for record in self.dataset.records:
            boxes, scores = (torch.from_numpy(each) for each in proposals[record.id])
            objects = torch.from_numpy(record.boxes[~record.crowd].astype(np.float32))
            found.append(self._record(objects, Detections(boxes, torch.ones(len(boxes), dtype=torch.int64), scores)))
        return found

    def _record(self, objects: Tensor, prediction: Detections) -> Recalled:
        order = prediction.scores.argsort(descending=True, stable=True)[: max(self.limits)]
        boxes, scores = (t[order].cpu() for t in (prediction.boxes, prediction.scores))
        overlap = iou(boxes.double(), objects.double()).numpy()
        largest = [overlap[:limit].max(axis=0, initial=0.0) for limit in self.limits]
        boxes, scores = boxes[:SHOWN].clone(), scores[:SHOWN].clone()
        best = Detections(boxes, torch.ones(len(boxes), dtype=torch.int64), scores)
        return Recalled(_ranks(overlap), np.stack(largest, axis=1), len(order), best)

    def measure(self, records: Sequence[Recalled]) -> dict[str, float]:
        """The numbers of `names`."""
        numbers: dict[str, float] = {}
        overlaps = np.concatenate([np.empty((0, len(self.limits))), *(each.overlaps for each in records)])
        best = overlaps.mean(axis=0) if len(overlaps) else np.full(len(self.limits), np.nan)
        for limit, overlap in zip(self.limits, best, strict=True):
            recall = self.recall(records, limit)
            numbers |= {f"ar_{limit}": float(recall.mean())}
            numbers |= {f"recall50_{limit}": float(recall[0]), f"recall70_{limit}": float(recall[4])}
            numbers |= {f"abo_{limit}": float(overlap)}
        return numbers

    def recall(self, records: Sequence[Recalled], limit: int) -> NDArray[np.float64]:
        """Recall [10] of the best `limit` proposals, at IoU 0.5, 0.55, ..., 0.95."""
        ranks = np.concatenate([np.empty((0, len(THRESHOLDS)), dtype=np.int64), *(each.ranks for each in records)])
        return (ranks < limit).mean(axis=0) if len(ranks) else np.full(len(THRESHOLDS), np.nan)

    def curves(self, records: Sequence[Recalled]) -> dict[str, list[tuple[int, float]]]:
        """Average recall, and recall at IoU 0.5 and 0.7, against the number of proposals, up to the largest limit or to
        the most that an image has."""
        last = max([1, *(record.proposals for record in records)])
        limits = np.unique(np.geomspace(1, last, 40).round().astype(int)).tolist()
        at = [self.recall(records, limit) for limit in limits]
        named = {"average, IoU 0.50 to 0.95": [float(r.mean()) for r in at]}
        named |= {f"at IoU {THRESHOLDS[i]:.1f}": [float(r[i]) for r in at] for i in (0, 4)}
        return {name: list(zip(limits, values, strict=True)) for name, values in named.items()}

    def save(self, records: Sequence[Any], folder: Path) -> None:
        """Saves nothing: proposals of a data set are written by `regio.data.write_proposals`."""


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
