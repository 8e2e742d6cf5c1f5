"""SampleMax; its contracts are in test_grid and test_warp."""

from typing import Any

import pytest
import torch

from regio.regions.deformable import DeformableRoIPool
from regio.regions.precise_roi_pool import PreciseRoIPool
from regio.regions.roi_align import RoIAlign
from regio.regions.roi_pool import RoIPool
from regio.regions.sample_max import SampleMax
from tests.regions.contract import feature_map, regions


@pytest.mark.parametrize("extractor", [RoIPool(2), PreciseRoIPool(2), DeformableRoIPool(RoIAlign(2), 4)])
def test_an_extractor_whose_samples_do_not_count_the_same_raises(extractor: Any) -> None:
    with pytest.raises(TypeError, match=f"extractor: expected RoIAlign or RoIWarp, got {type(extractor).__name__}"):
        SampleMax(extractor)


def test_of_one_sample_is_the_mean() -> None:
    x, r = feature_map(), regions()
    assert torch.equal(SampleMax(RoIAlign(3, 1))(x, r), RoIAlign(3, 1)(x, r))
