"""The four steps in which Faster R-CNN was first trained."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import nn

from regio.data import DetectionDataset, Sample, read_proposals, write_proposals
from regio.detector import TwoStageDetector
from regio.evaluate import Evaluation, Evaluator, ProposalRecall, predict
from regio.processes import together
from regio.proposals import RPN, ProposalFilter
from regio.recipes.staged_run import StagedRun
from regio.types import Detections

__all__ = ["Alternating"]


@dataclass(frozen=True)
class Alternating:
    """Four-step alternating training (Faster R-CNN, section 3.2).

    1. The proposal network, from the pretrained backbone. 2. The heads with the boxes it proposes, on a backbone of
    their own, also from the pretrained one: what is measured here is a detector that shares no features. 3. The
    proposal network again, new, on the backbone of step 2, which is fixed. 4. The heads of step 2 go on with the new
    proposals, the backbone still fixed, so that both read the same maps. The neck belongs to the backbone.

    Each step takes as many steps of gradients as the settings of the run say. train, test: which boxes are proposed in
    training images and in others (the released code: the best 2000 after suppression of all there are, and 300).
    network: the configuration of the proposal network alone, for the cards of its checkpoints, by which it proposes
    boxes for other detectors; None where it has none.
    """

    train: ProposalFilter = ProposalFilter(pre_nms_top_n=10**6, post_nms_top_n=2000)  # noqa: RUF009 (frozen)
    test: ProposalFilter = ProposalFilter(pre_nms_top_n=6000, post_nms_top_n=300)  # noqa: RUF009 (frozen)
    network: Mapping[str, Any] | None = None

    def __call__(self, model: nn.Module, run: StagedRun) -> Evaluation:
        """Raises TypeError for a model that is not a detector with a proposal network and heads."""
        if not isinstance(model, TwoStageDetector) or not isinstance(model.proposals, RPN) or not model.roi_heads:
            raise TypeError(f"model: expected a detector with a proposal network and heads, got {type(model).__name__}")
        run.begin(model, self)
        recall = ProposalRecall(run.evaluator.dataset)
        first, heads = copy.deepcopy(model).without_heads(), model.without_proposals()

        run.stage("1-proposals", first, evaluator=recall, configuration=self.network)
        dataset, evaluator = self._proposed("1-proposals", first, run)
        run.stage("2-heads", heads, dataset=dataset, evaluator=evaluator)

        with fixed(model.backbone, model.neck):
            run.stage("3-proposals", model.without_heads(), evaluator=recall, configuration=self.network)
            dataset, evaluator = self._proposed("3-proposals", model.without_heads(), run)
            run.stage("4-heads", heads, dataset=dataset, evaluator=evaluator)
        return run.finish(model)

    def _proposed(self, stage: str, network: TwoStageDetector, run: StagedRun) -> tuple[DetectionDataset, Evaluator]:
        """The data of `run` with the boxes that `network` proposes, which are kept in files of the stage."""
        files = [run.place(stage) / f"{name}.safetensors" for name in ("training", "validation")]
        data = (run.dataset, run.evaluator.dataset)
        with together(run.fabric):
            if run.fabric.is_global_zero:
                for each, file, filter in zip(data, files, (self.train, self.test), strict=True):
                    if not file.is_file():
                        run.say(f"{stage}: proposals of {len(each)} images into {file}")
                        _write(file, network, filter, each, run)
        run.fabric.barrier()
        dataset, validation = (
            each.with_proposals(read_proposals(file)) for each, file in zip(data, files, strict=True)
        )
        return dataset, cast(Evaluator, replace(cast(Any, run.evaluator), dataset=validation))


@contextmanager
def fixed(*modules: nn.Module) -> Iterator[None]:
    """Within, the weights of `modules` are not trained, and they are in evaluation mode."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    modes = [(each, each.training) for module in modules for each in module.modules()]
    for parameter in parameters:
        parameter.requires_grad_(False)
    for each, _ in modes:
        each.training = False
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
        for each, training in modes:
            each.training = training


@dataclass(frozen=True)
class _Boxes:
    """Keeps the proposals of each image."""

    dataset: DetectionDataset
    names: tuple[str, ...] = ()
    selects: str = ""

    def record(self, sample: Sample, prediction: Detections) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return prediction.boxes.cpu().numpy(), prediction.scores.cpu().numpy()

    def measure(self, records: Sequence[Any]) -> dict[str, float]:
        return {}

    def save(self, records: Sequence[Any], folder: Path) -> None:
        """Nothing."""


def _write(
    file: Path, network: TwoStageDetector, filter: ProposalFilter, dataset: DetectionDataset, run: StagedRun
) -> None:
    rpn = cast(RPN, network.proposals)
    own, rpn.test_filter = rpn.test_filter, filter
    try:
        with run.progress() as progress:
            found = predict(
                network,
                _Boxes(dataset),
                batch_size=run.config.batch_size,
                device=run.fabric.device,
                progress=progress.evaluating,
            )
    finally:
        rpn.test_filter = own
    write_proposals(file, {record.id: each for record, each in zip(dataset.records, found, strict=True)})
