"""The detector: the page to read first.

A two-stage detector is five steps, and each of them is an object that is passed in:

    maps = neck(backbone(images)); regions = proposals(maps); y = extractor(maps, regions); postprocess(head(y))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from regio.heads import HeadOutput
from regio.matching import RegionSample, RegionSampler
from regio.postprocess import Postprocess
from regio.preprocess import Batch, Preprocess
from regio.types import Detections, FeatureMap, Regions, Targets

__all__ = ["Head", "Proposals", "TwoStageDetector"]


class Proposals(Protocol):
    """Gives boxes for maps and the (height, width) of each image; in training, boxes and the losses of giving them."""

    def __call__(self, maps: Sequence[FeatureMap], sizes: Sequence[tuple[int, int]], /) -> list[Tensor]: ...

    def losses(
        self, maps: Sequence[FeatureMap], sizes: Sequence[tuple[int, int]], targets: Sequence[Targets], /
    ) -> tuple[list[Tensor], dict[str, Tensor]]: ...


class Head(Protocol):
    """Gives classes and boxes for region features [R, C, *bins], and the losses of a sample."""

    def __call__(self, y: Tensor, /) -> HeadOutput: ...

    def losses(self, output: HeadOutput, sample: RegionSample, /) -> dict[str, Tensor]: ...


class TwoStageDetector(nn.Module):
    """Detects with `forward`, trains with `losses`; which of them is called decides, not a mode of the module.

    Images are tensors [3, H, W], uint8 in 0..255 or floating point in 0..1, of any sizes. Boxes, those given and those
    returned, are in pixels of these images. Gradients do not flow into the proposals' coordinates (approximate joint
    training, Faster R-CNN, section 3.2).
    """

    def __init__(
        self,
        *,
        preprocess: Preprocess,
        backbone: nn.Module,
        neck: nn.Module,
        proposals: Proposals,
        extractor: nn.Module,
        sampler: RegionSampler,
        head: Head,
        postprocess: Postprocess,
    ) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.backbone = backbone
        self.neck = neck
        self.proposals = proposals
        self.extractor = extractor
        self.sampler = sampler
        self.head = head
        self.postprocess = postprocess

    def features(self, images: Sequence[Tensor]) -> tuple[Batch, list[FeatureMap]]:
        """`images` as a batch, and its maps, each with the sizes that the images have in the batch."""
        batch = self.preprocess(images)
        return batch, [x.of_images(batch.sizes) for x in self.neck(self.backbone(batch.data))]

    def forward(self, images: Sequence[Tensor]) -> list[Detections]:
        """What is in each of `images`, best first."""
        batch, maps = self.features(images)
        boxes = self.proposals(maps, batch.sizes)
        y = self.extractor(maps, Regions.from_list(boxes))
        return self.postprocess(self.head(y), boxes, batch)

    def losses(self, images: Sequence[Tensor], targets: Sequence[Targets]) -> dict[str, Tensor]:
        """The losses, scalars, whose sum is trained: those of the proposals, `class` and `box`.

        `targets` has one element an image. Images without objects are ordinary input. Samples are drawn from PyTorch's
        global generator.
        """
        batch, maps = self.features(images)
        targets = self.preprocess.targets(targets, batch)
        boxes, losses = self.proposals.losses(maps, batch.sizes, targets)
        sample = self.sampler(boxes, targets)
        y = self.extractor(maps, sample.regions)
        return losses | self.head.losses(self.head(y), sample)
