"""A whole run, as `config.yaml` holds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from regio.config.systems import SYSTEMS, FasterRCNNOnFPN, System
from regio.config.training import TrainConfig
from regio.settings import as_dict, from_dict, setting
from regio.yaml_text import read_yaml

__all__ = ["RunConfig", "model_from_dict", "model_to_dict", "read_config"]


@dataclass(frozen=True)
class RunConfig:
    """What a run trains, on what, and how."""

    data: str = setting("", "the data set: a folder, a COCO JSON file, or shapes")
    validation: str | None = setting(None, "the data set to evaluate on; null for the val split of data")
    classes: tuple[str, ...] = setting((), "those to train on; [] for all")
    images: int | None = setting(None, "training images, spread over all; null for all", ge=1)
    validation_images: int | None = setting(None, "validation images, spread over all; null for all", ge=1)
    weights: str | None = setting(None, "checkpoint to start from")
    proposals: str | None = setting(
        None,
        "boxes for a model that finds none itself: selective-search, selective-search:quality, grid, a file of boxes, "
        "or a checkpoint with a proposal network; null for selective-search",
    )
    validation_proposals: str | None = setting(None, "those of the validation images; null for the same")
    proposals_per_image: int = setting(2000, "boxes of an image that are used, the best, at most", ge=1)
    flip: float = setting(0.5, "probability of a mirrored image", ge=0, le=1)
    jitter: bool = setting(False, "whether colours are varied")
    keep_maps: bool = setting(
        False,
        "whether the maps of the levels of the backbone that are fixed (all with frozen=5) are made once, kept on disk "
        "beside the runs, and read in place of photos",
    )
    difficult: bool = setting(
        False, "whether objects marked as difficult are trained on; evaluation has its own rule for them"
    )
    model: System = setting(FasterRCNNOnFPN(), "the system", choices=SYSTEMS)
    training: TrainConfig = setting(TrainConfig(), "how to train")


@dataclass(frozen=True)
class _Model:
    model: System = setting(FasterRCNNOnFPN(), "the system", choices=SYSTEMS)


def model_to_dict(model: System) -> dict[str, Any]:
    """The settings of a system as plain values, among them its `name`: what the card of a checkpoint holds."""
    values: dict[str, Any] = as_dict(_Model(model))["model"]
    return values


def model_from_dict(values: Mapping[str, Any]) -> System:
    """The inverse of `model_to_dict`. Raises ValueError as `regio.settings.from_dict`."""
    return from_dict(_Model, {"model": dict(values)}).model


def names_a_model(path: Path) -> bool:
    """Whether the YAML file of `read_config` says which model is trained."""
    return "model" in (read_yaml(path.read_text()) or {})


def read_config(path: Path) -> RunConfig:
    """The settings of a YAML file, those it leaves out at their defaults.

    Raises ValueError naming the file where it is missing, is not YAML, or holds a setting that is unknown or wrong.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file of settings")
    try:
        return from_dict(RunConfig, read_yaml(path.read_text()) or {})
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
