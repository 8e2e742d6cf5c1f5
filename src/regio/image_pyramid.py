"""Image pyramids: the same network on the images at several scales."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regio.types import FeatureMap

__all__ = ["ImagePyramid"]


class ImagePyramid(nn.Module):
    """A backbone on a batch of images at several scales (SPPnet, section 4.1; Fast R-CNN, section 2.4).

    backbone, neck: a network of one map, and what its map goes through. sides: the short sides to which images are
    scaled. The batch comes scaled to the largest of them (`regio.preprocess.Preprocess`), and is scaled down from there
    by bilinear interpolation with antialiasing, so that where an image is smaller because of its long side it is so at
    all scales; each is padded with zeros to a multiple of `divisor`, the largest
    stride inside the network, so that cells lie where they lie in the batch itself.

    Which map a box is read from is the affair of a rule for levels, `regio.regions.NearestArea` in these papers.

    In training mode one scale is drawn for the batch from PyTorch's global generator: these papers draw one for an
    image, since a step on all scales does not fit into memory.

    Raises ValueError for no side, one that is not positive, or one given twice.
    """

    def __init__(
        self, backbone: nn.Module, sides: Sequence[int], *, neck: nn.Module | None = None, divisor: int = 32
    ) -> None:
        super().__init__()
        if not sides or min(sides) < 1 or len(set(sides)) != len(sides):
            raise ValueError(f"sides: expected different numbers of pixels, at least one, got {list(sides)}")
        self.backbone = backbone
        self.neck = nn.Identity() if neck is None else neck
        self.sides = tuple(sorted(sides, reverse=True))
        self.divisor = divisor

    def extra_repr(self) -> str:
        return f"sides={self.sides}, divisor={self.divisor}"

    def forward(self, images: Tensor) -> tuple[FeatureMap, ...]:
        """A map of each scale, finest first, from `images` [N, 3, H, W], normalised and padded. Strides are pixels of
        `images`: that of the network divided by the scale. In training mode, one of these maps."""
        sides = self.sides
        if self.training:
            sides = (sides[int(torch.randint(len(sides), ()))],)
        return tuple(self._at(images, side / self.sides[0]) for side in sides)

    def _at(self, images: Tensor, scale: float) -> FeatureMap:
        maps = self.neck(self.backbone(self.scaled(images, scale)))
        if len(maps) != 1:
            raise ValueError(f"backbone: expected a network of one map, got one of {len(maps)}")
        return replace(maps[0], stride=maps[0].stride / scale)

    def scaled(self, images: Tensor, scale: float) -> Tensor:
        """`images` [N, 3, H, W] at `scale`, padded at the right and at the bottom: pixel i of the result has its centre
        at (i + 0.5) / scale. Sides are whole pixels, rounded down."""
        if scale == 1:
            return images
        # By the scale, not by a size, so that pixels lie where the stride says. A hair more, since the size is rounded
        # down, and 1200 * (576 / 1200) may be less than 576.
        factor = scale * (1 + 1e-9)
        # In float32 at least: PyTorch has no antialiasing in half precision on a CPU.
        precise = images.to(torch.promote_types(images.dtype, torch.float32))
        small = F.interpolate(precise, scale_factor=factor, mode="bilinear", antialias=True).to(images.dtype)
        height, width = small.shape[2:]
        below, right = (math.ceil(side / self.divisor) * self.divisor - side for side in (height, width))
        return F.pad(small, (0, right, 0, below))
