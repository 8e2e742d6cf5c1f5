"""The class-aware region proposal network, a detector of one stage."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from regio.boxes import BoxCoder, clip
from regio.losses import MeanLoss, Reduction, smooth_l1
from regio.matching import BalancedSampler, Matcher, Sampler
from regio.postprocess import Postprocess
from regio.proposals.anchor_network import AnchorNetwork
from regio.proposals.anchors import Anchors
from regio.roi_heads.box import BoxOutput
from regio.roi_heads.scores import Scores, Softmax
from regio.types import Detections, FeatureMap, Targets

__all__ = ["ClassAwareRPN"]


class ClassAwareRPN(AnchorNetwork):
    """An RPN whose classifier has C + 1 classes in place of object or not (Dai et al. 2017, section 2.3, where it is
    the category-aware RPN). What it gives are detections, so no head need follow.

    channels, hidden, layers, extra_level, matcher, coder, straddle_threshold: as of `RPN`. num_classes: with the
    background. scores: what class outputs mean, and their loss. class_agnostic: one box an anchor, as in an RPN, or one
    for each class. pre_nms_top_n: of each map so many anchors, those with the best score of any class, are decoded.
    sampler: draws the anchors that are trained on; with `reduction` the hardest of all can be taken
    (`regio.matching.TakeAll`, `regio.losses.HardExamples`). beta, box_weight: of the box loss. postprocess: which of
    the scored boxes are detections.

    The region operation is the centre cell: class outputs and box of an anchor are a linear function of the output of
    `conv` at its cell, with weights for each shape of anchor. So they are what `regio.regions.CentreFeature` reads at
    the anchor, times these weights; a 1 x 1 convolution computes it for all anchors at once.

    Law: with one class, `Sigmoid` scores and the same weights, its losses are those of `RPN`, and on one map its
    detections are the proposals of `RPN` with the same thresholds, where no two scores are equal: anchors are ranked by
    scores here and by logits there, and a sigmoid in float32 is 1 for any logit above 17.

    Raises ValueError for fewer than two classes, for a negative box_weight and for a pre_nms_top_n under 1.
    """

    class_layers: tuple[str, ...]  # new for other classes

    def __init__(
        self,
        channels: int,
        anchors: Anchors,
        num_classes: int,
        *,
        hidden: int | None = None,
        layers: int = 1,
        extra_level: bool = False,
        scores: Scores = Softmax(),  # noqa: B008 (frozen)
        class_agnostic: bool = True,
        pre_nms_top_n: int = 6000,
        matcher: Matcher = Matcher(positive=0.7, background=0.3, allow_low_quality_matches=True),  # noqa: B008 (frozen)
        sampler: Sampler = BalancedSampler(256, 0.5),  # noqa: B008 (frozen)
        coder: BoxCoder = BoxCoder(),  # noqa: B008 (frozen)
        straddle_threshold: float | None = None,
        beta: float = 1 / 9,
        box_weight: float = 1.0,
        reduction: Reduction = MeanLoss(),  # noqa: B008 (frozen)
        postprocess: Postprocess = Postprocess(),  # noqa: B008 (frozen)
    ) -> None:
        if num_classes < 2:
            raise ValueError(f"num_classes: expected the background and at least one class, got {num_classes}")
        if box_weight < 0:
            raise ValueError(f"box_weight: expected a factor of 0 or more, got {box_weight}")
        if pre_nms_top_n < 1:
            raise ValueError(f"pre_nms_top_n: expected a positive number of anchors, got {pre_nms_top_n}")
        super().__init__(
            channels,
            anchors,
            hidden=hidden or channels,
            layers=layers,
            extra_level=extra_level,
            matcher=matcher,
            sampler=sampler,
            coder=coder,
            straddle_threshold=straddle_threshold,
            beta=beta,
            box_weight=box_weight,
        )
        self.scores, self.pre_nms_top_n = scores, pre_nms_top_n
        self.reduction, self.postprocess = reduction, postprocess
        boxes = 1 if class_agnostic else num_classes
        self.class_logits = nn.Conv2d(hidden or channels, anchors.per_cell * scores.outputs(num_classes), 1)
        self.deltas = nn.Conv2d(hidden or channels, anchors.per_cell * boxes * 4, 1)
        self.class_layers = ("class_logits",) if class_agnostic else ("class_logits", "deltas")
        self.initialise()

    def forward(self, maps: Sequence[FeatureMap]) -> list[Detections]:
        """Detections of each image, best first, clipped to it, in pixels of the batch."""
        with torch.no_grad():
            scores, deltas, anchors = self.best(maps)
            images = zip(scores, deltas, anchors, maps[0].image_sizes, strict=True)
            return [self.postprocess(score, delta, box, self.coder, size) for score, delta, box, size in images]

    def losses(self, maps: Sequence[FeatureMap], targets: Sequence[Targets]) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The refined boxes [B_i, 4] of the sampled anchors of each image, for heads that may follow, and the losses
        `rpn_class` and `rpn_box`.

        Anchors that stand for objects have a box loss; a class has its own boxes where they are not class-agnostic.
        """
        sizes, levels = maps[0].image_sizes, self.levels(maps)
        logits, deltas = (torch.cat(each, 1) for each in self.predict(levels))
        anchors = torch.cat(self.anchors(levels))
        samples = [self._sample(anchors, *each) for each in zip(sizes, targets, strict=True)]
        of_class, of_box, image, boxes = [], [], [], []
        for i, (rows, labels, objects) in enumerate(samples):
            output, reference = BoxOutput(logits[i, rows], deltas[i, rows]), anchors[rows]
            refined = output.deltas_of(torch.arange(len(rows), device=rows.device), labels)
            positive = (labels > 0).nonzero()[:, 0]
            wanted = self.coder.encode(objects[positive], reference[positive])
            loss = smooth_l1(refined[positive], wanted, self.beta)
            of_class.append(self.scores.losses(output.logits, labels))
            of_box.append(loss.new_zeros(len(rows)).index_put((positive,), loss * self.box_weight))
            image.append(torch.full_like(rows, i))
            boxes.append(clip(self.coder.decode(refined.detach(), reference), sizes[i]))
        class_loss, box_loss = self.reduction(torch.cat(of_class), torch.cat(of_box), torch.cat(image))
        return boxes, {"rpn_class": class_loss, "rpn_box": box_loss}

    def predict(self, maps: Sequence[FeatureMap]) -> tuple[list[Tensor], list[Tensor]]:
        """For each map, class outputs [N, H * W * A, L], see `regio.roi_heads.scores`, and deltas [N, H * W * A, 1 or
        C, 4], in the order of the anchors."""
        logits, deltas = self.outputs(maps, self.class_logits, self.deltas)
        return logits, [each.unflatten(2, (-1, 4)) for each in deltas]

    def best(self, maps: Sequence[FeatureMap]) -> tuple[Tensor, Tensor, Tensor]:
        """Scores [N, P, classes], deltas [N, P, 1 or C, 4] and boxes [N, P, 4] of the anchors that are decoded."""
        levels = self.levels(maps)
        scores, deltas, boxes = [], [], []
        for logit, delta, anchor in zip(*self.predict(levels), self.anchors(levels), strict=True):
            score = self.scores(logit.flatten(0, 1)).unflatten(0, logit.shape[:2])
            rows = score.amax(2).topk(torch.sym_min(self.pre_nms_top_n, score.shape[1]), dim=1).indices
            scores.append(score.gather(1, rows[:, :, None].expand(-1, -1, score.shape[2])))
            deltas.append(delta.gather(1, rows[:, :, None, None].expand(-1, -1, *delta.shape[2:])))
            boxes.append(anchor[rows])
        return torch.cat(scores, 1), torch.cat(deltas, 1), torch.cat(boxes, 1)

    def _sample(self, anchors: Tensor, size: tuple[int, int], target: Targets) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of the anchors that are trained on, their labels (0 for background) and the boxes of their objects."""
        match = self.match(anchors, size, target)
        positive, background = self.sampler(match)
        rows = torch.cat([positive, background])
        labels, objects = torch.zeros_like(rows), torch.zeros_like(anchors[rows])
        labels[: len(positive)] = target.labels[match[positive]]
        objects[: len(positive)] = target.boxes[match[positive]].to(anchors.dtype)
        return rows, labels, objects
