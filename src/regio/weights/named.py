"""Trained detectors by the words that the command line takes: a checkpoint, or another library's weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from regio.config import load_model, read_system
from regio.config.systems import Detectron2, Published, System, Torchvision
from regio.data import DetectionDataset
from regio.detector import TwoStageDetector
from regio.evaluate import Predict
from regio.ready import InferencePrecision, Ready
from regio.weights.detectron2 import detectron2_detector
from regio.weights.torchvision import torchvision_detector

__all__ = ["Trained", "load_trained", "published", "system_of"]


@dataclass(frozen=True)
class Trained:
    """A model in evaluation mode, a detector for most, the settings of its system, and the names of the classes it was
    trained on. proposals: what its checkpoint says of the boxes that it was given, see `regio.checkpoints.Card`."""

    model: nn.Module
    system: System
    class_names: tuple[str, ...]
    proposals: Mapping[str, Any] = field(default_factory=dict)

    @property
    def detector(self) -> TwoStageDetector:
        """The model that is a detector. Raises ValueError for another."""
        if not isinstance(self.model, TwoStageDetector):
            raise ValueError(f"weights: expected a detector, got a {type(self.model).__name__}")
        return self.model

    def ready(self, device: torch.device, precision: InferencePrecision) -> Ready:
        """The model made ready for inference on `device`."""
        return self.system.ready(self.model, device, precision)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the labels 1, 2, ... of what it finds."""
        return self.system.labels(self.class_names)

    def shared(self, dataset: DetectionDataset) -> DetectionDataset:
        """The classes of `dataset` that the detector was trained on, with a note on the others. Raises ValueError where
        there is none."""
        names = [name for name in dict.fromkeys(self.class_names) if name in dataset.class_names]
        unknown = [name for name in dataset.class_names if name not in names]
        if not names:
            raise ValueError(f"expected classes among {_some(self.class_names)}, got {_some(dataset.class_names)}")
        kept = dataset.keep_classes(names)
        if not unknown:
            return kept
        return kept.with_note(f"not measured, since the detector does not know them: {_some(unknown)}")

    def predict(self, class_names: Sequence[str], model: Predict | None = None) -> Predict:
        """What the model finds of the classes `class_names`, with labels 1, 2, ... in that order. model: another form
        of it to ask, such as `ready`."""
        ask: Predict = self.model if model is None else model
        if self.labels != self.class_names or tuple(class_names) == self.class_names:
            return ask
        label = torch.zeros(len(self.class_names) + 1, dtype=torch.int64)
        for i, name in enumerate(class_names, 1):
            label[self.class_names.index(name) + 1] = i

        def predict(images: Sequence[Tensor], *proposals: Sequence[Tensor]) -> list[Any]:
            return [found.relabelled(label) for found in ask(images, *proposals)]

        return predict


class _Library(NamedTuple):
    """How a library's detectors are described and read."""

    system: Callable[..., Published]
    read: Callable[[str, Path | None], tuple[TwoStageDetector, tuple[str, ...]]]


_LIBRARIES = {
    "torchvision": _Library(Torchvision, torchvision_detector),
    "detectron2": _Library(Detectron2, detectron2_detector),
}


def load_trained(weights: str | Path, *, score_threshold: float | None = None) -> Trained:
    """The detector that `weights` names: the path of a checkpoint; `torchvision:NAME` or `detectron2:NAME` for one that
    these published, NAME one of `regio.weights.TORCHVISION` or `DETECTRON2`; or `torchvision:NAME=FILE`,
    `detectron2:NAME=FILE` where its weights lie in FILE.

    score_threshold: lowest score of a detection, in place of the detector's own. Raises FileNotFoundError or ValueError
    naming the file, and for a published one where it is wanted; ValueError for a threshold that is no score of it.
    """
    found = published(weights)
    if found is None:
        own, card = read_system(weights)
        own = own if score_threshold is None else own.with_score_threshold(score_threshold)
        model, _ = load_model(weights, score_threshold=score_threshold)
        return Trained(model.eval(), own, card.class_names, card.proposals)
    system, file = found
    if score_threshold is not None:
        system = system.with_score_threshold(score_threshold)
    detector, names = _library(weights).read(system.detector, file)
    system.adjust(detector)
    return Trained(detector, system, names)


def published(weights: str | Path) -> tuple[Published, Path | None] | None:
    """The settings of the published detector that `weights` names, and the file of its weights where one is named; None
    for a checkpoint. Raises ValueError for a detector that the library does not have."""
    library, colon, rest = str(weights).partition(":")
    if not colon or library not in _LIBRARIES or Path(weights).exists():
        return None
    name, _, file = rest.partition("=")
    system = _library(weights).system(detector=name)
    system.architecture()
    return system, Path(file) if file else None


def system_of(weights: str | Path) -> System:
    """The settings of the system of what `weights` names, see `load_trained`, without reading the weights."""
    found = published(weights)
    if found is not None:
        return found[0]
    return read_system(weights)[0]


def _library(weights: str | Path) -> _Library:
    return _LIBRARIES[str(weights).partition(":")[0]]


def _some(names: Sequence[str], count: int = 8) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
