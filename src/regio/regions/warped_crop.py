"""WarpedCrop: the crop of a box with its surroundings, warped to a fixed size, as R-CNN gives it to a whole network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regio.regions.axes import along_axes, clamp_to_border
from regio.regions.base import rows_and_columns
from regio.regions.quantisation import round_half_away
from regio.regions.sampling import SampleGrid, Samples, SamplingExtractor, boxes_in_cells
from regio.types import FeatureMap, Regions

__all__ = ["CropShape", "TightestSquare", "Warp", "WarpedCrop"]


class CropShape(ABC):
    """What of the image around a box becomes the crop, before context is added."""

    @abstractmethod
    def __call__(self, half: Tensor) -> Tensor:
        """Half the sides [2, R] of the crop, about the centre of the box, from half the sides of the box: x, then y."""


@dataclass(frozen=True)
class Warp(CropShape):
    """The box itself, whatever its aspect ratio (R-CNN, appendix A, "warp")."""

    def __call__(self, half: Tensor) -> Tensor:
        return half


@dataclass(frozen=True)
class TightestSquare(CropShape):
    """The smallest square about the centre of the box that holds it (R-CNN, appendix A, "tightest square with
    context"): objects keep their aspect ratio."""

    def __call__(self, half: Tensor) -> Tensor:
        return half.amax(0, keepdim=True).expand_as(half)


class WarpedCrop(SamplingExtractor):
    """The crop of a box, with context, warped to `bins` pixels: one bilinear sample a pixel, without antialiasing
    (Girshick et al. 2014, section 2.1 and appendix A). R-CNN reads the image itself with it, so that K = 227 x 227
    parts go through a whole network.

    bins: (rows, columns) of the output, or one number for both; 227 in the paper. context: pixels of the output on each
    side that show what is around the box. shape: `Warp` or `TightestSquare`. What lies outside the image is 0, the mean
    colour of normalised images. The image is each image of the batch, not the padding beside it.

    rounded: as in the released code. The dilated crop is rounded to whole pixels, halves away from zero, with pixels
    counted from 1 and both ends belonging to it, so it is a pixel wider than the sides say; it is cut to the image, and
    the part inside the image becomes round(part * bins / crop) pixels after round(cut * bins / crop) of border. (With
    context 0 and `Warp` that code takes the box as it is; here it is still a pixel wider.) False: neither rounded nor
    wider; sample j of n lies at (j + 1/2) / n of the crop, one outside the image is 0, and boxes receive gradients.

    A box whose crop lies outside the image is 0 everywhere. Raises ValueError unless 0 <= 2 context < bins.
    """

    def __init__(
        self,
        bins: int | tuple[int, int] = (227, 227),
        context: int = 16,
        shape: CropShape = Warp(),
        rounded: bool = True,
    ) -> None:
        super().__init__()
        self.bins = rows_and_columns(bins)
        if not 0 <= 2 * context < min(self.bins):
            raise ValueError(f"context: expected from 0 to less than half of bins {self.bins}, got {context}")
        self.context, self.shape, self.rounded = context, shape, rounded

    def extra_repr(self) -> str:
        return f"bins={self.bins}, context={self.context}, shape={self.shape}, rounded={self.rounded}"

    def sampling(self, maps: Sequence[FeatureMap], r: Regions, level: Tensor, shift: Tensor | None = None) -> Samples:
        """Where the samples lie; see `SamplingExtractor.sampling`. Raises ValueError for a shift."""
        if shift is not None:
            raise ValueError("shift: expected None, the pixels of a crop cannot be moved one by one")
        boxes, _ = boxes_in_cells(maps, r, level)
        extents = torch.stack([x.extents_of(r.image) for x in maps], 1).to(boxes.dtype)  # images end before the batch
        size = extents.gather(1, level[:, None, None].expand(-1, 1, 2))[:, 0]
        if self.rounded:
            boxes = boxes.detach().clamp(-(2**30), 2**30)  # so that no side overflows
        low, high, size = along_axes(boxes, size)
        half, centre = (high - low) / 2, (high + low) / 2
        rows, columns = self.bins
        dilation = half.new_tensor([[n / (n - 2 * self.context)] for n in (columns, rows)])
        reach = self.shape(half) * dilation
        read = _rounded if self.rounded else _exact
        (u, column_weight), (v, row_weight) = (
            read(c, h, cells, n) for c, h, cells, n in zip(centre, reach, size, (columns, rows), strict=True)
        )
        return SampleGrid(v[..., None], u[..., None], row_weight[..., None], column_weight[..., None])


def _exact(centre: Tensor, reach: Tensor, size: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Positions and weights [R, bins] on one axis of crops from centre - reach to centre + reach [R]."""
    step = (torch.arange(bins, device=centre.device, dtype=centre.dtype) + 0.5) / bins
    positions = (centre - reach)[:, None] + step * (2 * reach)[:, None] - 0.5
    return clamp_to_border(positions, torch.ones_like(positions), size[:, None], margin=0.5)


def _rounded(centre: Tensor, reach: Tensor, size: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """The same in the released code's whole pixels: there they are counted from 1, `first` and `last` belong to the
    crop, and its centre is half a pixel to the right of that of the box."""
    first, last = round_half_away(centre + 1 - reach), round_half_away(centre + 1 + reach)
    scale = bins / (last - first + 1)
    before = round_half_away((1 - first).clamp(min=0) * scale)
    first, last = first.clamp(min=1), torch.minimum(last, size)
    inside = (last - first + 1).clamp(min=0)
    count = torch.minimum(round_half_away(inside * scale), bins - before).clamp(min=0)
    j = torch.arange(bins, device=centre.device, dtype=centre.dtype) - before[:, None]
    within = (j + 0.5) * (inside / count.clamp(min=1))[:, None] - 0.5
    positions = first[:, None] - 1 + torch.minimum(within.clamp(min=0), (inside - 1).clamp(min=0)[:, None])
    read = (j >= 0) & (j < count[:, None])
    return positions.where(read, 0), read.to(positions.dtype)
