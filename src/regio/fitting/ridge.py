"""Better boxes by ridge regression: four linear functions of a region's features a class."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regio.boxes import BoxCoder
from regio.fitting.feature_store import Layer
from regio.fitting.labels import LabelledRegions

__all__ = ["BoxRegression", "BoxRegressors", "ridge"]

Floats = NDArray[np.float64]
BLOCK = 1024  # rows of features read at once


class BoxRegressors(NamedTuple):
    """Four linear functions a class: ``weight @ features + bias`` are the numbers of `BoxCoder()`.

    weight: [C, 4, D] float32, for features as they are stored. bias: [C, 4] float32. Both are 0 for a class that could
    not be learnt, whose boxes stay as they are. notes: what a person should know, a line each.
    """

    weight: Tensor
    bias: Tensor
    notes: tuple[str, ...]


@dataclass(frozen=True)
class BoxRegression:
    """Fits one ridge regression a class, from regions to the object that they overlap most (R-CNN, appendix C; the
    numbers are those of its released code).

    The examples of a class are the regions, objects among them, whose largest IoU with any object is above `iou`, where
    that object is of the class. The targets t (eqs. 6-9) are centred and whitened, ``u = (t - mean) T`` with T = V
    diag(1 / sqrt(d + 0.001)) V' of their covariance V diag(d) V'; the regression minimises ``|X B - u|^2 + penalty
    |B|^2`` for features that are scaled to a mean length of `mean_norm` and followed by a 1, which is penalised too;
    what it predicts is taken back by the inverse of T. All of this is folded into the weights that are returned.

    penalty: 1000 in R-CNN, 4000 in SPPnet's released code. iou: 0.6 in R-CNN, 0.5 in SPPnet. memory: bytes that a fit
    takes at most. The normal equations are summed up over blocks of examples; with N examples of D features they have
    min(N, D + 1) unknowns. Where that is too many for the memory, random examples are left out and a note says so.

    Raises ValueError for a penalty that is not positive.
    """

    penalty: float = 1000.0
    iou: float = 0.6
    mean_norm: float = 20.0
    memory: int = 2 << 30
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.penalty < np.inf:
            raise ValueError(f"penalty: expected a number > 0, got {self.penalty}")

    def __call__(
        self, layer: Layer, regions: Callable[[int], LabelledRegions], class_names: Sequence[str]
    ) -> BoxRegressors:
        """The regressors of `class_names` on the features of `layer`. regions: those of each image, in the rows of its
        features."""
        mean = layer.mean_norm(seed=self.seed)
        scale = self.mean_norm / mean if mean else 1.0
        weight, bias = np.zeros((len(class_names), 4, layer.width)), np.zeros((len(class_names), 4))
        notes, missing = [], []
        for label, (rows, targets) in enumerate(self._examples(layer, regions, len(class_names))):
            name = class_names[label]
            if not len(rows):
                missing.append(name)
                continue
            room = int((self.memory / 16) ** 0.5)  # float64, and a copy of it while it is solved
            if min(len(rows), layer.width + 1) > room:
                notes.append(
                    f"{name}: {room} of {len(rows)} examples fit in {self.memory / 1e6:.0f} MB; the others are left out"
                )
                some = np.sort(np.random.default_rng(self.seed).permutation(len(rows))[:room])
                rows, targets = rows[some], targets[some]
            centre = targets.mean(0)
            centred = targets - centre
            d, v = np.linalg.eigh(centred.T @ centred / len(rows))
            root = np.sqrt(d + 0.001)
            beta = ridge(lambda: _blocks(layer, rows, scale), layer.width, centred @ (v / root) @ v.T, self.penalty)  # noqa: B023
            beta = beta @ (v * root) @ v.T
            weight[label], bias[label] = beta[:-1].T * scale, beta[-1] + centre
        if missing:
            why = f"since no region has an IoU above {self.iou:g} with an object"
            notes.append(f"boxes stay as they are, {why}: {', '.join(missing)}")
        return BoxRegressors(torch.from_numpy(weight).float(), torch.from_numpy(bias).float(), tuple(notes))

    def _examples(
        self, layer: Layer, regions: Callable[[int], LabelledRegions], classes: int
    ) -> list[tuple[NDArray[np.int64], Floats]]:
        """The rows [n] and targets [n, 4] of each class."""
        rows: list[list[NDArray[np.int64]]] = [[] for _ in range(classes)]
        targets: list[list[Floats]] = [[] for _ in range(classes)]
        for image, start in enumerate(layer.offsets[:-1].tolist()):
            of_image = regions(image)
            best, index = of_image.best_object()
            chosen = (best > self.iou).nonzero()[:, 0]
            if not len(chosen):
                continue
            boxes = of_image.boxes.double()
            wanted = BoxCoder().encode(boxes[index[chosen]], boxes[chosen]).numpy()
            labels = of_image.labels[index[chosen]].numpy()
            for label in np.unique(labels):
                rows[label - 1].append(start + chosen.numpy()[labels == label])
                targets[label - 1].append(wanted[labels == label])
        return [
            (np.concatenate([np.zeros(0, np.int64), *r]), np.concatenate([np.zeros((0, 4)), *t]))
            for r, t in zip(rows, targets, strict=True)
        ]


def ridge(blocks: Callable[[], Iterator[Floats]], width: int, targets: Floats, penalty: float) -> Floats:
    """The B [width + 1, T] that minimises ``|X B - targets|^2 + penalty |B|^2``, X being the rows [n, width] that
    `blocks` gives, block by block, each with a 1 after it.

    ``(X'X + penalty) B = X' targets``, summed up over the blocks; where there are fewer rows than columns ``B = X' A``
    with ``(X X' + penalty) A = targets``, the same B.
    """
    from scipy.linalg import solve

    rows = len(targets)
    if rows > width:
        square, right, start = np.zeros((width + 1, width + 1)), np.zeros((width + 1, targets.shape[1])), 0
        for block in blocks():
            x = _with_one(block)
            square += x.T @ x
            right += x.T @ targets[start : start + len(x)]
            start += len(x)
        square.flat[:: width + 2] += penalty
        beta: Floats = solve(square, right, assume_a="pos", overwrite_a=True, overwrite_b=True)
        return beta
    square, place = np.zeros((rows, rows)), 0
    for block in blocks():
        column = 0
        for other in blocks():
            square[place : place + len(block), column : column + len(other)] = block @ other.T + 1
            column += len(other)
        place += len(block)
    square.flat[:: rows + 1] += penalty
    factors = solve(square, targets, assume_a="pos", overwrite_a=True)
    beta, start = np.zeros((width + 1, targets.shape[1])), 0
    for block in blocks():
        beta += _with_one(block).T @ factors[start : start + len(block)]
        start += len(block)
    return beta


def _with_one(block: Floats) -> Floats:
    return np.concatenate([block, np.ones((len(block), 1))], 1)


def _blocks(layer: Layer, rows: NDArray[np.int64], scale: float) -> Iterator[Floats]:
    for start in range(0, len(rows), BLOCK):
        yield np.asarray(layer.values[rows[start : start + BLOCK]], dtype=np.float64) * scale
