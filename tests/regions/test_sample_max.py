"""SampleMax of RoIAlign; its contract with RoIWarp is in test_warp."""

import pytest
import torch

from regio.regions.grid import RoIAlign, RoIAlignMax
from regio.regions.pool import RoIPool
from regio.regions.sample_max import SampleMax
from tests.regions.contract import close, feature_map, regions


@pytest.mark.parametrize("aligned", [True, False])
def test_of_roi_align(aligned: bool) -> None:
    x, r = feature_map(), regions()
    e, expected = SampleMax(RoIAlign((2, 3), 3, aligned)), RoIAlignMax((2, 3), 3, aligned)
    close(e(x, r), expected(x, r), 1e-12)
    close(e.weights(x, r), expected.weights(x, r), 1e-12)


def test_an_extractor_without_samples_raises() -> None:
    x, r = feature_map(), regions()
    with pytest.raises(TypeError, match="extractor: expected one that reads a SampleGrid, got CellBlocks"):
        SampleMax(RoIPool(2))(x, r)


def test_of_one_sample_is_the_mean() -> None:
    x, r = feature_map(), regions()
    assert torch.equal(SampleMax(RoIAlign(3, 1))(x, r), RoIAlign(3, 1)(x, r))
