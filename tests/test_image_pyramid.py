"""The same network on a batch at several scales."""

import pytest
import torch
from torch import Tensor, nn

from regio.backbones import efficientnet_lite0
from regio.image_pyramid import ImagePyramid
from regio.necks import SingleMap
from regio.regions import Levels, NearestArea, RoIAlign, RoIPool
from regio.regions.base import RegionExtractor
from regio.types import FeatureMap, Regions
from tests.regions.contract import close


class Means(nn.Module):
    """The mean of 8 x 8 pixels, a map of stride 8."""

    def forward(self, images: Tensor) -> tuple[FeatureMap]:
        return (FeatureMap(nn.functional.avg_pool2d(images, 8), 8),)


class Two(nn.Module):
    def forward(self, images: Tensor) -> tuple[FeatureMap, ...]:
        return Means()(images) * 2


def ramp(height: int, width: int) -> Tensor:
    """Each pixel is the place of its centre, (x, y, x + y)."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([x, y, x + y])[None].double()


SIDES = (480, 576, 688, 864, 1200)


def test_cells_of_every_scale_lie_where_the_stride_says() -> None:
    """Of an image that is its own coordinates, a cell's feature is the place of its centre, but at the border. (The
    filter of a scaled image is cut off at whole pixels, which moves a pixel by some thousandths.)"""
    maps = ImagePyramid(Means(), SIDES, divisor=8).eval()(ramp(240, 336))
    assert [x.stride for x in maps] == pytest.approx([8 * 1200 / side for side in sorted(SIDES, reverse=True)])
    for x in maps:
        rows, columns = ((torch.arange(count) + 0.5) * x.stride for count in x.size)
        inside = [slice(1, int(side / x.stride) - 1) for side in (240, 336)]
        for feature, centre in ((x.data[0, 0], columns.expand(*x.size)), (x.data[0, 1], rows[:, None].expand(*x.size))):
            away = (feature - centre)[inside[0], inside[1]].abs()
            assert away.numel() > 100 and float(away.max()) < 0.01
        for count, side in zip(x.size, (240, 336), strict=True):
            assert count * x.stride > side - x.stride / 8  # less than a pixel of the small image is cut


def test_pixels_are_not_lost_to_rounding() -> None:
    pyramid = ImagePyramid(Means(), SIDES, divisor=1)
    for side in SIDES:
        assert pyramid.scaled(torch.zeros(1, 3, 1200, 1600), side / 1200).shape[2] == side


def test_the_largest_scale_is_the_batch_itself() -> None:
    torch.manual_seed(0)
    backbone = efficientnet_lite0((5,), output_stride=16).eval()
    neck, images = SingleMap(320, 8), torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        maps = ImagePyramid(backbone, (96, 48), neck=neck, divisor=16).eval()(images)
        (alone,) = neck(backbone(images))
    assert torch.equal(maps[0].data, alone.data) and maps[0].stride == 16
    assert maps[1].stride == 32 and maps[1].data.shape == (1, 8, 3, 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_images_in_half_precision(dtype: torch.dtype) -> None:
    """Scaled in single precision, and rounded once."""
    pyramid, images = ImagePyramid(Means(), (80, 60), divisor=8), torch.rand(1, 3, 80, 96).to(dtype)
    scaled = pyramid.scaled(images, 0.75)
    assert scaled.dtype == dtype and scaled.shape == (1, 3, 64, 72)
    assert torch.equal(scaled, pyramid.scaled(images.float(), 0.75).to(dtype))


def test_training_draws_one_scale() -> None:
    pyramid, images = ImagePyramid(Means(), (40, 60, 80), divisor=8), ramp(80, 80)
    torch.manual_seed(0)
    strides = [[x.stride for x in pyramid(images)] for _ in range(60)]
    assert all(len(each) == 1 for each in strides)
    counts = [sum(each[0] == pytest.approx(8 * 80 / side) for each in strides) for side in (40, 60, 80)]
    assert sum(counts) == 60 and min(counts) > 10
    torch.manual_seed(0)
    assert [[x.stride for x in pyramid(images)] for _ in range(60)] == strides


@pytest.mark.parametrize("extractor", [RoIAlign(3), RoIAlign(2, samples=0), RoIPool(3)])
def test_boxes_are_read_from_strides_that_are_no_powers_of_two(extractor: RegionExtractor) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = [
        FeatureMap(torch.randn(2, 3, round(256 / s), round(320 / s), generator=generator), s)
        for s in (8 * 1200 / side for side in sorted(SIDES, reverse=True))
    ]
    side = 12 * 20 ** torch.rand(40, 2, generator=generator)
    corner = torch.rand(40, 2, generator=generator) * 150
    r = Regions(torch.cat([corner, corner + side], 1), torch.randint(0, 2, (40,), generator=generator))
    levels = Levels(extractor, NearestArea(48, stride=8))
    level = levels.assign(maps, r)
    assert len(level.unique()) == 5
    y = levels(maps, r)
    for i in range(40):
        close(y[i : i + 1], extractor(maps[level[i]], r[torch.tensor([i])]), 1e-5)


def test_bad_input() -> None:
    for sides in ((), (0, 10), (10, 10)):
        with pytest.raises(ValueError, match="sides: expected different numbers of pixels, at least one, got"):
            ImagePyramid(Means(), sides)
    with pytest.raises(ValueError, match="backbone: expected a network of one map, got one of 2"):
        ImagePyramid(Two(), (10,))(ramp(16, 16))
