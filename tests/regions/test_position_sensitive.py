"""Position-sensitive features: the contract, the bins of R-FCN and of torchvision, parity with torchvision."""

from collections.abc import Callable
from math import ceil, floor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import ps_roi_align, ps_roi_pool

from regio.regions.base import level_by_level
from regio.regions.position_sensitive import (
    PositionSensitive,
    RFCNAveragePool,
    TorchvisionAveragePool,
    groups_of_parts,
    vote,
    whole_pixels,
)
from regio.regions.roi_align import RoIAlign
from regio.regions.roi_pool import RoIPool
from regio.types import FeatureMap, Regions
from tests.regions.contract import BOXES, ExtractorContract, close, feature_map, regions


def c_round(value: float) -> int:
    return int(abs(value) + 0.5) * (1 if value >= 0 else -1)


def rfcn_bin(low: float, high: float, stride: float, size: int, i: int, bins: int) -> range:
    """The cells of bin i along one axis by R-FCN's rules."""
    start, end = c_round(low) / stride, (c_round(high) + 1) / stride
    step = max(end - start, 0.1) / bins
    return range(max(floor(start + i * step), 0), min(ceil(start + (i + 1) * step), size))


def torchvision_bin(low: float, high: float, stride: float, size: int, i: int, bins: int) -> range:
    """The cells of bin i along one axis by the rules of torchvision's `ps_roi_pool`."""
    start = c_round(low / stride)
    step = max(c_round(high / stride) - start, 1) / bins
    return range(max(start + floor(i * step), 0), min(start + ceil((i + 1) * step), size - 1))


class GroupedContract(ExtractorContract):
    """The law of the weights with groups: ``y[r, c, k] = sum_p w[r, c, k, p] x_g(k)[c, p]``."""

    groups = (0, 1, 2, 3, 4, 5)  # of the parts, row-major
    count = 6
    group_major = False

    @property
    def in_channels(self) -> int:
        return self.channels * self.count

    def group(self, x: FeatureMap, k: int) -> Tensor:
        """The channels [N, C, H, W] that part k reads."""
        g = self.groups[k]
        return x.data[:, g * self.channels :][:, : self.channels] if self.group_major else x.data[:, g :: self.count]

    def contraction(self, extractor: PositionSensitive, x: FeatureMap, r: Regions) -> Tensor:
        w = extractor.weights(x, r)
        parts = [(w[:, :, k] * self.group(x, k)[r.image]).sum((2, 3)) for k in range(w.shape[2])]
        return torch.stack(parts, 2)

    def test_by_group(self) -> None:
        e, x = self.extractor(), feature_map(self.in_channels)
        for k, g in enumerate(e.groups):
            assert torch.equal(e.by_group(x)[:, g], self.group(x, k))


class AverageContract(GroupedContract):
    box_gradient = False
    cells = staticmethod(rfcn_bin)

    def reference(self, extractor: PositionSensitive, x: FeatureMap, r: Regions) -> Tensor:
        (kh, kw), (height, width) = self.bins, x.size
        out = x.data.new_zeros(len(r), self.channels, kh, kw)
        for n, (x1, y1, x2, y2) in enumerate(r.boxes.tolist()):
            for i in range(kh):
                for j in range(kw):
                    values = [
                        self.group(x, i * kw + j)[r.image[n], :, v, u]
                        for v in self.cells(y1, y2, x.stride, height, i, kh)
                        for u in self.cells(x1, x2, x.stride, width, j, kw)
                    ]
                    if values:
                        out[n, :, i, j] = torch.stack(values).mean(0)
        return out


class TestRFCN(AverageContract):
    def make(self, channels: int, bins: tuple[int, int]) -> PositionSensitive:
        return PositionSensitive(RFCNAveragePool(bins))


class TestTorchvision(AverageContract):
    cells = staticmethod(torchvision_bin)

    def make(self, channels: int, bins: tuple[int, int]) -> PositionSensitive:
        return PositionSensitive(TorchvisionAveragePool(bins))


class TestFewerGroupsThanParts(AverageContract):
    bins = (3, 2)
    groups = (0, 1, 0, 1, 2, 3)
    count = 4

    def make(self, channels: int, bins: tuple[int, int]) -> PositionSensitive:
        return PositionSensitive(RFCNAveragePool(bins), group_size=2)


class TestMoreGroupsThanParts(AverageContract):
    """Some groups are read by no part."""

    bins = (2, 2)
    groups = (0, 1, 3, 4)
    count = 9

    def make(self, channels: int, bins: tuple[int, int]) -> PositionSensitive:
        return PositionSensitive(RFCNAveragePool(bins), group_size=(3, 3))


class OfExtractor(GroupedContract):
    def reference(self, extractor: PositionSensitive, x: FeatureMap, r: Regions) -> Tensor:
        """Part k of the plain extractor, which has its own nested loops, on the channels of group k."""
        parts = [
            extractor.extractor(FeatureMap(self.group(x, k).contiguous(), x.stride), r).flatten(2)[..., k]
            for k in range(len(self.groups))
        ]
        return torch.stack(parts, 2).unflatten(2, self.bins)


class TestAlign(OfExtractor):
    def make(self, channels: int, bins: tuple[int, int]) -> PositionSensitive:
        return PositionSensitive(RoIAlign(bins))


class TestGroupMajorMaximum(OfExtractor):
    """Samples whose weights differ from channel to channel."""

    box_gradient = False
    group_major = True

    def make(self, channels: int, bins: tuple[int, int]) -> PositionSensitive:
        return PositionSensitive(RoIPool(bins), group_major=True)


def random_regions(seed: int, dtype: torch.dtype, degenerate: list[list[float]]) -> Regions:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(12, 2, generator=generator, dtype=dtype) * 60 - 10
    side = torch.rand(12, 2, generator=generator, dtype=dtype) ** 3 * 60
    boxes = torch.cat([torch.cat([corner, corner + side], 1), torch.tensor(degenerate, dtype=dtype)])
    return Regions(boxes, torch.randint(0, 2, (len(boxes),), generator=generator))


def held_to(operator: Callable[..., Tensor], e: PositionSensitive, r: Regions, channels: int, seed: int) -> None:
    """Outputs and gradients of `e` and of a torchvision operator on a random map."""
    dtype = r.boxes.dtype
    ours, theirs = (feature_map(channels * 12, dtype, seed=seed).data.requires_grad_() for _ in range(2))
    y = e(FeatureMap(ours, 4), r)
    expected = operator(theirs, torch.cat([r.image[:, None].to(dtype), r.boxes], 1), (3, 4), 1 / 4)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    close(y, expected, tolerance)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    grad = grad * ~reaches_the_last_cells(r)[:, None, None, None] if operator is ps_roi_pool else grad
    y.backward(grad)
    expected.backward(grad)
    close(ours.grad, theirs.grad, tolerance)


def reaches_the_last_cells(r: Regions) -> Tensor:
    """Boxes on a 9 x 11 map at stride 4 that the backward of torchvision's `ps_roi_pool` takes for larger than its
    forward does: it spreads gradients over the last row and column too, which the forward leaves out."""
    return (r.boxes[:, 2] >= 4 * 9.5) | (r.boxes[:, 3] >= 4 * 7.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 1000), channels=st.sampled_from([1, 3, 16]), whole=st.booleans())
def test_parity_with_ps_roi_pool(dtype: torch.dtype, seed: int, channels: int, whole: bool) -> None:
    """`whole` boxes fall on halves of a cell."""
    r = random_regions(seed, dtype, BOXES)
    r = Regions(r.boxes.round(), r.image) if whole else r
    held_to(ps_roi_pool, PositionSensitive(TorchvisionAveragePool((3, 4))), r, channels, seed)


@pytest.mark.parametrize("samples", [0, 1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 1000), channels=st.sampled_from([1, 3, 16]))
def test_parity_with_ps_roi_align(dtype: torch.dtype, samples: int, seed: int, channels: int) -> None:
    """Without boxes of no size where samples adapt: torchvision divides by zero there."""
    r = random_regions(seed, dtype, BOXES)
    if not samples:
        r = r[(r.boxes[:, 2:] > r.boxes[:, :2]).all(1)]

    def expected(*arguments: object) -> Tensor:
        return ps_roi_align(*arguments, samples or -1)

    held_to(expected, PositionSensitive(RoIAlign((3, 4), samples)), r, channels, seed)


def test_a_point_gives_zero_where_samples_adapt() -> None:
    y = PositionSensitive(RoIAlign(2, samples=0))(feature_map(8), regions([[20.0, 15.0, 20.0, 15.0]] * 2))
    assert not y.any()


def test_conventions_on_one_box() -> None:
    """On the map x = column, at stride 16: R-FCN's box of pixels 24 to 72 is 1.5 to 4.5 in cells, and its halves touch
    the columns 1, 2 and 3, 4; torchvision rounds 1.5 and 4.44 to 2 and 4."""
    x = FeatureMap(torch.arange(8.0).expand(1, 4, 8, 8), 16)
    r = Regions(torch.tensor([[24.0, 24.0, 71.0, 71.0]]), torch.tensor([0]))
    close(PositionSensitive(RFCNAveragePool(2))(x, r)[0, 0], torch.tensor([[1.5, 3.5]] * 2), 1e-6)
    close(PositionSensitive(TorchvisionAveragePool(2))(x, r)[0, 0], torch.tensor([[2.0, 3.0]] * 2), 1e-6)


def test_torchvision_never_reads_the_last_cells() -> None:
    x = FeatureMap(torch.arange(8.0).expand(1, 1, 8, 8), 1)
    r = Regions(torch.tensor([[0.0, 0.0, 8.0, 8.0]]), torch.tensor([0]))
    assert TorchvisionAveragePool(1)(x, r).item() == pytest.approx(3.0)  # the mean of 0 .. 6
    assert RFCNAveragePool(1)(x, r).item() == pytest.approx(3.5)


def test_gradient_belongs_to_the_forward() -> None:
    """A ninth for each of the 9 cells of the mean; torchvision's backward gives a sixteenth to each of 16."""
    data = torch.zeros(1, 1, 4, 4, requires_grad=True)
    r = Regions(torch.tensor([[0.0, 0.0, 4.0, 4.0]]), torch.tensor([0]))
    TorchvisionAveragePool(1)(FeatureMap(data, 1), r).sum().backward()
    expected = torch.zeros(4, 4)
    expected[:3, :3] = 1 / 9
    close(data.grad[0, 0], expected, 1e-7)


def test_whole_pixels_hold_both_corners() -> None:
    r = Regions(torch.tensor([[2.5, -2.5, 4.4, 3.5]]), torch.tensor([0]))
    assert whole_pixels(r).boxes.tolist() == [[3.0, -3.0, 5.0, 5.0]]


def test_groups_of_parts() -> None:
    assert groups_of_parts((2, 3), (2, 3)) == [0, 1, 2, 3, 4, 5]
    assert groups_of_parts((4, 4), (2, 2)) == [0, 0, 1, 1] * 2 + [2, 2, 3, 3] * 2
    assert groups_of_parts((2, 2), (1, 1)) == [0] * 4
    assert groups_of_parts((2, 2), (3, 3)) == [0, 1, 3, 4]


def test_vote_is_the_mean_of_the_parts() -> None:
    y = torch.arange(12.0).reshape(1, 2, 2, 3)
    assert vote(y).tolist() == [[2.5, 8.5]]


@pytest.mark.parametrize("group_major", [False, True])
def test_pyramid_is_level_by_level(group_major: bool) -> None:
    e = PositionSensitive(RoIAlign((2, 3)), group_major=group_major)
    maps, r = [feature_map(18), FeatureMap(feature_map(18, seed=1).data[:, :, :5, :6], 8)], regions()
    level = torch.tensor([0, 1, 1, 0, 0, 1, 0])
    close(e.pyramid(maps, r, level), level_by_level([e, e], maps, r, level), 1e-12)


@pytest.mark.parametrize("channels", [5, 0])
def test_channels_must_divide_by_the_groups(channels: int) -> None:
    e = PositionSensitive(RoIAlign(2))
    for call in (e, e.weights, lambda x, r: e.by_group(x)):
        with pytest.raises(ValueError, match=f"x: expected a number of channels divisible by 4 groups, got {channels}"):
            call(feature_map(channels), regions())


@pytest.mark.parametrize("group_size", [0, (2, -1)])
def test_bad_group_size_raises(group_size: int | tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="group_size: expected positive numbers"):
        PositionSensitive(RoIAlign(2), group_size)


def test_groups_do_not_nest() -> None:
    e = PositionSensitive(PositionSensitive(RoIAlign(2)))
    with pytest.raises(ValueError, match="groups: expected None, these samples have groups"):
        e(feature_map(16), regions())
