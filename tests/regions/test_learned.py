"""Learned region features: the contract, the equality of modes, supports, sampling and the grid initialisation."""

import copy
import itertools
import math
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from regio.optimisation import AdamW
from regio.regions.base import RegionExtractor, contract
from regio.regions.embedding import span_of_embeddings
from regio.regions.learned import (
    Dense,
    Exact,
    LearnedRegionFeatures,
    Mode,
    Sampled,
    as_given,
    centre_and_size,
    corners,
    embed,
    normalised,
)
from regio.regions.levels import FPNLevels, Levels
from regio.regions.priors import DeformablePrior, GaussianPrior, GridPrior, Prior, RoIAlignPrior
from regio.regions.roi_align import RoIAlign
from regio.regions.support import BoxSupport, Support, WholeImage
from regio.types import FeatureMap, Regions
from tests.regions.contract import BOXES, INSIDE, ExtractorContract, box_strategy, close, feature_map, regions


def learned(channels: int = 3, bins: tuple[int, int] = (2, 3), **options: object) -> LearnedRegionFeatures:
    """A small module with parameters large enough for weights that differ."""
    torch.manual_seed(0)
    module = LearnedRegionFeatures(channels, bins, embedding_channels=8, key_channels=6, **options)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(40)
    return module


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The maps here are small: sharing them between threads takes longer than the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def position(z: float, channels: int) -> list[float]:
    angles = [z / 1000 ** (2 * i / channels) for i in range(channels // 2)]
    return [f(a) for a in angles for f in (math.sin, math.cos)]


def nested_loops(e: LearnedRegionFeatures, x: FeatureMap, r: Regions) -> Tensor:
    """Equations 2 and 7 to 9, cell by cell, with boxes in cells."""
    height, width = x.size
    support = e.support(x, r).tolist()
    listed = e.mode.cells(x, r, e.support(x, r))
    out = x.data.new_zeros(len(r), x.data.shape[1], math.prod(e.bins))
    shifts = shifts_by_hand(e.prior, x, r) if isinstance(e.prior, DeformablePrior) else None
    here = {}
    if e.geometry:
        at = {z: x.data.new_tensor(position(z + 0.5, e.embedding_channels)) for z in range(max(x.size))}
        here = {(u, v): e.position_weight @ torch.cat([at[u], at[v]]) for u in range(width) for v in range(height)}
    for i, (box, (u0, v0, u1, v1)) in enumerate(zip(r.boxes, support, strict=True)):
        cells = [(u, v) for v in range(v0, v1) for u in range(u0, u1)]
        if listed is not None:
            cells = [(u, v) for u, v in cells if v * width + u in listed[i].tolist()]
        features = torch.stack([x.data[r.image[i], :, v, u] for u, v in cells])
        code = x.data.new_tensor([position(float(z) / x.stride, e.embedding_channels) for z in box]).flatten()
        for k in range(out.shape[2]):
            logits = features.new_zeros(len(cells))
            if e.geometry:
                query = e.scale * e.part_weight[k] @ (e.box_weight @ code)
                logits += torch.stack([query @ here[cell] for cell in cells])
            if e.appearance_weight is not None:
                read = features
                if e.feature_encoding is normalised:
                    read = torch.stack([f / (f.square().mean() + 1e-6).sqrt() for f in features])
                logits += read @ e.appearance_weight[k]
            if e.prior is not None:
                prior, moved = (e.prior, (0.0, 0.0)) if shifts is None else (e.prior.prior, shifts[i][k])
                logits += logits.new_tensor([gaussian(prior, box / x.stride, k, e.bins, c, moved) for c in cells])
            w = (logits - logits.max()).exp()
            out[i, :, k] = (w / w.sum()) @ features
    return out.unflatten(2, e.bins)


def shifts_by_hand(prior: DeformablePrior, x: FeatureMap, r: Regions) -> list[list[tuple[float, float]]]:
    """By box and part, (x, y) in cells."""
    read = contract(RoIAlign((3, 3), samples=2).weights(x, r), x, r).flatten(1)
    offsets = (read @ prior.offset.weight.t() + prior.offset.bias).tolist()
    sides = ((r.boxes[:, 2:] - r.boxes[:, :2]) / x.stride).tolist()
    return [
        [(0.1 * dx * w, 0.1 * dy * h) for dx, dy in zip(row[::2], row[1::2], strict=True)]
        for row, (w, h) in zip(offsets, sides, strict=True)
    ]


def gaussian(
    prior: GaussianPrior,
    box: Tensor,
    part: int,
    bins: tuple[int, int],
    cell: tuple[int, int],
    shift: tuple[float, float],
) -> float:
    x1, y1, x2, y2 = box.tolist()
    width, height = (x2 - x1) / bins[1], (y2 - y1) / bins[0]
    u, v = x1 + (part % bins[1] + 0.5) * width + shift[0], y1 + (part // bins[1] + 0.5) * height + shift[1]
    if isinstance(prior, GridPrior):
        across = down = prior.sigma**2
    else:
        assert prior == RoIAlignPrior()  # of two samples
        across, down = 1 / 6 + width**2 / 16, 1 / 6 + height**2 / 16
    return -((cell[0] + 0.5 - u) ** 2) / (2 * across) - (cell[1] + 0.5 - v) ** 2 / (2 * down)


class LearnedContract(ExtractorContract):
    options: ClassVar[dict[str, object]] = {}

    def make(self, channels: int, bins: tuple[int, int]) -> RegionExtractor:
        return learned(channels, bins, **self.options)

    def reference(self, extractor: RegionExtractor, x: FeatureMap, r: Regions) -> Tensor:
        assert isinstance(extractor, LearnedRegionFeatures)
        with torch.no_grad():
            return nested_loops(extractor, x, r)


class TestWholeImage(LearnedContract):
    pass


class TestSampled(LearnedContract):
    options: ClassVar = {"mode": Sampled(inside=9, outside=16)}


class TestGeometryInBox(LearnedContract):
    options: ClassVar = {"appearance": False, "support": BoxSupport()}


class TestGridPrior(LearnedContract):
    options: ClassVar = {"prior": GridPrior(sigma=1.0)}


class TestRoIAlignPrior(LearnedContract):
    options: ClassVar = {"prior": RoIAlignPrior()}


class TestDeformablePrior(LearnedContract):
    def make(self, channels: int, bins: tuple[int, int]) -> RegionExtractor:
        made = learned(channels, bins, prior=DeformablePrior(channels, bins))
        assert isinstance(made.prior, DeformablePrior)
        torch.nn.init.normal_(made.prior.offset.weight, std=0.3)
        torch.nn.init.normal_(made.prior.offset.bias)
        return made


class TestAppearance(LearnedContract):
    options: ClassVar = {"geometry": False}
    box_gradient = False


class TestFeaturesAsGiven(LearnedContract):
    options: ClassVar = {"feature_encoding": as_given}


@pytest.mark.parametrize("support", [BoxSupport(), BoxSupport(area=2), WholeImage()])
@pytest.mark.parametrize("terms", [{}, {"appearance": False}, {"geometry": False}])
def test_modes_agree(support: Support, terms: dict[str, bool]) -> None:
    """Exact, dense, and sampled with maxima of the size of the map are one function, values and gradients."""
    x, r = feature_map(16, torch.float32), regions(dtype=torch.float32)
    everything = Sampled(inside=11**2, outside=99)  # of 9 x 11 cells
    results = []
    for mode in (Exact(), Dense(), everything):
        torch.manual_seed(0)
        e = LearnedRegionFeatures(16, (7, 7), 32, 16, support=support, mode=mode, **terms)
        data = x.data.clone().requires_grad_()
        out = e(FeatureMap(data, x.stride), r)
        out.square().sum().backward()
        results.append((out, [data.grad, *(p.grad for p in e.parameters())]))
    for out, gradients in results[1:]:
        torch.testing.assert_close(out, results[0][0], rtol=1e-5, atol=1e-6)
        for a, b in zip(gradients, results[0][1], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def test_modes_agree_with_large_logits() -> None:
    x, r = feature_map(3, torch.float32), regions(dtype=torch.float32)
    close(learned(mode=Exact())(x, r), learned(mode=Dense())(x, r), 1e-5)


@pytest.mark.parametrize("boxes", [1, 400])
def test_either_order_of_products_gives_the_same_logits(boxes: int) -> None:
    """Few boxes and many take the two branches."""
    e, x = learned(scale=1).double(), feature_map()
    r = Regions(
        torch.rand(boxes, 2, dtype=torch.float64).repeat(1, 2) * 20 + torch.tensor([0, 0, 9, 7]),
        torch.zeros(boxes).long(),
    )
    column, row, _ = e.terms(x, r)
    u = embed(torch.arange(11, dtype=torch.float64) + 0.5, 8) @ e.position_weight[:, :8].t()
    v = embed(torch.arange(9, dtype=torch.float64) + 0.5, 8) @ e.position_weight[:, 8:].t()
    queries = torch.einsum("kge,ef,rf->rkg", e.part_weight, e.box_weight, embed(r.boxes / 4, 8).flatten(1))
    close(column, queries @ u.t(), 1e-9)
    close(row, queries @ v.t(), 1e-9)


def test_embedding_by_hand() -> None:
    """1000^(2 / 4) is 31.6, so four channels of z = 31.6 are those of the angles 31.6 and 1."""
    z = math.sqrt(1000)
    expected = [math.sin(z), math.cos(z), math.sin(1), math.cos(1)]
    close(embed(torch.tensor([z], dtype=torch.float64), 4), torch.tensor([expected], dtype=torch.float64), 1e-12)


def test_parameter_shapes_and_start_are_the_papers() -> None:
    torch.manual_seed(0)
    e = LearnedRegionFeatures(256)
    shapes = {name: tuple(p.shape) for name, p in e.named_parameters()}
    assert shapes == {
        "position_weight": (256, 2 * 512),
        "box_weight": (512, 4 * 512),
        "part_weight": (49, 256, 512),
        "appearance_weight": (49, 256),
    }
    for p in e.parameters():
        assert abs(float(p.detach().std()) - 0.01) < 3e-4


def test_the_scale_is_a_factor_of_the_geometric_term() -> None:
    x, r = feature_map(), regions()
    default, as_printed, double = (learned(scale=s).double().terms(x, r) for s in (None, 1, 2))
    for i in range(2):
        close(double[i], 2 * as_printed[i], 1e-12)
        close(default[i], as_printed[i] / math.sqrt(6), 1e-12)
    assert torch.equal(default[2], as_printed[2])


@pytest.mark.parametrize("seed", range(3))
def test_a_step_of_adam_changes_logits_little(seed: int) -> None:
    """By default at the default rate; as the equation is printed, by more than two nats at some cell."""
    torch.manual_seed(seed)
    x = FeatureMap(torch.randn(1, 64, 12, 16), 16)
    r, wanted = random_boxes(32, 16 * 16, 12 * 16), torch.randn(32, 64, 7, 7)
    change = {}
    for scale in (None, 1.0):
        e = LearnedRegionFeatures(64, scale=scale)
        optimizer = AdamW().build(e)
        before = [t.detach() for t in e.terms(x, r)[:2]]
        (e(x, r) * wanted).sum().backward()
        optimizer.step()
        column, row = (a.detach() - b for a, b in zip(e.terms(x, r)[:2], before, strict=True))
        change[scale] = float((column[:, :, None, :] + row[..., None]).abs().max())
    assert change[None] < 0.5
    assert change[1.0] > 2


def test_support_by_hand() -> None:
    """Stride 4, 11 columns and 9 rows. A covered cell counts; a box beside the map or between cells has the nearest."""
    x = feature_map()
    r = regions(
        [[5, 4, 13, 12.5], [8, 8, 8, 8], [44, 36, 44, 36], [60, -9, 70, -3], [-9e9, 0, -8e9, 4], [0, 0, 44, 36]]
    )
    expected = [[1, 1, 4, 4], [2, 2, 3, 3], [10, 8, 11, 9], [10, 0, 11, 1], [0, 0, 1, 1], [0, 0, 11, 9]]
    assert BoxSupport()(x, r).tolist() == expected
    assert WholeImage()(x, r).tolist() == [[0, 0, 11, 9]] * 6
    # 8 x 8 pixels about (14, 14), twice the area: 11.3 x 11.3, from 8.3 to 19.7.
    assert BoxSupport(area=2)(x, regions([[10.0, 10, 18, 18]])).tolist() == [[2, 2, 5, 5]]
    assert BoxSupport(area=1)(x, regions([[10.0, 10, 18, 18]])).tolist() == [[2, 2, 5, 5]]
    assert BoxSupport(area=4)(x, regions([[10.0, 10, 18, 18]])).tolist() == [[1, 1, 6, 6]]


def test_sampled_cells_by_hand() -> None:
    """Inside a box of 7 x 4 cells, for 4 samples: strides ceil(7 / 2) = 4 and ceil(4 / 2) = 2. Outside, on a map of
    9 x 11 cells, for 8: stride ceil(sqrt(99 / 8)) = 4 from cell 0, without those in the box."""
    x, r = feature_map(), regions([[4.0, 4, 32, 20]], images=1)
    mode = Sampled(inside=4, outside=8)
    cells = mode.cells(x, r, WholeImage()(x, r))[0]
    found = sorted((int(c) // 11, int(c) % 11) for c in cells if c >= 0)
    inside = [(1, 1), (1, 5), (3, 1), (3, 5)]
    outside = [(0, 0), (0, 4), (0, 8), (4, 0), (4, 8), (8, 0), (8, 4), (8, 8)]
    assert BoxSupport()(x, r).tolist() == [[1, 1, 8, 5]]
    assert found == sorted(inside + outside)


@pytest.mark.parametrize("size", [(3, 30), (30, 3), (1, 40), (17, 18)])
def test_sampling_with_large_maxima_is_exact(size: tuple[int, int]) -> None:
    """The square of the longer side inside and all cells outside are enough for long boxes on long maps too."""
    x = FeatureMap(torch.randn(1, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), 4)
    height, width = (4.0 * side for side in size)
    boxes = [[0, 0, width, height], [3, 1, width - 9, 3], [1, 2, 3, height - 1], [2, 2, width / 2, height / 2]]
    r = regions(boxes, images=1)
    sampled = learned(mode=Sampled(inside=max(size) ** 2, outside=size[0] * size[1])).double()
    cells = sampled.mode.cells(x, r, sampled.support(x, r))
    assert (cells >= 0).sum(1).tolist() == [size[0] * size[1]] * 4
    close(sampled(x, r), learned().double()(x, r), 1e-12)


def test_a_long_box_is_sampled_though_it_has_fewer_cells_than_the_maximum() -> None:
    """Equation 10 divides both sides by 14: of 20 x 5 cells, every second column."""
    x, r = FeatureMap(torch.zeros(1, 3, 10, 30), 4), regions([[0.0, 0, 80, 20]], images=1)
    cells = Sampled().cells(x, r, BoxSupport()(x, r))[0]
    found = sorted((int(c) // 30, int(c) % 30) for c in cells if c >= 0)
    assert found == [(v, u) for v in range(5) for u in range(0, 20, 2)]


@settings(deadline=None, max_examples=40)
@given(boxes=st.lists(box_strategy, min_size=1, max_size=4), inside=st.integers(1, 120), outside=st.integers(1, 120))
def test_sampled_cells_are_distinct_and_no_more_than_asked_for(
    boxes: list[list[float]], inside: int, outside: int
) -> None:
    x, r = feature_map(), regions(boxes)
    covered = BoxSupport()(x, r)
    for (u0, v0, u1, v1), row in zip(
        covered.tolist(), Sampled(inside, outside).cells(x, r, covered).tolist(), strict=True
    ):
        cells = [c for c in row if c >= 0]
        assert len(cells) == len(set(cells))
        assert 1 <= len(cells) <= math.ceil(math.sqrt(inside)) ** 2
        assert all(u0 <= c % 11 < u1 and v0 <= c // 11 < v1 for c in cells)
        if (u1 - u0) * (v1 - v0) <= math.isqrt(inside) ** 2 and max(u1 - u0, v1 - v0) <= math.isqrt(inside):
            assert len(cells) == (u1 - u0) * (v1 - v0)


def test_boxes_in_cells_make_the_module_scale_invariant() -> None:
    """The same map at twice the stride, with boxes of twice the size, gives the same features."""
    x, r = feature_map(), regions()
    double = FeatureMap(x.data, 8), Regions(r.boxes * 2, r.image)
    close(learned().double()(*double), learned().double()(x, r), 1e-10)
    assert not torch.allclose(learned(unit=1).double()(*double), learned(unit=1).double()(x, r))


def test_box_encoding() -> None:
    boxes = torch.tensor([[1.0, 2, 5, 10]])
    assert corners(boxes).tolist() == [[1, 2, 5, 10]]
    assert centre_and_size(boxes).tolist() == [[3, 6, 4, 8]]
    x, r = feature_map(), regions()
    with_centre = learned(box_encoding=centre_and_size).double()
    close(with_centre(x, r), learned(box_encoding=centre_and_size, mode=Dense()).double()(x, r), 1e-10)
    assert not torch.allclose(with_centre(x, r), learned().double()(x, r))


def test_normalised_features_by_hand() -> None:
    data = torch.tensor([[3.0, 0.0], [4.0, 0.0]]).reshape(1, 2, 1, 2)  # cells (3, 4) and (0, 0)
    expected = torch.tensor([[3 / math.sqrt(12.5), 0.0], [4 / math.sqrt(12.5), 0.0]]).reshape(1, 2, 1, 2)
    close(normalised(data), expected, 1e-6)
    assert as_given(data) is data


@given(factor=st.floats(0.1, 1e3), prior=st.sampled_from([None, RoIAlignPrior()]))
@settings(deadline=None, max_examples=20)
def test_weights_do_not_depend_on_how_large_features_are(factor: float, prior: Prior | None) -> None:
    x, r = feature_map(), regions()
    larger = FeatureMap(x.data * factor, x.stride)
    e = learned(prior=prior).double()
    close(e.weights(larger, r), e.weights(x, r), 1e-3)
    close(e(larger, r), factor * e(x, r), 1e-3 * factor)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_of_half_precision_maps_as_large_as_those_of_a_pyramid(dtype: torch.dtype) -> None:
    """Squares of features of thousands are beyond float16: they are taken in float32."""
    x, r = feature_map(3, torch.float32), regions(dtype=torch.float32)
    large = FeatureMap((x.data * 3e3).to(dtype), x.stride)
    e = learned()
    close(e.weights(large, r), e.weights(FeatureMap(large.data.double(), x.stride), r).float(), 1e-4)
    assert torch.isfinite(e(large, r)).all()


@pytest.mark.parametrize("seed", range(3))
def test_a_step_of_adam_changes_the_appearance_little_on_large_features(seed: int) -> None:
    """Of cells as long as those of a pyramid, 150: by default; as the equation is printed, by more than 0.3 nats."""
    torch.manual_seed(seed)
    x = FeatureMap(torch.randn(1, 128, 12, 16) * 150 / math.sqrt(128), 8)
    r, wanted = random_boxes(32, 16 * 8, 12 * 8), torch.randn(32, 128, 7, 7)
    change, start = {}, {}
    for encoding in (normalised, as_given):
        e = LearnedRegionFeatures(128, prior=RoIAlignPrior(), feature_encoding=encoding)
        optimizer = AdamW().build(e)
        before = e.terms(x, r)[2]
        assert before is not None
        start[encoding] = float(before.detach().std())
        (e(x, r) * wanted).sum().backward()
        optimizer.step()
        after = e.terms(x, r)[2]
        assert after is not None
        change[encoding] = float((after - before).detach().abs().max())
    assert start[normalised] < 0.15 and start[as_given] > 1.0
    assert change[normalised] < 0.05 and change[as_given] > 0.3


def test_levels_share_one_module() -> None:
    maps = [
        feature_map(3, torch.float32, seed=1),
        FeatureMap(feature_map(3, torch.float32, seed=2).data[:, :, :5, :6], 8),
    ]
    r = regions([INSIDE, [0.0, 0.0, 44.0, 36.0]], torch.float32)
    levels = Levels(learned(), FPNLevels(40, 3))
    assert levels.assign(maps, r).tolist() == [0, 0]
    levels = Levels(learned(), FPNLevels(30, 3))
    assert levels.assign(maps, r).tolist() == [0, 1]
    out = levels(maps, r)
    for i, x in enumerate(maps):
        close(out[i : i + 1], learned()(x, r[torch.tensor([i])]), 1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, "channels: expected a positive"),
        ({"channels": 3, "bins": 0}, "bins: expected a positive"),
        ({"channels": 3, "embedding_channels": 7}, "embedding_channels: expected a positive even"),
        ({"channels": 3, "geometry": False, "appearance": False}, "expected at least one"),
        ({"channels": 3, "unit": 0}, "unit: expected a positive"),
        ({"channels": 3, "scale": 0}, "scale: expected a positive"),
        ({"channels": 3, "rate": -0.1}, "rate: expected a factor of at least 0, got -0.1"),
    ],
)
def test_bad_options_raise(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LearnedRegionFeatures(**options)


def test_bad_supports_and_samples_raise() -> None:
    with pytest.raises(ValueError, match="area: expected a positive"):
        BoxSupport(area=0)
    with pytest.raises(ValueError, match="inside, outside: expected positive"):
        Sampled(inside=0)
    with pytest.raises(ValueError, match="sigma: expected a positive"):
        GridPrior(sigma=0)
    with pytest.raises(ValueError, match="samples: expected at least 1, got 0"):
        RoIAlignPrior(samples=0)


def random_boxes(count: int, width: float, height: float) -> Regions:
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
    b = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
    return Regions(torch.cat([torch.minimum(a, b), torch.maximum(a, b)], 1), torch.zeros(count, dtype=torch.int64))


def divergence(p: Tensor, q: Tensor) -> float:
    """Mean KL(p || q) of weight maps [R, 1, K, H, W]; p may have zeros."""
    return float(torch.where(p > 0, p * (p.clamp(min=1e-30) / q.clamp(min=1e-30)).log(), 0.0).sum((3, 4)).mean())


def test_the_grid_prior_is_close_to_roi_align() -> None:
    x = FeatureMap(torch.zeros(1, 4, 20, 26), 16)
    r = random_boxes(24, 26 * 16, 20 * 16)
    align = RoIAlign(7, samples=2).weights(x, r)
    torch.manual_seed(0)
    without, with_prior = (LearnedRegionFeatures(4, appearance=False, prior=p) for p in (None, GridPrior()))
    with torch.no_grad():
        assert divergence(with_prior.weights(x, r), align) < divergence(without.weights(x, r), align) / 5


def test_the_grid_prior_is_roi_align_of_bins_of_one_cell() -> None:
    """Two samples a quarter of a cell from the middle of a bin have bilinear weights of variance 1/4, as has a Gaussian
    of sigma 1/2: its weights are off by 7 % of a part's sum at most, and features of white noise by 7 %."""
    torch.manual_seed(0)
    x = FeatureMap(torch.randn(1, 16, 40, 50), 16)
    corner = torch.rand(50, 2) * torch.tensor([43.0, 33.0])
    r = Regions(torch.cat([corner, corner + 7], 1) * 16, torch.zeros(50, dtype=torch.int64))
    align, e = RoIAlign(7, samples=2), LearnedRegionFeatures(16, appearance=False, prior=GridPrior(sigma=0.5))
    with torch.no_grad():
        apart = (e.weights(x, r) - align.weights(x, r)).abs().sum((3, 4)) / 2
        expected, out = align(x, r), e(x, r)
    assert float(apart.max()) < 0.07
    assert float((out - expected).square().mean()) < 0.07**2 * float(expected.square().mean())


@pytest.mark.parametrize(("samples", "side", "apart"), [(2, 0.2, 0.08), (2, 0.7, 0.05), (2, 2.0, 0.13), (4, 1.0, 0.07)])
def test_the_prior_of_roi_align_has_its_weights(samples: int, side: float, apart: float) -> None:
    """Whatever the size of bins; Gaussians of half a cell have so only where these are of a cell."""
    torch.manual_seed(0)
    x = FeatureMap(torch.zeros(1, 4, 40, 50), 16)
    corner = 8 + torch.rand(100, 2) * torch.tensor([20.0, 12.0])
    r = Regions(torch.cat([corner, corner + 7 * side], 1) * 16, torch.zeros(100, dtype=torch.int64))
    align = RoIAlign(7, samples=samples).weights(x, r)
    learned_ = LearnedRegionFeatures(4, prior=RoIAlignPrior(samples))
    half = LearnedRegionFeatures(4, prior=GridPrior())
    for e in (learned_, half):
        for parameter in e.parameters():
            torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        own, others = (float((e.weights(x, r) - align).abs().sum((3, 4)).mean()) / 2 for e in (learned_, half))
    assert own < apart
    assert side == 1 or own < 0.7 * others


@pytest.mark.parametrize(("samples", "side"), [(1, 0.5), (2, 0.3), (2, 1.0), (2, 2.0), (4, 1.5)])
def test_the_variance_of_the_prior_of_roi_align(samples: int, side: float) -> None:
    """Along an axis, of boxes at all places, that of RoIAlign's weights: to a tenth, as cells are no continuum."""
    x = FeatureMap(torch.zeros(1, 4, 40, 50), 16)
    corner = 12 + (torch.arange(64) + 0.5)[:, None] / 64 * torch.ones(2)
    r = Regions(torch.cat([corner, corner + 3 * side], 1) * 16, torch.zeros(64, dtype=torch.int64))
    prior = RoIAlignPrior(samples)
    across, _ = prior(x, r, (3, 3))
    own = across[:, 0].softmax(2)
    align = RoIAlign(3, samples=samples).weights(x, r)[:, 0, :3].sum(2)  # the first row of bins, [R, 3, W]
    u = torch.arange(50) + 0.5
    found, expected = (((w * u**2).sum(2) - (w * u).sum(2) ** 2).mean() for w in (own, align))
    torch.testing.assert_close(expected, prior.variance(torch.tensor(side)), rtol=0.01, atol=0)
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0)


def test_the_grid_prior_by_hand() -> None:
    """Part (i, j) is the Gaussian about the centre of its bin, whatever the size of the map."""
    x = FeatureMap(torch.zeros(1, 4, 40, 200), 8)
    e = learned(4, (3, 5), prior=GridPrior(sigma=1.5))
    for parameter in e.parameters():
        torch.nn.init.zeros_(parameter)
    box = [100.0, 90.0, 1290.0, 230.0]
    r = Regions(torch.tensor([box]), torch.zeros(1, dtype=torch.int64))
    weights = e.weights(x, r)[0, 0].unflatten(0, (3, 5))
    for i, j in itertools.product(range(3), range(5)):
        c = ((box[0] + (j + 0.5) / 5 * (box[2] - box[0])) / 8, (box[1] + (i + 0.5) / 3 * (box[3] - box[1])) / 8)
        u, v = torch.arange(200) + 0.5, torch.arange(40)[:, None] + 0.5
        expected = (-((u - c[0]) ** 2 + (v - c[1]) ** 2) / (2 * 1.5**2)).exp()
        close(weights[i, j], expected / expected.sum(), 1e-5)


def test_all_parameters_learn_beside_the_grid_prior() -> None:
    x, r = feature_map(3, torch.float32), regions(BOXES, torch.float32)
    e = LearnedRegionFeatures(3, (2, 3), 64, 32, prior=GridPrior())
    e(x, r).square().sum().backward()
    gradients = [p.grad for p in e.parameters()]
    assert all(g is not None and torch.isfinite(g).all() and g.any() for g in gradients)


def test_parts_that_are_not_moved_are_those_of_the_prior() -> None:
    """A new layer moves none; nor does one whose offsets are set to zero. Parameters of the prior keep their start."""
    x, r = feature_map(), regions()
    made, plain = (learned(prior=p).double() for p in (DeformablePrior(3, (2, 3)), RoIAlignPrior()))
    assert isinstance(made.prior, DeformablePrior)
    assert torch.equal(made(x, r), plain(x, r))
    torch.nn.init.normal_(made.prior.offset.weight)
    assert (made(x, r) - plain(x, r)).abs().max() > 0.01
    made.prior.zero_offsets()
    assert torch.equal(made(x, r), plain(x, r))


def test_a_part_goes_where_its_offset_says() -> None:
    """Offsets (2, -1) in tenths of the sides of the box move the weights of every part by as many cells."""
    x = FeatureMap(torch.randn(1, 4, 40, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64), 8)
    r = Regions(torch.tensor([[160.0, 120, 320, 200]], dtype=torch.float64), torch.zeros(1, dtype=torch.int64))
    e = LearnedRegionFeatures(4, 7, appearance=False, prior=DeformablePrior(4)).double()
    assert isinstance(e.prior, DeformablePrior)
    with torch.no_grad():
        e.part_weight.zero_()
        before = e.weights(x, r)
        e.prior.offset.bias.view(7, 7, 2)[:] = torch.tensor([2.0, -1.0])
        shifts = e.part_shifts(x, r)
        after = e.weights(x, r)
    assert shifts is not None
    close(shifts, torch.tensor([4.0, -1.0], dtype=torch.float64).expand(1, 1, 7, 7, 2), 1e-12)  # of 20 x 10 cells
    close(after[..., :-1, 4:], before[..., 1:, :-4], 1e-10)
    assert LearnedRegionFeatures(4, 7, prior=RoIAlignPrior()).part_shifts(x, r) is None


def test_errors_of_the_deformable_prior() -> None:
    x, r = feature_map(), regions()
    for arguments in ((0,), (3, 0)):
        with pytest.raises(ValueError, match=r"^(channels|bins): expected (a )?positive number"):
            DeformablePrior(*arguments)
    with pytest.raises(ValueError, match="^x: expected 4 channels, got 3"):
        learned(prior=DeformablePrior(4, (2, 3))).double()(x, r)
    with pytest.raises(ValueError, match=r"^bins: expected \(7, 7\), those of the prior, got \(2, 3\)"):
        learned(prior=DeformablePrior(3)).double()(x, r)


@pytest.fixture(params=["highest", "medium"])
def matmul_precision(request: pytest.FixtureRequest) -> Iterator[str]:
    """The switch that allows products of float32 in bfloat16 on a CPU, and in TF32 on a GPU."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


@pytest.fixture(scope="module")
def with_grid_prior() -> tuple[LearnedRegionFeatures, LearnedRegionFeatures, FeatureMap, Regions, Tensor]:
    """Exact and dense, boxes on a map of the usual size, and their features in float64."""
    torch.manual_seed(0)
    x = FeatureMap(torch.randn(1, 32, 50, 76), 16)
    r = random_boxes(100, 76 * 16, 50 * 16)
    e = LearnedRegionFeatures(32, prior=GridPrior())
    dense = LearnedRegionFeatures(32, prior=GridPrior(), mode=Dense())
    dense.load_state_dict(e.state_dict())
    with torch.no_grad():
        double = copy.deepcopy(dense).double()(FeatureMap(x.data.double(), 16), Regions(r.boxes.double(), r.image))
    return e, dense, x, r, double.float()


@pytest.mark.slow
def test_the_grid_prior_keeps_its_precision(
    matmul_precision: str,
    with_grid_prior: tuple[LearnedRegionFeatures, LearnedRegionFeatures, FeatureMap, Regions, Tensor],
) -> None:
    """Exact and dense agree, on float64 and with each other, whatever the switch, on a map of the usual size."""
    e, dense, x, r, double = with_grid_prior
    with torch.no_grad():
        out, written_out = e(x, r), dense(x, r)
    tolerance = {"highest": 2e-5, "medium": 1e-2}[matmul_precision]  # the latter of features with a deviation of 1
    torch.testing.assert_close(out, written_out, rtol=0, atol=tolerance)
    torch.testing.assert_close(out, double, rtol=0, atol=tolerance)
    assert torch.get_float32_matmul_precision() == matmul_precision


@pytest.mark.parametrize("mode", [Exact(), Sampled(), Dense()])
@pytest.mark.parametrize("prior", [GridPrior(), RoIAlignPrior(), DeformablePrior(16, 3), None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_in_every_mode(mode: Mode, prior: Prior | None, dtype: torch.dtype) -> None:
    """Features of the dtype, and float32 features under its autocast, beside float64; peaked weights and flat ones."""
    torch.manual_seed(0)
    e = LearnedRegionFeatures(16, (3, 3), 64, 32, mode=mode, prior=prior)
    x = FeatureMap(torch.randn(1, 16, 24, 30).to(dtype), 16)
    boxes = torch.tensor([[10.0, 20, 90, 150], [0, 0, 480, 384], [200, 100, 330, 290], [400, 300, 470, 380]])
    r = Regions(boxes, torch.zeros(4, dtype=torch.int64))
    with torch.no_grad():
        expected = copy.deepcopy(e).double()(FeatureMap(x.data.double(), 16), Regions(boxes.double(), r.image))
        out = e(x, r)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            mixed = e(FeatureMap(x.data.float(), 16), r)
    assert out.dtype == dtype
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}[dtype] * float(expected.abs().max())
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(mixed.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("low", "high"), [(0, 64), (-16, 16), (32, 240)])
def test_embeddings_of_an_interval_span_few_dimensions(low: int, high: int, dtype: torch.dtype) -> None:
    basis = span_of_embeddings(512, low, high, dtype).double()
    z = torch.rand(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * (high - low) + low
    embedded = embed(z, 512)
    tolerance = {torch.float32: 5e-7, torch.float64: 1e-13}[dtype]
    torch.testing.assert_close(embedded @ basis @ basis.t(), embedded, rtol=0, atol=tolerance)
    torch.testing.assert_close(basis.t() @ basis, torch.eye(basis.shape[1]).double(), rtol=0, atol=1e-6)
    assert basis.shape[1] < (high - low) / math.pi + {torch.float32: 18, torch.float64: 32}[dtype]


def terms_and_gradients(e: LearnedRegionFeatures, x: FeatureMap, r: Regions, direct: bool) -> list[Tensor]:
    if direct:
        e._table = lambda maps, r, stride: None  # type: ignore[method-assign]
    assert direct == (e._table([x], r, x.stride) is None)
    terms = torch.cat(e.terms(x, r)[:2], 2)
    toward = torch.randn(terms.shape, generator=torch.Generator().manual_seed(0), dtype=terms.dtype)
    leaves = [r.boxes, e.position_weight, e.box_weight, e.part_weight]
    return [terms.detach(), *torch.autograd.grad(terms, leaves, toward)]


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1.0, 20.0])
@pytest.mark.parametrize("options", [{}, {"box_encoding": centre_and_size}, {"unit": 16.0}])
def test_a_table_of_the_geometric_term_is_as_precise_as_its_products(options: dict[str, Any], factor: float) -> None:
    """Logits of 0.1 and of tens, and all gradients, from boxes of which some lie outside of the image."""
    torch.manual_seed(0)
    e = LearnedRegionFeatures(4, **options)
    with torch.no_grad():
        for parameter in e.parameters():
            parameter.mul_(factor)
    x, r = FeatureMap(torch.zeros(1, 4, 38, 51), 8), random_boxes(200, 51 * 8, 38 * 8)
    boxes = r.boxes - torch.tensor([60.0, 0.0, 60.0, 0.0])
    double = copy.deepcopy(e).double()
    x64 = FeatureMap(x.data.double(), 8)
    expected = terms_and_gradients(double, x64, Regions(boxes.double().requires_grad_(), r.image), True)
    errors = []
    for direct in (False, True):
        found = terms_and_gradients(e, x, Regions(boxes.clone().requires_grad_(), r.image), direct)
        errors.append([float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True)])
    assert all(table < max(2 * direct, 2e-6) for table, direct in zip(*errors, strict=True))


def test_levels_share_one_table() -> None:
    """Features and gradients of boxes on three levels, one of which has none, are those of each level on its own."""
    torch.manual_seed(0)
    e = LearnedRegionFeatures(4, 7, prior=GridPrior())
    maps = [FeatureMap(torch.randn(1, 4, 40 >> i, 52 >> i), 8 << i) for i in range(3)]
    r = random_boxes(150, 52 * 8, 40 * 8)
    level = torch.arange(150) % 5 // 4
    assert e._table(maps, r, torch.tensor([8.0, 16.0])[level, None]) is not None
    out = e.pyramid(maps, r, level)
    toward = torch.randn(out.shape)
    gradients = torch.autograd.grad(out, list(e.parameters()), toward)
    one_by_one = [e(maps[i], r[level == i]) for i in range(2)]
    for i, each in enumerate(one_by_one):
        torch.testing.assert_close(out[level == i], each, rtol=1e-4, atol=1e-5)
    sums = [(each * toward[level == i]).sum() for i, each in enumerate(one_by_one)]
    for a, b in zip(gradients, torch.autograd.grad(sum(sums), list(e.parameters())), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 * float(b.abs().max()))


def test_a_box_far_away_costs_no_table() -> None:
    """The interval of coordinates would be long, and with it its basis."""
    e = LearnedRegionFeatures(4, 7)
    x, r = FeatureMap(torch.zeros(1, 4, 38, 51), 8), random_boxes(200, 51 * 8, 38 * 8)
    boxes = torch.cat([r.boxes, torch.tensor([[0.0, 0.0, 1e7, 10.0]])])
    far = Regions(boxes, torch.zeros(201, dtype=torch.int64))
    assert e._table([x], r, 8) is not None and e._table([x], far, 8) is None
    assert torch.isfinite(e(x, far)).all()
    few = LearnedRegionFeatures(4, 3, 8, 6)  # dimensions that any interval spans
    assert few._table([x], r, 8) is None and few._table([x], far, 8) is None
    assert torch.isfinite(few(x, far)).all()


class Columns:
    """A prior whose terms broadcast to all parts: it differs along x alone."""

    def __call__(self, x: FeatureMap, r: Regions, bins: tuple[int, int]) -> tuple[Tensor, Tensor]:
        left, _, right, _ = (r.boxes / x.stride).unbind(1)
        step = torch.arange(bins[1], dtype=x.data.dtype) + 0.5
        centre = left[:, None] + ((right - left) / bins[1])[:, None] * step
        across = torch.arange(x.size[1], dtype=x.data.dtype) + 0.5 - centre[..., None]
        return -across[:, None].square(), x.data.new_zeros(len(r), 1, 1, x.size[0])


@pytest.mark.parametrize("bins", [(2, 3), (3, 3), (1, 3), (3, 1)])
@pytest.mark.parametrize("mode", [Exact(), Dense()])
def test_a_prior_may_broadcast(bins: tuple[int, int], mode: Mode) -> None:
    e = learned(bins=bins, prior=Columns(), mode=mode, geometry=False).double()
    x, r = feature_map(), regions()
    w = e.weights(x, r)
    assert w.shape[2] == math.prod(bins)
    close(contract(w, x, r).unflatten(2, bins), e(x, r), 1e-10)


@pytest.mark.parametrize("box", [[math.nan, 0.0, 4.0, 4.0], [5.0, 0.0, 4.0, 4.0]])
def test_weights_of_boxes_that_are_none_are_refused(box: list[float]) -> None:
    r = Regions(torch.tensor([box], dtype=torch.float64), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match="boxes: expected finite x1 <= x2"):
        learned().double().weights(feature_map(), r)
