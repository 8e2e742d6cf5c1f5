"""WarpedCrop: the contract in its forms, the released code's crop written out, hand-worked numbers."""

import math

import pytest
import torch
from torch import Tensor

from regio.regions.roi_align import RoIAlign
from regio.regions.warped_crop import TightestSquare, Warp, WarpedCrop
from regio.types import FeatureMap, Regions
from tests.regions.contract import ExtractorContract, close, feature_map, regions
from tests.regions.test_roi_pool import c_round


def resized(window: Tensor, size: tuple[int, int]) -> Tensor:
    """MATLAB's imresize(window [C, h, w], size, 'bilinear', 'antialiasing', false), one pixel after the other."""
    out = window.new_zeros(len(window), *size)
    height, width = window.shape[1:]
    for i in range(size[0]):
        for j in range(size[1]):
            v = min(max((i + 0.5) * height / size[0] - 0.5, 0.0), height - 1)
            u = min(max((j + 0.5) * width / size[1] - 0.5, 0.0), width - 1)
            for q in range(height):
                for p in range(width):
                    out[:, i, j] += max(0.0, 1 - abs(v - q)) * max(0.0, 1 - abs(u - p)) * window[:, q, p]
    return out


def released(image: Tensor, box: list[float], bins: tuple[int, int], context: int, square: bool) -> Tensor:
    """R-CNN's crop of `image` [C, H, W]: pixels are counted from 1, and both corners belong to the box."""
    height, width = image.shape[1:]
    x1, y1, x2, y2 = box[0] + 1, box[1] + 1, box[2], box[3]
    half = [(x2 - x1 + 1) / 2, (y2 - y1 + 1) / 2]
    centre = [x1 + half[0], y1 + half[1]]
    if square:
        half = [max(half)] * 2
    out, taken = image.new_zeros(len(image), *bins), []
    for c, h, side, n in zip(centre, half, (width, height), (bins[1], bins[0]), strict=True):
        scale = n / (n - 2 * context)
        first, last = c_round(c - h * scale), c_round(c + h * scale)
        unclipped = last - first + 1
        pad = max(0, 1 - first)
        first, last = max(1, first), min(side, last)
        if last < first:
            return out
        count, pad = c_round((last - first + 1) * n / unclipped), c_round(pad * n / unclipped)
        taken.append((int(first), int(last), int(pad), int(min(count, n - pad))))
    (left, right, pad_x, columns), (top, bottom, pad_y, rows) = taken
    if min(columns, rows) < 1:
        return out
    window = image[:, top - 1 : bottom, left - 1 : right]
    out[:, pad_y : pad_y + rows, pad_x : pad_x + columns] = resized(window, (rows, columns))
    return out


class TestReleased(ExtractorContract):
    bins = (6, 7)
    box_gradient = False
    weights_sum_to_one = False  # context reaches over the border of the small map
    square = False

    def make(self, channels: int, bins: tuple[int, int]) -> WarpedCrop:
        return WarpedCrop(bins, context=1)

    def reference(self, extractor: WarpedCrop, x: FeatureMap, r: Regions) -> Tensor:
        boxes = zip((r.boxes / x.stride).tolist(), r.image.tolist(), strict=True)
        arguments = extractor.bins, extractor.context, self.square
        return torch.stack([released(x.data[image], box, *arguments) for box, image in boxes])


class TestReleasedSquare(TestReleased):
    square = True

    def make(self, channels: int, bins: tuple[int, int]) -> WarpedCrop:
        return WarpedCrop(bins, context=1, shape=TightestSquare())


class TestExact(ExtractorContract):
    def make(self, channels: int, bins: tuple[int, int]) -> WarpedCrop:
        return WarpedCrop(bins, context=0, rounded=False)

    def reference(self, extractor: WarpedCrop, x: FeatureMap, r: Regions) -> Tensor:
        (rows, columns), size = extractor.bins, x.size
        out = x.data.new_zeros(len(r), x.data.shape[1], rows, columns)
        for n, ((x1, y1, x2, y2), image) in enumerate(
            zip((r.boxes / x.stride).tolist(), r.image.tolist(), strict=True)
        ):
            for i in range(rows):
                for j in range(columns):
                    v, u = y1 + (i + 0.5) / rows * (y2 - y1) - 0.5, x1 + (j + 0.5) / columns * (x2 - x1) - 0.5
                    if not (-0.5 <= v <= size[0] - 0.5 and -0.5 <= u <= size[1] - 0.5):
                        continue
                    v, u = min(max(v, 0.0), size[0] - 1), min(max(u, 0.0), size[1] - 1)
                    for q in range(size[0]):
                        for p in range(size[1]):
                            weight = max(0.0, 1 - abs(v - q)) * max(0.0, 1 - abs(u - p))
                            out[n, :, i, j] += weight * x.data[image, :, q, p]
        return out


def test_hand_worked_numbers() -> None:
    """On x = column, a 4-pixel box (2, 0) - (6, 4) with 2 of 6 pixels as context on each side: the scale is 6 / 2, so
    the crop reaches from 5 - 6 to 5 + 6 in pixels from 1, that is -1 .. 11, of which 1 .. 8 are in the image. 8 of 13
    pixels become round(8 * 6 / 13) = 4 after round(2 * 6 / 13) = 1 of border; samples lie 2 columns apart."""
    x = FeatureMap(torch.arange(8.0).expand(1, 1, 8, 8), 1)
    r = Regions(torch.tensor([[2.0, 0.0, 6.0, 4.0]]), torch.tensor([0]))
    y = WarpedCrop(6, context=2)(x, r)[0, 0]
    # Of the rows, -3 .. 9 are asked for: 4 rows of border are 2 pixels, 8 rows of the image the 4 after them.
    expected = torch.tensor([0, 0.5, 2.5, 4.5, 6.5, 0])
    close(y, torch.stack([expected * 0] * 2 + [expected] * 4), 1e-6)


def test_context_is_that_many_pixels_of_the_output() -> None:
    """A box of 195 pixels inside a large image keeps its size: the crop is the 227 pixels around it."""
    x = FeatureMap(torch.arange(400.0).expand(1, 1, 400, 400), 1)
    r = Regions(torch.tensor([[100.0, 90.0, 295.0, 285.0]]), torch.tensor([0]))
    exact = WarpedCrop(227, context=16, rounded=False)(x, r)[0, 0]
    close(exact, torch.arange(84.0, 311.0).expand(227, 227), 1e-5)
    # The released code rounds 84.5 and 311.5 in pixels from 1 to 85 and 312, of which both belong to the crop: 228.
    released_first = WarpedCrop(227, context=16)(x, r)[0, 0, 0, 0]
    assert float(released_first) == pytest.approx(84 + 0.5 * 228 / 227 - 0.5, abs=1e-4)


def test_without_rounding_and_context_it_is_roi_align_with_one_sample() -> None:
    x, r = feature_map(), regions([[5.3, 4.1, 30.9, 29.9], [0.0, 0.0, 44.0, 36.0]])
    close(WarpedCrop((5, 4), context=0, rounded=False)(x, r), RoIAlign((5, 4), samples=1)(x, r), 1e-12)


def test_a_square_keeps_the_aspect_ratio() -> None:
    """The crop of a box is that of the square about its centre."""
    x = feature_map()
    thin, square = regions([[10.0, 4.0, 18.0, 28.0]]), regions([[2.0, 4.0, 26.0, 28.0]])
    for rounded in (True, False):
        of_thin = WarpedCrop(8, context=2, shape=TightestSquare(), rounded=rounded)(x, thin)
        close(of_thin, WarpedCrop(8, context=2, shape=Warp(), rounded=rounded)(x, square), 1e-12)


@pytest.mark.parametrize("rounded", [True, False])
def test_the_padding_of_a_batch_is_border(rounded: bool) -> None:
    """A crop of an image in a batch is that of the image alone, whatever the batch holds beside it."""
    alone = feature_map(images=1)
    data = torch.full((1, 3, 16, 17), 50.0, dtype=torch.float64)
    data[:, :, :9, :11] = alone.data
    batch = FeatureMap(data, 4, ((36, 44),))
    e, r = WarpedCrop((6, 7), context=1, rounded=rounded), regions(images=1)
    close(e(batch, r), e(alone, r), 1e-12)


@pytest.mark.parametrize("context", [-1, 4, 5])
def test_bad_context_raises(context: int) -> None:
    with pytest.raises(ValueError, match="context: expected from 0 to less than half of bins"):
        WarpedCrop(8, context=context)


def test_pixels_cannot_be_moved() -> None:
    x, r = feature_map(), regions()
    with pytest.raises(ValueError, match="shift: expected None"):
        WarpedCrop(8, 2).sampling([x], r, torch.zeros_like(r.image), torch.zeros(len(r), 8, 8, 2))


def test_rounding_is_that_of_c() -> None:
    """A crop from 2.5 to 5.5 in pixels from 1 reads 3 .. 6, not 2 .. 6."""
    x = FeatureMap(torch.arange(12.0).expand(1, 1, 12, 12), 1)
    r = Regions(torch.tensor([[1.5, 1.5, 4.5, 4.5]]), torch.tensor([0]))
    y = WarpedCrop(4, context=0)(x, r)[0, 0, 0]
    assert y.tolist() == [2.0, 3.0, 4.0, 5.0]
    assert math.isclose(c_round(2.5), 3)
