"""The mask head: what of its box each detection is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regio.masks import GridMasks, PasteAtCentres, Pasting, cover
from regio.matching import Matcher
from regio.necks import Norm
from regio.regions import Levels
from regio.types import Detections, FeatureMap, Regions, Targets

__all__ = ["MaskConvolutions", "MaskHead", "MaskOutput", "SigmoidMasks", "SoftmaxMasks"]


class MaskOutput(ABC):
    """What the outputs of a mask head mean."""

    @abstractmethod
    def outputs(self, num_classes: int) -> int:
        """How many maps a head for `num_classes` classes, the background among them, gives."""

    @abstractmethod
    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Probabilities [R, M, M] of the masks of `labels` [R] from logits [R, outputs, M, M]."""

    @abstractmethod
    def losses(self, logits: Tensor, labels: Tensor, covered: Tensor) -> Tensor:
        """The loss [R] of each region: the mean over its cells, of which masks of `labels` cover [R, M, M]."""


@dataclass(frozen=True)
class SigmoidMasks(MaskOutput):
    """A sigmoid for each class on its own, of which only that of the object's class is trained (Mask R-CNN, section 3):
    masks do not compete. class_agnostic: one map for all classes (section 4.2)."""

    class_agnostic: bool = False

    def outputs(self, num_classes: int) -> int:
        return 1 if self.class_agnostic else num_classes - 1

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self._of(logits, labels).sigmoid()

    def losses(self, logits: Tensor, labels: Tensor, covered: Tensor) -> Tensor:
        chosen = self._of(logits, labels)
        return F.binary_cross_entropy_with_logits(chosen, covered.to(chosen.dtype), reduction="none").mean((1, 2))

    def _of(self, logits: Tensor, labels: Tensor) -> Tensor:
        rows = torch.arange(logits.shape[0], device=logits.device)
        return logits[rows, torch.zeros_like(labels) if self.class_agnostic else labels - 1]


@dataclass(frozen=True)
class SoftmaxMasks(MaskOutput):
    """A softmax over the classes and the background at each cell, as in semantic segmentation (Mask R-CNN, table 2b,
    where it is 5.5 points of AP below sigmoids)."""

    def outputs(self, num_classes: int) -> int:
        return num_classes

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        rows = torch.arange(logits.shape[0], device=logits.device)
        return logits.softmax(1)[rows, labels]

    def losses(self, logits: Tensor, labels: Tensor, covered: Tensor) -> Tensor:
        logs, rows = logits.log_softmax(1), torch.arange(logits.shape[0], device=logits.device)
        share = covered.to(logs.dtype)
        return -(share * logs[rows, labels] + (1 - share) * logs[:, 0]).mean((1, 2))


class MaskConvolutions(nn.Sequential):
    """`layers` 3 x 3 convolutions of `width`, then a 2 x 2 deconvolution to twice the size, each with a ReLU: from
    [R, channels, B, B] to [R, width, 2 B, 2 B] (Mask R-CNN, figure 4, right). norm: between a convolution and its ReLU.
    Weights start as He et al. 2015."""

    def __init__(self, channels: int, width: int = 256, layers: int = 4, norm: Norm | None = None) -> None:
        made: list[nn.Module] = []
        for i in range(layers):
            made.append(nn.Conv2d(channels if i == 0 else width, width, 3, padding=1, bias=norm is None))
            made += [nn.ReLU(inplace=True)] if norm is None else [norm(width), nn.ReLU(inplace=True)]
        made += [nn.ConvTranspose2d(width if layers else channels, width, 2, stride=2), nn.ReLU(inplace=True)]
        super().__init__(*made)
        for layer in self:
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)


class MaskHead(nn.Module):
    """Region features, a trunk of convolutions, then a mask for each class by a 1 x 1 convolution (Mask R-CNN, section
    3). It comes after a box head: its masks are those of the detections that the box head has kept.

    extractor: reads the maps; square bins. trunk: from region features [R, C, B, B] to [R, width, M, M]. num_classes:
    with the background. output: what the masks' logits mean, and their loss. matcher: which boxes it is trained on; the
    others have no mask. pasting: how masks become pixels.

    Boxes without an annotated mask are not trained on. The loss `mask` is the mean over the boxes that are.
    """

    class_layers: tuple[str, ...]  # new for other classes

    def __init__(
        self,
        extractor: Levels,
        trunk: nn.Module,
        width: int,
        num_classes: int,
        *,
        output: MaskOutput = SigmoidMasks(),
        matcher: Matcher = Matcher(positive=0.5, background=0.5),  # noqa: B008 (frozen)
        pasting: Pasting = PasteAtCentres(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__()
        if extractor.bins[0] != extractor.bins[1]:
            raise ValueError(f"extractor: expected square bins, got {extractor.bins}")
        if num_classes < 2:
            raise ValueError(f"num_classes: expected the background and at least one class, got {num_classes}")
        self.extractor, self.trunk = extractor, trunk
        self.output, self.matcher, self.pasting = output, matcher, pasting
        self.mask_logits = nn.Conv2d(width, output.outputs(num_classes), 1)
        of_classes = output.outputs(num_classes) != output.outputs(num_classes + 1)
        self.class_layers = ("mask_logits",) if of_classes else ()
        nn.init.normal_(self.mask_logits.weight, std=0.001)
        assert self.mask_logits.bias is not None
        nn.init.zeros_(self.mask_logits.bias)

    def predict(self, maps: Sequence[FeatureMap], r: Regions) -> Tensor:
        """Logits [R, outputs, M, M], in float32 at least."""
        logits = self.mask_logits(self.trunk(self.extractor(maps, r)))
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def forward(self, maps: Sequence[FeatureMap], found: list[Detections]) -> list[Detections]:
        """What was `found`, with masks."""
        logits = self.predict(maps, Regions.from_list([each.boxes for each in found]))
        values = self.output(logits, torch.cat([each.labels for each in found]))
        counts = [len(each) for each in found]
        return [
            replace(each, masks=GridMasks(grid, self.pasting))
            for each, grid in zip(found, values.split(counts), strict=True)
        ]

    def losses(
        self, maps: Sequence[FeatureMap], boxes: list[Tensor], targets: Sequence[Targets]
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The boxes as they came, and the loss `mask`. Masks of the targets [G, h, w] are in pixels of their own, of
        which the boxes' images, `FeatureMap.image_sizes`, may be a scaled form."""
        sample = [
            self._of_image(*each) for each in zip(boxes, targets, maps[0].image_sizes, range(len(boxes)), strict=True)
        ]
        kept = Regions(torch.cat([each.boxes for each in sample]), torch.cat([each.image for each in sample]))
        logits = self.predict(maps, kept)
        cells = logits.shape[-1]
        covered = torch.cat([cover(each.masks, each.boxes_in_masks, cells) for each in sample])
        losses = self.output.losses(logits, torch.cat([each.labels for each in sample]), covered)
        return boxes, {"mask": losses.sum() / max(len(kept), 1)}

    def _of_image(self, boxes: Tensor, target: Targets, size: tuple[int, int], image: int) -> _Sample:
        match = self.matcher(boxes, target)
        known = match.new_zeros(len(target), dtype=torch.bool) if target.masks is None else target.masks.any(2).any(1)
        rows = (match >= 0).nonzero()[:, 0]
        rows = rows[known[match[rows]]]
        boxes, objects = boxes[rows], match[rows]
        height, width = size if target.masks is None else target.masks.shape[1:]
        scale = boxes.new_tensor([width / size[1], height / size[0]]).repeat(2)
        masks = [] if target.masks is None else [target.masks[i] for i in objects.tolist()]
        return _Sample(boxes, torch.full_like(rows, image), target.labels[objects], masks, boxes.detach() * scale)


@dataclass(frozen=True)
class _Sample:
    """The boxes of an image that have a mask. masks: of each, [H, W]; views, since copies for a hundred boxes on a
    photo of 12 megapixels are more than a gigabyte. boxes_in_masks: in their pixels."""

    boxes: Tensor
    image: Tensor
    labels: Tensor
    masks: list[Tensor]
    boxes_in_masks: Tensor
