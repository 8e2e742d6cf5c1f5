"""Trained detectors by the words that the command line takes: a checkpoint, or another library's weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from regio.config import load_detector, model_from_dict
from regio.detector import TwoStageDetector
from regio.postprocess import Postprocess
from regio.weights.torchvision import torchvision_detector

__all__ = ["Trained", "load_trained"]


@dataclass(frozen=True)
class Trained:
    """A detector in evaluation mode, and the names of the labels 1, 2, ... of what it finds."""

    detector: TwoStageDetector
    labels: tuple[str, ...]


def load_trained(weights: str | Path, *, score_threshold: float | None = None) -> Trained:
    """The detector that `weights` names: the path of a checkpoint; `torchvision:NAME` for one that torchvision
    published, NAME one of `regio.weights.TORCHVISION`; or `torchvision:NAME=FILE` where its weights lie in FILE.

    score_threshold: lowest score of a detection, in place of the detector's own. Raises FileNotFoundError or ValueError
    naming the file, and for a published one where it is wanted.
    """
    library, _, rest = str(weights).partition(":")
    if library != "torchvision" or Path(weights).exists():
        detector, card = load_detector(weights, score_threshold=score_threshold)
        return Trained(detector.eval(), model_from_dict(card.model).labels(card.class_names))
    name, _, file = rest.partition("=")
    detector, names = torchvision_detector(name, Path(file) if file else None)
    if score_threshold is not None:
        head = detector.roi_heads[0]
        assert isinstance(head.postprocess, Postprocess)
        head.postprocess = replace(head.postprocess, score_threshold=score_threshold)
    return Trained(detector, names)
