"""The region proposal network of Faster R-CNN."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regio.boxes import BoxCoder, clip, sides
from regio.kernels.nms import batched_nms
from regio.losses import smooth_l1
from regio.matching import BalancedSampler, Matcher
from regio.proposals.anchor_network import AnchorNetwork
from regio.proposals.anchors import Anchors
from regio.types import Detections, FeatureMap, Targets

__all__ = ["RPN", "ProposalFilter"]


@dataclass(frozen=True)
class ProposalFilter:
    """Which of the decoded anchors become proposals.

    Of each map the best `pre_nms_top_n` are taken, clipped to the image, freed of those with a side under `min_size`
    (pixels of the batch) and of those with a score under `score_threshold`, suppressed per map at an IoU above
    `nms_threshold`; the best `post_nms_top_n` of all maps remain.
    """

    pre_nms_top_n: int
    post_nms_top_n: int
    nms_threshold: float = 0.7
    min_size: float = 1e-3
    score_threshold: float = 0.0


class RPN(AnchorNetwork):
    """A 3 x 3 convolution and, at each cell and for each anchor, an objectness and a box (Faster R-CNN, section 3.1).

    The layers are shared by all maps. `channels` is the width of the maps and, unless `hidden` is given, of the
    convolution, of which there are `layers`. `test` and `train` are the filters of `forward` and `losses`. With
    `extra_level`, one more map is looked at: every second cell of the last one (P6 of FPN, section 4.1, which nothing
    else reads). With `level`, ``maps[level]`` alone is looked at (C4 in R-FCN, whose heads read C5).

    Anchors that cross the image's border by more than `straddle_threshold` pixels do not take part in training (the
    paper: 0); None lets all of them (FPN). The losses are those of the released code: both divided by the number of
    sampled anchors, the second times `box_weight`, smooth L1 with `beta` 1/9. (The paper's equation 1 divides the
    second by the number of cells and weighs it by 10, which comes to about the same as equal weights; its table 9
    varies that weight.)

    With `box_gradients`, the boxes that `losses` gives carry a gradient to the refinements that they were decoded with,
    so that heads train the proposals too (section 3.2, non-approximate joint training): through what the extractor
    reads, which must then have a gradient for boxes, as RoI pooling has not, and through what the refinement of a box
    is to be. What masks are to be counts as constant.
    """

    def __init__(
        self,
        channels: int,
        anchors: Anchors,
        *,
        hidden: int | None = None,
        layers: int = 1,
        extra_level: bool = False,
        level: int | None = None,
        test: ProposalFilter,
        train: ProposalFilter,
        matcher: Matcher = Matcher(positive=0.7, background=0.3, allow_low_quality_matches=True),  # noqa: B008 (frozen)
        sampler: BalancedSampler = BalancedSampler(256, 0.5),  # noqa: B008 (frozen)
        coder: BoxCoder = BoxCoder(),  # noqa: B008 (frozen)
        straddle_threshold: float | None = None,
        beta: float = 1 / 9,
        box_weight: float = 1.0,
        box_gradients: bool = False,
    ) -> None:
        super().__init__(
            channels,
            anchors,
            hidden=hidden or channels,
            layers=layers,
            extra_level=extra_level,
            level=level,
            matcher=matcher,
            sampler=sampler,
            coder=coder,
            straddle_threshold=straddle_threshold,
            beta=beta,
            box_weight=box_weight,
        )
        self.test_filter, self.train_filter, self.box_gradients = test, train, box_gradients
        self.objectness = nn.Conv2d(hidden or channels, anchors.per_cell, 1)
        self.deltas = nn.Conv2d(hidden or channels, anchors.per_cell * 4, 1)
        self.initialise()

    def forward(self, maps: Sequence[FeatureMap]) -> list[Detections]:
        """Proposals of each image, best first, clipped to it, in pixels of the batch: label 1 is "object", the score is
        its probability."""
        levels = self.levels(maps)
        with torch.no_grad():
            return self._propose(*self.predict(levels), self.anchors(levels), maps[0].image_sizes, self.test_filter)

    def losses(self, maps: Sequence[FeatureMap], targets: Sequence[Targets]) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Boxes [P_i, 4] of each image to train the heads on, and the losses `rpn_objectness` and `rpn_box`."""
        sizes, levels = maps[0].image_sizes, self.levels(maps)
        objectness, deltas = self.predict(levels)
        anchors = self.anchors(levels)
        with torch.set_grad_enabled(self.box_gradients and torch.is_grad_enabled()):
            proposals = self._propose(objectness, deltas, anchors, sizes, self.train_filter)
        losses = self._compare(torch.cat(objectness, 1), torch.cat(deltas, 1), torch.cat(anchors), sizes, targets)
        return [each.boxes for each in proposals], losses

    def predict(self, maps: Sequence[FeatureMap]) -> tuple[list[Tensor], list[Tensor]]:
        """For each map, objectness logits [N, H * W * A] and deltas [N, H * W * A, 4], in the order of the anchors."""
        objectness, deltas = self.outputs(maps, self.objectness, self.deltas)
        return [logits.flatten(1) for logits in objectness], deltas

    def _propose(
        self,
        objectness: list[Tensor],
        deltas: list[Tensor],
        anchors: list[Tensor],
        sizes: Sequence[tuple[int, int]],
        filter: ProposalFilter,
    ) -> list[Detections]:
        boxes, scores, levels = [], [], []
        for i, (logit, delta, anchor) in enumerate(zip(objectness, deltas, anchors, strict=True)):
            score, best = logit.detach().topk(min(filter.pre_nms_top_n, logit.shape[1]), dim=1)
            chosen = delta.gather(1, best[:, :, None].expand(-1, -1, 4))
            boxes.append(self.coder.decode(chosen.flatten(0, 1), anchor[best].flatten(0, 1)).view_as(chosen))
            scores.append(score)
            levels.append(torch.full_like(best[0], i))
        level = torch.cat(levels)
        batch = zip(torch.cat(boxes, 1), torch.cat(scores, 1), sizes, strict=True)
        return [_suppress(clip(box, size), score, level, filter) for box, score, size in batch]

    def _compare(
        self,
        objectness: Tensor,
        deltas: Tensor,
        anchors: Tensor,
        sizes: Sequence[tuple[int, int]],
        targets: Sequence[Targets],
    ) -> dict[str, Tensor]:
        logits, labels, predicted, wanted = [], [], [], []
        for i, target in enumerate(targets):
            match = self.match(anchors, sizes[i], target)
            positive, background = self.sampler(match)
            logits += [objectness[i, positive], objectness[i, background]]
            labels += [torch.ones_like(logits[-2]), torch.zeros_like(logits[-1])]
            predicted.append(deltas[i, positive])
            wanted.append(self.coder.encode(target.boxes[match[positive]].to(anchors.dtype), anchors[positive]))
        label = torch.cat(labels)
        weight = self.box_weight / max(len(label), 1)
        entropy = F.binary_cross_entropy_with_logits(torch.cat(logits), label, reduction="sum") / max(len(label), 1)
        return {
            "rpn_objectness": entropy,
            "rpn_box": smooth_l1(torch.cat(predicted), torch.cat(wanted), self.beta).sum() * weight,
        }


def _suppress(boxes: Tensor, logits: Tensor, level: Tensor, filter: ProposalFilter) -> Detections:
    width, height = sides(boxes.detach())
    large = (width >= filter.min_size) & (height >= filter.min_size)
    if filter.score_threshold > 0:
        large &= logits.sigmoid() >= filter.score_threshold
    boxes, logits = boxes[large], logits[large]
    best = batched_nms(boxes.detach(), logits, level[large], filter.nms_threshold)[: filter.post_nms_top_n]
    return Detections(boxes[best], torch.ones_like(best), logits[best].sigmoid())
