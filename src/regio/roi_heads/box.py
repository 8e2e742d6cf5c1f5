"""Box heads: from the boxes they are given to classes and better boxes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from regio.boxes import BoxCoder, Coder
from regio.losses import MeanLoss, Reduction, smooth_l1
from regio.matching import BalancedSampler, Matcher, RegionSampler
from regio.postprocess import Postprocess
from regio.regions import Levels
from regio.roi_heads.scores import Scores, Softmax
from regio.types import Detections, FeatureMap, Regions, Targets

__all__ = ["BoxHead", "BoxOutput", "FastRCNNHead"]


class BoxOutput(NamedTuple):
    """logits: [R, L], see `regio.roi_heads.scores`. deltas: [R, C, 4], one refinement a class (the background is class
    0), or [R, 1, 4], one for all of them."""

    logits: Tensor
    deltas: Tensor

    def deltas_of(self, rows: Tensor, labels: Tensor) -> Tensor:
        """The refinements [P, 4] of the regions `rows` [P] for the classes `labels` [P]."""
        return self.deltas[rows, labels if self.deltas.shape[1] > 1 else 0]


class BoxHead(nn.Module, ABC):
    """A head that classifies regions and refines their boxes; a subclass is its `predict`.

    sampler: which regions it is trained on, and their labels. coder: how a refinement is written. scores: what class
    outputs mean, and their loss. beta: where the box loss turns from a square to a line (1 in Fast R-CNN, 0 for L1).
    box_weight: the factor on the box loss, lambda of Fast R-CNN's equation 1; 0 trains a classifier alone. reduction:
    how the losses of single regions become one number. postprocess: which of the scored boxes are detections.

    Raises ValueError for a negative box_weight.
    """

    def __init__(
        self,
        *,
        sampler: RegionSampler | None = None,
        coder: Coder = BoxCoder((10.0, 10.0, 5.0, 5.0)),  # noqa: B008 (frozen)
        scores: Scores = Softmax(),  # noqa: B008 (frozen)
        beta: float = 1.0,
        box_weight: float = 1.0,
        reduction: Reduction = MeanLoss(),  # noqa: B008 (frozen)
        postprocess: Postprocess = Postprocess(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__()
        self.sampler = sampler or RegionSampler(Matcher(positive=0.5, background=0.5), BalancedSampler(512, 0.25))
        if box_weight < 0:
            raise ValueError(f"box_weight: expected a factor of 0 or more, got {box_weight}")
        self.coder, self.scores, self.beta, self.box_weight = coder, scores, beta, box_weight
        self.reduction, self.postprocess = reduction, postprocess

    @abstractmethod
    def predict(self, maps: Sequence[FeatureMap], r: Regions) -> BoxOutput:
        """Class outputs and refinements of regions, in float32 at least: scores and boxes have no half precision."""

    def forward(self, maps: Sequence[FeatureMap], found: list[Detections]) -> list[Detections]:
        """Detections of each image, best first, among the refined boxes of what was `found`."""
        boxes = [each.boxes for each in found]
        output = self.predict(maps, Regions.from_list(boxes))
        return self.detect(self.scores(output.logits), output.deltas, boxes, maps[0].image_sizes)

    def detect(
        self, scores: Tensor, deltas: Tensor, boxes: list[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """Detections of each image, best first, from scores [R, classes] and refinements [R, C or 1, 4] of its boxes
        [P_i, 4], of which there are R in all."""
        counts = [len(each) for each in boxes]
        images = zip(scores.split(counts), deltas.split(counts), boxes, sizes, strict=True)
        return [self.postprocess(score, delta, box, self.coder, size) for score, delta, box, size in images]

    def is_candidate(self, scores: Tensor) -> Tensor:
        """Which scores [R, classes] may be those of detections, for boxes that were chosen before: bool."""
        return scores > self.postprocess.score_threshold

    def losses(
        self, maps: Sequence[FeatureMap], boxes: list[Tensor], targets: Sequence[Targets]
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The sampled boxes of each image, and the losses `class` and `box` of classifying and refining them.

        Only objects have a box loss, each the refinement of its own class.
        """
        sample = self.sampler(boxes, targets)
        output = self.predict(maps, sample.regions)
        return sample.regions.split(len(targets)), self.compare(output, sample.regions, sample.labels, sample.objects)

    def compare(self, output: BoxOutput, r: Regions, labels: Tensor, objects: Tensor) -> dict[str, Tensor]:
        """The losses `class` and `box` for the true labels [R] (0 for background) and boxes `objects` [R, 4]."""
        rows = (labels > 0).nonzero()[:, 0]
        deltas = output.deltas_of(rows, labels[rows])
        wanted = self.coder.encode(objects[rows].to(deltas.dtype), r.boxes[rows].to(deltas.dtype), labels[rows])
        of_boxes = output.logits.new_zeros(len(r)).index_put((rows,), smooth_l1(deltas, wanted, self.beta))
        of_class, of_box = self.reduction(
            self.scores.losses(output.logits, labels), of_boxes * self.box_weight, r.image
        )
        return {"class": of_class, "box": of_box}


class FastRCNNHead(BoxHead):
    """Region features, a trunk of layers, then a class and a box, each one linear layer (Fast R-CNN, section 2.1).

    extractor: reads the maps. trunk: from region features [R, C, *bins] to [R, width]. num_classes: with the
    background. class_agnostic: one refinement for all classes. The rest: see `BoxHead`. The two layers start as in the
    paper: N(0, 0.01) for the classes, N(0, 0.001) for the boxes, biases 0.

    Raises ValueError for fewer than two classes.
    """

    class_layers: tuple[str, ...]  # new for other classes

    def __init__(
        self,
        extractor: Levels,
        trunk: nn.Module,
        width: int,
        num_classes: int,
        *,
        class_agnostic: bool = False,
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
        if num_classes < 2:
            raise ValueError(f"num_classes: expected the background and at least one class, got {num_classes}")
        self.extractor = extractor
        self.trunk = trunk
        self.class_logits = nn.Linear(width, scores.outputs(num_classes))
        self.box_deltas = nn.Linear(width, 4 if class_agnostic else num_classes * 4)
        self.class_layers = ("class_logits", "coder") if class_agnostic else ("class_logits", "box_deltas", "coder")
        nn.init.normal_(self.class_logits.weight, std=0.01)
        nn.init.normal_(self.box_deltas.weight, std=0.001)
        nn.init.zeros_(self.class_logits.bias)
        nn.init.zeros_(self.box_deltas.bias)

    def predict(self, maps: Sequence[FeatureMap], r: Regions) -> BoxOutput:
        """As of `BoxHead`. Without gradients, regions that cover the same cells are computed once (so does the released
        code at test time): half of the 2000 proposals of a small image."""
        shared = None if torch.is_grad_enabled() or is_compiling() else self.extractor.distinct(maps, r)
        y = self.trunk(self.extractor(maps, r if shared is None else shared[0]))
        logits, deltas = self.class_logits(y), self.box_deltas(y)
        precise = torch.promote_types(logits.dtype, torch.float32)
        logits, deltas = logits.to(precise), deltas.to(precise).unflatten(1, (-1, 4))
        return BoxOutput(logits, deltas) if shared is None else BoxOutput(logits[shared[1]], deltas[shared[1]])
