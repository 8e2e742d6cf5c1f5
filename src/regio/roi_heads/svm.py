"""The head of R-CNN and SPPnet: linear SVMs for classes, ridge regressions for boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regio.boxes import BoxCoder
from regio.postprocess import Postprocess
from regio.regions import Levels
from regio.roi_heads.box import BoxHead, BoxOutput
from regio.roi_heads.scores import Margins
from regio.roi_heads.trunks import LayeredTrunk
from regio.types import Detections, FeatureMap, Regions

__all__ = ["SVMHead"]


class SVMHead(BoxHead):
    """Region features, the layers of a trunk, one linear SVM a class on one of them, and one linear regression a class
    on another (R-CNN, sections 2.1 and 2.2 and appendix C; SPPnet, section 4.1).

    extractor: reads the maps. trunk: gives the layers. num_classes: with the background. layer: the one that the SVMs
    read, "fc7" as a rule. box_layer: the one that the regressions read; None for boxes that stay as they are. Both are
    linear layers like any others, whose weights are fitted to stored features instead of learnt by gradients
    (`regio.fitting`); before that a detector finds nothing, since each score is -inf.

    Scores are margins, above 0 on the side of the class. Of each class the `per_class` best regions of an image are
    candidates, and of these only those with a score of at least `thresholds` [classes], -inf unless fitted: the
    released code sets them so that 40 candidates of a class are left an image, in the mean. postprocess: which
    candidates are detections; its score threshold is a margin too. chunk: regions that are read at once.

    Raises ValueError for a layer that the trunk does not have.
    """

    class_layers: ClassVar[tuple[str, ...]] = ("class_logits", "box_deltas", "thresholds")  # new for other classes
    thresholds: Tensor

    def __init__(
        self,
        extractor: Levels,
        trunk: LayeredTrunk,
        num_classes: int,
        *,
        layer: str = "fc7",
        box_layer: str | None = "pool5",
        postprocess: Postprocess = Postprocess(-torch.inf, nms_threshold=0.3),  # noqa: B008 (frozen)
        per_class: int = 100,
        chunk: int = 32,
    ) -> None:
        super().__init__(coder=BoxCoder(), scores=Margins(), postprocess=postprocess)
        widths = trunk.widths
        for name, value in (("layer", layer), ("box_layer", box_layer)):
            if value is not None and value not in widths:
                raise ValueError(f"{name}: expected one of {', '.join(widths)}, which the trunk has, got {value}")
        self.extractor, self.trunk = extractor, trunk
        self.layer, self.box_layer = layer, box_layer
        self.per_class, self.chunk = per_class, chunk
        self.class_logits = nn.Linear(widths[layer], num_classes - 1)
        self.box_deltas = None if box_layer is None else nn.Linear(widths[box_layer], 4 * (num_classes - 1))
        for linear in (self.class_logits, self.box_deltas):
            if linear is not None:
                linear.requires_grad_(False)
                nn.init.zeros_(linear.weight)
                nn.init.zeros_(linear.bias)
        nn.init.constant_(self.class_logits.bias, -torch.inf)
        self.register_buffer("thresholds", torch.full((num_classes - 1,), -torch.inf))

    @property
    def read_layers(self) -> dict[str, int]:
        """The layers that are read, and their widths."""
        names = dict.fromkeys(name for name in (self.layer, self.box_layer) if name is not None)
        return {name: self.trunk.widths[name] for name in names}

    def layers(self, maps: Sequence[FeatureMap], r: Regions, names: Sequence[str] = ()) -> dict[str, Tensor]:
        """The features [R, width] of regions in the layers `names`, by default those that are read."""
        parts = [self.trunk.layers(self.extractor(maps, some)) for some in r.chunks(self.chunk)]
        return {name: torch.cat([part[name] for part in parts]) for name in names or self.read_layers}

    def predict(self, maps: Sequence[FeatureMap], r: Regions) -> BoxOutput:
        logits, deltas = [], []
        for some in r.chunks(self.chunk):
            layers = self.trunk.layers(self.extractor(maps, some))
            logits.append(_precise(self.class_logits(layers[self.layer])))
            if self.box_deltas is None or self.box_layer is None:
                deltas.append(logits[-1].new_zeros(len(some), 1, 4))
            else:  # class 0, the background, has none
                moved = _precise(self.box_deltas(layers[self.box_layer])).unflatten(1, (-1, 4))
                deltas.append(F.pad(moved, (0, 0, 1, 0)))
        return BoxOutput(torch.cat(logits), torch.cat(deltas))

    def detect(
        self, scores: Tensor, deltas: Tensor, boxes: list[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        parts = [self._candidates(score) for score in scores.split([len(each) for each in boxes])]
        return super().detect(torch.cat(parts), deltas, boxes, sizes)

    def is_candidate(self, scores: Tensor) -> Tensor:
        return super().is_candidate(scores) & (scores >= self.thresholds)

    def _candidates(self, scores: Tensor) -> Tensor:
        """The scores [P, classes] of one image, -inf for what is no candidate."""
        candidate = scores >= self.thresholds
        if len(scores) > self.per_class:
            candidate &= scores >= scores.topk(self.per_class, 0).values[-1]
        return scores.where(candidate, -torch.inf)


def _precise(y: Tensor) -> Tensor:
    return y.to(torch.promote_types(y.dtype, torch.float32))
