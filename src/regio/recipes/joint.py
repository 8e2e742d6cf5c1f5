"""All parts of a model trained together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from regio.detector import TwoStageDetector
from regio.evaluate import Evaluation, evaluation_mode
from regio.recipes.staged_run import StagedRun
from regio.regions import Convolved, PositionSensitive
from regio.types import FeatureMap, Regions

__all__ = ["Joint", "require_box_gradients"]


@dataclass(frozen=True)
class Joint:
    """One training by gradients of the sum of all losses (Faster R-CNN, section 3.2: approximate joint training)."""

    def __call__(self, model: nn.Module, run: StagedRun) -> Evaluation:
        return run.train(model)


def require_box_gradients(detector: TwoStageDetector) -> None:
    """Raise ValueError where the extractor of a head has no gradient for the coordinates of boxes, through which
    proposals could be trained (Faster R-CNN, section 3.2, non-approximate joint training). Whether it has is seen from
    one box on the maps of an image of noise."""
    with evaluation_mode(detector), torch.no_grad():
        noise = torch.rand((1, 3, 128, 128), generator=torch.Generator().manual_seed(0))
        maps: list[FeatureMap] = [*detector.neck(detector.backbone(noise))]
    for head in detector.roi_heads:
        extractor: Any = head.extractor
        boxes = torch.tensor([[9.0, 21.0, 83.0, 77.0]], requires_grad=True)
        y = extractor(maps, Regions(boxes, torch.zeros(1, dtype=torch.int64)))
        if y.requires_grad:
            (gradient,) = torch.autograd.grad(y.square().sum(), boxes, allow_unused=True)
            if gradient is not None and bool(gradient.any()):
                continue
        read = extractor.extractors[0]
        while isinstance(read, Convolved | PositionSensitive):
            read = read.extractor
        raise ValueError(
            "extractor: expected one with gradients for boxes, such as RoIAlign or RoIWarp without rounding, to train "
            f"proposals through them; {type(read).__name__} has none"
        )
