"""R-CNN's and SPPnet's training: a network by gradients, then SVMs and box regressions fitted to its features."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from regio.detector import TwoStageDetector
from regio.errors import Interrupted
from regio.evaluate import Evaluation
from regio.fitting import BoxRegression, FeatureStore, HardNegativeMining, LabelledRegions, label_regions
from regio.fitting.extraction import open_store, store_features
from regio.fitting.thresholds import score_thresholds
from regio.recipes.alternating import fixed
from regio.recipes.staged_run import StagedRun
from regio.roi_heads import SVMHead
from regio.systems.rcnn import fine_tuning
from regio.train import stop_requests

__all__ = ["FittedHead"]


@dataclass(frozen=True)
class FittedHead:
    """Four stages (R-CNN, section 2.3 and appendix C; SPPnet, section 4.1).

    1. Fine-tuning: what comes after the region operation, with a softmax in place of the SVMs; what comes before it
    stays as it is. For R-CNN that is the whole network, for SPPnet its fully connected layers. What is measured at the
    end of this stage is that softmax. 2. The features of all regions of the training images, on disk. 3. One linear
    SVM a class. 4. One box regression a class, where the head has them.

    fine_tune: False leaves stage 1 out. regions_per_image, background_low, rate: of stage 1, see
    `regio.systems.rcnn.fine_tuning`. mining, regression: of stages 3 and 4. candidates: of a class, that the score
    thresholds leave an image in the mean; None for no thresholds. dtype: of the features on disk, whose size is said
    before they are made. keep_features: whether they stay in the run's folder `features` at the end.
    """

    fine_tune: bool = True
    regions_per_image: int = 64
    background_low: float = 0.0
    rate: float = 1.0
    mining: HardNegativeMining = HardNegativeMining()  # noqa: RUF009 (frozen)
    regression: BoxRegression = BoxRegression()  # noqa: RUF009 (frozen)
    candidates: int | None = 40
    dtype: Literal["float16", "float32"] = "float16"
    keep_features: bool = False

    def __call__(self, model: nn.Module, run: StagedRun) -> Evaluation:
        """Raises TypeError for a model that is not a detector with an `SVMHead`; OSError where the disk has no room for
        the features."""
        run.begin(model, self)
        return self.stages(model, run)

    def stages(self, model: nn.Module, run: StagedRun) -> Evaluation:
        """The same of a run that has begun."""
        if not isinstance(model, TwoStageDetector) or not isinstance(next(iter(model.roi_heads), None), SVMHead):
            raise TypeError(f"model: expected a detector with an SVMHead, got {type(model).__name__}")
        head = model.roi_heads[0]
        assert isinstance(head, SVMHead)
        if self.fine_tune:
            tuned = fine_tuning(
                model, regions_per_image=self.regions_per_image, background_low=self.background_low, rate=self.rate
            )
            with fixed(model.backbone, model.neck):
                model.backbone.training = True  # it alone, not its layers: an image pyramid draws one scale
                run.stage("1-fine-tuning", tuned, config=replace(run.config, evaluate_every=1e9))  # at the end
        run.make("2-features", model, lambda place: self._features(model, run))
        run.make("3-svms", model, lambda place: self._svms(model, head, run))
        if head.box_deltas is not None:
            run.make("4-boxes", model, lambda place: self._boxes(model, head, run))
        if not self.keep_features and run.fabric.is_global_zero:
            shutil.rmtree(run.folder / "features", ignore_errors=True)
        return run.finish(model)

    def _features(self, model: TwoStageDetector, run: StagedRun) -> dict[str, float]:
        store = self._store(model, run)
        return {"regions": float(store.rows), "bytes": float(store.nbytes)}

    def _svms(self, model: TwoStageDetector, head: SVMHead, run: StagedRun) -> dict[str, float]:
        layer, regions = self._store(model, run).layer(head.layer), _labels(run)
        found = self.mining(layer, regions, run.dataset.class_names, run.say)
        for note in found.notes:
            run.say(note)
        _set(head.class_logits, found.weight, found.bias)
        if self.candidates is not None:
            own = score_thresholds(layer, regions, found, per_image=self.candidates, per_class=head.per_class)
            head.thresholds.copy_(own)
        else:
            head.thresholds.fill_(-torch.inf)
        return {"classes": float(found.bias.isfinite().sum())}

    def _boxes(self, model: TwoStageDetector, head: SVMHead, run: StagedRun) -> dict[str, float]:
        assert head.box_layer is not None and head.box_deltas is not None
        layer = self._store(model, run).layer(head.box_layer)
        found = self.regression(layer, _labels(run), run.dataset.class_names)
        for note in found.notes:
            run.say(note)
        _set(head.box_deltas, found.weight.flatten(0, 1), found.bias.flatten())
        return {"classes": float(found.weight.any((1, 2)).sum())}

    def _store(self, model: TwoStageDetector, run: StagedRun) -> FeatureStore:
        """The features of the training images, of which those that are missing are made."""
        store = open_store(run.folder / "features", model, run.dataset, self.dtype)
        if store.missing:
            run.say(f"{store}, in {store.folder}")
            with stop_requests() as stop_requested, run.progress() as progress:
                done = store_features(
                    store,
                    model,
                    run.dataset,
                    device=run.fabric.device,
                    progress=progress.evaluating,
                    stop=stop_requested,
                )
            if not done:
                there = len(store.counts) - len(store.missing)
                raise Interrupted(
                    f"stopped with the features of {there} of {len(store.counts)} images; they are kept; go on with "
                    "--resume"
                )
        return store


def _labels(run: StagedRun) -> Callable[[int], LabelledRegions]:
    return lambda image: label_regions(run.dataset, image)


@torch.no_grad()
def _set(linear: nn.Linear, weight: torch.Tensor, bias: torch.Tensor) -> None:
    linear.weight.copy_(weight)
    linear.bias.copy_(bias)
