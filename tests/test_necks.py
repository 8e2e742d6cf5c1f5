"""Necks, by the definition."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from regio.necks import FPN, ReducedLast, SingleMap
from regio.types import FeatureMap


def maps() -> list[FeatureMap]:
    torch.manual_seed(0)
    sizes = [(6, 10, 14), (8, 5, 7), (12, 3, 4)]  # odd sides: half of 5 is 3
    return [FeatureMap(torch.randn(2, c, h, w), 8.0 * 2**i) for i, (c, h, w) in enumerate(sizes)]


def test_single_map_is_the_last_one() -> None:
    x = maps()
    (y,) = SingleMap(12, 4)(x)
    assert (y.stride, y.data.shape) == (32.0, (2, 4, 3, 4))


@pytest.mark.parametrize("norm", [None, nn.BatchNorm2d])
def test_the_last_map_reduced_and_the_others_as_they_are(norm: type[nn.BatchNorm2d] | None) -> None:
    x = maps()
    neck = ReducedLast(12, 4, norm, rate=3.0)
    *others, last = neck(x)
    assert others == x[:2] and (last.stride, last.data.shape) == (32.0, (2, 4, 3, 4))
    before = neck.reduce[0](x[2].data)
    torch.testing.assert_close(last.data, before.clamp(min=0))
    assert bool((before < 0).any()) and neck.rate_factors == {"reduce": 3.0}


def test_fpn_is_top_down_sums() -> None:
    x, fpn = maps(), FPN((6, 8, 12), 4)
    fine, middle, coarse = fpn(x)
    assert [level.stride for level in (fine, middle, coarse)] == [8, 16, 32]
    top = fpn.lateral[2](x[2].data)
    row, column = torch.arange(5) * 3 // 5, torch.arange(7) * 4 // 7
    second = fpn.lateral[1](x[1].data) + top[:, :, row][:, :, :, column]
    first = fpn.lateral[0](x[0].data) + F.interpolate(second, scale_factor=2, mode="nearest")
    for found, merged, layer in zip((fine, middle, coarse), (first, second, top), fpn.output, strict=True):
        torch.testing.assert_close(found.data, layer(merged))


def test_fpn_is_linear_in_its_maps() -> None:
    x, fpn = maps(), FPN((6, 8, 12), 4)
    twice = [FeatureMap(2 * level.data, level.stride) for level in x]
    for once, doubled in zip(fpn(x), fpn(twice), strict=True):
        torch.testing.assert_close(doubled.data, 2 * once.data, rtol=1e-4, atol=1e-5)  # biases start at zero


def test_fpn_keeps_the_size_of_what_passes_through() -> None:
    fpn = FPN((256,), 256)
    (y,) = fpn([FeatureMap(torch.randn(1, 256, 20, 20), 16)])
    assert 0.5 < float(y.data.detach().std()) < 1.5


def test_fpn_wants_its_number_of_maps() -> None:
    with pytest.raises(ValueError, match="maps: expected 3, got 2"):
        FPN((6, 8, 12), 4)(maps()[:2])
