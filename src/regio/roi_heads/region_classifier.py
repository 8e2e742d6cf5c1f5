"""A head that only classifies: what R-CNN and SPPnet fine-tune a network with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from regio.matching import RegionSampler
from regio.postprocess import Postprocess
from regio.regions import Levels
from regio.roi_heads.box import BoxHead, BoxOutput
from regio.roi_heads.trunks import LayeredTrunk
from regio.types import FeatureMap, Regions

__all__ = ["RegionClassifier"]


class RegionClassifier(BoxHead):
    """Region features, a trunk, then a softmax over the classes and the background (R-CNN, section 2.3); boxes stay as
    they are, and the only loss is `class`.

    extractor: reads the maps. trunk: gives the features that are classified. num_classes: with the background. chunk:
    regions that are read at once: two thousand crops of the image do not fit in memory together. The layer starts as
    N(0, 0.01), its bias at 0, and learns at `rate` times the rate of the others (10 in R-CNN's released configuration,
    20 for the bias). The rest: see `BoxHead`.
    """

    class_layers: ClassVar[tuple[str, ...]] = ("class_logits",)

    def __init__(
        self,
        extractor: Levels,
        trunk: LayeredTrunk,
        num_classes: int,
        *,
        sampler: RegionSampler,
        postprocess: Postprocess = Postprocess(nms_threshold=0.3),  # noqa: B008 (frozen)
        chunk: int = 32,
        rate: float = 1.0,
    ) -> None:
        super().__init__(sampler=sampler, postprocess=postprocess)
        self.extractor, self.trunk, self.chunk = extractor, trunk, chunk
        self.class_logits = nn.Linear([*trunk.widths.values()][-1], num_classes)
        self.rate_factors = {"class_logits": rate}
        nn.init.normal_(self.class_logits.weight, std=0.01)
        nn.init.zeros_(self.class_logits.bias)

    def predict(self, maps: Sequence[FeatureMap], r: Regions) -> BoxOutput:
        parts = [self.class_logits(self.trunk(self.extractor(maps, some))) for some in r.chunks(self.chunk)]
        logits = torch.cat(parts)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return BoxOutput(logits, logits.new_zeros(len(r), 1, 4))

    def compare(self, output: BoxOutput, r: Regions, labels: Tensor, objects: Tensor) -> dict[str, Tensor]:
        """The loss `class` for the true labels [R], 0 for background."""
        of_class = self.scores.losses(output.logits, labels)
        return {"class": self.reduction(of_class, torch.zeros_like(of_class), r.image)[0]}
