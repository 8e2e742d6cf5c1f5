"""SPPnet's classifier of images: what its layers are trained with before there are regions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from regio.regions import HalfOpenCorners, SlidingBins, SpatialPyramidPool
from regio.roi_heads import LayeredTrunk
from regio.types import FeatureMap, Regions, Targets

__all__ = ["SpatialPyramidClassifier"]


class SpatialPyramidClassifier(nn.Module):
    """Convolutions, a spatial pyramid over the whole map, fully connected layers, softmax (He et al. 2014, section 2).

    backbone: of whose maps the last is pooled; its `mean` and `std` normalise images. trunk: its fully connected
    layers, for features of the pyramid. num_classes: without a background. levels: bins along a side of each grid of
    the pyramid. sides: the images are scaled to squares of so many pixels. Of several sides one is used after the
    other, each for `switch_every` images (section 2.3: 224 and 180, one epoch each), those of all processes; the
    pyramid makes features of one length of both, so they share all weights. Outside training the first is used.

    Pooling is that of the paper's training: windows of ceil(a / n) cells every floor(a / n), on a map of a x a cells.
    How many images it was trained on is part of its state. It is trained like a detector, on images of one object each:

        train(classifier, read_class_folders("imagenet/train"), ClassAccuracy(read_class_folders("imagenet/val")), ...)

    and what it has learnt goes on as ``sppnet(num_classes, classifier.backbone, classifier.trunk)``.

    Raises ValueError for no side, or one that is not positive.
    """

    seen: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        trunk: LayeredTrunk,
        num_classes: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        levels: Sequence[int] = (6, 3, 2, 1),
        sides: Sequence[int] = (224,),
        switch_every: int = 1,
    ) -> None:
        super().__init__()
        if not sides or min(sides) < 1:
            raise ValueError(f"sides: expected positive numbers of pixels, at least one, got {list(sides)}")
        self.backbone, self.trunk = backbone, trunk
        self.mean, self.std = tuple(mean), tuple(std)
        self.sides, self.switch_every = tuple(sides), switch_every
        self.pool = SpatialPyramidPool(levels, HalfOpenCorners(), SlidingBins())
        self.class_logits = nn.Linear([*trunk.widths.values()][-1], num_classes)
        nn.init.normal_(self.class_logits.weight, std=0.01)
        nn.init.zeros_(self.class_logits.bias)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    @property
    def side(self) -> int:
        """The side in pixels of the images that it is trained on now."""
        return self.sides[int(self.seen) // self.switch_every % len(self.sides)]

    def forward(self, images: Sequence[Tensor]) -> list[Tensor]:
        """The scores [C] of the classes for each of `images`, uint8 [3, H, W]."""
        return list(self.logits(images, self.sides[0]).float().softmax(1))

    def losses(self, images: Sequence[Tensor], targets: Sequence[Targets]) -> dict[str, Tensor]:
        """The loss `class` of naming the class of the one object in each image."""
        logits = self.logits(images, self.side)
        self.seen += len(images) * (dist.get_world_size() if dist.is_initialized() else 1)
        labels = torch.stack([target.labels[0] for target in targets]) - 1
        return {"class": F.cross_entropy(logits.float(), labels)}

    def logits(self, images: Sequence[Tensor], side: int) -> Tensor:
        """[N, C] for images [3, H, W] scaled to `side` x `side` pixels, bilinear with antialiasing."""
        scaled = [
            F.interpolate(image[None].float() / 255, (side, side), mode="bilinear", antialias=True) for image in images
        ]
        mean, std = (scaled[0].new_tensor(each)[:, None, None] for each in (self.mean, self.std))
        batch = ((torch.cat(scaled) - mean) / std).contiguous(memory_format=torch.channels_last)
        x: FeatureMap = self.backbone(batch)[-1]
        height, width = (x.stride * cells for cells in x.size)
        boxes = x.data.new_tensor([[0, 0, width, height]], dtype=torch.float32).expand(len(images), 4)
        regions = Regions(boxes, torch.arange(len(images), device=boxes.device))
        logits: Tensor = self.class_logits(self.trunk(self.pool(x, regions)))
        return logits
