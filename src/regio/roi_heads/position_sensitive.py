"""The head of R-FCN: nothing is learned after the region operation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from regio.boxes import BoxCoder, Coder
from regio.losses import MeanLoss, Reduction
from regio.matching import RegionSampler
from regio.postprocess import Postprocess
from regio.regions import Levels, vote
from regio.roi_heads.box import BoxHead, BoxOutput
from regio.roi_heads.scores import Scores, Softmax
from regio.types import FeatureMap, Regions

__all__ = ["RFCNHead"]


class RFCNHead(BoxHead):
    """Position-sensitive scores and refinements, each the mean over the parts of a region (Dai et al. 2016, section
    2.2).

    extractor: from the maps to [R, L, *bins], L = ``scores.outputs(num_classes)``. box_extractor: from the maps to
    [R, 4, *bins], one refinement for all classes, or [R, 4 num_classes, *bins]. Both make their score maps themselves:
    `regio.regions.score_maps`, or `DeformablePositionSensitive`, whose parts learn where to read. All layers are in
    them, so that a region more costs no more than reading its parts. The rest: see `BoxHead`.

    Online hard example mining (section 2.3) is ``RegionSampler(matcher, TakeAll())`` with ``HardExamples(128)``.

    Law: ``logits[r, l]`` is the mean of ``extractor(maps, regions)[r, l]`` over the parts, and so with the refinements.
    """

    def __init__(
        self,
        extractor: Levels,
        box_extractor: Levels,
        *,
        sampler: RegionSampler | None = None,
        coder: Coder = BoxCoder((10.0, 10.0, 5.0, 5.0)),  # noqa: B008 (frozen)
        scores: Scores = Softmax(),  # noqa: B008 (frozen)
        beta: float = 1.0,
        box_weight: float = 1.0,
        reduction: Reduction = MeanLoss(),  # noqa: B008 (frozen)
        postprocess: Postprocess = Postprocess(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__(
            sampler=sampler,
            coder=coder,
            scores=scores,
            beta=beta,
            box_weight=box_weight,
            reduction=reduction,
            postprocess=postprocess,
        )
        self.extractor, self.box_extractor = extractor, box_extractor

    @property
    def class_layers(self) -> tuple[str, ...]:
        """All layers: each makes maps of classes or of boxes, and is new for other classes."""
        layers = (name for name, module in self.named_modules() if isinstance(module, nn.Conv2d | nn.Linear))
        return (*layers, "coder")

    def predict(self, maps: Sequence[FeatureMap], r: Regions) -> BoxOutput:
        """As of `BoxHead`. The parts are averaged in float32 at least, also where the score maps are in half precision:
        then the mean is rounded less than they are."""
        parts, box_parts = self.extractor(maps, r), self.box_extractor(maps, r)
        precise = torch.promote_types(parts.dtype, torch.float32)
        return BoxOutput(vote(parts.to(precise)), vote(box_parts.to(precise)).unflatten(1, (-1, 4)))
