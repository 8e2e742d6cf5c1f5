"""A training for classification before a detector's own."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from regio.data import object_crops
from regio.detector import TwoStageDetector
from regio.evaluate import ClassAccuracy, Evaluation
from regio.image_pyramid import ImagePyramid
from regio.recipes.fitted_head import FittedHead
from regio.recipes.staged_run import StagedRun
from regio.regions import SpatialPyramidPool
from regio.roi_heads import SVMHead
from regio.spatial_pyramid_classifier import SpatialPyramidClassifier

__all__ = ["ClassifierFirst"]


@dataclass(frozen=True)
class ClassifierFirst:
    """SPPnet's convolutions and fully connected layers, trained to classify the objects of the data by their crops,
    then `then`: the paper's training on ImageNet (section 3), on what there is.

    sides: of the crops in pixels, one (224) or several by turns (224 and 180), each for as many crops as there are.
    """

    sides: tuple[int, ...]
    then: FittedHead

    def __call__(self, model: nn.Module, run: StagedRun) -> Evaluation:
        """Raises TypeError for a model that is not an SPPnet."""
        head = model.roi_heads[0] if isinstance(model, TwoStageDetector) and len(model.roi_heads) else None
        pool = head.extractor.extractors[0] if isinstance(head, SVMHead) else None
        if not isinstance(model, TwoStageDetector) or not isinstance(head, SVMHead):
            raise TypeError(f"model: expected an SPPnet, got {type(model).__name__}")
        if not isinstance(pool, SpatialPyramidPool):
            raise TypeError(f"model: expected an SPPnet, got a detector that reads regions by {type(pool).__name__}")
        run.begin(model, self)
        crops, others = object_crops(run.dataset), object_crops(run.evaluator.dataset)
        backbone = model.backbone.backbone if isinstance(model.backbone, ImagePyramid) else model.backbone
        classifier = SpatialPyramidClassifier(
            backbone,
            head.trunk,
            len(crops.class_names),
            mean=model.preprocess.mean,
            std=model.preprocess.std,
            levels=pool.levels,
            sides=self.sides,
            switch_every=len(crops),
        )
        run.stage("0-classification", classifier, dataset=crops, evaluator=ClassAccuracy(others))
        return self.then.stages(model, run)
