"""RoIPool and RoIAveragePool: the contract, rules of quantisation, hand-worked numbers, parity with torchvision."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d
from torchvision.ops import roi_pool

from regio.kernels.sample_points import sample_points_reference
from regio.regions.quantisation import (
    DisjointBins,
    FastRCNNCorners,
    HalfOpenCorners,
    OverlappingBins,
    SlidingBins,
    SPPNetCorners,
    SPPNetReleasedCorners,
    round_half_away,
)
from regio.regions.roi_pool import RoIAveragePool, RoIPool
from regio.types import FeatureMap, Regions
from tests.regions.contract import BOXES, ExtractorContract, close, feature_map, regions

Bin = list[tuple[int, int]]


def c_round(value: float) -> int:
    return int(abs(value) + 0.5) * (1 if value >= 0 else -1)


def fast_rcnn(low: float, high: float, bins: int) -> Bin:
    """The cells [begin, end) of each bin by Fast R-CNN's rules, in whole numbers."""
    first, last = c_round(low), c_round(high)
    side = max(last - first + 1, 1)
    return [(first + i * side // bins, first - (-(i + 1) * side // bins)) for i in range(bins)]


def half_open(low: float, high: float, bins: int) -> Bin:
    first = c_round(low)
    side = max(c_round(high) - first, 1)
    return [(first + i * side // bins, first + (i + 1) * side // bins) for i in range(bins)]


class PoolContract(ExtractorContract):
    box_gradient = False
    axis = staticmethod(fast_rcnn)

    def reference(self, extractor: RoIPool | RoIAveragePool, x: FeatureMap, r: Regions) -> Tensor:
        out = x.data.new_zeros(len(r), x.data.shape[1], *extractor.bins)
        for n, (box, image) in enumerate(zip(r.boxes.tolist(), r.image.tolist(), strict=True)):
            x1, y1, x2, y2 = (c / x.stride for c in box)
            for i, rows in enumerate(self.axis(y1, y2, extractor.bins[0])):
                for j, columns in enumerate(self.axis(x1, x2, extractor.bins[1])):
                    cells = [
                        x.data[image, :, v, u]
                        for v in range(*rows)
                        for u in range(*columns)
                        if 0 <= v < x.size[0] and 0 <= u < x.size[1]
                    ]
                    if cells:
                        total = (rows[1] - rows[0]) * (columns[1] - columns[0])
                        out[n, :, i, j] = self.reduce(torch.stack(cells), total)
        return out

    def reduce(self, inside: Tensor, total: int) -> Tensor:
        return inside.mean(0)


class TestRoIPool(PoolContract):
    def make(self, channels: int, bins: tuple[int, int]) -> RoIPool:
        return RoIPool(bins)

    def reduce(self, inside: Tensor, total: int) -> Tensor:
        return inside.amax(0)


class TestDisjointMax(TestRoIPool):
    axis = staticmethod(half_open)

    def make(self, channels: int, bins: tuple[int, int]) -> RoIPool:
        return RoIPool(bins, HalfOpenCorners(), DisjointBins())


class TestAverage(PoolContract):
    def make(self, channels: int, bins: tuple[int, int]) -> RoIAveragePool:
        return RoIAveragePool(bins)


class TestDisjointAverage(PoolContract):
    axis = staticmethod(half_open)

    def make(self, channels: int, bins: tuple[int, int]) -> RoIAveragePool:
        return RoIAveragePool(bins, HalfOpenCorners(), DisjointBins())


class TestAverageOfAllCells(PoolContract):
    def make(self, channels: int, bins: tuple[int, int]) -> RoIAveragePool:
        return RoIAveragePool(bins, count_outside=True)

    def reduce(self, inside: Tensor, total: int) -> Tensor:
        return inside.sum(0) / total


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000), channels=st.sampled_from([1, 5, 16, 37, 300]), whole=st.booleans())
def test_parity_with_torchvision(dtype: torch.dtype, seed: int, channels: int, whole: bool) -> None:
    """Equal outputs and feature gradients; `whole` boxes fall on halves of a cell, and features tie."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(12, 2, generator=generator, dtype=dtype) * 60 - 10
    side = torch.rand(12, 2, generator=generator, dtype=dtype) ** 3 * 60
    boxes = torch.cat([torch.cat([corner, corner + side], 1), torch.tensor(BOXES, dtype=dtype)])
    data = feature_map(channels, dtype, seed=seed).data
    if whole:
        boxes, data = boxes.round(), data.round()
    r = Regions(boxes, torch.randint(0, 2, (len(boxes),), generator=generator))
    ours, theirs = (data.clone().requires_grad_() for _ in range(2))
    y = RoIPool((3, 4))(FeatureMap(ours, 4), r)
    rois = torch.cat([r.image[:, None].to(dtype), boxes], 1)
    expected = roi_pool(theirs, rois, (3, 4), 1 / 4)
    assert torch.equal(y, expected)
    grad = torch.randn(y.shape, generator=generator, dtype=dtype)
    y.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bins", [(3, 4), (9, 2)])
def test_average_over_the_whole_map_is_adaptive_average_pooling(bins: tuple[int, int]) -> None:
    x = feature_map()
    r = regions([[0.0, 0.0, 44.0, 36.0]] * 2)
    y = RoIAveragePool(bins, HalfOpenCorners())(x, r)
    close(y, adaptive_avg_pool2d(x.data, bins), 1e-12)


def test_bins_share_a_cell() -> None:
    """Five rows in two bins are rows 0-2 and 2-4; seven columns are columns 0-3 and 3-6."""
    data = torch.arange(35.0).reshape(1, 1, 5, 7)
    r = Regions(torch.tensor([[0.0, 0.0, 6.0, 4.0]]), torch.tensor([0]))
    assert RoIPool(2)(FeatureMap(data, 1), r)[0, 0].tolist() == [[17.0, 20.0], [31.0, 34.0]]
    assert RoIAveragePool(2)(FeatureMap(data, 1), r)[0, 0].tolist() == [[8.5, 11.5], [22.5, 25.5]]
    top, bottom, left, right = RoIPool(2).cells([FeatureMap(data, 1)], r, r.image)
    assert (top.tolist(), bottom.tolist()) == ([[0, 2]], [[3, 5]])
    assert (left.tolist(), right.tolist()) == ([[0, 3]], [[4, 7]])


def test_cells_outside_the_map_count_where_asked() -> None:
    """Columns -2 ... 1 of a map of ones: half of the cells are inside."""
    r = Regions(torch.tensor([[-2.0, 0.0, 1.0, 1.0]]), torch.tensor([0]))
    x = FeatureMap(torch.ones(1, 1, 5, 5), 1)
    assert RoIAveragePool(1)(x, r).item() == 1.0
    assert RoIAveragePool(1, count_outside=True)(x, r).item() == 0.5


def test_halves_round_away_from_zero() -> None:
    data = torch.arange(36.0).reshape(1, 1, 6, 6)
    r = Regions(torch.tensor([[5.0, 5.0, 5.0, 5.0]]), torch.tensor([0]))  # 2.5 cells: cell 3, not cell 2
    assert RoIPool(1)(FeatureMap(data, 2), r).item() == 21.0
    low = torch.tensor([0.5, 1.5, -0.5, -2.5, 0.49999997, 2.4])
    assert FastRCNNCorners()(low, low, low)[0].tolist() == [1, 2, -1, -3, 0, 2]


@settings(deadline=None, max_examples=100)
@given(whole=st.integers(-(2**22), 2**22), step=st.sampled_from([-1, 0, 1]), sign=st.sampled_from([-1, 1]))
def test_rounding_next_to_a_half(whole: int, step: int, sign: int) -> None:
    """Halves go away from zero, the numbers of float32 before them towards it."""
    half = torch.tensor(sign * (abs(whole) + 0.5))
    value = half if step == 0 else half.nextafter(torch.tensor(step * sign * torch.inf))
    expected = int(abs(value.double().item()) + 0.5) * sign
    assert round_half_away(value).item() == expected


def test_corners() -> None:
    """Sides 1.2 to 4.0, 2.0 to 2.0, 1.4 to 1.6 and -3 to 99 cells on a map of 8."""
    low, high, size = torch.tensor([1.2, 2.0, 1.4, -3.0]), torch.tensor([4.0, 2.0, 1.6, 99.0]), torch.tensor([8.0])
    assert ranges(FastRCNNCorners()(low, high, size)) == [(1, 5), (2, 3), (1, 3), (-3, 100)]
    assert ranges(HalfOpenCorners()(low, high, size)) == [(1, 4), (2, 3), (1, 2), (-3, 99)]
    # Centres at 0, 1, ...: strictly inside are 2 and 3; none, so the corner 2; none, so cell 1; -2 to 98.
    assert ranges(SPPNetCorners()(low, high, size)) == [(2, 4), (2, 3), (1, 2), (-2, 99)]
    # Centres at 0.5, 1.5, ...: 1, 2 and 3; none; 1.
    assert ranges(SPPNetCorners(centre=0.5)(low, high, size)) == [(1, 4), (1, 2), (1, 2), (-3, 99)]


def test_released_sppnet_corners() -> None:
    """Pixels 33 to 160 in the 1-based convention are (32, 160): floor((33 - 14.5) / 16 + 1/2) + 1 = 2 and
    ceil((160 - 27.5) / 16 - 1/2) + 1 = 9, so cells 1 to 8 counted from 0."""
    low, high = (torch.tensor([[32.0, 160.0], [32.0, 33.0], [-200.0, -100.0], [32.0, 900.0]]) / 16).unbind(1)
    # The second box: 2 > ceil((33 - 27.5) / 16 - 1/2) + 1 = 1, whose middle is cell 1 of those counted from 1.
    expected = [(1, 9), (0, 1), (0, 1), (1, 13)]
    assert ranges(SPPNetReleasedCorners()(low, high, torch.tensor([13.0]))) == expected


def test_divisions() -> None:
    """13 cells from cell 2 on, in 4 and 5 bins; 2 cells in 3 bins."""
    begin, end = torch.tensor([2.0]), torch.tensor([15.0])
    few = torch.tensor([4.0])
    assert ranges(OverlappingBins()(begin, end, 4)) == [(2, 6), (5, 9), (8, 12), (11, 15)]
    assert ranges(DisjointBins()(begin, end, 4)) == [(2, 5), (5, 8), (8, 11), (11, 15)]
    assert ranges(SlidingBins()(begin, end, 4)) == [(2, 6), (5, 9), (8, 12), (11, 15)]
    assert ranges(SlidingBins()(begin, end, 5)) == [(2, 5), (4, 7), (6, 9), (8, 11), (10, 13)]
    assert ranges(OverlappingBins()(begin, few, 3)) == [(2, 3), (2, 4), (3, 4)]
    assert ranges(DisjointBins()(begin, few, 3)) == [(2, 2), (2, 3), (3, 4)]
    assert ranges(SlidingBins()(begin, few, 3)) == [(2, 3), (2, 3), (2, 3)]


def ranges(pair: tuple[Tensor, Tensor]) -> list[tuple[int, int]]:
    begin, end = (edge.flatten().tolist() for edge in pair)
    return [(int(b), int(e)) for b, e in zip(begin, end, strict=True)]


@settings(deadline=None, max_examples=60)
@given(begin=st.integers(-20, 20), side=st.integers(1, 60), bins=st.integers(1, 9))
def test_disjoint_bins_share_out_every_cell(begin: int, side: int, bins: int) -> None:
    pair = DisjointBins()(torch.tensor([float(begin)]), torch.tensor([float(begin + side)]), bins)
    cells = [cell for first, last in ranges(pair) for cell in range(first, last)]
    assert cells == list(range(begin, begin + side))


def shift_of(r: Regions, bins: tuple[int, int], scale: float = 1.3) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return scale * torch.randn(len(r), *bins, 2, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("count_outside", [True, False])
def test_moved_bins_equal_nested_loops(count_outside: bool) -> None:
    """Dai et al. 2017, Eq. 6: the whole cells of a bin, moved by a fraction."""
    x, r, bins = feature_map(), regions(), (2, 3)
    shift = shift_of(r, bins)
    moved = RoIAveragePool(bins, count_outside=count_outside).sampling([x], r, torch.zeros_like(r.image), shift)
    expected = torch.zeros(len(r), 3, *bins, dtype=torch.float64)
    height, width = x.size
    for n, (box, image) in enumerate(zip((r.boxes / 4).tolist(), r.image.tolist(), strict=True)):
        for i, rows in enumerate(fast_rcnn(box[1], box[3], 2)):
            for j, columns in enumerate(fast_rcnn(box[0], box[2], 3)):
                du, dv = shift[n, i, j].tolist()
                points = [(u + du, v + dv) for v in range(*rows) for u in range(*columns)]
                if not count_outside:
                    points = [
                        (min(max(u, 0), width - 1), min(max(v, 0), height - 1))
                        for u, v in points
                        if -0.5 <= u <= width - 0.5 and -0.5 <= v <= height - 0.5
                    ]
                if points:
                    samples = torch.tensor(points, dtype=torch.float64)[None, None]
                    weight = torch.full(samples.shape[:3], 1 / len(points), dtype=torch.float64)
                    value = sample_points_reference(x.data, torch.tensor([image]), samples, weight)
                    expected[n, :, i, j] = value[0, :, 0]
    close(moved.features([x.data], r.image, torch.zeros_like(r.image)), expected, 1e-10)
    dense = torch.einsum("rckhw,rdhw->rdk", moved.weights(x.data, r.image), x.data[r.image])
    close(dense.unflatten(2, bins), expected, 1e-10)


@pytest.mark.parametrize("count_outside", [True, False])
def test_a_shift_of_zero_changes_nothing_and_a_shift_has_a_gradient(count_outside: bool) -> None:
    x, r, bins = feature_map(), regions(), (2, 3)
    e, level = RoIAveragePool(bins, count_outside=count_outside), torch.zeros_like(r.image)
    zero = torch.zeros(len(r), *bins, 2, dtype=torch.float64)
    close(e.sampling([x], r, level, zero).features([x.data], r.image, level), e(x, r), 1e-12)
    shift = shift_of(r, bins, 0.4).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s: e.sampling([x], r, level, s).features([x.data], r.image, level), shift, fast_mode=True
    )


def test_a_maximum_cannot_be_moved() -> None:
    x, r = feature_map(), regions()
    with pytest.raises(ValueError, match="shift: expected None"):
        RoIPool(2).sampling([x], r, torch.zeros_like(r.image), torch.zeros(len(r), 2, 2, 2))


def test_memory_does_not_follow_the_largest_box() -> None:
    """A box of 10 000 cells a side has no more samples than the map has cells, along two axes."""
    x, r = feature_map(dtype=torch.float32), regions([[-20000.0, -20000.0, 20000.0, 20000.0]], torch.float32)
    level = torch.zeros_like(r.image)
    for count_outside in (True, False):
        e = RoIAveragePool(3, count_outside=count_outside)
        grid = e.sampling([x], r, level)
        assert max(grid.rows.shape[2], grid.columns.shape[2]) <= 11
        assert e.sampling([x], r, level, torch.zeros(1, 3, 3, 2)).weight.shape[3] <= 9 * 11
    # 10 001 cells a side: the bin in the middle has 3335, from 3333 to 6667 of them.
    close(RoIAveragePool(3)(x, r)[0, :, 1, 1], x.data[0].mean((1, 2)), 1e-5)
    all_cells = RoIAveragePool(3, count_outside=True)(x, r)[0, :, 1, 1] * 3335**2
    close(all_cells, x.data[0].sum((1, 2)), 1e-4)


@pytest.mark.parametrize("make", [RoIPool, RoIAveragePool])
def test_no_bins_raise(make: type[RoIPool] | type[RoIAveragePool]) -> None:
    with pytest.raises(ValueError, match="bins: expected"):
        make((0, 7))


def test_mean_weights_of_many_channels_are_those_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 21 channels, a few are looked at together, the last of them fewer than before."""
    x, e = feature_map(21, torch.float32), RoIPool((2, 3))
    seen: list[int] = []
    weights = RoIPool.weights

    def noted(self: RoIPool, x: FeatureMap, r: Regions) -> Tensor:
        seen.append(x.data.shape[1])
        return weights(self, x, r)

    expected = e.weights(x, regions(dtype=torch.float32)).mean(1, keepdim=True)
    monkeypatch.setattr(RoIPool, "weights", noted)
    close(e.mean_weights(x, regions(dtype=torch.float32)), expected, 1e-6)
    assert seen == [8, 8, 5]


def test_weights_of_equal_cells_are_at_the_first() -> None:
    """Zeros everywhere, as after a ReLU: each bin reads its first cell, and a bin without cells none."""
    x = FeatureMap(torch.zeros(1, 2, 4, 4), 1)
    r = Regions(torch.tensor([[0.0, 0, 3, 3], [9, 9, 12, 12]]), torch.zeros(2, dtype=torch.int64))
    weights = RoIPool(2).weights(x, r)
    assert weights[0].sum() == 8 and weights[1].sum() == 0
    assert [weights[0, c, k].flatten().argmax().item() for c in (0, 1) for k in range(4)] == 2 * [0, 2, 8, 10]
