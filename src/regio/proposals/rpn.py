"""The region proposal network of Faster R-CNN."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regio.boxes import BoxCoder, clip, sides
from regio.kernels.nms import batched_nms
from regio.losses import box_loss
from regio.matching import IGNORED, BalancedSampler, Matcher
from regio.proposals.anchors import Anchors
from regio.types import FeatureMap, Targets

__all__ = ["RPN", "ProposalFilter"]


@dataclass(frozen=True)
class ProposalFilter:
    """Which of the decoded anchors become proposals.

    Of each map the best `before_nms` are taken, clipped to the image, freed of those with a side under `min_size`
    (pixels of the batch), suppressed per map at an IoU above `iou_threshold`; the best `after_nms` of all maps remain.
    """

    before_nms: int
    after_nms: int
    iou_threshold: float = 0.7
    min_size: float = 1e-3


class RPN(nn.Module):
    """A 3 x 3 convolution and, at each cell and for each anchor, an objectness and a box (Faster R-CNN, section 3.1).

    The layers are shared by all maps. `channels` is the width of the maps and, unless `hidden` is given, of the
    convolution. `test` and `train` say how many proposals `forward` and `losses` give. With `coarser`, one more map is
    looked at: every second cell of the last one (P6 of FPN, section 4.1, which nothing else reads).

    Anchors that cross the image's border by more than `border` pixels do not take part in training (the paper: 0);
    None lets all of them (FPN). The losses are those of the released code: both divided by the number of sampled
    anchors, equal weights, smooth L1 with `beta` 1/9. (The paper's equation 1 divides the second by the number of cells
    and weighs it by 10, which comes to about the same.)
    """

    def __init__(
        self,
        channels: int,
        anchors: Anchors,
        *,
        hidden: int | None = None,
        coarser: bool = False,
        test: ProposalFilter,
        train: ProposalFilter,
        matcher: Matcher = Matcher(positive=0.7, background=0.3, best_for_each=True),  # noqa: B008 (frozen)
        sampler: BalancedSampler = BalancedSampler(256, 0.5),  # noqa: B008 (frozen)
        coder: BoxCoder = BoxCoder(),  # noqa: B008 (frozen)
        border: float | None = None,
        beta: float = 1 / 9,
    ) -> None:
        super().__init__()
        hidden = hidden or channels
        self.anchors, self.coarser = anchors, coarser
        self.test_filter, self.train_filter = test, train
        self.matcher, self.sampler, self.coder = matcher, sampler, coder
        self.border, self.beta = border, beta
        self.conv = nn.Conv2d(channels, hidden, 3, padding=1)
        self.objectness = nn.Conv2d(hidden, anchors.per_cell, 1)
        self.deltas = nn.Conv2d(hidden, anchors.per_cell * 4, 1)
        for layer in (self.conv, self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, maps: Sequence[FeatureMap], sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Proposals [P_i, 4], best first, for each image of the batch.

        `sizes` are the (height, width) of the images within the padded batch, to which boxes are clipped.
        """
        return [boxes for boxes, _ in self.scored(maps, sizes)]

    def scored(self, maps: Sequence[FeatureMap], sizes: Sequence[tuple[int, int]]) -> list[tuple[Tensor, Tensor]]:
        """The same with the objectness [P_i] of each proposal, a probability."""
        maps = self._levels(maps)
        found = self._propose(*self._predict(maps), self.anchors(maps), sizes, self.test_filter)
        return [(boxes, logits.sigmoid()) for boxes, logits in found]

    def losses(
        self, maps: Sequence[FeatureMap], sizes: Sequence[tuple[int, int]], targets: Sequence[Targets]
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Proposals to train the head on, and the losses `rpn_objectness` and `rpn_box`."""
        maps = self._levels(maps)
        objectness, deltas = self._predict(maps)
        anchors = self.anchors(maps)
        proposals = [boxes for boxes, _ in self._propose(objectness, deltas, anchors, sizes, self.train_filter)]
        losses = self._compare(torch.cat(objectness, 1), torch.cat(deltas, 1), torch.cat(anchors), sizes, targets)
        return proposals, losses

    def _levels(self, maps: Sequence[FeatureMap]) -> Sequence[FeatureMap]:
        if not self.coarser:
            return maps
        last = maps[-1]
        return (*maps, FeatureMap(last.data[:, :, ::2, ::2], last.stride * 2))

    def _predict(self, maps: Sequence[FeatureMap]) -> tuple[list[Tensor], list[Tensor]]:
        """For each map, objectness logits [N, H * W * A] and deltas [N, H * W * A, 4], in the order of the anchors."""
        objectness, deltas = [], []
        for x in maps:
            hidden = F.relu(self.conv(x.data), inplace=True)
            logits, delta = self.objectness(hidden), self.deltas(hidden)
            precise = torch.promote_types(logits.dtype, torch.float32)
            objectness.append(logits.permute(0, 2, 3, 1).flatten(1).to(precise))
            deltas.append(delta.permute(0, 2, 3, 1).reshape(len(hidden), -1, 4).to(precise))
        return objectness, deltas

    @torch.no_grad()
    def _propose(
        self,
        objectness: list[Tensor],
        deltas: list[Tensor],
        anchors: list[Tensor],
        sizes: Sequence[tuple[int, int]],
        keep: ProposalFilter,
    ) -> list[tuple[Tensor, Tensor]]:
        boxes, scores, levels = [], [], []
        for i, (logit, delta, anchor) in enumerate(zip(objectness, deltas, anchors, strict=True)):
            score, best = logit.topk(min(keep.before_nms, logit.shape[1]), dim=1)
            chosen = delta.gather(1, best[:, :, None].expand(-1, -1, 4))
            boxes.append(self.coder.decode(chosen.flatten(0, 1), anchor[best].flatten(0, 1)).view_as(chosen))
            scores.append(score)
            levels.append(torch.full_like(best[0], i))
        level = torch.cat(levels)
        batch = zip(torch.cat(boxes, 1), torch.cat(scores, 1), sizes, strict=True)
        return [_suppress(clip(box, size), score, level, keep) for box, score, size in batch]

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
        entropy = F.binary_cross_entropy_with_logits(torch.cat(logits), label, reduction="sum") / max(len(label), 1)
        return {
            "rpn_objectness": entropy,
            "rpn_box": box_loss(torch.cat(predicted), torch.cat(wanted), self.beta, len(label)),
        }

    def _match(self, anchors: Tensor, size: tuple[int, int], target: Targets) -> Tensor:
        if self.border is None:
            return self.matcher(anchors, target)
        # The best anchor of an object is sought among those that take part.
        inside = _inside(anchors, size, self.border).nonzero()[:, 0]
        match = torch.full_like(anchors[:, 0], IGNORED, dtype=torch.int64)
        match[inside] = self.matcher(anchors[inside], target)
        return match


def _suppress(boxes: Tensor, scores: Tensor, level: Tensor, keep: ProposalFilter) -> tuple[Tensor, Tensor]:
    width, height = sides(boxes)
    large = (width >= keep.min_size) & (height >= keep.min_size)
    boxes, scores = boxes[large], scores[large]
    kept = batched_nms(boxes, scores, level[large], keep.iou_threshold)[: keep.after_nms]
    return boxes[kept], scores[kept]


def _inside(anchors: Tensor, size: tuple[int, int], border: float) -> Tensor:
    height, width = size
    low = (anchors[:, :2] >= -border).all(1)
    return low & (anchors[:, 2] <= width + border) & (anchors[:, 3] <= height + border)
