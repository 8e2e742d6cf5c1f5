"""Enlarged: the contract around an extractor with gradients for boxes and one that rounds them, and its laws."""

import math

import pytest
import torch
from torch import Tensor

from regio.config.extractors import RoIAlign as AlignSettings
from regio.config.extractors import RoIPool as PoolSettings
from regio.regions import (
    DeformableRoIPool,
    Enlarged,
    FPNLevels,
    LearnedRegionFeatures,
    Levels,
    MaskedBins,
    MaskedRegions,
    RoIAlign,
    RoIPool,
)
from regio.types import FeatureMap, Regions
from tests.regions.contract import ExtractorContract, close, feature_map, regions


def twice(r: Regions) -> Regions:
    """Boxes of twice the area about the same centres, box by box."""
    boxes = []
    for x1, y1, x2, y2 in r.boxes.tolist():
        (cx, cy), (w, h) = ((x1 + x2) / 2, (y1 + y2) / 2), (math.sqrt(2) * (x2 - x1), math.sqrt(2) * (y2 - y1))
        boxes.append([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
    return Regions(r.boxes.new_tensor(boxes), r.image)


class TestEnlargedRoIAlign(ExtractorContract):
    def make(self, channels: int, bins: tuple[int, int]) -> Enlarged:
        return Enlarged(RoIAlign(bins))

    def reference(self, extractor: Enlarged, x: FeatureMap, r: Regions) -> Tensor:
        return RoIAlign(extractor.bins)(x, twice(r))


class TestEnlargedRoIPool(ExtractorContract):
    box_gradient = False

    def make(self, channels: int, bins: tuple[int, int]) -> Enlarged:
        return Enlarged(RoIPool(bins))

    def reference(self, extractor: Enlarged, x: FeatureMap, r: Regions) -> Tensor:
        return RoIPool(extractor.bins)(x, twice(r))


@pytest.mark.parametrize("inner", [RoIAlign(3), RoIPool(3)])
def test_of_the_same_area_is_the_extractor(inner: torch.nn.Module) -> None:
    x, r = feature_map(), regions()
    assert torch.equal(Enlarged(inner, 1.0)(x, r), inner(x, r))  # type: ignore[arg-type]


def test_masks_stay_with_the_boxes() -> None:
    x, r = feature_map(), regions()
    masks = torch.rand(len(r.boxes), 2, 2, dtype=torch.float64)
    with_masks = MaskedRegions(r.boxes, r.image, masks)
    inner = MaskedBins(RoIAlign(2), None)
    assert torch.equal(Enlarged(inner, 1.0)(x, with_masks), inner(x, with_masks))


def test_what_is_learned_shows_through_it_and_through_masks() -> None:
    """The samples and parts that are moved, and the terms of the weights: those of the larger box."""
    torch.manual_seed(0)
    x, r = feature_map(), regions()
    deformable = DeformableRoIPool(RoIAlign(2), 3).double()
    torch.nn.init.normal_(deformable.offset.weight)
    with_masks = MaskedRegions(r.boxes, r.image, torch.ones(len(r.boxes), 2, 2))
    for wrapper, own, seen in ((Enlarged(deformable), twice(r), r), (MaskedBins(deformable), r, with_masks)):
        expected, shifts = deformable.moved_samples(x, own), deformable.part_shifts(x, own)
        found = wrapper.moved_samples(x, seen)
        assert found is not None
        close(found[0].points, expected[0].points, 1e-12)
        shown = wrapper.part_shifts(x, seen)
        assert shown is not None and shown.any()
        close(shown, shifts, 1e-12)
    learned = LearnedRegionFeatures(3, (2, 2)).double()
    for wrapper, own, seen in ((Enlarged(learned), twice(r), r), (MaskedBins(learned), r, with_masks)):
        alone = wrapper.terms_alone()
        assert list(alone) == list(learned.terms_alone()) != []
        for name, each in learned.terms_alone().items():
            close(alone[name](x, seen), each(x, own), 1e-12)


def test_a_box_by_hand() -> None:
    """Twice the area of 8 x 4 pixels about (20, 12) is 11.31 x 5.66; four times is 16 x 8, which is whole cells."""
    x = feature_map(images=1)
    box = Regions(torch.tensor([[16.0, 10.0, 24.0, 14.0]], dtype=torch.float64), torch.tensor([0]))
    large = Regions(torch.tensor([[12.0, 8.0, 28.0, 16.0]], dtype=torch.float64), torch.tensor([0]))
    close(Enlarged(RoIAlign(2), 4.0)(x, box), RoIAlign(2)(x, large), 1e-12)
    side = Enlarged(RoIAlign(2))._enlarged(box).boxes[0]
    assert (side[2:] - side[:2]).tolist() == pytest.approx([8 * 2**0.5, 4 * 2**0.5])


def test_the_level_is_that_of_the_box() -> None:
    """A box of 40 pixels is read from stride 4; one of 40 sqrt(2) would be read from stride 8."""
    maps = [FeatureMap(torch.randn(1, 2, 32 // i, 32 // i, dtype=torch.float64), 4 * i) for i in (1, 2)]
    rule = FPNLevels(canonical_size=100)
    r = Regions(torch.tensor([[30.0, 30.0, 70.0, 70.0]], dtype=torch.float64), torch.tensor([0]))
    level = Levels(RoIAlign(3), rule)
    assert (level.assign(maps, r).item(), level.assign(maps, twice(r)).item()) == (0, 1)
    close(Levels(Enlarged(RoIAlign(3)), rule)(maps, r), RoIAlign(3)(maps[0], twice(r)), 1e-12)


def test_regions_that_round_to_the_same_cells_are_those_of_the_larger_boxes() -> None:
    x = feature_map(images=1)
    r = Regions(torch.tensor([[8.0, 8.0, 16.0, 16.0], [8.1, 8.0, 16.0, 16.0]]), torch.tensor([0, 0]))
    cells = Enlarged(RoIPool(2)).whole_cells([x], r, torch.tensor([0, 0]))
    expected = RoIPool(2).whole_cells([x], twice(r), torch.tensor([0, 0]))
    assert cells is not None and expected is not None and torch.equal(cells, expected)
    assert Enlarged(RoIAlign(2)).whole_cells([x], r, torch.tensor([0, 0])) is None


@pytest.mark.parametrize("settings", [PoolSettings, AlignSettings])
def test_settings_by_name(settings: type) -> None:
    assert not isinstance(settings().build(4), Enlarged)
    made = settings(support="2x", bins=(3, 3)).build(4)
    assert isinstance(made, Enlarged) and (made.area, made.bins) == (2.0, (3, 3))


def test_an_area_that_is_not_positive_raises() -> None:
    for area in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=r"area: expected a positive number, got"):
            Enlarged(RoIAlign(2), area)
