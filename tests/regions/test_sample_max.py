"""SampleMax; its contracts are in test_grid and test_warp."""

import pytest
import torch

from regio.regions.roi_align import RoIAlign
from regio.regions.roi_pool import RoIPool
from regio.regions.sample_max import SampleMax
from tests.regions.contract import feature_map, regions


def test_an_extractor_without_samples_raises() -> None:
    x, r = feature_map(), regions()
    with pytest.raises(TypeError, match="extractor: expected one that reads a SampleGrid, got CellBlocks"):
        SampleMax(RoIPool(2))(x, r)


def test_of_one_sample_is_the_mean() -> None:
    x, r = feature_map(), regions()
    assert torch.equal(SampleMax(RoIAlign(3, 1))(x, r), RoIAlign(3, 1)(x, r))
