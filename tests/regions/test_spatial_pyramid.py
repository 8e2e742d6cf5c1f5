"""SpatialPyramidPool: the contract, and one level = RoIPool."""

import math

import pytest
import torch
from torch import Tensor

from regio.regions.quantisation import OverlappingBins, SlidingBins, SPPNetCorners, SPPNetReleasedCorners
from regio.regions.roi_pool import RoIAveragePool, RoIPool
from regio.regions.spatial_pyramid import SpatialPyramidPool
from regio.types import FeatureMap, Regions
from tests.regions.contract import ExtractorContract, close, feature_map, regions


def centres_inside(low: float, high: float, size: int) -> tuple[int, int]:
    """First and last cell by the paper's appendix."""
    first, last = math.floor(low) + 1, math.ceil(high) - 1
    return (first, last) if first <= last else ((first + last) // 2,) * 2


def released(low: float, high: float, size: int) -> tuple[int, int]:
    """First and last cell by the released code, for a stride of 16: pixels and cells are counted from 1 in between."""
    first = math.floor((16 * low + 1 - 21 + 6.5) / 16 + 0.5) + 1
    last = math.ceil((16 * high - 21 - 6.5) / 16 - 0.5) + 1
    if first > last:
        first = last = math.floor((first + last) / 2)
    return min(max(first, 1), size) - 1, min(max(last, 1), size) - 1


class TestPaper(ExtractorContract):
    bins = (14, 1)
    box_gradient = False
    corners = staticmethod(centres_inside)

    def make(self, channels: int, bins: tuple[int, int]) -> SpatialPyramidPool:
        return SpatialPyramidPool((3, 2, 1))

    def reference(self, extractor: SpatialPyramidPool, x: FeatureMap, r: Regions) -> Tensor:
        out = x.data.new_zeros(len(r), x.data.shape[1], *extractor.bins)
        for n, (box, image) in enumerate(zip((r.boxes / x.stride).tolist(), r.image.tolist(), strict=True)):
            top, bottom = self.corners(box[1], box[3], x.size[0])
            left, right = self.corners(box[0], box[2], x.size[1])
            k = 0
            for bins in extractor.levels:
                for i in range(bins):
                    for j in range(bins):
                        rows = self.bin(top, bottom - top + 1, i, bins)
                        columns = self.bin(left, right - left + 1, j, bins)
                        cells = [
                            x.data[image, :, v, u]
                            for v in rows
                            for u in columns
                            if 0 <= v < x.size[0] and 0 <= u < x.size[1]
                        ]
                        if cells:
                            out[n, :, k, 0] = torch.stack(cells).amax(0)
                        k += 1
        return out

    def bin(self, first: int, side: int, i: int, bins: int) -> range:
        return range(first + i * side // bins, first - (-(i + 1) * side // bins))


class TestReleasedCode(TestPaper):
    corners = staticmethod(released)

    def make(self, channels: int, bins: tuple[int, int]) -> SpatialPyramidPool:
        return SpatialPyramidPool((3, 2, 1), SPPNetReleasedCorners())


class TestSliding(TestPaper):
    def make(self, channels: int, bins: tuple[int, int]) -> SpatialPyramidPool:
        return SpatialPyramidPool((3, 2, 1), division=SlidingBins())

    def bin(self, first: int, side: int, i: int, bins: int) -> range:
        start = first + i * (side // bins)
        return range(start, start - (-side // bins))


@pytest.mark.parametrize("corners", [SPPNetCorners(), SPPNetReleasedCorners()])
@pytest.mark.parametrize("pool", [RoIPool, RoIAveragePool])
def test_one_level_is_its_pool(pool: type[RoIPool] | type[RoIAveragePool], corners: SPPNetCorners) -> None:
    x, r = feature_map(), regions()
    pyramid, alone = SpatialPyramidPool((4,), corners, pool=pool), pool(4, corners, OverlappingBins())
    assert torch.equal(pyramid(x, r), alone(x, r).reshape(len(r), 3, 16, 1))
    assert torch.equal(pyramid.weights(x, r), alone.weights(x, r))


def test_fifty_bins_of_which_the_last_is_the_whole_box() -> None:
    x, r = feature_map(), regions([[0.0, 0.0, 44.0, 36.0]])
    y = SpatialPyramidPool()(x, r)
    assert y.shape == (1, 3, 50, 1)
    assert torch.equal(y[0, :, -1, 0], x.data[0, :, 1:, 1:].amax((1, 2)))  # the centres of row and column 0 are at 0


def test_each_part_can_read_channels_of_its_own() -> None:
    """Parts of the second grid that name few groups are not confused by the channels of the others."""
    x, r = feature_map(8), regions()
    e, level = SpatialPyramidPool((2, 1)), torch.zeros_like(r.image)
    groups = [3, 1, 0, 2, 1]
    y = e.sampling([x], r, level).features([x.data.unflatten(1, (4, 2))], r.image, level, groups)
    every = e(x, r).unflatten(1, (4, 2))
    close(y, torch.stack([every[:, g, :, k] for k, g in enumerate(groups)], 2), 0)


def test_averages_can_be_moved() -> None:
    x, r = feature_map(), regions()
    e, level = SpatialPyramidPool((2, 1), pool=RoIAveragePool), torch.zeros_like(r.image)
    shift = torch.zeros(len(r), 5, 1, 2, dtype=torch.float64)
    shift[:, 4, 0, 0] = 1
    y = e.sampling([x], r, level, shift).features([x.data], r.image, level)
    close(y[:, :, :4], e(x, r)[:, :, :4], 1e-12)
    aside = Regions(r.boxes + torch.tensor([4.0, 0.0, 4.0, 0.0]), r.image)
    close(y[:, :, 4], e(x, aside)[:, :, 4], 1e-12)


@pytest.mark.parametrize("levels", [(), (3, 0)])
def test_bad_levels_raise(levels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="levels: expected"):
        SpatialPyramidPool(levels)
