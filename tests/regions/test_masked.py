"""MaskedBins: the contract, the published threshold, and masks that travel with their boxes."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from regio.boxes import precise
from regio.regions.base import RegionExtractor
from regio.regions.levels import FPNLevels, Levels
from regio.regions.masked import MaskedBins, MaskedRegions
from regio.regions.roi_align import RoIAlign
from regio.types import FeatureMap, Regions
from tests.regions.contract import ExtractorContract, close, feature_map, regions


def with_masks(r: Regions, masks: Tensor) -> MaskedRegions:
    return MaskedRegions(r.boxes, r.image, masks)


class MaskOfTheBox(RegionExtractor):
    """MaskedBins with a mask that is some function of the box, so that a box always brings the same one."""

    def __init__(self, masked: MaskedBins) -> None:
        super().__init__()
        self.masked, self.bins = masked, masked.bins

    def mask(self, r: Regions) -> Regions:
        boxes = precise(r.boxes.detach())
        cells = torch.arange(20.0).unflatten(0, (5, 4)).to(boxes)
        return with_masks(r, 0.5 + 0.5 * torch.sin(boxes.sum(1)[:, None, None] + cells))

    def forward(self, x: FeatureMap, r: Regions) -> Tensor:
        return self.masked(x, self.mask(r))

    def weights(self, x: FeatureMap, r: Regions) -> Tensor:
        return self.masked.weights(x, self.mask(r))

    def mean_weights(self, x: FeatureMap, r: Regions) -> Tensor:
        return self.masked.mean_weights(x, self.mask(r))


class TestMaskedBins(ExtractorContract):
    weights_sum_to_one = False

    def make(self, channels: int, bins: tuple[int, int]) -> MaskOfTheBox:
        return MaskOfTheBox(MaskedBins(RoIAlign(bins)))

    def reference(self, extractor: MaskOfTheBox, x: FeatureMap, r: Regions) -> Tensor:
        y, masks = extractor.masked.extractor(x, r), extractor.mask(r).masks
        kh, kw = extractor.bins
        for n in range(len(r)):
            binary = [[1.0 if value >= 0.4 else 0.0 for value in row] for row in masks[n].tolist()]
            for i in range(kh):
                for j in range(kw):
                    v, u = (i + 0.5) * 5 / kh - 0.5, (j + 0.5) * 4 / kw - 0.5
                    total = sum(
                        max(0.0, 1 - abs(v - q)) * max(0.0, 1 - abs(u - p)) * binary[q][p]
                        for q in range(5)
                        for p in range(4)
                    )
                    y[n, :, i, j] *= total
        return y


def test_bins_outside_the_mask_are_zero_and_the_others_are_the_extractors() -> None:
    x, r = feature_map(), regions()
    masks = torch.rand(len(r), 2, 3, generator=torch.Generator().manual_seed(0)) < 0.5
    y, plain = MaskedBins(RoIAlign((2, 3)))(x, with_masks(r, masks)), RoIAlign((2, 3))(x, r)
    assert torch.equal(y, plain * masks[:, None])
    assert 0 < masks.sum() < masks.numel()
    ones = torch.ones(len(r), 21, 21)
    assert torch.equal(MaskedBins(RoIAlign((2, 3)))(x, with_masks(r, ones)), plain)


def test_the_threshold_is_reached_at_its_value() -> None:
    x, r = feature_map(), regions([[0.0, 0.0, 20.0, 20.0]])
    masks = torch.tensor([[[0.39, 0.4], [0.41, 0.0]]])
    assert MaskedBins(RoIAlign(2)).values(x, with_masks(r, masks)).tolist() == [[[0, 1], [1, 0]]]


def test_without_a_threshold_masks_receive_gradients() -> None:
    x, r = feature_map(), regions()
    masks = torch.rand(len(r), 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    e = MaskedBins(RoIAlign((2, 3)), threshold=None)
    resized = interpolate(masks[:, None], (2, 3), mode="bilinear")
    close(e(x, with_masks(r, masks)), RoIAlign((2, 3))(x, r) * resized, 1e-12)
    assert torch.autograd.gradcheck(lambda m: e(x, with_masks(r, m)), masks.requires_grad_(), fast_mode=True)


def test_masks_stay_with_their_boxes() -> None:
    """When boxes are chosen, and on a pyramid, where each level reads some of them."""
    r = regions()
    r = with_masks(r, torch.rand(len(r), 2, 2, generator=torch.Generator().manual_seed(0)))
    some = r[torch.tensor([4, 0])]
    assert isinstance(some, MaskedRegions)
    assert torch.equal(some.masks, r.masks[[4, 0]])
    maps = [feature_map(), FeatureMap(feature_map(seed=1).data[:, :, ::2, ::2], 8)]
    levels = Levels(MaskedBins(RoIAlign(2)), FPNLevels(30, 3))
    plain = Levels(RoIAlign(2), FPNLevels(30, 3))
    assert len(set(levels.assign(maps, r).tolist())) == 2
    close(levels(maps, r), plain(maps, r) * (r.masks >= 0.4)[:, None], 1e-12)


def test_regions_without_masks_raise() -> None:
    with pytest.raises(TypeError, match="r: expected MaskedRegions, got Regions"):
        MaskedBins(RoIAlign(2))(feature_map(), regions())


@pytest.mark.parametrize(
    ("masks", "error"),
    [
        (torch.ones(6, 3, 3), ValueError),
        (torch.ones(7, 3), ValueError),
        (torch.ones(7, 0, 3), ValueError),
        (torch.ones(7, 3, 3, dtype=torch.int64), TypeError),
    ],
)
def test_bad_masks_raise(masks: Tensor, error: type[Exception]) -> None:
    with pytest.raises(error, match="masks: expected"):
        with_masks(regions(), masks)
