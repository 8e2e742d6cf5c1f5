"""What every system is: settings, the network built of them, what measures it, and what is shown of what it finds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from regio.settings import as_dict, from_dict

if TYPE_CHECKING:
    import torch
    from torch import nn

    from regio.compare.kinds import Kind
    from regio.data import DetectionDataset
    from regio.evaluate import Evaluator
    from regio.outputs import Output
    from regio.ready import InferencePrecision, Ready
    from regio.recipes import Recipe
    from regio.run_report import Results

__all__ = ["System"]


@dataclass(frozen=True)
class System(ABC):
    """The settings of a system. Each whose detections have scores has the setting `score_threshold`, the lowest.

    needs_proposals: whether boxes are given to its model with each image, in training and afterwards, since it finds
    none itself. shown_score: lowest score of the detections in pictures, where none is asked for; None for a system
    whose results are not filtered by scores. weak_score: one that weak detections have too. drops_difficult: whether
    objects marked as difficult are no training data unless `difficult=true`; those of a class map are part of it.
    """

    needs_proposals: ClassVar[bool] = False
    drops_difficult: ClassVar[bool] = True
    shown_score: ClassVar[float | None] = 0.5
    weak_score: ClassVar[float] = 0.05

    @abstractmethod
    def build(self, classes: int, *, pretrained: bool = True) -> nn.Module:
        """The model for `classes` classes, not counting the background: a `TwoStageDetector`, for most.

        With `pretrained` False the backbone starts from random weights, for a checkpoint that brings its own. Raises
        ValueError for settings that do not fit, FileNotFoundError for weights that are nowhere (naming the file).
        """

    def images(self, dataset: DetectionDataset) -> DetectionDataset:
        """`dataset` with those of its images alone that this system can be trained on and measured by: all, for most.
        Raises ValueError where there is none."""
        return dataset

    def dataset(self, dataset: DetectionDataset) -> DetectionDataset:
        """`dataset` with what this system is trained on: masks, or class maps, for some. Raises ValueError where it has
        none."""
        return dataset

    def prepare(self, detector: Any, dataset: DetectionDataset) -> list[str]:
        """Give `detector`, the model just built, what it takes from the data that it will be trained on: nothing, for
        most. Returns what a user should know of it."""
        return []

    def evaluator(self, dataset: DetectionDataset) -> Evaluator:
        """What measures the model on `dataset`, as far as that is annotated: its notes say what is not measured.
        Boxes, for most."""
        from regio.evaluate import BoxEvaluator

        return BoxEvaluator(dataset)

    def results(self, evaluator: Any, records: Sequence[Any]) -> Results:
        """What a run leaves for people to look at, of the records of this system's evaluator."""
        from regio.evaluate import MaskEvaluator
        from regio.run_report import BoxResults, MaskResults

        kind = MaskResults if isinstance(evaluator, MaskEvaluator) else BoxResults
        assert self.shown_score is not None
        return kind(evaluator, records, self.shown_score)

    def ready(self, model: Any, device: torch.device, precision: InferencePrecision) -> Ready:
        """The model made ready for inference on `device`."""
        from regio.ready import ReadyDetector

        return ReadyDetector(model, device, precision)

    def output(self, labels: Sequence[str], score: float | None) -> Output:
        """What is left of what the model finds in photos. labels: the names of the labels 1, 2, ... score: lowest of
        what is kept, for a system that has scores."""
        from regio.outputs import DetectionOutput

        assert score is not None
        return DetectionOutput(labels, score, self.weak_score)

    def recipe(self) -> Recipe:
        """How the model is trained."""
        from regio.recipes import Joint

        return Joint()

    def labels(self, class_names: Sequence[str]) -> tuple[str, ...]:
        """The names of the labels 1, 2, ... of what the model finds."""
        return tuple(class_names)

    def compared_as(self) -> Kind:
        """What a comparison measures and shows of what the model gives: detections, for most."""
        from regio.compare.kinds import DETECTIONS

        return DETECTIONS

    def with_score_threshold(self, threshold: float) -> Self:
        """The same with another lowest score of a detection. Raises ValueError for a number that is no score of this
        system, such as 2 for a probability, and for a system without scores."""
        if self.shown_score is None:
            raise ValueError("score: every pixel has a class, and none is left out by its score")
        return from_dict(type(self), as_dict(self) | {"score_threshold": threshold})
