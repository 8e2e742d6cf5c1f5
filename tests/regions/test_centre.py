"""CentreFeature: the contract, and RoIAlign with one sample."""

import torch
from torch import Tensor

from regio.regions.centre import CentreFeature
from regio.regions.roi_align import RoIAlign
from regio.types import FeatureMap, Regions
from tests.regions.contract import ExtractorContract, close, feature_map, regions
from tests.regions.test_roi_align import bilinear


class TestCentreFeature(ExtractorContract):
    bins = (1, 1)

    def make(self, channels: int, bins: tuple[int, int]) -> CentreFeature:
        return CentreFeature()

    def reference(self, extractor: CentreFeature, x: FeatureMap, r: Regions) -> Tensor:
        values = []
        for (x1, y1, x2, y2), image in zip(r.boxes.tolist(), r.image.tolist(), strict=True):
            u, v = (x1 + x2) / 2 / x.stride - 0.5, (y1 + y2) / 2 / x.stride - 0.5
            values.append(bilinear(x.data[image], v, u))
        return torch.stack(values)[:, :, None, None]


def test_it_is_roi_align_with_one_sample() -> None:
    x, r = feature_map(), regions()
    close(CentreFeature()(x, r), RoIAlign(1, samples=1)(x, r), 1e-12)


def test_a_shift_moves_the_centre() -> None:
    x, r = feature_map(), regions()
    level, shift = torch.zeros_like(r.image), torch.tensor([0.5, -1.0]).expand(len(r), 1, 1, 2)
    y = CentreFeature().sampling([x], r, level, shift).features([x.data], r.image, level)
    moved = Regions(r.boxes + torch.tensor([2.0, -4.0, 2.0, -4.0]), r.image)
    close(y, CentreFeature()(x, moved), 1e-12)
