"""Everything that can be chosen by name and number, for the command line, files and checkpoints.

The tables here are the only place where a word selects a class; in Python, pass the object.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from regio.config.extractors import EXTRACTORS
from regio.config.run import RunConfig, model_from_dict, model_to_dict, read_config
from regio.config.systems import BACKBONES, SYSTEMS, System
from regio.config.training import OPTIMIZERS, SCHEDULES, Precision, TrainConfig

if TYPE_CHECKING:
    from torch import nn

    from regio.checkpoints import Card
    from regio.detector import TwoStageDetector

__all__ = [
    "BACKBONES",
    "EXTRACTORS",
    "OPTIMIZERS",
    "SCHEDULES",
    "SYSTEMS",
    "Precision",
    "RunConfig",
    "System",
    "TrainConfig",
    "load_detector",
    "load_model",
    "model_from_dict",
    "model_to_dict",
    "read_config",
    "read_system",
]


def load_detector(path: Path | str, *, score_threshold: float | None = None) -> tuple[TwoStageDetector, Card]:
    """The detector of a checkpoint that the command line made, with its card, of which `model_from_dict` makes the
    settings of its system.

    score_threshold: another than the one it was trained with. Raises FileNotFoundError or ValueError naming the file,
    also for a checkpoint of a detector that was put together by hand: build that one again, then
    `regio.checkpoints.load_weights`; ValueError for a threshold that is no score of the system, and for a model that is
    no detector.
    """
    from regio.detector import TwoStageDetector

    model, card = load_model(path, score_threshold=score_threshold)
    if not isinstance(model, TwoStageDetector):
        raise ValueError(f"{path}: expected a detector, got a {type(model).__name__} ({card.model['name']})")
    return model, card


def load_model(path: Path | str, *, score_threshold: float | None = None) -> tuple[nn.Module, Card]:
    """As `load_detector`, of any system: its model may be another network, such as one of segmentation."""
    from regio.checkpoints import load_weights

    system, card = read_system(path)
    if score_threshold is not None:
        system = system.with_score_threshold(score_threshold)
    model = system.build(len(card.class_names), pretrained=False)
    load_weights(path, model)
    return model, card


def read_system(path: Path | str) -> tuple[System, Card]:
    """The settings of the system of a checkpoint that the command line made, and its card, without its weights. Raises
    as `load_detector`."""
    from regio.checkpoints import read_card

    card = read_card(path)
    if not card.model:
        raise ValueError(
            f"{path}: its card has no configuration; name the system with regio train --model, or build the detector "
            "in Python and use load_weights"
        )
    try:
        return model_from_dict(card.model), card
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
