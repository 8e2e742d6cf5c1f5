"""The region proposal network of Faster R-CNN."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regio.boxes import BoxCoder, clip, sides
from regio.convolutions import ConvReLU
from regio.kernels.nms import batched_nms
from regio.losses import smooth_l1
from regio.matching import IGNORED, BalancedSampler, Matcher
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


class RPN(nn.Module):
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
    so that heads train the proposals too (section 3.2, non-approximate joint training). The extractor of the head must
    then have a gradient for boxes, which RoI pooling has not.
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
        super().__init__()
        hidden = hidden or channels
        self.anchors, self.extra_level, self.level = anchors, extra_level, level
        self.test_filter, self.train_filter = test, train
        self.matcher, self.sampler, self.coder = matcher, sampler, coder
        self.straddle_threshold, self.beta = straddle_threshold, beta
        self.box_weight, self.box_gradients = box_weight, box_gradients
        self.conv = _convolutions(channels, hidden, layers)
        self.objectness = nn.Conv2d(hidden, anchors.per_cell, 1)
        self.deltas = nn.Conv2d(hidden, anchors.per_cell * 4, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

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

    def levels(self, maps: Sequence[FeatureMap]) -> Sequence[FeatureMap]:
        """The maps that are looked at: `maps`, or the one of them that `level` names, and the extra level."""
        maps = maps if self.level is None else [maps[self.level]]
        if not self.extra_level:
            return maps
        last = maps[-1]
        return (*maps, replace(last, data=last.data[:, :, ::2, ::2], stride=last.stride * 2))

    def predict(self, maps: Sequence[FeatureMap]) -> tuple[list[Tensor], list[Tensor]]:
        """For each map, objectness logits [N, H * W * A] and deltas [N, H * W * A, 4], in the order of the anchors."""
        objectness, deltas = [], []
        for x in maps:
            hidden = self.conv(x.data)
            logits, delta = self.objectness(hidden), self.deltas(hidden)
            precise = torch.promote_types(logits.dtype, torch.float32)
            objectness.append(logits.permute(0, 2, 3, 1).flatten(1).to(precise))
            deltas.append(delta.permute(0, 2, 3, 1).reshape(hidden.shape[0], -1, 4).to(precise))
        return objectness, deltas

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
            match = self._match(anchors, sizes[i], target)
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

    def _match(self, anchors: Tensor, size: tuple[int, int], target: Targets) -> Tensor:
        if self.straddle_threshold is None:
            return self.matcher(anchors, target)
        # The best anchor of an object is sought among those that take part.
        inside = _inside(anchors, size, self.straddle_threshold).nonzero()[:, 0]
        match = torch.full_like(anchors[:, 0], IGNORED, dtype=torch.int64)
        match[inside] = self.matcher(anchors[inside], target)
        return match


def _convolutions(channels: int, hidden: int, layers: int) -> nn.Module:
    """One convolution, or several, each with a ReLU."""
    made = [ConvReLU(channels if i == 0 else hidden, hidden, 3, padding=1) for i in range(layers)]
    return made[0] if layers == 1 else nn.Sequential(*made)


def _suppress(boxes: Tensor, logits: Tensor, level: Tensor, filter: ProposalFilter) -> Detections:
    width, height = sides(boxes.detach())
    large = (width >= filter.min_size) & (height >= filter.min_size)
    if filter.score_threshold > 0:
        large &= logits.sigmoid() >= filter.score_threshold
    boxes, logits = boxes[large], logits[large]
    best = batched_nms(boxes.detach(), logits, level[large], filter.nms_threshold)[: filter.post_nms_top_n]
    return Detections(boxes[best], torch.ones_like(best), logits[best].sigmoid())


def _inside(anchors: Tensor, size: tuple[int, int], margin: float) -> Tensor:
    height, width = size
    low = (anchors[:, :2] >= -margin).all(1)
    return low & (anchors[:, 2] <= width + margin) & (anchors[:, 3] <= height + margin)
