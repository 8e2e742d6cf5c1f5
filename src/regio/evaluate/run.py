"""What is measured, and a model run over a data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.data import DataLoader

from regio.data.dataset import DetectionDataset, Sample
from regio.data.loading import Batch, collate
from regio.evaluation_mode import evaluation_mode

__all__ = ["Evaluation", "Evaluator", "Predict", "evaluate", "predict"]

Predict = Callable[..., Sequence[Any]]
"""Images, uint8 [3, H, W] of any sizes, to what is predicted for each, for instance its `Detections`. Proposals of the
data set, if it has any, are a second list: boxes [P, 4] in pixels of each image."""


class Evaluator(Protocol):
    """Measures what a model predicts for a data set.

    dataset: its images are what the model is given. names: of the numbers that `measure` gives. selects: the one of
    them by which the best weights of a training are chosen, the larger the better.
    """

    @property
    def dataset(self) -> DetectionDataset: ...

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def selects(self) -> str: ...

    def record(self, sample: Sample, prediction: Any, /) -> Any:
        """What is kept of the prediction for one image. It is pickled where several processes share the images. The
        sample has no masks; the segmentations are in the data set's records."""

    def measure(self, records: Sequence[Any], /) -> dict[str, float]:
        """The numbers, from a record for each image in the order of `dataset`; NaN where nothing is defined."""

    def save(self, records: Sequence[Any], folder: Path, /) -> None:
        """Leave in `folder` what a person may want of the records, if anything."""


@dataclass(frozen=True)
class Evaluation:
    """numbers: by name. records: one for each image of the evaluator's data set, in its order."""

    numbers: dict[str, float]
    records: list[Any]


def predict(
    model: Predict,
    evaluator: Evaluator,
    *,
    share: range | None = None,
    batch_size: int = 4,
    workers: int = 0,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> list[Any]:
    """The evaluator's records of what `model` predicts for its images, in their order. It is given the wide images
    first, then the tall ones: a batch of both is padded to a square.

    share: the indices of the images to predict for; default all. batch_size: images a call. workers: processes that
    read images ahead. device: where images are put before the call. progress: called with (images done, images) after
    each batch. No gradients are recorded; a module is in evaluation mode meanwhile, see `evaluation_mode`.

    Raises ValueError when `model` returns another number of predictions than it was given images.
    """
    dataset = evaluator.dataset.without_masks()
    if share is not None:
        dataset = dataset.subset(share)
    tall = [height > width for height, width in dataset.sizes]
    order = sorted(range(len(tall)), key=tall.__getitem__)
    loader = DataLoader(dataset.subset(order), batch_size=batch_size, num_workers=workers, collate_fn=_with_batch)
    records: list[Any] = []
    with torch.no_grad(), evaluation_mode(model) if isinstance(model, nn.Module) else nullcontext():
        for samples, batch in loader:
            batch = batch.to(device)
            found = model(batch.images, *batch.given)
            if len(found) != len(samples):
                raise ValueError(f"model: expected {len(samples)} predictions, one an image, got {len(found)}")
            records += [evaluator.record(*each) for each in zip(samples, found, strict=True)]
            if progress is not None:
                progress(len(records), len(dataset))
    return [record for _, record in sorted(zip(order, records, strict=True), key=lambda each: each[0])]


def _with_batch(samples: list[Sample]) -> tuple[list[Sample], Batch]:
    return samples, collate(samples)


def evaluate(
    model: Predict,
    evaluator: Evaluator,
    *,
    batch_size: int = 4,
    workers: int = 0,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """What `evaluator` measures of `model`; arguments and errors as for `predict`."""
    records = predict(model, evaluator, batch_size=batch_size, workers=workers, device=device, progress=progress)
    return Evaluation(evaluator.measure(records), records)
