"""One linear support vector machine a class, on features that do not fit in memory: hard negative mining."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regio.fitting.feature_store import Layer
from regio.fitting.labels import LabelledRegions

__all__ = ["HardNegativeMining", "LinearClassifiers"]

Floats = NDArray[np.float64]
BYTES_PER_VALUE = 24  # of a fit: the examples in float64, and liblinear's copy, which has an index beside each value


class LinearClassifiers(NamedTuple):
    """One linear classifier a class: its score is ``weight @ features + bias``.

    weight: [C, D] float32, for features as they are stored. bias: [C] float32, -inf for a class that could not be
    learnt. notes: what a person should know, a line each.
    """

    weight: Tensor
    bias: Tensor
    notes: tuple[str, ...]


@dataclass(frozen=True)
class HardNegativeMining:
    """Fits one linear SVM a class (R-CNN, section 2.3 and appendix B; the numbers are those of its released code).

    The positives of a class are its annotated boxes, its negatives the regions whose IoU with each object of that class
    is below `negative_iou`; all others are left out. Each SVM minimises

        |w|^2 / 2 + (b / bias_scale)^2 / 2 + c * (positive_weight * sum of max(0, 1 - z) over positives
                                                  + sum of max(0, 1 + z) over negatives)

    for scores z = w x + b (liblinear's dual solver, `-s 3`), with features scaled so that their mean length is
    `mean_norm`; the scale is folded into the weights that are returned.

    Negatives are mined: of the first image all are taken, of the others those with a score above `hard`. A class is
    fitted again whenever more than `refit` negatives have come, and at the end of each pass over all images; negatives
    below `easy` are then dropped. Mining ends with a pass that finds no new negative, or after `passes` of them (1 in
    the released code). The objective grows with every negative that is added and loses none with those that are
    dropped, so mining converges, and where a pass found none the SVM is that of all examples at once.

    memory: bytes that the examples of a fit take at most. Of more hard negatives than that, those with the highest
    scores stay, and a note says so. Between fits only the numbers of the rows are kept. tolerance, iterations: of
    liblinear.

    Raises ValueError for a memory that does not hold the positives of a class and as many negatives.
    """

    c: float = 0.001
    bias_scale: float = 10.0
    positive_weight: float = 2.0
    negative_iou: float = 0.3
    mean_norm: float = 20.0
    hard: float = -1.0001
    easy: float = -1.2
    refit: int = 2000
    passes: int = 10
    memory: int = 2 << 30
    tolerance: float = 1e-3
    iterations: int = 20_000
    seed: int = 0

    def __call__(
        self,
        layer: Layer,
        regions: Callable[[int], LabelledRegions],
        class_names: Sequence[str],
        say: Callable[[str], None] = lambda line: None,
    ) -> LinearClassifiers:
        """The classifiers of `class_names` on the features of `layer`. regions: those of each image, in the rows of its
        features. say: is told of each pass."""
        images = len(layer.offsets) - 1
        mean = layer.mean_norm(seed=self.seed)
        scale = self.mean_norm / mean if mean else 1.0
        positives = _positives(layer, regions, len(class_names))
        machines = [_Machine(self, layer, scale, rows, name) for rows, name in zip(positives, class_names, strict=True)]
        learnt = [(label, machine) for label, machine in enumerate(machines) if len(machine.positives)]
        for number in range(1, self.passes + 1) if learnt else ():
            found = 0
            for image in range(images):
                of_image, features = regions(image), layer.of_image(image) * np.float32(scale)
                negative = ((of_image.overlap < self.negative_iou) & ~of_image.crowd).numpy()
                scores = features @ np.stack([m.weight for m in machines], 1).astype(np.float32)
                for label, machine in learnt:
                    hard = negative[:, label]
                    if machine.fitted:
                        hard = hard & (scores[:, label] + machine.bias > self.hard)
                    rows = np.flatnonzero(hard)
                    found += machine.add(features[rows], layer.offsets[image] + rows)
            for _, machine in learnt:
                machine.finish()
            held = max(len(machine.negatives) for _, machine in learnt)
            say(f"pass {number} over {images} images: {found} new hard negatives, at most {held} kept for a class")
            if not found:
                break
        notes = [note for machine in machines for note in machine.notes]
        for what, missing in (
            ("training example", [m.name for m in machines if not len(m.positives)]),
            ("negative example", [m.name for m in machines if len(m.positives) and not m.fitted]),
        ):
            if missing:
                notes.append(f"not detected, since there is no {what}: {', '.join(missing)}")
        weight = np.stack([machine.weight * scale for machine in machines]) if machines else np.zeros((0, layer.width))
        bias = np.array([machine.bias for machine in machines])
        return LinearClassifiers(torch.from_numpy(weight).float(), torch.from_numpy(bias).float(), tuple(notes))


class _Machine:
    """The SVM of one class and its negatives."""

    def __init__(
        self, mining: HardNegativeMining, layer: Layer, scale: float, positives: NDArray[np.int64], name: str
    ) -> None:
        self.mining, self.layer, self.scale, self.positives, self.name = mining, layer, scale, positives, name
        self.negatives = np.zeros(0, np.int64)
        self.weight, self.bias = np.zeros(layer.width), -np.inf
        self.fitted, self.added, self.dropped, self.unfinished = False, 0, 0, False
        need = 2 * max(len(positives), 1) * (layer.width + 1) * BYTES_PER_VALUE
        if need > mining.memory:
            raise ValueError(
                f"memory: expected at least {need / 1e6:.0f} MB, for the {len(positives)} examples of {name} with "
                f"{layer.width} features and as many negatives, got {mining.memory / 1e6:.0f} MB"
            )
        self.room = mining.memory // ((layer.width + 1) * BYTES_PER_VALUE) - len(positives)

    @property
    def notes(self) -> list[str]:
        """What a person should know of the fit."""
        notes = []
        if self.dropped:
            notes.append(
                f"{self.name}: {self.dropped} hard negatives did not fit in {self.mining.memory / 1e6:.0f} MB; those "
                "with the highest scores were kept"
            )
        if self.unfinished:
            notes.append(f"{self.name}: the last fit did not converge in {self.mining.iterations} iterations")
        return notes

    def scores(self, features: NDArray[Any]) -> NDArray[Any]:
        """Of scaled features [n, D]."""
        scores: NDArray[Any] = features @ self.weight.astype(features.dtype) + self.bias
        return scores

    def add(self, features: NDArray[np.float32], rows: NDArray[np.int64]) -> int:
        """Take the negatives `rows` with these scaled features; returns how many of them are new. 0 once some were
        dropped for want of room: they come again in each pass."""
        new = ~np.isin(rows, self.negatives, assume_unique=True)
        features, rows = features[new], rows[new]
        taken = 0
        while len(rows):
            free = self.room - len(self.negatives)
            self.negatives = np.union1d(self.negatives, rows[:free])
            self.added += len(rows[:free])
            taken += len(rows[:free])
            features, rows = features[free:], rows[free:]
            if len(rows) or self.added > self.mining.refit or not self.fitted:
                self.fit()
            if len(rows):
                hard = self.scores(features) > self.mining.hard
                features, rows = features[hard], rows[hard]
                if len(rows) and len(self.negatives) == self.room:
                    self.make_room()
        return 0 if self.dropped else taken

    def finish(self) -> None:
        """At the end of a pass: fit what has come since the last fit."""
        if self.added:
            self.fit()

    def fit(self) -> None:
        """Fit to the positives and the negatives taken so far, and drop the easy negatives."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.svm import LinearSVC

        mining = self.mining
        rows = np.concatenate([self.positives, self.negatives])
        x = np.empty((len(rows), self.layer.width))
        for start in range(0, len(rows), 256):
            x[start : start + 256] = self.layer.values[rows[start : start + 256]]
        x *= self.scale
        y = np.repeat([1, -1], [len(self.positives), len(self.negatives)])
        machine = LinearSVC(
            loss="hinge",
            dual=True,
            C=mining.c,
            class_weight={1: mining.positive_weight},
            intercept_scaling=mining.bias_scale,
            tol=mining.tolerance,
            max_iter=mining.iterations,
            random_state=mining.seed,
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            machine.fit(x, y)
        self.unfinished = any(issubclass(each.category, ConvergenceWarning) for each in caught)
        self.weight, self.bias = machine.coef_[0], float(machine.intercept_[0])
        self.fitted, self.added = True, 0
        self.negatives = self.negatives[self.scores(x[len(self.positives) :]) >= mining.easy]

    def make_room(self) -> None:
        """Drop the half of the negatives that has the lowest scores."""
        features = np.concatenate(
            [self.layer.values[rows].astype(np.float32) @ self.weight for rows in _blocks(self.negatives)]
        )
        kept = np.argsort(-features, kind="stable")[: self.room // 2]
        self.dropped += len(self.negatives) - len(kept)
        self.negatives = np.sort(self.negatives[kept])


def _blocks(rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return np.array_split(rows, range(256, len(rows), 256))


def _positives(layer: Layer, regions: Callable[[int], LabelledRegions], classes: int) -> list[NDArray[np.int64]]:
    """The rows of the objects of each class."""
    found: list[list[int]] = [[] for _ in range(classes)]
    for image, start in enumerate(layer.offsets[:-1].tolist()):
        for row, label in enumerate(regions(image).labels.tolist()):
            found[label - 1].append(start + row)
    return [np.array(rows, dtype=np.int64) for rows in found]
