"""Learned region features in a batch of images of several sizes: a box reads its own image and none of the padding."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from regio.analysis import count_samples
from regio.necks import FPN, SingleMap
from regio.proposals import RPN, Anchors, ProposalFilter
from regio.regions import FPNLevels, LearnedRegionFeatures, Levels
from regio.regions.learned import Dense, Exact, Mode, Sampled
from regio.regions.support import BoxSupport, Support, WholeImage
from regio.types import FeatureMap, Regions
from tests.regions.contract import close

STRIDE = 8
SIZES = ((70, 130), (128, 61), (128, 136))  # in pixels: 9 x 17, 16 x 8 and 16 x 17 cells of a map of 16 x 17
BOXES = [[4.0, 5, 60, 61], [30.3, 0, 61, 70], [0, 0, 20.2, 66], [41, 60, 60.5, 69.5]]


def padded(data: Tensor, fill: float = 50.0) -> FeatureMap:
    """`data` with large values at the cells beyond each image: what they hold must not matter."""
    x = FeatureMap(data.clone(), STRIDE, SIZES)
    for row, (height, width) in zip(x.data, x.extents, strict=True):
        row[:, height:] = fill
        row[:, :, width:] = -fill
    return x


def alone(x: FeatureMap, image: int) -> FeatureMap:
    """The map of one image, as large as the image."""
    height, width = x.extents[image]
    return FeatureMap(x.data[image : image + 1, :, :height, :width], STRIDE)


def random_map(dtype: torch.dtype) -> FeatureMap:
    data = torch.randn(3, 12, 16, 17, generator=torch.Generator().manual_seed(0)).to(dtype)
    return padded(data)


def module(scale: float = 30, **options: Any) -> LearnedRegionFeatures:
    torch.manual_seed(1)
    made = LearnedRegionFeatures(12, (2, 3), 16, 8, **options)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(scale)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("terms", [{}, {"appearance": False}, {"geometry": False}])
@pytest.mark.parametrize("support", [WholeImage(), BoxSupport(), BoxSupport(area=4)])
@pytest.mark.parametrize("mode", [Exact(), Sampled(inside=9, outside=16), Dense()])
def test_features_of_an_image_do_not_depend_on_the_batch(
    mode: Mode, support: Support, terms: dict[str, bool], dtype: torch.dtype
) -> None:
    e, x = module(mode=mode, support=support, **terms), random_map(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    boxes = torch.tensor(BOXES, dtype=wide)
    together = e(x, Regions.from_list([boxes] * 3)).unflatten(0, (3, len(BOXES)))
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    for i in range(3):
        close(together[i].to(wide), e(alone(x, i), Regions.from_list([boxes])).to(wide), tolerance)


@pytest.mark.parametrize("mode", [Exact(), Sampled(inside=9, outside=16), Dense()])
def test_padding_has_no_weight_and_no_gradient(mode: Mode) -> None:
    e, x = module(mode=mode), random_map(torch.float64)
    x.data.requires_grad_()
    r = Regions.from_list([torch.tensor(BOXES, dtype=torch.float64)] * 3)
    weights = e.weights(x, r)
    close(weights.sum((3, 4)), torch.ones(12, 1, 6, dtype=torch.float64), 1e-12)
    e.double()(x, r).square().sum().backward()
    for i, (height, width) in enumerate(x.extents):
        for each in (weights[r.image == i], x.data.grad[i]):
            assert not each[..., height:, :].any()
            assert not each[..., width:].any()
            assert each[..., :height, :width].any()


def test_supports_end_with_the_image_by_hand() -> None:
    x = FeatureMap(torch.zeros(2, 1, 16, 17), STRIDE, SIZES[:2])
    r = Regions(torch.tensor([[50.0, 60, 100, 90], [50, 60, 100, 90]]), torch.tensor([0, 1]))
    assert WholeImage()(x, r).tolist() == [[0, 0, 17, 9], [0, 0, 8, 16]]
    assert BoxSupport()(x, r).tolist() == [[6, 7, 13, 9], [6, 7, 8, 12]]
    beside = Regions(torch.tensor([[100.0, 90, 120, 120], [100, 90, 120, 120]]), r.image)
    assert BoxSupport()(x, beside).tolist() == [[12, 8, 15, 9], [7, 11, 8, 15]]


def test_the_stride_outside_of_a_box_is_that_of_its_image() -> None:
    """Equation 11 for 9 of 4 x 16 cells, a stride of 3: 2 x 6; of 12 x 12 cells, a stride of 4: 3 x 3."""
    x = FeatureMap(torch.zeros(2, 1, 12, 16), STRIDE, ((32, 128), (96, 96)))
    r = Regions(torch.tensor([[8.0, 8, 16, 16]] * 2), torch.tensor([0, 1]))
    inside, outside = count_samples(x, r, Sampled(inside=4, outside=9))
    assert inside.tolist() == [1, 1]
    assert outside.tolist() == [12, 9]
    cells = Sampled(inside=4, outside=9).cells(x, r, WholeImage()(x, r))
    found = [sorted((c // 16, c % 16) for c in row if c >= 0) for row in cells.tolist()]
    assert found[0] == sorted([(1, 1), *((v, u) for v in (0, 3) for u in range(0, 16, 3))])
    assert found[1] == sorted([(1, 1), *((v, u) for v in (0, 4, 8) for u in (0, 4, 8))])


def test_maps_made_from_others_keep_the_sizes() -> None:
    maps = [FeatureMap(torch.randn(3, 12, 16, 17), 8, SIZES), FeatureMap(torch.randn(3, 12, 8, 9), 16, SIZES)]
    assert [x.sizes for x in FPN((12, 12), 4)(maps)] == [SIZES, SIZES]
    assert SingleMap(12, 4)(maps)[0].sizes == SIZES
    few = ProposalFilter(pre_nms_top_n=9, post_nms_top_n=9)
    anchors = Anchors(((32.0,), (64.0,), (128.0,)), ratios=(1.0,))
    extra = RPN(12, anchors, extra_level=True, test=few, train=few).levels(maps)[2]
    assert extra.sizes == SIZES
    assert extra.extents == [(3, 5), (4, 2), (4, 5)]


def test_levels_of_a_padded_batch() -> None:
    """The law holds on a pyramid with boxes on both of its levels."""
    x = random_map(torch.float32)
    coarse = replace(x, data=x.data[:, :, ::2, ::2], stride=16)
    levels = Levels(module(), FPNLevels(40, 4))
    boxes = torch.tensor(BOXES)
    r = Regions.from_list([boxes] * 3)
    assert set(levels.assign([x, coarse], r).tolist()) == {0, 1}
    together = levels([x, coarse], r).unflatten(0, (3, len(BOXES)))
    for i in range(3):
        fine = alone(x, i)
        height, width = coarse.extents[i]
        own = FeatureMap(coarse.data[i : i + 1, :, :height, :width], 16)
        close(together[i], levels([fine, own], Regions.from_list([boxes])), 1e-5)
