"""Pyramids: the level of each box, and features read from it."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from regio.regions.base import RegionExtractor, contract
from regio.regions.levels import FPNLevels, LevelRule, Levels, NearestArea, NearestScale
from regio.regions.quantisation import HalfOpenCorners
from regio.regions.roi_align import RoIAlign
from regio.regions.roi_pool import RoIAveragePool, RoIPool
from regio.regions.sample_max import SampleMax
from regio.types import FeatureMap, Regions
from tests.regions.contract import close


def pyramid(dtype: torch.dtype = torch.float64, channels: int = 3) -> list[FeatureMap]:
    """Maps of strides 4 to 32 of two 128 x 192 images."""
    generator = torch.Generator().manual_seed(0)
    return [
        FeatureMap(torch.randn(2, channels, 128 // s, 192 // s, generator=generator, dtype=torch.float64).to(dtype), s)
        for s in (4, 8, 16, 32)
    ]


def regions(dtype: torch.dtype = torch.float64, seed: int = 0, scale: float = 1.0) -> Regions:
    """Boxes of 8 to 1000 pixels, some beyond the image."""
    generator = torch.Generator().manual_seed(seed)
    side = 8 * 125 ** torch.rand(24, 2, generator=generator, dtype=torch.float64)
    corner = torch.rand(24, 2, generator=generator, dtype=torch.float64) * 150 - 20
    boxes = torch.cat([corner, corner + side], 1) * scale
    return Regions(boxes.to(dtype), torch.randint(0, 2, (24,), generator=generator))


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10_000), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_assignment_is_torchvisions(seed: int, dtype: torch.dtype) -> None:
    r = regions(dtype, seed)
    boxes = torch.cat([r.boxes, torch.tensor([[0, 0, 112, 112], [0, 0, 224, 224], [0, 0, 448, 448], [3, 3, 3, 9]])])
    r = Regions(boxes.to(dtype), torch.zeros(len(boxes), dtype=torch.int64))
    expected = LevelMapper(2, 5, canonical_scale=224, canonical_level=4, eps=1e-6)([r.boxes])
    assert torch.equal(Levels(RoIAlign()).assign(pyramid(), r), expected)


def test_canonical_boxes() -> None:
    """A 224 pixel box is read at stride 16, twice the side one level up, a box without area at the finest level."""
    boxes = torch.tensor([[0, 0, 224, 224], [0, 0, 448, 448], [0, 0, 112, 112], [0, 0, 5000, 5000], [7, 7, 7, 50]])
    r = Regions(boxes.float(), torch.zeros(5, dtype=torch.int64))
    assert Levels(RoIAlign()).assign(pyramid(), r).tolist() == [2, 3, 1, 3, 0]
    assert Levels(RoIAlign(), FPNLevels(112, 3)).assign(pyramid(), r).tolist() == [2, 3, 1, 3, 0]
    assert Levels(RoIAlign(), FPNLevels(canonical_level=3)).assign(pyramid(), r).tolist() == [1, 2, 0, 3, 0]


def test_parity_with_torchvision() -> None:
    maps, r = pyramid(torch.float32), regions(torch.float32)
    pooler = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    expected = pooler({str(i): x.data for i, x in enumerate(maps)}, r.split(2), [(128, 192)] * 2)
    ordered = Regions.from_list(r.split(2))
    close(Levels(RoIAlign(7, aligned=False))(maps, ordered), expected, 1e-5)


@pytest.mark.parametrize("extractor", [RoIAlign(2), RoIAlign(2, samples=0), SampleMax(RoIAlign(2)), RoIPool(2)])
def test_equals_each_box_on_its_own_level(extractor: RegionExtractor) -> None:
    maps, r = pyramid(), regions()
    e = Levels(extractor)
    level = e.assign(maps, r)
    assert len(level.unique()) == 4
    y = e(maps, r)
    for i in range(len(r)):
        one = r[torch.tensor([i])]
        close(y[i : i + 1], extractor(maps[level[i]], one), 1e-12)
    close(RegionExtractor.pyramid(extractor, maps, r, level), y, 1e-12)


def test_one_extractor_a_level() -> None:
    maps, r = pyramid(), regions()
    own = [RoIAlign(2, samples=s) for s in (1, 2, 3, 4)]
    e = Levels(own)
    level, y = e.assign(maps, r), e(maps, r)
    for i in range(len(r)):
        close(y[i : i + 1], own[level[i]](maps[level[i]], r[torch.tensor([i])]), 1e-12)


@pytest.mark.parametrize("extractor", [RoIAlign(2), RoIPool(2)])
def test_forward_is_the_contraction_of_weights(extractor: RegionExtractor) -> None:
    maps, r, e = pyramid(), regions(), Levels(extractor)
    total = sum(contract(w, x, r) for w, x in zip(e.weights(maps, r), maps, strict=True))
    close(e(maps, r), total.unflatten(2, (2, 2)), 1e-10)


def test_gradients() -> None:
    maps, r, e = pyramid(channels=2), regions(), Levels(RoIAlign((1, 2)))
    r = r[torch.tensor([0, 3, 5, 8, 11, 14])]
    inputs = [r.boxes.clone().requires_grad_(), *(x.data.clone().requires_grad_() for x in maps)]

    def run(boxes: torch.Tensor, *data: torch.Tensor) -> torch.Tensor:
        return e([FeatureMap(d, x.stride) for d, x in zip(data, maps, strict=True)], Regions(boxes, r.image))

    assert torch.autograd.gradcheck(run, inputs, fast_mode=True, atol=1e-5)


def test_single_map_is_the_extractor_alone() -> None:
    """Whatever its stride: there is no level to choose."""
    x, r = FeatureMap(torch.randn(2, 3, 20, 30), 12), regions(torch.float32)
    assert torch.equal(Levels(RoIAlign())([x], r), RoIAlign()(x, r))


def test_zero_boxes() -> None:
    r = Regions(torch.zeros(0, 4, dtype=torch.float64), torch.zeros(0, dtype=torch.int64))
    assert Levels(RoIAlign(2))(pyramid(), r).shape == (0, 3, 2, 2)
    assert Levels([RoIAlign(2)] * 4)(pyramid(), r).shape == (0, 3, 2, 2)


@pytest.mark.slow
def test_compiles_without_a_graph_break() -> None:
    maps, r, e = pyramid(torch.float32), regions(torch.float32), Levels(RoIAlign(2))

    def run(boxes: torch.Tensor, image: torch.Tensor, *data: torch.Tensor) -> torch.Tensor:
        return e([FeatureMap(d, s) for d, s in zip(data, (4, 8, 16, 32), strict=True)], Regions(boxes, image))

    torch.compiler.reset()
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    close(compiled(r.boxes, r.image, *(x.data for x in maps)), e(maps, r), 1e-5)


@pytest.mark.parametrize(
    ("strides", "message"),
    [
        ((4, 8, 16, 64), "strides that double"),
        ((8, 4, 2, 1), "strides that double"),
        ((3, 6, 12, 24), "strides that double"),
    ],
)
def test_strides_must_double(strides: tuple[int, ...], message: str) -> None:
    maps = [FeatureMap(x.data, s) for x, s in zip(pyramid(), strides, strict=True)]
    with pytest.raises(ValueError, match=message):
        Levels(RoIAlign())(maps, regions())


def test_wrong_numbers_raise() -> None:
    with pytest.raises(ValueError, match="maps: expected 2, got 4"):
        Levels([RoIAlign(), RoIAlign()])(pyramid(), regions())
    with pytest.raises(ValueError, match="maps: expected at least one"):
        Levels(RoIAlign())([], regions())
    with pytest.raises(ValueError, match="extractor: expected"):
        Levels([RoIAlign(2), RoIAlign(3)])


SCALES = [side / 600 for side in (1200, 864, 688, 576, 480)]
STRIDES = [16 / scale for scale in SCALES]


def test_nearest_area_by_the_definition() -> None:
    boxes = regions(seed=3, scale=3).boxes
    level = NearestArea()(boxes, STRIDES)
    for (x1, y1, x2, y2), got in zip(boxes.tolist(), level.tolist(), strict=True):
        away = [abs((x2 - x1) * s * (y2 - y1) * s - 224**2) for s in SCALES]
        assert got == away.index(min(away))
    assert level.unique().tolist() == [0, 1, 2, 3, 4]


def test_nearest_scale_by_the_definition() -> None:
    boxes = regions(seed=3, scale=3).boxes
    level = NearestScale()(boxes, STRIDES)
    for (x1, y1, x2, y2), got in zip(boxes.tolist(), level.tolist(), strict=True):
        away = [abs(600 * s - 208 * 600 / math.sqrt((x2 - x1) * (y2 - y1))) for s in SCALES]
        assert got == away.index(min(away))
    assert level.unique().tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("rule", [NearestArea(), NearestScale()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_boxes_of_an_image_pyramid(rule: LevelRule, dtype: torch.dtype) -> None:
    """A point and a small box are read at the finest level, a huge one at the coarsest; a box of 224 pixels at scale 1
    as it is, whatever the stride of the network."""
    boxes = torch.tensor([[7, 7, 7, 7], [7, 7, 7, 50], [0, 0, 20, 20], [0, 0, 9000, 9000]], dtype=dtype)
    assert rule(boxes, STRIDES).tolist() == [0, 0, 0, 4]
    assert rule(boxes[:0], STRIDES).shape == (0,)
    assert replace(rule, stride=4)(boxes, [4 / scale for scale in SCALES]).tolist() == [0, 0, 0, 4]
    square = torch.tensor([[0, 0, 224, 224]], dtype=dtype)
    assert rule(square, [16 / 1.4, 16, 16 / 0.7]).tolist() == [1]


def test_the_form_of_the_paper_and_of_its_code_differ() -> None:
    """Between the scales 1 and 2 the areas are equally near for a side of 224 sqrt(2 / 5) = 141.7, the scales for one
    of 224 / 1.5 = 149.3."""
    boxes = torch.tensor([[0.0, 0, side, side] for side in (141.6, 141.8, 149.2, 149.4)])
    assert NearestArea(224)(boxes, [8, 16]).tolist() == [0, 1, 1, 1]
    assert NearestScale(224)(boxes, [8, 16]).tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("extractor", [RoIPool(3), RoIPool(3, HalfOpenCorners()), RoIAveragePool(2)])
@pytest.mark.parametrize("count", [1, 4])
def test_regions_that_cover_the_same_cells(extractor: RegionExtractor, count: int) -> None:
    """The distinct ones have all features there are, no two of them on the same cells; boxes of another image, or read
    from another level, are others."""
    maps, r, levels = pyramid()[-count:], regions(), Levels(extractor)
    shifts = torch.arange(-9, 10, dtype=torch.float64)[:, None, None] * 0.4
    boxes = (r.boxes + shifts).flatten(0, 1)
    every = Regions(torch.cat([boxes, boxes]), torch.cat([r.image.repeat(19), 1 - r.image.repeat(19)]))
    found = levels.distinct(maps, every)
    assert found is not None
    some, index = found
    assert len(some) < len(every) and index.shape == (len(every),)
    close(levels(maps, some)[index], levels(maps, every), 0)
    again = levels.distinct(maps, some)
    assert again is not None and len(again[0]) == len(some)


def test_regions_that_are_all_distinct() -> None:
    none = Regions(torch.zeros(0, 4, dtype=torch.float64), torch.zeros(0, dtype=torch.int64))
    assert Levels(RoIAlign(2)).distinct(pyramid(), regions()) is None
    assert Levels([RoIPool(2)] * 4).distinct(pyramid(), regions()) is None
    found = Levels(RoIPool(2)).distinct(pyramid(), none)
    assert found is not None and len(found[0]) == len(found[1]) == 0


@pytest.mark.parametrize("rule", [FPNLevels(), NearestArea(), NearestScale()])
def test_the_level_of_large_boxes_in_half_precision(rule: LevelRule) -> None:
    """Their areas are beyond float16."""
    boxes = torch.tensor([[0.0, 0, 300, 300], [0, 0, 900, 500], [0, 0, 40, 40]])
    strides = [4, 8, 16]
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(rule(boxes.to(dtype), strides), rule(boxes.to(dtype).float(), strides))


def test_regions_of_no_place_raise() -> None:
    bad = Regions(torch.full((1, 4), torch.nan, dtype=torch.float64), torch.zeros(1, dtype=torch.int64))
    for read in (Levels(RoIPool(2)), Levels(RoIPool(2)).distinct):
        with pytest.raises(ValueError, match=r"boxes: expected finite .* got \[nan, nan, nan, nan\] at row 0"):
            read(pyramid(), bad)
