"""Deformable RoI pooling (Dai et al. 2017, section 2.2): each part of an extractor is moved by a learned offset.

    y_k(b) = sum over p of w_k(b, p - shift_k) x(p),    shift_k = gamma * offset_k * (w, h)          (Eq. 6)

Three forms are in use, and they are three extractors to move:

    DeformableRoIPool(RoIAveragePool(7, count_outside=True), 256)   the paper's: the mean over the whole cells of a bin
    DeformableRoIPool(RoundedSamples(7), 256)                       the operator that was released with the paper
    DeformableRoIPool(RoIAlign(7), 256)                             the aligned one, mmcv's `deform_roi_pool`
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regio.kernels.arguments import autocast_off, coordinate_dtype
from regio.regions.axes import clamp_to_border, outer_grid
from regio.regions.base import RegionExtractor, rows_and_columns
from regio.regions.convolved import score_layer
from regio.regions.position_sensitive import GroupedSamples, PositionSensitive, whole_pixels
from regio.regions.sampling import SampleGrid, SamplePoints, Samples, SamplingExtractor, boxes_in_cells
from regio.types import FeatureMap, Regions

__all__ = ["DeformablePositionSensitive", "DeformableRoIPool", "RoundedSamples", "deformed_samples", "part_shifts"]


class RoundedSamples(SamplingExtractor):
    """Bilinear samples in the bins of a box of whole pixels: those of the operator released with deformable ConvNets.

    The corners are rounded to whole pixels, halves away from zero, and the pixel of the second corner belongs to the
    box; then they are divided by the stride, and half a cell is taken off. A side is at least 0.1 cells. Sample s of n
    lies at s / n of its bin, without the half step that would centre the samples. One outside [-0.5, size - 0.5] does
    not count in the mean; one between that and the map is moved onto the border cell. Features receive gradients, boxes
    none.

    bins: (rows, columns), or one number for both. samples: along each axis of a bin.
    """

    def __init__(self, bins: int | tuple[int, int] = (7, 7), samples: int = 4) -> None:
        super().__init__()
        self.bins = rows_and_columns(bins)
        if samples < 1:
            raise ValueError(f"samples: expected a positive number along each axis of a bin, got {samples}")
        self.samples = samples

    def extra_repr(self) -> str:
        return f"bins={self.bins}, samples={self.samples}"

    def box(self, maps: Sequence[FeatureMap], r: Regions, level: Tensor) -> tuple[Tensor, Tensor]:
        """The corner (x1, y1) and the sides (w, h) of the rounded boxes, both [R, 2] in cells."""
        cells, _ = boxes_in_cells(maps, whole_pixels(r), level)
        return cells[:, :2] - 0.5, (cells[:, 2:] - cells[:, :2]).clamp(min=0.1)

    def sampling(self, maps: Sequence[FeatureMap], r: Regions, level: Tensor, shift: Tensor | None = None) -> Samples:
        """Where the samples lie; see `SamplingExtractor.sampling`. Those of a moved part count where they are then."""
        (x1, y1), (width, height) = (t.unbind(1) for t in self.box(maps, r, level))
        rows, columns = self._along(y1, height, self.bins[0]), self._along(x1, width, self.bins[1])
        _, size = boxes_in_cells(maps, r, level)
        if shift is None:
            on_rows, on_columns = (_counted(p, size[:, i, None, None]) for i, p in enumerate((rows, columns)))
            return SampleGrid(on_rows[0], on_columns[0], on_rows[1], on_columns[1])
        rows, columns = rows[:, :, None] + shift[..., 1:], columns[:, None] + shift[..., :1]
        return outer_grid(
            *_counted(rows, size[:, 0, None, None, None]), *_counted(columns, size[:, 1, None, None, None])
        )

    def sides(self, maps: Sequence[FeatureMap], r: Regions, level: Tensor) -> Tensor:
        """The (width, height) [R, 2] of the rounded boxes in cells."""
        return self.box(maps, r, level)[1]

    def _along(self, low: Tensor, side: Tensor, bins: int) -> Tensor:
        """The samples [R, bins, S] along one axis of boxes from `low` [R] on, `side` [R] long."""
        steps = torch.arange(bins * self.samples, device=low.device, dtype=low.dtype) / (bins * self.samples)
        return (low[:, None] + steps * side[:, None]).unflatten(1, (bins, self.samples))


def _counted(positions: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Positions [..., S] on a map of `size`, and for each one over the number of the S that are on the map."""
    positions, counts = clamp_to_border(positions, torch.ones_like(positions), size, margin=0.5)
    return positions, counts / counts.sum(-1, keepdim=True).clamp(min=1)


def deformed_samples(
    extractor: SamplingExtractor,
    maps: Sequence[FeatureMap],
    r: Regions,
    level: Tensor,
    offsets: Tensor,
    gamma: float = 0.1,
) -> Samples:
    """The samples of `extractor` with each part moved by ``gamma * offset * (w, h)``, w and h the sides of the box.

    offsets: [R, 2, Ph, Pw], channel 0 along x and 1 along y; part (i, j) of Kh x Kw takes the offset at (floor(i Ph /
    Kh), floor(j Pw / Kw)). With a `PositionSensitive` extractor also [R, 2 D, Ph, Pw], channels 2d and 2d + 1 for the
    d-th of D equal ranges of its output channels. Box i is read from ``maps[level[i]]``.

    ``.features`` and ``.weights`` of the result are those of deformable pooling with given offsets. The regions are not
    checked. Raises ValueError for offsets of another shape.
    """
    shift = part_shifts(extractor, maps, r, level, offsets, gamma)
    return extractor.sampling(maps, r, level, shift if shift.shape[1] > 1 else shift.squeeze(1))


def part_shifts(
    extractor: SamplingExtractor,
    maps: Sequence[FeatureMap],
    r: Regions,
    level: Tensor,
    offsets: Tensor,
    gamma: float = 0.1,
) -> Tensor:
    """By how much each part is moved, [R, D, Kh, Kw, 2] as (x, y) in cells of the box's map; arguments and errors as of
    `deformed_samples`."""
    boxes = r.boxes.shape[0]
    if offsets.ndim != 4 or offsets.shape[0] != boxes or offsets.shape[1] % 2 or 0 in offsets.shape[1:]:
        raise ValueError(f"offsets: expected shape [{boxes}, 2 D, rows, columns], got {list(offsets.shape)}")
    pairs = offsets.shape[1] // 2
    if pairs > 1 and not isinstance(extractor, PositionSensitive):
        raise ValueError(f"offsets: expected 2 channels, one offset a part for all channels, got {2 * pairs}")
    rows, columns = (
        torch.arange(k, device=offsets.device) * n // k for k, n in zip(extractor.bins, offsets.shape[2:], strict=True)
    )
    each = offsets.unflatten(1, (pairs, 2))[:, :, :, rows[:, None], columns]  # [R, D, 2, Kh, Kw]
    sides = extractor.sides(maps, r, level)
    return gamma * each.to(sides.dtype).permute(0, 1, 3, 4, 2) * sides[:, None, None, None]


class _MovedParts(RegionExtractor):
    """What deformable extractors have in common: parts of `extractor` that are moved by offsets, times `gamma` and the
    sides of the box, which come from the layer `offset`."""

    extractor: SamplingExtractor
    gamma: float
    offset: nn.Linear | nn.Conv2d

    @abstractmethod
    def offsets(self, maps: Sequence[FeatureMap], r: Regions, level: Tensor) -> Tensor:
        """The learned offsets [R, 2 D, rows, columns], in gammas of the sides of the box, for each of D equal ranges of
        the channels."""

    def part_shifts(self, x: FeatureMap, r: Regions) -> Tensor:
        """By how much each part is moved, [R, D, Kh, Kw, 2] as (x, y) in cells."""
        r.check(x)
        level = torch.zeros_like(r.image)
        return part_shifts(self.extractor, [x], r, level, self.offsets([x], r, level), self.gamma)

    @torch.no_grad()
    def zero_offsets(self) -> None:
        """Set the parameters that the offsets come from to zero, as in a new layer: no part is moved."""
        _start_at_zero(self.offset)

    def offset_parameters(self) -> list[nn.Parameter]:
        """The parameters of the offset layer, which may have a learning rate of their own."""
        return list(self.offset.parameters())


class DeformableRoIPool(_MovedParts):
    """The features of an extractor whose parts are moved by offsets that a linear layer finds in its unmoved features.

    extractor: what is pooled and moved; see the forms above. channels: of its features. offset_size: (rows, columns) of
    offsets, or one number for both; None is one a part. gamma: the offsets' scale. The layer starts at zero, where the
    features are those of the extractor. The paper learns it with 0.01 times the learning rate of the other layers in
    Faster R-CNN, which is what the optimizers of `regio.optimisation` do (`rate_factors`). For another optimizer it is
    a group of its own, ``{"params": pool.offset_parameters(), "lr": 0.01 * lr}``.

    Features, parameters and, except where the extractor rounds them, boxes receive gradients. A sample at a whole
    number of cells, which all those of the paper's form are at zero offset, has the derivative from above.
    """

    rate_factors: ClassVar[dict[str, float]] = {"offset": 0.01}  # see `regio.optimisation.rate_groups`

    def __init__(
        self,
        extractor: SamplingExtractor,
        channels: int,
        offset_size: int | tuple[int, int] | None = None,
        gamma: float = 0.1,
    ) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels: expected a positive number, got {channels}")
        self.extractor = extractor
        self.bins = extractor.bins
        self.channels = channels
        self.offset_size = rows_and_columns(extractor.bins if offset_size is None else offset_size)
        self.gamma = gamma
        self.offset = nn.Linear(channels * prod(self.bins), 2 * prod(self.offset_size))
        _start_at_zero(self.offset)

    def extra_repr(self) -> str:
        return f"offset_size={self.offset_size}, gamma={self.gamma}"

    def forward(self, x: FeatureMap, r: Regions) -> Tensor:
        """Region features [R, C, *bins]."""
        return self.pyramid([x], r, torch.zeros_like(r.image))

    def pyramid(self, maps: Sequence[FeatureMap], r: Regions, level: Tensor) -> Tensor:
        """Region features [R, C, *bins], box i read from ``maps[level[i]]``."""
        return self.deformed(maps, r, level, self.offsets(maps, r, level))

    def offsets(self, maps: Sequence[FeatureMap], r: Regions, level: Tensor) -> Tensor:
        """The learned offsets [R, 2, *offset_size], in gammas of the sides of the box; in float32 (float64 for float64
        features) also under autocast, as they are coordinates."""
        pooled = self.extractor.pyramid(maps, r, level)
        if pooled.shape[1] != self.channels:
            raise ValueError(f"x: expected {self.channels} channels a part, got {pooled.shape[1]}")
        dtype = coordinate_dtype(pooled)
        with autocast_off(pooled):
            flat = pooled.flatten(1).to(dtype)
            offsets = F.linear(flat, *(p.to(dtype) for p in self.offset.parameters()))
        return offsets.unflatten(1, (2, *self.offset_size))

    def deformed(self, maps: Sequence[FeatureMap], r: Regions, level: Tensor, offsets: Tensor) -> Tensor:
        """Region features [R, C, *bins] with given offsets; see `deformed_samples`."""
        r.check(maps[0])
        samples = deformed_samples(self.extractor, maps, r, level, offsets, self.gamma)
        return samples.features([x.data for x in maps], r.image, level)

    def weights(self, x: FeatureMap, r: Regions) -> Tensor:
        """The weights [R, 1 or C, K, H, W]; they depend on x through the offsets."""
        level = torch.zeros_like(r.image)
        offsets = self.offsets([x], r, level)
        return deformed_samples(self.extractor, [x], r, level, offsets, self.gamma).weights(x.data, r.image)

    def samples(self, x: FeatureMap, r: Regions, offsets: Tensor) -> SamplePoints:
        """Where the parts read with given offsets, for pictures: points [R, Kh, Kw, S, 2] as (column, row) in cells,
        and their weights [R, Kh, Kw, S]; the centre of cell i is at ``(i + 0.5) * x.stride`` image pixels.

        With `offsets` of zeros these are the samples of the extractor itself.
        """
        return _samples(self.extractor, x, r, offsets, self.gamma)

    def moved_samples(self, x: FeatureMap, r: Regions) -> tuple[SamplePoints, SamplePoints]:
        """The samples with the learned offsets, and without."""
        offsets = self.offsets([x], r, torch.zeros_like(r.image))
        return self.samples(x, r, offsets), self.samples(x, r, torch.zeros_like(offsets))


class DeformablePositionSensitive(_MovedParts):
    """Deformable position-sensitive RoI pooling (figure 4): R-FCN's features with moved parts.

    Two 1 x 1 convolutions read the same map x. One gives the score maps, G * channels, which `extractor` pools: part k
    reads group g(k). The other gives offset maps, 2 G' * classes, pooled by `offset_extractor` without a shift into an
    offset a part for each of `classes` equal ranges of the channels. The layer of the offsets starts at zero and is
    learned at the rate of the other layers.

    In R-FCN the scores have ``channels = classes = C + 1``, and the box deltas 4 (or 8) channels with ``classes = 1``:
    offsets for each class, or shared by all. The mean over the parts is `vote`.

    Law: ``forward`` is the sum of `weights` times the score maps, as in `PositionSensitive`.
    """

    map_layers: ClassVar[tuple[str, ...]] = ("scores",)

    def __init__(
        self,
        extractor: PositionSensitive,
        in_channels: int,
        channels: int,
        classes: int = 1,
        offset_extractor: PositionSensitive | None = None,
        gamma: float = 0.1,
    ) -> None:
        super().__init__()
        if classes < 1 or channels < 1 or channels % classes:
            raise ValueError(f"channels: expected a positive multiple of {classes} classes, got {channels}")
        self.extractor = extractor
        self.offset_extractor = extractor if offset_extractor is None else offset_extractor
        self.bins = extractor.bins
        self.gamma = gamma
        self.scores = score_layer(in_channels, prod(extractor.group_size) * channels)
        self.offset = nn.Conv2d(in_channels, prod(self.offset_extractor.group_size) * 2 * classes, 1)
        _start_at_zero(self.offset)

    def extra_repr(self) -> str:
        return f"gamma={self.gamma}"

    def forward(self, x: FeatureMap, r: Regions) -> Tensor:
        """Region features [R, channels, *bins]."""
        return self.pyramid([x], r, torch.zeros_like(r.image))

    def pyramid(self, maps: Sequence[FeatureMap], r: Regions, level: Tensor) -> Tensor:
        """Region features [R, channels, *bins], box i read from ``maps[level[i]]``."""
        r.check(maps[0])
        scores = [replace(x, data=self.scores(x.data)) for x in maps]
        samples = self._sampling(maps, r, level, scores)
        return samples.features([s.data for s in scores], r.image, level)

    def offsets(self, maps: Sequence[FeatureMap], r: Regions, level: Tensor) -> Tensor:
        """The learned offsets [R, 2 classes, rows, columns], in gammas of the sides of the box; in float32 (float64 for
        float64 features) also under autocast, as they are coordinates."""
        dtype = coordinate_dtype(maps[0].data)
        weight, bias = (p.to(dtype) for p in self.offset.parameters())
        with autocast_off(r.boxes):
            fields = [replace(x, data=F.conv2d(x.data.to(dtype), weight, bias)) for x in maps]
        return self.offset_extractor.pyramid(fields, r, level)

    def weights(self, x: FeatureMap, r: Regions) -> Tensor:
        """The weights [R, 1 or channels, K, H, W] of the score maps, as in `PositionSensitive`."""
        r.check(x)
        scores = replace(x, data=self.scores(x.data))
        return self._sampling([x], r, torch.zeros_like(r.image), [scores]).weights(scores.data, r.image)

    def samples(self, x: FeatureMap, r: Regions, offsets: Tensor) -> SamplePoints:
        """As `DeformableRoIPool.samples`, for R * classes boxes: row ``r * classes + d`` is class d of box r."""
        return _samples(self.extractor, replace(x, data=self.scores(x.data)), r, offsets, self.gamma)

    def _sampling(self, maps: Sequence[FeatureMap], r: Regions, level: Tensor, scores: Sequence[FeatureMap]) -> Samples:
        return deformed_samples(self.extractor, scores, r, level, self.offsets(maps, r, level), self.gamma)


def _start_at_zero(layer: nn.Linear | nn.Conv2d) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def _samples(extractor: SamplingExtractor, x: FeatureMap, r: Regions, offsets: Tensor, gamma: float) -> SamplePoints:
    r.check(x)
    samples = deformed_samples(extractor, [x], r, torch.zeros_like(r.image), offsets, gamma)
    while isinstance(samples, GroupedSamples):
        samples = samples.samples
    if not isinstance(samples, SamplePoints):
        raise TypeError(f"extractor: expected one that reads bilinear samples, got {type(samples).__name__}")
    return samples
