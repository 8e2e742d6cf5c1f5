"""What every system is: settings, the detector built of them, and what measures it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from regio.settings import as_dict, from_dict

if TYPE_CHECKING:
    from regio.data import DetectionDataset
    from regio.detector import TwoStageDetector
    from regio.evaluate import Evaluator
    from regio.recipes import Recipe
    from regio.run_report import Results

__all__ = ["System"]


@dataclass(frozen=True)
class System(ABC):
    """The settings of a system. Each has the setting `score_threshold`, the lowest score of a detection.

    needs_proposals: whether boxes are given to its model with each image, in training and afterwards, since it finds
    none itself. shown_score: lowest score of the detections in pictures, where none is asked for. weak_score: one that
    weak detections have too.
    """

    needs_proposals: ClassVar[bool] = False
    shown_score: ClassVar[float] = 0.5
    weak_score: ClassVar[float] = 0.05

    @abstractmethod
    def build(self, classes: int, *, pretrained: bool = True) -> TwoStageDetector:
        """The model for `classes` classes, not counting the background.

        With `pretrained` False the backbone starts from random weights, for a checkpoint that brings its own. Raises
        ValueError for settings that do not fit, FileNotFoundError for weights that are nowhere (naming the file).
        """

    def dataset(self, dataset: DetectionDataset) -> DetectionDataset:
        """`dataset` with what this system is trained on: masks, for some. Raises ValueError where it has none."""
        return dataset

    def prepare(self, detector: TwoStageDetector, dataset: DetectionDataset) -> list[str]:
        """Give `detector`, just built, what it takes from the data that it will be trained on: nothing, for most.
        Returns what a user should know of it."""
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
        return kind(evaluator, records, self.shown_score)

    def recipe(self) -> Recipe:
        """How the model is trained."""
        from regio.recipes import Joint

        return Joint()

    def labels(self, class_names: Sequence[str]) -> tuple[str, ...]:
        """The names of the labels 1, 2, ... of what the model finds."""
        return tuple(class_names)

    def with_score_threshold(self, threshold: float) -> Self:
        """The same with another lowest score of a detection. Raises ValueError for a number that is no score of this
        system, such as 2 for a probability."""
        return from_dict(type(self), as_dict(self) | {"score_threshold": threshold})
