"""RoIAlign: the contract, hand-worked numbers, and parity with torchvision."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import roi_align

from regio.regions.roi_align import RoIAlign
from regio.regions.sample_max import SampleMax
from regio.regions.sampling import SampleGrid
from regio.types import FeatureMap, Regions
from tests.regions.contract import BOXES, ExtractorContract, close, feature_map, regions


def bilinear(cells: Tensor, v: float, u: float) -> Tensor:
    """The values [C] of `cells` [C, H, W] at row v and column u in RoIAlign's border rule."""
    height, width = cells.shape[1:]
    if not (-1 <= v <= height and -1 <= u <= width):
        return cells.new_zeros(len(cells))
    v, u = min(max(v, 0.0), height - 1), min(max(u, 0.0), width - 1)
    total = cells.new_zeros(len(cells))
    for q in range(height):
        for p in range(width):
            total += max(0.0, 1 - abs(v - q)) * max(0.0, 1 - abs(u - p)) * cells[:, q, p]
    return total


def samples_of(extractor: RoIAlign, x: FeatureMap, box: Tensor, image: int, i: int, j: int) -> list[Tensor]:
    """The samples of bin (i, j), by the definition."""
    shift = 0.5 if extractor.aligned else 0.0
    x1, y1, x2, y2 = (float(c) / x.stride - shift for c in box)
    width, height = x2 - x1, y2 - y1
    if not extractor.aligned:
        width, height = max(width, 1.0), max(height, 1.0)
    step = height / extractor.bins[0], width / extractor.bins[1]
    count = [extractor.samples or int(-(-s // 1)) for s in step]
    return [
        bilinear(
            x.data[image],
            y1 + (i + (s + 0.5) / count[0]) * step[0],
            x1 + (j + (t + 0.5) / count[1]) * step[1],
        )
        for s in range(count[0])
        for t in range(count[1])
    ]


class AlignContract(ExtractorContract):
    def reference(self, extractor: RoIAlign | SampleMax, x: FeatureMap, r: Regions) -> Tensor:
        out = x.data.new_zeros(len(r), x.data.shape[1], *extractor.bins)
        for n, (box, image) in enumerate(zip(r.boxes, r.image.tolist(), strict=True)):
            for i in range(extractor.bins[0]):
                for j in range(extractor.bins[1]):
                    values = samples_of(self.align(extractor), x, box, image, i, j)
                    if values:
                        out[n, :, i, j] = self.reduce(torch.stack(values))
        return out

    def align(self, extractor: RoIAlign | SampleMax) -> RoIAlign:
        return extractor if isinstance(extractor, RoIAlign) else extractor.extractor

    def reduce(self, values: Tensor) -> Tensor:
        return values.mean(0)


class TestRoIAlign(AlignContract):
    def make(self, channels: int, bins: tuple[int, int]) -> RoIAlign:
        return RoIAlign(bins)


class TestUnaligned(AlignContract):
    def make(self, channels: int, bins: tuple[int, int]) -> RoIAlign:
        return RoIAlign(bins, aligned=False)


class TestAdaptive(AlignContract):
    def make(self, channels: int, bins: tuple[int, int]) -> RoIAlign:
        return RoIAlign(bins, samples=0)


class TestMax(AlignContract):
    in_place = False  # PyTorch keeps the result of a maximum for its gradient

    def make(self, channels: int, bins: tuple[int, int]) -> SampleMax:
        return SampleMax(RoIAlign(bins))

    def reduce(self, values: Tensor) -> Tensor:
        return values.amax(0)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("samples", [1, 2, 3, 0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 1000), channels=st.sampled_from([1, 5, 16, 37, 300]))
def test_parity_with_torchvision(dtype: torch.dtype, samples: int, aligned: bool, seed: int, channels: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(12, 2, generator=generator, dtype=dtype) * 60 - 10
    side = torch.rand(12, 2, generator=generator, dtype=dtype) ** 3 * 60
    side[:2] = 0
    boxes = torch.cat([torch.cat([corner, corner + side], 1), torch.tensor(BOXES, dtype=dtype)])
    r = Regions(boxes, torch.randint(0, 2, (len(boxes),), generator=generator))
    ours, theirs = (feature_map(channels, dtype, seed=seed).data.requires_grad_() for _ in range(2))
    y = RoIAlign((3, 4), samples, aligned)(FeatureMap(ours, 4), r)
    rois = torch.cat([r.image[:, None].to(dtype), boxes], 1)
    expected = roi_align(theirs, rois, (3, 4), 1 / 4, samples, aligned)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    close(y, expected, tolerance)
    grad = torch.randn(y.shape, generator=generator, dtype=dtype)
    y.backward(grad)
    expected.backward(grad)
    close(ours.grad / 10, theirs.grad / 10, tolerance)


def test_hand_worked_numbers() -> None:
    """On the map x(q) = column + 5 row, the centre of a bin is its mean: bins of half a cell from (1, 1) in cells."""
    data = torch.arange(25.0).reshape(1, 1, 5, 5)
    r = Regions(torch.tensor([[1.0, 1.0, 3.0, 3.0]]), torch.tensor([0]))
    # Bin centres at 1.25, 1.75, 2.25, 2.75 pixels are 0.75 ... 2.25 cells after the half-pixel shift.
    expected = torch.tensor([0.75, 1.25, 1.75, 2.25]) + 5 * torch.tensor([0.75, 1.25, 1.75, 2.25])[:, None]
    close(RoIAlign(4)(FeatureMap(data, 1), r)[0, 0], expected, 1e-6)
    close(RoIAlign(4, aligned=False)(FeatureMap(data, 1), r)[0, 0], expected + 3, 1e-6)


def test_adaptive_memory_does_not_follow_the_largest_box() -> None:
    """Of a box of 1000 cells only the samples on the map are taken."""
    boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0]]).repeat(100, 1)
    boxes[7] = torch.tensor([-2000.0, -2000.0, 2000.0, 2000.0])
    x, r = feature_map(dtype=torch.float32), Regions(boxes, torch.zeros(100, dtype=torch.int64))
    grid = RoIAlign(7, samples=0).sampling([x], r, r.image)
    assert isinstance(grid, SampleGrid)
    assert grid.rows.shape[2] <= 2 * max(x.size) + 6
    rois = torch.cat([r.image[:, None], boxes], 1)
    close(RoIAlign(7, samples=0)(x, r), roi_align(x.data, rois, 7, 1 / 4, 0, True), 1e-4)


@pytest.mark.parametrize(("arguments", "message"), [((0,), "bins"), ((7, -1), "samples")])
def test_bad_arguments_raise(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"{message}: expected"):
        RoIAlign(*arguments)


def test_maximum_needs_a_fixed_number_of_samples() -> None:
    with pytest.raises(ValueError, match="extractor: expected a fixed number of samples"):
        SampleMax(RoIAlign(7, samples=0))


@pytest.mark.slow
def test_inductor() -> None:
    e, x, r = RoIAlign(3), feature_map(dtype=torch.float32), regions(dtype=torch.float32)
    compiled = torch.compile(lambda data, boxes, image: e(FeatureMap(data, 4), Regions(boxes, image)), fullgraph=True)
    close(compiled(x.data, r.boxes, r.image), e(x, r), 1e-5)
