"""Configuration of a run by name and number, for the command line and for checkpoints.

The dictionaries here are the only place where a word selects a class; in Python, pass the object.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from regio.backbones import Backbone, efficientnet_lite0, timm_backbone, torchvision_backbone
from regio.checkpoints import Card, load_weights, read_card
from regio.detector import TwoStageDetector
from regio.optimisation import SGD, AdamW, Cosine, OptimizerSpec, Schedule, Step
from regio.postprocess import Postprocess
from regio.proposals import Anchors
from regio.regions import (
    CentreFeature,
    DeformableRoIPool,
    GridPrior,
    LearnedRegionFeatures,
    PreciseRoIPool,
    RegionExtractor,
    RoIAlign,
    RoIAveragePool,
    RoIPool,
    RoIWarp,
    SampleMax,
    SpatialPyramidPool,
    TriangularBins,
)
from regio.systems import faster_rcnn, faster_rcnn_fpn
from regio.train import TrainConfig

__all__ = [
    "BACKBONES",
    "EXTRACTORS",
    "NECKS",
    "OPTIMIZERS",
    "SCHEDULES",
    "ModelConfig",
    "RunConfig",
    "build_detector",
    "from_dict",
    "load_detector",
    "override",
    "to_dict",
]

BACKBONES: dict[str, Callable[..., Backbone]] = {
    "efficientnet_lite0": efficientnet_lite0,
    "torchvision": torchvision_backbone,
    "timm": timm_backbone,
}
"""By the word before the colon: `efficientnet_lite0`, `torchvision:resnet50`, `timm:convnext_tiny`."""

NECKS: dict[str, Callable[..., TwoStageDetector]] = {"single": faster_rcnn, "fpn": faster_rcnn_fpn}
"""A single map at stride 16, or a feature pyramid."""

EXTRACTORS: dict[str, Callable[[int], RegionExtractor]] = {
    "roi-pool": lambda channels: RoIPool(7),
    "roi-average-pool": lambda channels: RoIAveragePool(7),
    "spatial-pyramid": lambda channels: SpatialPyramidPool(),
    "roi-align": lambda channels: RoIAlign(7, samples=2),
    "roi-align-max": lambda channels: SampleMax(RoIAlign(7, samples=2)),
    "roi-warp": lambda channels: RoIWarp(7, samples=2),
    "precise-roi-pool": lambda channels: PreciseRoIPool(7),
    "deformable-roi-pool": lambda channels: DeformableRoIPool(RoIAlign(7, samples=2), channels),
    "centre": lambda channels: CentreFeature(),
    "triangular": lambda channels: TriangularBins(8),
    "learned": lambda channels: LearnedRegionFeatures(channels),
    "learned-grid": lambda channels: LearnedRegionFeatures(channels, prior=GridPrior()),
}
"""Each is made from the number of channels of the maps it reads. `learned` starts as in its paper, `learned-grid` has
a prior by which its parts are Gaussians on a grid."""


@dataclass(frozen=True)
class ModelConfig:
    """What builds a detector, but for its classes.

    backbone: see `BACKBONES`. backbone_weights: a file of ImageNet weights, for a machine that cannot download them;
    "none" starts from random ones. frozen: the level of the backbone up to which weights are fixed. levels: those of
    the backbone that a pyramid is made of; a single map is the last of them, at stride 16. channels: of the maps that
    are pooled. hidden: width of the two layers of the box head. short_side, long_side: of the image in pixels, see
    `regio.preprocess`. anchor_sizes: in pixels of the scaled image; one for each level of a pyramid and one more, or
    all on a single map. sampled_regions: per image, for the loss of the head. score_threshold, nms_threshold,
    detections: what is kept of an image.
    """

    backbone: str = "efficientnet_lite0"
    backbone_weights: str | None = None
    frozen: int = 2
    neck: str = "fpn"
    levels: tuple[int, ...] = (3, 4, 5)
    channels: int = 128
    extractor: str = "roi-align"
    hidden: int = 512
    short_side: int = 320
    long_side: int = 480
    anchor_sizes: tuple[float, ...] = (32.0, 64.0, 128.0, 256.0)
    sampled_regions: int = 128
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    detections: int = 100


OPTIMIZERS: dict[str, type[OptimizerSpec]] = {"sgd": SGD, "adamw": AdamW}
SCHEDULES: dict[str, type[Schedule]] = {"cosine": Cosine, "step": Step}


@dataclass(frozen=True)
class RunConfig:
    """A whole run, as `config.yaml` holds it.

    data: where the data set is, see `regio.data.open_dataset`; validation: where the one to evaluate on is, None for
    the `val` split of `data`. classes: the classes to train on, empty for all. weights: a checkpoint to start from.
    flip: probability of a mirrored image. jitter: whether colours are varied. difficult: whether objects that are
    marked as difficult, as Pascal VOC does, are trained on; if not they are simply not there, as in the released code
    of Faster R-CNN. Evaluation has its own rule for them.
    """

    data: str
    validation: str | None = None
    classes: tuple[str, ...] = ()
    weights: str | None = None
    flip: float = 0.5
    jitter: bool = False
    difficult: bool = False
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainConfig = field(default_factory=TrainConfig)


def named(table: Mapping[str, Any], name: str, what: str) -> Any:
    """The entry `name` of `table`; ValueError with the names there are for any other."""
    if name not in table:
        raise ValueError(f"{what}: expected one of {', '.join(table)}, got '{name}'")
    return table[name]


def build_detector(config: ModelConfig, classes: int, *, pretrained: bool = True) -> TwoStageDetector:
    """The detector of `config` for `classes` classes, not counting the background.

    With `pretrained` False the backbone starts from random weights, for a checkpoint that brings its own.
    Raises ValueError for an unknown name, FileNotFoundError for weights that are nowhere (naming the file wanted).
    """
    system = named(NECKS, config.neck, "neck")
    kind, _, variant = config.backbone.partition(":")
    single = system is faster_rcnn
    make = named(BACKBONES, kind, "backbone")
    try:
        backbone = make(
            *([variant] if variant else []),
            levels=config.levels[-1:] if single else config.levels,
            output_stride=16 if single else 32,
            pretrained=pretrained and config.backbone_weights != "none",
            weights=config.backbone_weights if pretrained and config.backbone_weights != "none" else None,
            frozen=config.frozen,
        )
    except FileNotFoundError as error:
        raise FileNotFoundError(f"backbone_weights: {error}") from error
    detector: TwoStageDetector = system(
        classes + 1,
        backbone,
        named(EXTRACTORS, config.extractor, "extractor")(config.channels),
        channels=config.channels,
        hidden=config.hidden,
        short_side=config.short_side,
        long_side=config.long_side,
        anchors=Anchors((config.anchor_sizes,) if single else tuple((size,) for size in config.anchor_sizes)),
        regions_per_image=config.sampled_regions,
        postprocess=Postprocess(config.score_threshold, config.nms_threshold, config.detections),
        **({"straddle_threshold": None} if single else {}),
    )
    return detector


def load_detector(path: Path | str, *, score_threshold: float | None = None) -> tuple[TwoStageDetector, Card]:
    """The detector of a checkpoint that the command line made, with its card.

    score_threshold: another than the one it was trained with. Raises FileNotFoundError or ValueError naming the file,
    also for a checkpoint of a detector that was put together by hand: build that one again, then
    `regio.checkpoints.load_weights`.
    """
    card = read_card(path)
    if not card.model:
        raise ValueError(f"{path}: its card has no configuration; build the detector, then use load_weights")
    config = from_dict(ModelConfig, card.model)
    if score_threshold is not None:
        config = dataclasses.replace(config, score_threshold=score_threshold)
    detector = build_detector(config, len(card.class_names), pretrained=False)
    load_weights(path, detector)
    return detector, card


T = TypeVar("T")


def override(config: T, assignments: Sequence[str]) -> T:
    """`config` with fields changed by assignments such as "channels=256" or "optimizer.lr=0.01".

    A key is a path of field names; a field of a nested configuration may be named alone, so "channels" is
    "model.channels". Values are YAML. Raises ValueError for a word without "=", an unknown key (with the closest
    ones) and a value of another type.
    """
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator:
            raise ValueError(f"{assignment}: expected key=value")
        path = _find(config, key)
        config = _assign(config, path, _value(text), key)
    return config


def _value(text: str) -> Any:
    """YAML, and 6e-4, which YAML reads as a word."""
    value = yaml.safe_load(text)
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _paths(config: Any, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    paths = []
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        path = (*prefix, each.name)
        paths += _paths(value, path) if dataclasses.is_dataclass(value) else [path]
    return paths


def _find(config: Any, key: str) -> tuple[str, ...]:
    paths = _paths(config)
    wanted = tuple(key.split("."))
    matches = [path for path in paths if path[-len(wanted) :] == wanted]
    if not matches:
        names = [".".join(path) for path in paths]
        close = difflib.get_close_matches(key, names + [path[-1] for path in paths], n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else f"; there are {', '.join(names)}"
        raise ValueError(f"{key}: no such setting{hint}")
    return min(matches, key=len)


def _assign(config: Any, path: tuple[str, ...], value: Any, key: str) -> Any:
    name, *rest = path
    old = getattr(config, name)
    if rest:
        return dataclasses.replace(config, **{name: _assign(old, tuple(rest), value, key)})
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(old, tuple):
        value = tuple(value) if isinstance(value, list) else (value,)
    if old is not None and value is not None and type(value) is not type(old):
        raise ValueError(f"{key}: expected a value like {old!r}, got {value!r}")
    return dataclasses.replace(config, **{name: value})


def to_dict(config: Any) -> dict[str, Any]:
    """`config` as plain values for YAML or JSON; an optimizer or a schedule carries its `name`."""
    result: dict[str, Any] = {}
    for name, kind in {**OPTIMIZERS, **SCHEDULES}.items():
        if type(config) is kind:
            result["name"] = name
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        if dataclasses.is_dataclass(value):
            value = to_dict(value)
        result[each.name] = list(value) if isinstance(value, tuple) else value
    return result


def from_dict(kind: type[T], values: Mapping[str, Any]) -> T:
    """The inverse of `to_dict`. Raises ValueError for keys that `kind` does not have."""
    fields = {each.name for each in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - fields)
    if unknown:
        raise ValueError(f"{kind.__name__}: expected settings among {sorted(fields)}, got {unknown}")
    nested = {
        "model": lambda v: from_dict(ModelConfig, v),
        "training": lambda v: from_dict(TrainConfig, v),
        "optimizer": lambda v: from_dict(OPTIMIZERS[v["name"]], _without_name(v)),
        "schedule": lambda v: from_dict(SCHEDULES[v["name"]], _without_name(v)),
    }
    made = {k: nested[k](v) if k in nested else tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return kind(**made)


def _without_name(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != "name"}
