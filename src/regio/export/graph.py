"""A detector as one graph of tensors: what `torch.export` can record.

The detector itself works on lists, one element an image, and on the sizes of images as Python numbers. In a graph the
number of images, their sizes and the number of boxes are data. So here the same parts (backbone, neck, proposal
network, heads) run on all boxes of the batch at once, each with the index of its image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import NamedTuple

import torch
from torch import Tensor, nn

from regio.boxes import Coder, sides
from regio.detector import TwoStageDetector
from regio.kernels.nms import batched_nms
from regio.postprocess import Postprocess
from regio.preprocess import Preprocess
from regio.proposals import RPN, ClassAwareRPN
from regio.regions import LearnedRegionFeatures, Sampled
from regio.roi_heads import BoxHead, MaskHead
from regio.types import FeatureMap, Regions

__all__ = ["OUTPUTS", "DetectorGraph", "Found", "run_head"]

OUTPUTS = ("boxes", "labels", "scores", "image", "masks")
"""The last one of a detector with a mask head."""


class Found(NamedTuple):
    """Boxes of all images of a batch: the images in order, the boxes of an image best first.

    boxes: [D, 4]. labels: [D] int64. scores: [D]. image: [D] int64, an index into the batch. masks: [D, M, M]
    probabilities on a grid over each box, or None.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    image: Tensor
    masks: Tensor | None = None


class DetectorGraph(nn.Module):
    """`forward` of a detector on a padded batch of images of any sizes, in operations without Python numbers.

    outputs: names of what it gives. free_axes: names of the first axes of these, whose lengths are data.

    Raises ValueError naming the part of the detector that has no such form.
    """

    free_axes = ("detections",)

    def __init__(self, detector: TwoStageDetector) -> None:
        super().__init__()
        if not isinstance(detector.proposals, RPN | ClassAwareRPN):
            what = "none" if detector.proposals is None else type(detector.proposals).__name__
            raise ValueError(f"proposals: expected a proposal network (RPN), got {what}, which cannot be exported")
        for module in detector.modules():
            if isinstance(module, LearnedRegionFeatures) and isinstance(module.mode, Sampled):
                raise ValueError("extractor: learned region features cannot be exported with mode=sampled")
        for head in detector.roi_heads:
            _require_known(head)
        self.detector = detector
        has_masks = any(isinstance(head, MaskHead) for head in detector.roi_heads)
        self.outputs = OUTPUTS if has_masks else OUTPUTS[:-1]
        self.scales = type(detector.preprocess) is Preprocess and not detector.preprocess.antialias

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """Boxes [D, 4] in pixels of the images, labels [D] int64, scores [D], the image [D] int64 of each; and masks
        [D, M, M] where the detector has a mask head.

        images: [N, 3, H, W] uint8 in 0..255, each image in the upper left corner; the rest is not looked at. sizes:
        [N, 2] int64, the (height, width) of each. The graph scales them as the detector does where `scales` is True.
        Where it is not, since the detector scales with antialiasing, it takes images that have been scaled.
        """
        detector = self.detector
        scaled = scaled_sizes(detector.preprocess, sizes) if self.scales else sizes
        dtype = next(detector.backbone.parameters()).dtype
        batch = scaled_batch(detector.preprocess, images, sizes, scaled, dtype)
        maps = [SizedMap(x.data, x.stride, table=scaled) for x in detector.neck(detector.backbone(batch))]
        assert isinstance(detector.proposals, RPN | ClassAwareRPN)
        found = propose(detector.proposals, maps, scaled)
        for head in detector.roi_heads:
            found = run_head(head, maps, found)
        ratio = (sizes.to(torch.float64) / scaled).to(found.boxes.dtype).flip(1).repeat(1, 2)
        outputs = (found.boxes * ratio[found.image], found.labels, found.scores, found.image)
        return outputs if found.masks is None else (*outputs, found.masks)


@dataclass(frozen=True)
class SizedMap(FeatureMap):
    """A map of images whose sizes are data. table: [N, 2] int64, the (height, width) of each in pixels."""

    table: Tensor | None = None

    @property
    def image_sizes(self) -> tuple[tuple[int, int], ...]:
        """Not known when a graph is made, nor are the `extents` that follow from them. Raises ValueError."""
        raise ValueError("image_sizes: the sizes of images are not known when a graph is exported; see extents_of")

    def extents_of(self, image: Tensor) -> Tensor:
        assert self.table is not None
        cells = (self.table.to(torch.float32) / self.stride).ceil().to(torch.int64)
        return torch.minimum(cells, torch.tensor([self.size], device=cells.device))[image]


def scaled_sizes(preprocess: Preprocess, sizes: Tensor) -> Tensor:
    """`Preprocess.size_of` of sizes [N, 2] int64, in the same double precision."""
    size = sizes.to(torch.float64)
    short, long = size.new_tensor([preprocess.short_side, preprocess.long_side])  # a number would be multiplied
    # Divided before the smaller and the larger side are taken: OpenVINO 2026.4 exchanges the operands of the other.
    scale = torch.minimum((short / size).amax(1), (long / size).amin(1))
    return (size * scale[:, None]).floor().clamp(min=1).to(torch.int64)


def scaled_batch(preprocess: Preprocess, images: Tensor, sizes: Tensor, scaled: Tensor, dtype: torch.dtype) -> Tensor:
    """The batch that `Preprocess` makes of images [N, 3, H, W] uint8 of `sizes`, scaled to `scaled`."""
    rows, columns = (
        _positions(sizes[:, axis], scaled[:, axis], _canvas(scaled[:, axis], preprocess.divisor), dtype)
        for axis in (0, 1)
    )
    x = _interpolated(_interpolated(images.to(dtype), rows, 2), columns, 3)
    mean, std = (x.new_tensor(values)[:, None, None] for values in (preprocess.mean, preprocess.std))
    inside = rows.inside[:, None, :, None] & columns.inside[:, None, None, :]
    return ((x / 255 - mean) / std).where(inside, 0)


class _Positions(NamedTuple):
    """Where the pixels of one axis of the batch lie in the images, all [N, L]: between pixels `low` and `high` at
    `share`; those outside the image are not `inside`."""

    low: Tensor
    high: Tensor
    share: Tensor
    inside: Tensor


def _canvas(sides: Tensor, divisor: int) -> int:
    """The longest of `sides`, rounded up to a multiple of `divisor`.

    The quotient is at least half a pixel from any whole number, so that a runtime which divides whole numbers in single
    precision (OpenVINO) finds the same.
    """
    count: int = ((sides.max().to(torch.float32) + (divisor - 0.5)) / divisor).floor().to(torch.int64).item()  # type: ignore[assignment]
    torch._check(count >= 1)
    torch._check(count < 2**31)  # so that products of sides are whole numbers of 64 bits, the longest that ONNX has
    return count * divisor


def _positions(old: Tensor, new: Tensor, length: int, dtype: torch.dtype) -> _Positions:
    """Those that bilinear scaling of sides `old` to `new` [N] reads, as `torch.nn.functional.interpolate`."""
    at = torch.arange(length, device=old.device)
    scale = (old.to(dtype) / new.to(dtype))[:, None]
    where = (scale * (at.to(dtype) + 0.5) - 0.5).clamp(min=0)
    last = old[:, None] - 1
    low = torch.minimum(where.to(torch.int64), last)
    return _Positions(low, torch.minimum(low + 1, last), (where - low).clamp(0, 1), at < new[:, None])


def _interpolated(x: Tensor, at: _Positions, axis: int) -> Tensor:
    """`x` [N, 3, H, W] at positions along `axis`."""
    shape = [-1, 1, 1, 1]
    shape[axis] = at.low.shape[1]
    size = [*x.shape]
    size[axis] = at.low.shape[1]
    low, high = (x.gather(axis, index.view(shape).expand(size)) for index in (at.low, at.high))
    return low + (high - low) * at.share.view(shape)


@torch.no_grad()
def propose(network: RPN | ClassAwareRPN, maps: Sequence[FeatureMap], sizes: Tensor) -> Found:
    """What `network` finds in images of `sizes` [N, 2], see its `forward`: proposals, or detections with classes."""
    if isinstance(network, RPN):
        return _objects(network, maps, sizes)
    scores, deltas, anchors = network.best(maps)
    image = torch.arange(scores.shape[0], device=scores.device)[:, None].expand(scores.shape[:2]).flatten()
    r = Regions(anchors.flatten(0, 1), image)
    return _detected(network.postprocess, scores.flatten(0, 1), deltas.flatten(0, 1), r, network.coder, sizes)


def _objects(rpn: RPN, maps: Sequence[FeatureMap], sizes: Tensor) -> Found:
    """See `RPN.forward`."""
    levels = rpn.levels(maps)
    boxes, scores, level = [], [], []
    filter = rpn.test_filter
    for i, (logit, delta, anchor) in enumerate(zip(*rpn.predict(levels), rpn.anchors(levels), strict=True)):
        score, best = logit.topk(torch.sym_min(filter.pre_nms_top_n, logit.shape[1]), dim=1)
        chosen = delta.gather(1, best[:, :, None].expand(-1, -1, 4))
        boxes.append(rpn.coder.decode(chosen.flatten(0, 1), anchor[best].flatten(0, 1)).view_as(chosen))
        scores.append(score)
        level.append(torch.full_like(best, i))
    logits = torch.cat(scores, 1)
    image = torch.arange(logits.shape[0], device=logits.device)[:, None].expand_as(logits).flatten()
    group = torch.cat(level, 1).flatten() + image * len(levels)
    clipped = _clipped(torch.cat(boxes, 1).flatten(0, 1), image, sizes)
    found = Found(clipped, torch.ones_like(group), logits.flatten(), image)
    wanted = _large(found.boxes, filter.min_size)
    if filter.score_threshold > 0:
        wanted &= found.scores.sigmoid() >= filter.score_threshold
    found = _suppressed(found, group, wanted, filter.nms_threshold, filter.post_nms_top_n, sizes)
    return found._replace(scores=found.scores.sigmoid())


@singledispatch
def run_head(head: nn.Module, maps: Sequence[SizedMap], found: Found) -> Found:
    """What `head` makes of what was `found`. A head of another class is registered with ``run_head.register``."""
    raise NotImplementedError(type(head).__name__)


def _require_known(head: nn.Module) -> None:
    """Raise ValueError for a head that has no `run_head`, and for a box head that finds detections in another way."""
    kind = type(head)
    if run_head.dispatch(kind) is run_head.dispatch(object):
        raise ValueError(f"roi_heads: expected box heads and mask heads, got {kind.__name__}, which cannot be exported")
    if run_head.dispatch(kind) is _box_head and (
        kind.forward is not BoxHead.forward or not isinstance(head.postprocess, Postprocess)
    ):
        raise ValueError(f"roi_heads: {kind.__name__} finds detections in a way of its own, which cannot be exported")


@run_head.register
def _box_head(head: BoxHead, maps: Sequence[SizedMap], found: Found) -> Found:
    """See `BoxHead.forward` and `Postprocess`."""
    r = Regions(found.boxes, found.image)
    output = head.predict(maps, r)
    assert isinstance(head.postprocess, Postprocess)
    return _detected(head.postprocess, head.scores(output.logits), output.deltas, r, head.coder, _sizes(maps))


def _detected(rule: Postprocess, scores: Tensor, deltas: Tensor, r: Regions, coder: Coder, sizes: Tensor) -> Found:
    """See `Postprocess`: scores [R, classes] and deltas [R, 1 or C, 4] of the regions of all images."""
    row, column = (scores > rule.score_threshold).nonzero(as_tuple=True)
    label, image = column + 1, r.image[row]
    boxes = _clipped(coder.decode(deltas[row, label if deltas.shape[1] > 1 else 0], r.boxes[row], label), image, sizes)
    scored = Found(boxes, label, scores[row, column], image)
    group = image * (scores.shape[1] + 1) + label
    large = _large(boxes, rule.min_size)
    found = _suppressed(scored, group, large, rule.nms_threshold, rule.detections_per_image, sizes)
    if rule.min_kept_size > 0:
        kept = _large(found.boxes, rule.min_kept_size).nonzero()[:, 0]
        found = Found(found.boxes[kept], found.labels[kept], found.scores[kept], found.image[kept])
    return found


@run_head.register
def _mask_head(head: MaskHead, maps: Sequence[SizedMap], found: Found) -> Found:
    """See `MaskHead.forward`."""
    logits = head.predict(maps, Regions(found.boxes, found.image))
    return found._replace(masks=head.output(logits, found.labels))


def _sizes(maps: Sequence[SizedMap]) -> Tensor:
    assert maps[0].table is not None
    return maps[0].table


def _clipped(boxes: Tensor, image: Tensor, sizes: Tensor) -> Tensor:
    """Boxes [R, 4] cut to their images, of `sizes` [N, 2]."""
    return torch.minimum(boxes.clamp(min=0), sizes.to(boxes.dtype).flip(1).repeat(1, 2)[image])


def _large(boxes: Tensor, side: float) -> Tensor:
    width, height = sides(boxes)
    return (width >= side) & (height >= side)


def _suppressed(found: Found, group: Tensor, wanted: Tensor, threshold: float, count: int, sizes: Tensor) -> Found:
    """Of the `wanted` [R] boxes those that no better one of the same `group` [R] suppresses, the best `count` an image:
    image by image, best first."""
    rows = wanted.nonzero()[:, 0]
    rows = rows[batched_nms(found.boxes[rows], found.scores[rows], group[rows], threshold)]
    image, number = found.image[rows], torch.arange(rows.shape[0], device=rows.device)
    order = (image * rows.shape[0] + number).argsort()  # no two are equal, so any sorting will do
    image = image[order]
    in_image = (image[:, None] == torch.arange(sizes.shape[0], device=image.device)).sum(0)
    before = in_image.cumsum(0) - in_image
    rows = rows[order][number - before[image] < count]
    return Found(found.boxes[rows], found.labels[rows], found.scores[rows], found.image[rows])
