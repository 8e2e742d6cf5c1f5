"""A detector that looks at each image several times, at test time.

* Several scales, and the mirror image: Dai et al. 2017, section 4.3, test at short sides of 480, 576, 688, 864, 1200
  and 1400 pixels. How the boxes of the scales are merged is not stated there; here the scored boxes of all scales,
  before any suppression, are suppressed together.
* Iterative boxes: the head is applied again at the boxes that it gave, each for its own class, and the boxes of all
  rounds are suppressed together (Gidaris and Komodakis 2015, section 4.2, "iterative localization").
* Box voting: a box that stays becomes the mean of the boxes of its class around it, weighted by their scores (same,
  "bounding box voting"). With it, Dai et al. call the two "iterative bounding box average".
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from regio.boxes import Coder, clip, iou, sides
from regio.detector import Proposals, TwoStageDetector
from regio.image_pyramid import ImagePyramid
from regio.postprocess import Postprocess
from regio.preprocess import Preprocess
from regio.proposals import ClassAwareRPN
from regio.roi_heads import BoxHead
from regio.types import Detections, FeatureMap, Regions, Targets

__all__ = ["AugmentedDetector", "BoxVoting", "IterativeBoxes", "vote_boxes"]


def vote_boxes(found: Detections, candidates: Detections, iou_threshold: float = 0.5) -> Detections:
    """`found` with each box replaced by a mean of `candidates`: of those of its class whose IoU with it is above
    `iou_threshold`, weighted by their scores. Labels and scores stay, masks are not carried over.

    Candidates of a score of 0 or less have no weight; a box without any candidate of positive score stays as it is.
    Law: a mean of weights above 0, so that each coordinate lies between the smallest and the largest of the candidates.
    """
    near = (iou(found.boxes, candidates.boxes) > iou_threshold) & (found.labels[:, None] == candidates.labels)
    weight = near * candidates.scores.clamp(min=0)
    total = weight.sum(1, keepdim=True)
    # Of differences to the box, which are small: a mean of equal boxes is that box, whatever its place.
    moved = candidates.boxes[None] - found.boxes[:, None]
    mean = (weight[:, :, None] * moved).sum(1) / total.clamp(min=torch.finfo(weight.dtype).tiny)
    return Detections(found.boxes + mean.where(total > 0, 0), found.labels, found.scores)


@dataclass(frozen=True)
class BoxVoting:
    """Suppresses candidates by `rule`, class by class, and replaces each that stays by the mean of `vote_boxes`. The
    thresholds are those of Gidaris and Komodakis."""

    rule: Postprocess = Postprocess(nms_threshold=0.3)  # noqa: RUF009 (frozen)
    iou_threshold: float = 0.5

    @staticmethod
    def of(detector: TwoStageDetector) -> BoxVoting:
        """With the limits of the detector itself but for the IoU of the suppression. Raises ValueError as
        `AugmentedDetector.of`."""
        return BoxVoting(replace(_classifier(detector).postprocess, nms_threshold=0.3))

    def __call__(self, candidates: Detections) -> Detections:
        """Detections, best first."""
        return vote_boxes(self.rule.suppress(candidates), candidates, self.iou_threshold)


class IterativeBoxes(nn.Module):
    """A box head that is applied `rounds` times: to proposals, then to each scored box that it gave in the round
    before. A box of a class is scored again, and refined, for this class alone. The boxes of all rounds are candidates.
    Those below the score threshold, which the paper takes along, are not looked at again.

    head: one whose postprocess returns candidates. Raises ValueError for fewer than one round.
    """

    def __init__(self, head: BoxHead, rounds: int) -> None:
        super().__init__()
        if rounds < 1:
            raise ValueError(f"rounds: expected 1 or more, got {rounds}")
        self.head, self.rounds = head, rounds

    def forward(self, maps: Sequence[FeatureMap], found: list[Detections]) -> list[Detections]:
        """The candidates of each image, in no order."""
        last: list[Detections] = self.head(maps, found)
        every = [[each] for each in last]
        for _ in range(self.rounds - 1):
            last = self._again(maps, last)
            for all_of_image, each in zip(every, last, strict=True):
                all_of_image.append(each)
        return [_joined(each) for each in every]

    def _again(self, maps: Sequence[FeatureMap], found: list[Detections]) -> list[Detections]:
        r = Regions.from_list([each.boxes for each in found])
        labels = torch.cat([each.labels for each in found])
        output = self.head.predict(maps, r)
        rows = torch.arange(len(r), device=labels.device)
        scores = self.head.scores(output.logits)
        candidate, scores = (each[rows, labels - 1] for each in (self.head.is_candidate(scores), scores))
        boxes = self.head.coder.decode(output.deltas_of(rows, labels), r.boxes.to(output.deltas.dtype), labels)
        counts = [len(each) for each in found]
        refined, rule = [], self.head.postprocess
        columns = (each.split(counts) for each in (boxes, labels, scores, candidate))
        for box, label, score, kept, size in zip(*columns, maps[0].image_sizes, strict=True):
            box = clip(box, size)
            width, height = sides(box)
            kept = kept & (torch.minimum(width, height) >= rule.min_size)
            refined.append(Detections(box[kept], label[kept], score[kept]))
        return refined


class AugmentedDetector(TwoStageDetector):
    """A detector that is run on each image at several scales, and on its mirror image, and whose scored boxes are
    merged before one suppression. Made by `of` from a detector, whose modules it has.

    It is for inference: it has no losses, and no parts of it are detectors. Scales at which an image has the same
    pixels, as those above the photo's own have with `ShrinkingPreprocess`, are looked at once: boxes given twice would
    vote twice. Law: at its own scale alone, without mirror images and with one round, it is the detector. (A
    `min_kept_size` of its rule is of pixels of the photo here, not of the batch, since boxes of all scales are merged
    there.)
    """

    def __init__(
        self,
        *,
        preprocess: Preprocess,
        backbone: nn.Module,
        neck: nn.Module,
        proposals: Proposals | None,
        roi_heads: Sequence[nn.Module] = (),
        scales: Sequence[int] = (),
        flip: bool = False,
        rounds: int = 1,
        merge: Callable[[Detections], Detections] | None = None,
    ) -> None:
        super().__init__(preprocess=preprocess, backbone=backbone, neck=neck, proposals=proposals, roi_heads=roi_heads)
        if scales and isinstance(backbone, ImagePyramid):
            raise ValueError(f"scales: expected none for a detector with scales of its own, got {list(scales)}")
        scales = tuple(scales) or (preprocess.short_side,)
        if min(scales) < 1 or len(set(scales)) != len(scales):
            raise ValueError(f"scales: expected different numbers of pixels, got {list(scales)}")
        if rounds < 1:
            raise ValueError(f"rounds: expected 1 or more, got {rounds}")
        self.scaled = [_at(preprocess, side) for side in sorted(scales, reverse=True)]
        self.preprocess = self.scaled[0]
        self.flip, self.rounds = flip, rounds
        self.merge = merge or _classifier(self).postprocess.suppress
        if rounds > 1 and not len(self.roi_heads):
            raise ValueError("rounds: expected 1 for a detector without a head, which cannot look at its boxes again")

    @staticmethod
    def of(
        detector: TwoStageDetector,
        *,
        scales: Sequence[int] = (),
        flip: bool = False,
        rounds: int = 1,
        merge: Callable[[Detections], Detections] | None = None,
    ) -> AugmentedDetector:
        """`detector`, run several times; the modules are shared, not copied.

        scales: short sides in pixels, in place of the detector's own, which must be one; the bound on long sides
        changes in proportion. flip: whether mirror images are looked at too. rounds: how often the head is applied, see
        `IterativeBoxes`; 2 in the paper. merge: makes detections of all candidates of an image, such as `BoxVoting`;
        None for the suppression of the detector itself.

        Raises ValueError for a scale that is not positive or given twice, for a detector that does not classify, and
        for one with heads after its box head: their masks are of boxes that merging replaces.
        """
        return AugmentedDetector(
            preprocess=detector.preprocess,
            backbone=detector.backbone,
            neck=detector.neck,
            proposals=detector.proposals,
            roi_heads=[*detector.roi_heads],
            scales=scales,
            flip=flip,
            rounds=rounds,
            merge=merge,
        )

    def forward(self, images: Sequence[Tensor], proposals: Sequence[Tensor] | None = None) -> list[Detections]:
        """What is in each of `images`, best first; see `TwoStageDetector.forward`."""
        every: list[list[Detections]] = [[] for _ in images]
        looked_at: list[set[tuple[int, int]]] = [set() for _ in images]
        for preprocess in self.scaled:
            sizes = [preprocess.size_of((image.shape[1], image.shape[2])) for image in images]
            new = [i for i, size in enumerate(sizes) if size not in looked_at[i]]
            if not new:
                continue
            detector, some = self._candidates(preprocess), [images[i] for i in new]
            boxes = None if proposals is None else [proposals[i] for i in new]
            runs = [detector(some, boxes)]
            if self.flip:
                widths = [image.shape[2] for image in some]
                given = None if boxes is None else [_mirrored(*each) for each in zip(boxes, widths, strict=True)]
                found = detector([image.flip(-1) for image in some], given)
                runs.append(
                    [replace(each, boxes=_mirrored(each.boxes, w)) for each, w in zip(found, widths, strict=True)]
                )
            for run in runs:
                for i, each in zip(new, run, strict=True):
                    every[i].append(each)
            for i in new:
                looked_at[i].add(sizes[i])
        return [self.merge(_joined(each)) for each in every]

    def losses(
        self, images: Sequence[Tensor], targets: Sequence[Targets], proposals: Sequence[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Raises TypeError: what is trained is the detector that this was made from."""
        raise TypeError("an augmented detector is for inference; train the detector that it was made from")

    def with_parts(self, proposals: Proposals | None, roi_heads: Sequence[nn.Module] = ()) -> TwoStageDetector:
        """Raises TypeError: these are parts of the detector that this was made from."""
        raise TypeError("an augmented detector has no parts to be used alone; ask the detector that it was made from")

    def _candidates(self, preprocess: Preprocess) -> TwoStageDetector:
        """The detector at one scale, without suppression."""
        network = copy.copy(_classifier(self))  # its layers are shared
        network.postprocess = _Candidates(**asdict(network.postprocess))
        heads: list[nn.Module] = []
        proposals = self.proposals
        if isinstance(network, BoxHead):
            heads = [IterativeBoxes(network, self.rounds)]
        else:
            proposals = network
        return TwoStageDetector(
            preprocess=preprocess, backbone=self.backbone, neck=self.neck, proposals=proposals, roi_heads=heads
        )


def _classifier(detector: TwoStageDetector) -> BoxHead | ClassAwareRPN:
    """What scores the boxes."""
    network = detector.roi_heads[0] if len(detector.roi_heads) else detector.proposals
    if len(detector.roi_heads) > 1 or not isinstance(network, BoxHead | ClassAwareRPN):
        parts = [type(each).__name__ for each in detector.roi_heads] or [type(network).__name__]
        raise ValueError(
            "detector: expected one box head or a class-aware RPN, whose scored boxes can be merged; got "
            f"{', '.join(parts)}"
        )
    return network


@dataclass(frozen=True)
class _Candidates(Postprocess):
    """Returns candidates in place of detections."""

    def __call__(
        self, scores: Tensor, deltas: Tensor, boxes: Tensor, coder: Coder, size: tuple[int, int]
    ) -> Detections:
        return self.candidates(scores, deltas, boxes, coder, size)


def _at(preprocess: Preprocess, short_side: int) -> Preprocess:
    long_side = round(preprocess.long_side * short_side / preprocess.short_side)
    return replace(preprocess, short_side=short_side, long_side=long_side)


def _mirrored(boxes: Tensor, width: int) -> Tensor:
    """Boxes [R, 4] of an image, in its mirror image."""
    x1, y1, x2, y2 = boxes.unbind(1)
    return torch.stack([width - x2, y1, width - x1, y2], 1)


def _joined(found: Sequence[Detections]) -> Detections:
    """All of them as one; boxes of an image have no masks here."""
    boxes, labels, scores = (torch.cat([getattr(each, name) for each in found]) for name in _COLUMNS)
    return Detections(boxes, labels, scores)


_COLUMNS = ("boxes", "labels", "scores")
