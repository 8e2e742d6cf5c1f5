"""PreciseRoIPool: the contract, what it is on cell-aligned boxes, and its limits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d

from regio.regions.precise_roi_pool import PreciseRoIPool
from regio.regions.roi_align import RoIAlign
from regio.types import FeatureMap, Regions
from tests.regions.contract import ExtractorContract, close, feature_map, regions


def integral(t: float) -> float:
    """Of the bilinear weights max(0, 1 - |t|), from -infinity to t."""
    if t <= 0:
        return max(1 + t, 0.0) ** 2 / 2
    return 1 - max(1 - t, 0.0) ** 2 / 2


def mean_of_bilinear_weight(cell: int, start: float, stop: float) -> float:
    if stop == start:
        return max(1 - abs(start - cell), 0.0)
    return (integral(stop - cell) - integral(start - cell)) / (stop - start)


class TestPrecise(ExtractorContract):
    aligned = True

    def make(self, channels: int, bins: tuple[int, int]) -> PreciseRoIPool:
        return PreciseRoIPool(bins, aligned=self.aligned)

    def reference(self, extractor: PreciseRoIPool, x: FeatureMap, r: Regions) -> Tensor:
        out = x.data.new_zeros(len(r), x.data.shape[1], *extractor.bins)
        for n, (box, image) in enumerate(zip(r.boxes.tolist(), r.image.tolist(), strict=True)):
            x1, y1, x2, y2 = (c / x.stride - (0.5 if extractor.aligned else 0) for c in box)
            height, width = (y2 - y1) / extractor.bins[0], (x2 - x1) / extractor.bins[1]
            for i in range(extractor.bins[0]):
                for j in range(extractor.bins[1]):
                    for v in range(x.size[0]):
                        for u in range(x.size[1]):
                            row = mean_of_bilinear_weight(v, y1 + i * height, y1 + (i + 1) * height)
                            column = mean_of_bilinear_weight(u, x1 + j * width, x1 + (j + 1) * width)
                            out[n, :, i, j] += row * column * x.data[image, :, v, u]
        return out


class TestPixelCentreOrigin(TestPrecise):
    aligned = False


# Of the 9 x 11 cells of a map, those of rows 1-6 and columns 2-9: bins of 3 x 2 and of 2 x 4 cells.
BOX, CELLS = [2.0 * 4, 1.0 * 4, 10.0 * 4, 7.0 * 4], (slice(1, 7), slice(2, 10))
BINS = [(2, 4), (3, 2)]


@pytest.mark.parametrize("bins", BINS)
def test_on_aligned_cells_it_averages_the_smoothed_map(bins: tuple[int, int]) -> None:
    x = feature_map()
    kernel = torch.tensor([1 / 8, 3 / 4, 1 / 8], dtype=torch.float64)
    smooth = conv2d(x.data, (kernel[:, None] * kernel).expand(3, 1, 3, 3), padding=1, groups=3)
    inside = smooth[:, :, *CELLS]
    size = (6 // bins[0], 8 // bins[1])
    close(PreciseRoIPool(bins)(x, regions([BOX, BOX])), avg_pool2d(inside, size), 1e-12)
    whole = regions([[0.0, 0.0, 44.0, 36.0]] * 2)
    close(PreciseRoIPool((3, 11))(x, whole), avg_pool2d(smooth, (3, 1)), 1e-12)


@pytest.mark.parametrize("bins", BINS)
def test_on_aligned_cells_of_an_affine_map_it_is_average_pooling(bins: tuple[int, int]) -> None:
    rows, columns = torch.arange(9.0, dtype=torch.float64)[:, None], torch.arange(11.0, dtype=torch.float64)
    data = (3 + 0.7 * rows - 1.9 * columns).expand(2, 1, 9, 11)
    y = PreciseRoIPool(bins)(FeatureMap(data, 4), regions([BOX, BOX]))
    close(y, avg_pool2d(data[:, :, *CELLS], (6 // bins[0], 8 // bins[1])), 1e-12)


@pytest.mark.parametrize("bins", BINS)
def test_from_pixel_centres_it_averages_means_of_four_cells(bins: tuple[int, int]) -> None:
    x = feature_map()
    y = PreciseRoIPool(bins, aligned=False)(x, regions([BOX, BOX]))
    of_four = avg_pool2d(x.data, 2, stride=1)[:, :, *CELLS]
    close(y, avg_pool2d(of_four, (6 // bins[0], 8 // bins[1])), 1e-12)


def test_many_samples_approach_it() -> None:
    """The midpoint rule on a surface that is linear between cells: the error falls with the square of the samples."""
    x, r = feature_map(), regions([[5.3, 4.1, 30.9, 29.9]])
    exact = PreciseRoIPool(2)(x, r)
    errors = [float((RoIAlign(2, samples=n)(x, r) - exact).abs().max()) for n in (2, 20, 200)]
    assert errors[2] < 1e-4 < errors[1] < 1e-2 < errors[0]


coordinate = st.floats(0, 40)


@settings(deadline=None, max_examples=30)
@given(x1=coordinate, y1=coordinate, width=coordinate, height=coordinate, seed=st.integers(0, 99))
def test_linear_in_the_map_and_additive_over_bins(x1: float, y1: float, width: float, height: float, seed: int) -> None:
    r = regions([[x1, y1, x1 + width, y1 + height]])
    x, other = feature_map(seed=seed), feature_map(seed=seed + 1)
    y = PreciseRoIPool((3, 4))(x, r)
    close(y.mean((2, 3), keepdim=True), PreciseRoIPool(1)(x, r), 1e-9)
    both = FeatureMap(2 * x.data - other.data, 4)
    close(PreciseRoIPool((3, 4))(both, r), 2 * y - PreciseRoIPool((3, 4))(other, r), 1e-9)


def test_bins_without_extent_are_the_limit() -> None:
    x = feature_map()
    point, line = [20.6, 14.9, 20.6, 14.9], [20.6, 4.9, 20.6, 24.9]
    r = regions([point, line])
    y = PreciseRoIPool(1)(x, r)
    close(y[:1], RoIAlign(1, samples=1)(x, r)[:1], 1e-12)
    near = [[20.6, 14.9, 20.6001, 14.9001], [20.6, 4.9, 20.6001, 24.9]]
    close(y, PreciseRoIPool(1)(x, regions(near)), 1e-4)


def test_tiny_bins_keep_their_precision() -> None:
    """In float32, bins of a ten-thousandth of a cell."""
    x, boxes = feature_map(dtype=torch.float32), [[20.6, 14.9, 20.6012, 14.9012]]
    y = PreciseRoIPool(3)(x, regions(boxes, torch.float32))
    close(y, RoIAlign(3, samples=1)(x, regions(boxes, torch.float32)), 1e-3)
    close(PreciseRoIPool(3).weights(x, regions(boxes, torch.float32)).sum((3, 4)), torch.ones(1, 1, 9), 1e-6)


def test_gradient_of_boxes_is_exact_also_on_cell_borders() -> None:
    """Edges of bins on the centres and borders of cells, a bin thinner than a cell, and a bin across the border."""
    x = feature_map()
    boxes = [[6.0, 10.0, 26.0, 22.0], [8.0, 4.0, 24.0, 28.0], [10.2, 3.3, 11.1, 31.7], [-13.7, 17.2, 12.9, 51.3]]
    for aligned in (True, False):
        e, r = PreciseRoIPool((3, 4), aligned), regions(boxes)
        assert torch.autograd.gradcheck(lambda b, e=e, r=r: e(x, Regions(b, r.image)), r.boxes.clone().requires_grad_())


def test_weights_sum_to_less_beyond_the_centres_of_the_border() -> None:
    x = FeatureMap(torch.ones(1, 1, 9, 11, dtype=torch.float64), 4)
    r = regions([[0.0, 8.0, 4.0, 12.0], [2.0, 8.0, 6.0, 12.0], [-40.0, 8.0, -30.0, 12.0]], images=1)
    close(PreciseRoIPool(1)(x, r).flatten(), torch.tensor([7 / 8, 1, 0], dtype=torch.float64), 1e-12)


def test_moved_bins() -> None:
    """A shift of all parts moves the box, and has the gradient of the boxes' corners."""
    x, r, e = feature_map(), regions(), PreciseRoIPool((2, 3))
    level = torch.zeros_like(r.image)
    same = torch.tensor([0.7, -1.2], dtype=torch.float64).expand(len(r), 2, 3, 2)

    def moved(shift: Tensor) -> Tensor:
        return e.sampling([x], r, level, shift).features([x.data], r.image, level)

    by_pixels = Regions(r.boxes + 4 * torch.tensor([0.7, -1.2, 0.7, -1.2]), r.image)
    close(moved(same), e(x, by_pixels), 1e-6)
    each = torch.randn(len(r), 2, 3, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for i in range(2):
        for j in range(3):
            close(moved(each)[:, :, i, j], moved(each[:, i : i + 1, j : j + 1].expand(-1, 2, 3, -1))[:, :, i, j], 1e-12)
    assert torch.autograd.gradcheck(moved, each.requires_grad_(), fast_mode=True)


def test_memory_does_not_follow_the_largest_box() -> None:
    x, r = feature_map(), regions([[-20000.0, -20000.0, 20000.0, 20000.0], [0.0, 0.0, 9.0, 9.0]])
    grid = PreciseRoIPool(7).sampling([x], r, torch.zeros_like(r.image))
    assert grid.rows.shape == (2, 7, 9)
    assert grid.columns.shape == (2, 7, 11)


def test_no_bins_raise() -> None:
    with pytest.raises(ValueError, match="bins: expected"):
        PreciseRoIPool((7, 0))
