"""Detectors that other libraries have trained."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from regio.config.systems.base import System
from regio.config.systems.masks import mask_evaluator
from regio.settings import named, setting

if TYPE_CHECKING:
    from regio.data import DetectionDataset
    from regio.detector import TwoStageDetector
    from regio.evaluate import Evaluator
    from regio.weights import Architecture

__all__ = ["Detectron2", "Published", "Torchvision"]


@dataclass(frozen=True)
class Published(System):
    """Those of the detectors that other libraries have trained, to begin a training with their weights."""

    detector: str = setting("", "its name there")
    short_side: int | None = setting(None, "of the scaled image, in pixels; null for as published", ge=1)
    long_side: int | None = setting(None, "at most, of the scaled image, in pixels; null for as published", ge=1)
    score_threshold: float = setting(0.05, "lowest score of a detection", ge=0, le=1)

    @abstractmethod
    def architecture(self) -> Architecture:
        """What the detector is made of. Raises ValueError for a name that the library does not have."""

    def build(self, classes: int, *, pretrained: bool = True) -> TwoStageDetector:
        """Its weights are random: those of the library are loaded by `regio.weights`. Raises ValueError for
        `pretrained`."""
        if pretrained:
            raise ValueError("--weights: expected torchvision:NAME or detectron2:NAME, which this model begins with")
        made = self.architecture().build(classes + 1)
        self.adjust(made)
        return made

    def adjust(self, detector: TwoStageDetector) -> None:
        """Give `detector` the sizes and the threshold of these settings."""
        own = detector.preprocess
        detector.preprocess = replace(
            own, short_side=self.short_side or own.short_side, long_side=self.long_side or own.long_side
        )
        head: Any = detector.roi_heads[0]
        head.postprocess = replace(head.postprocess, score_threshold=self.score_threshold)

    def dataset(self, dataset: DetectionDataset) -> DetectionDataset:
        return dataset.with_known_masks() if self.architecture().masks else dataset

    def evaluator(self, dataset: DetectionDataset) -> Evaluator:
        return mask_evaluator(dataset) if self.architecture().masks else super().evaluator(dataset)


@dataclass(frozen=True)
class Torchvision(Published):
    """A detector of torchvision."""

    detector: str = setting("fasterrcnn_resnet50_fpn_v2", "one of regio.weights.TORCHVISION")

    def architecture(self) -> Architecture:
        from regio.weights import TORCHVISION

        return named(TORCHVISION, self.detector, "torchvision")


@dataclass(frozen=True)
class Detectron2(Published):
    """A detector of detectron2's model zoo."""

    detector: str = setting("faster_rcnn_R_50_FPN_3x", "one of regio.weights.DETECTRON2")

    def architecture(self) -> Architecture:
        from regio.weights import DETECTRON2

        return named(DETECTRON2, self.detector, "detectron2")
