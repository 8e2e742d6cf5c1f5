"""Position-sensitive region features (R-FCN, Dai et al. 2016): each part reads channels of its own.

``y_k(b) = sum over p of w_k(b, p) x_g(k)(p)``: the weights are those of any extractor that has a `sampling`; the map x
holds G groups of C channels, and part k reads group g(k). What other libraries ship as separate operators is an
argument here:

    PositionSensitive(RFCNAveragePool(7))          R-FCN's pooling
    PositionSensitive(TorchvisionAveragePool(7))   torchvision's `ps_roi_pool`
    PositionSensitive(RoIAlign(7, samples=0))      torchvision's `ps_roi_align`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from regio.boxes import precise
from regio.regions.base import rows_and_columns
from regio.regions.quantisation import Corners, Division, HalfOpenCorners, OverlappingBins, round_half_away
from regio.regions.roi_pool import RoIAveragePool
from regio.regions.sampling import Samples, SamplingExtractor
from regio.types import FeatureMap, Regions

__all__ = [
    "GroupedSamples",
    "PositionSensitive",
    "RFCNAveragePool",
    "TorchvisionAveragePool",
    "groups_of_parts",
    "vote",
    "whole_pixels",
]


def vote(features: Tensor) -> Tensor:
    """The scores [R, C] of position-sensitive features [R, C, Kh, Kw]: the mean over the parts (R-FCN, section 2.2;
    Dai et al. 2017 write a sum)."""
    return features.mean((2, 3))


def groups_of_parts(bins: tuple[int, int], group_size: tuple[int, int]) -> list[int]:
    """The group, of rows x columns of them in row-major order, in which each of the Kh * Kw parts lies: part (i, j) in
    group (floor(i rows / Kh), floor(j columns / Kw))."""
    rows, columns = group_size
    return [i * rows // bins[0] * columns + j * columns // bins[1] for i in range(bins[0]) for j in range(bins[1])]


@dataclass(frozen=True)
class GroupedSamples(Samples):
    """Samples whose part k reads channel group ``groups[k]`` of `count`.

    samples: of R * classes boxes. Box ``r * classes + d`` reads, for box r, the output channels of class d, which are
    ``[d C / classes, (d + 1) C / classes)``. group_major: whether channel c of group g is stored at g * C + c (True) or
    at c * count + g.
    """

    samples: Samples
    groups: tuple[int, ...]
    count: int
    group_major: bool = False
    classes: int = 1

    def features(
        self, maps: Sequence[Tensor], image: Tensor, level: Tensor, groups: Sequence[int] | None = None
    ) -> Tensor:
        """Features [R, C, Kh, Kw] from maps of count * C channels. Raises ValueError for `groups`: it has its own."""
        if groups is not None:
            raise ValueError(f"groups: expected None, these samples have groups of their own, got {list(groups)}")
        level = level.repeat_interleave(self.classes)
        y = self.samples.features([self._by_class(m) for m in maps], self._images(image), level, self.groups)
        return y.unflatten(0, (image.shape[0], self.classes)).flatten(1, 2)

    def weights(self, x: Tensor, image: Tensor) -> Tensor:
        """The weights [R, 1 or C, K, H, W] of the cells of group g(k) in part k."""
        w = self.samples.weights(self._by_class(x).flatten(1, 2), self._images(image))
        channels = x.shape[1] // (self.count * self.classes)
        if w.shape[1] > 1:  # of all channels of all groups
            parts = w.unflatten(1, (-1, channels)).unbind(3)
            w = torch.stack([part[:, g] for g, part in zip(self.groups, parts, strict=True)], 2)
        if self.classes > 1:
            w = w.expand(-1, channels, -1, -1, -1)
        return w.unflatten(0, (image.shape[0], self.classes)).flatten(1, 2)

    def _images(self, image: Tensor) -> Tensor:
        """Where `_by_class` puts the channels that each of the R * classes boxes reads."""
        classes = torch.arange(self.classes, device=image.device)
        return (image[:, None] * self.classes + classes).flatten()

    def _by_class(self, x: Tensor) -> Tensor:
        """Maps [N, count * C, H, W] as [N * classes, count, C / classes, H, W], a view where the order of the channels
        allows."""
        each = x.shape[1] // (self.count * self.classes)
        if self.group_major:
            return x.unflatten(1, (self.count, self.classes, each)).transpose(1, 2).flatten(0, 1)
        return x.unflatten(1, (self.classes, each, self.count)).transpose(2, 3).flatten(0, 1)


class PositionSensitive(SamplingExtractor):
    """Part k reads the channel group g(k) of a map of G * C channels and gives C: region features [R, C, *bins].

    extractor: where the parts read, for example `RoIAlign`. group_size: (rows, columns) of groups, or one number for
    both; None is one a part, R-FCN's k x k. Part (i, j) of Kh x Kw reads the group in which it lies, (floor(i rows
    / Kh), floor(j columns / Kw)), as in deformable ConvNets. group_major: False is the order of R-FCN and torchvision,
    channel c of group g at ``c * G + g``; True is ``g * C + c``.

    Law: ``y[r, c, k] = sum over p of weights[r, 1 or c, k, p] * by_group(x)[image[r], g(k), c, p]``.

    With `RoIAlign(samples=n)` this is torchvision's `ps_roi_align`, with ``samples=0`` its adaptive form; only a box of
    no height or no width gives 0 here in the adaptive form, and NaN there. Raises ValueError where the channels of the
    map do not divide by G.
    """

    def __init__(
        self,
        extractor: SamplingExtractor,
        group_size: int | tuple[int, int] | None = None,
        group_major: bool = False,
    ) -> None:
        super().__init__()
        size = extractor.bins if group_size is None else group_size
        try:
            self.group_size = rows_and_columns(size)
        except ValueError:
            raise ValueError(f"group_size: expected positive numbers (rows, columns), got {size}") from None
        self.extractor = extractor
        self.bins = extractor.bins
        self.groups = tuple(groups_of_parts(self.bins, self.group_size))
        self.group_major = group_major

    def extra_repr(self) -> str:
        return f"group_size={self.group_size}, group_major={self.group_major}"

    def sampling(
        self, maps: Sequence[FeatureMap], r: Regions, level: Tensor, shift: Tensor | None = None
    ) -> GroupedSamples:
        """Where the parts read; see `SamplingExtractor.sampling`.

        shift: [R, Kh, Kw, 2], or [R, D, Kh, Kw, 2] to move the parts by a shift of its own for each of D equal ranges
        of the C channels (the classes of deformable R-FCN).
        """
        classes = 1
        if shift is not None and shift.ndim == 5:
            classes, shift = shift.shape[1], shift.flatten(0, 1)
            r = Regions(r.boxes.repeat_interleave(classes, 0), r.image.repeat_interleave(classes))
            level = level.repeat_interleave(classes)
        self._check(maps[0], classes)
        inner = self.extractor.sampling(maps, r, level, shift)
        return GroupedSamples(inner, self.groups, prod(self.group_size), self.group_major, classes)

    def sides(self, maps: Sequence[FeatureMap], r: Regions, level: Tensor) -> Tensor:
        """Those of the extractor; see `SamplingExtractor.sides`."""
        return self.extractor.sides(maps, r, level)

    def by_group(self, x: FeatureMap) -> Tensor:
        """The map as [N, G, C, H, W], a view."""
        self._check(x, 1)
        count = prod(self.group_size)
        if self.group_major:
            return x.data.unflatten(1, (count, -1))
        return x.data.unflatten(1, (-1, count)).transpose(1, 2)

    def _check(self, x: FeatureMap, classes: int) -> None:
        channels, count = x.data.shape[1], prod(self.group_size)
        if channels == 0 or channels % (count * classes):
            groups = f"{count} groups" if classes == 1 else f"{count} groups x {classes} classes"
            raise ValueError(f"x: expected a number of channels divisible by {groups}, got {channels}")


def whole_pixels(r: Regions) -> Regions:
    """Boxes rounded to whole pixels, halves away from zero, that hold the pixels of both corners. No gradient."""
    corners = round_half_away(precise(r.boxes.detach()))
    return Regions(torch.cat([corners[:, :2], corners[:, 2:] + 1], 1), r.image)


class RFCNAveragePool(SamplingExtractor):
    """The mean of the cells of each bin, with the bins of R-FCN's released code.

    The corners are rounded to whole pixels, not cells, and the pixel of the second belongs to the box. Then the box, in
    cells, is divided into equal bins, at least 0.1 cells long together, and a bin has all cells that it touches: from
    ``floor(start + i h / K)`` up to, and without, ``ceil(start + (i + 1) h / K)``. Only cells inside the map count; a
    bin without any gives 0. Features and shifts receive gradients, boxes none of their own.

    bins: (rows, columns), or one number for both.
    """

    def __init__(self, bins: int | tuple[int, int] = (7, 7)) -> None:
        super().__init__()
        self.cells = RoIAveragePool(bins, _AsTheyAre(), _TouchedCells())
        self.bins = self.cells.bins

    def sampling(self, maps: Sequence[FeatureMap], r: Regions, level: Tensor, shift: Tensor | None = None) -> Samples:
        """The cells of each bin; see `SamplingExtractor.sampling`."""
        return self.cells.sampling(maps, whole_pixels(r), level, shift)


@dataclass(frozen=True)
class _AsTheyAre(Corners):
    """Sides that are not rounded, at least 0.1 cells long."""

    def __call__(self, low: Tensor, high: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        return low, low + (high - low).clamp(min=0.1)


@dataclass(frozen=True)
class _TouchedCells(Division):
    """All cells that the bins of a box touch, whose sides are not whole numbers."""

    def __call__(self, begin: Tensor, end: Tensor, bins: int) -> tuple[Tensor, Tensor]:
        step = ((end - begin) / bins)[:, None]
        i = torch.arange(bins, device=step.device, dtype=step.dtype)
        return (i * step + begin[:, None]).floor(), ((i + 1) * step + begin[:, None]).ceil()


class TorchvisionAveragePool(SamplingExtractor):
    """The mean of the cells of each bin, with the bins of torchvision's `ps_roi_pool`.

    The corners are rounded to cells, halves away from zero, and the cell of the second does not belong to the box; bins
    may share a cell. The last row and the last column of the map are never read (the gradient of torchvision's operator
    reaches them all the same; here it belongs to the forward). Features and shifts receive gradients, boxes none of
    their own.

    bins: (rows, columns), or one number for both.
    """

    def __init__(self, bins: int | tuple[int, int] = (7, 7)) -> None:
        super().__init__()
        self.cells = RoIAveragePool(bins, HalfOpenCorners(), OverlappingBins())
        self.bins = self.cells.bins

    def sampling(self, maps: Sequence[FeatureMap], r: Regions, level: Tensor, shift: Tensor | None = None) -> Samples:
        """The cells of each bin; see `SamplingExtractor.sampling`."""
        shorter = [replace(x, data=x.data[:, :, :-1, :-1], sizes=None) for x in maps]  # cells are cut, not images
        return self.cells.sampling(shorter, r, level, shift)
