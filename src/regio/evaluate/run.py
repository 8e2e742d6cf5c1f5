"""A detector, run over a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from regio.data.dataset import DetectionDataset
from regio.evaluate.coco import CocoMetrics, coco_metrics, detections_to_coco
from regio.types import Detections

__all__ = ["Detect", "evaluate", "evaluation_mode", "predict"]

Detect = Callable[[list[Tensor]], list[Detections]]
"""Images, uint8 [3, H, W] of any sizes, to the detections in each, in its pixels."""


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Within, `module` is in evaluation mode: no dropout, no stochastic depth, and batch norm neither uses the batch
    nor learns from it. Afterwards each submodule is in the mode it was in, also where modes were mixed."""
    modes = [(each, each.training) for each in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for each, training in modes:
            each.training = training


def predict(
    detect: Detect,
    dataset: DetectionDataset,
    *,
    batch_size: int = 4,
    workers: int = 0,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """What `detect` finds in `dataset`, in COCO's results form, in the order of the images.

    batch_size: images a call. workers: processes that read images ahead. device: where images are put before the call.
    progress: called with (images done, images) after each batch. No gradients are recorded; a module is in evaluation
    mode meanwhile, see `evaluation_mode`.

    Raises ValueError when `detect` returns another number of results than it was given images.
    """
    loader = DataLoader(dataset, batch_size=batch_size, num_workers=workers, collate_fn=list)
    results: list[dict[str, Any]] = []
    done = 0
    with torch.no_grad(), evaluation_mode(detect) if isinstance(detect, nn.Module) else nullcontext():
        for samples in loader:
            found = detect([sample.image.to(device) for sample in samples])
            if len(found) != len(samples):
                raise ValueError(f"detect: expected {len(samples)} results, one an image, got {len(found)}")
            for sample, detections in zip(samples, found, strict=True):
                results += detections_to_coco(detections, sample.id, dataset.category_ids)
            done += len(samples)
            if progress is not None:
                progress(done, len(dataset))
    return results


def evaluate(
    detect: Detect,
    dataset: DetectionDataset,
    *,
    batch_size: int = 4,
    workers: int = 0,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> tuple[CocoMetrics, list[dict[str, Any]]]:
    """COCO's box metrics of `detect` on `dataset`, and its predictions; arguments and errors as for `predict`."""
    predictions = predict(detect, dataset, batch_size=batch_size, workers=workers, device=device, progress=progress)
    return coco_metrics(dataset.to_coco(), predictions), predictions
