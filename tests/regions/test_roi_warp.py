"""RoIWarp: the contract in both forms, hand-worked numbers, and its maximum over bins."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from regio.regions.roi_warp import RoIWarp
from regio.regions.sample_max import SampleMax
from regio.types import FeatureMap, Regions
from tests.regions.contract import ExtractorContract, close, feature_map, regions
from tests.regions.test_roi_pool import c_round


def sample(cells: Tensor, v: float, u: float) -> Tensor:
    """The values [C] of `cells` [C, H, W] at row v and column u; half a cell outside it is still the border."""
    height, width = cells.shape[1:]
    total = cells.new_zeros(len(cells))
    if not (-0.5 <= v <= height - 0.5 and -0.5 <= u <= width - 0.5):
        return total
    v, u = min(max(v, 0.0), height - 1), min(max(u, 0.0), width - 1)
    for q in range(height):
        for p in range(width):
            total += max(0.0, 1 - abs(v - q)) * max(0.0, 1 - abs(u - p)) * cells[:, q, p]
    return total


def warp(e: RoIWarp, x: FeatureMap, box: list[float], image: int, shift: Tensor | None = None) -> Tensor:
    """The samples [C, Kh, Kw, S * S] of one box, by the definition."""
    x1, y1, x2, y2 = (c_round(c / x.stride) if e.rounded else c / x.stride for c in box)
    (kh, kw), n = e.bins, e.samples
    shift = torch.zeros(kh, kw, 2) if shift is None else shift
    bins = [
        torch.stack([
            sample(
                x.data[image],
                y1 + (i + s / n) * (y2 - y1) / kh + float(shift[i, j, 1]),
                x1 + (j + t / n) * (x2 - x1) / kw + float(shift[i, j, 0]),
            )
            for s in range(n)
            for t in range(n)
        ])
        for i in range(kh)
        for j in range(kw)
    ]  # fmt: skip
    return torch.stack(bins).unflatten(0, (kh, kw)).permute(3, 0, 1, 2)


class TestRounded(ExtractorContract):
    box_gradient = False

    def make(self, channels: int, bins: tuple[int, int]) -> RoIWarp:
        return RoIWarp(bins)

    def reference(self, extractor: RoIWarp, x: FeatureMap, r: Regions) -> Tensor:
        boxes = zip(r.boxes.tolist(), r.image.tolist(), strict=True)
        return torch.stack([warp(extractor, x, box, image).mean(3) for box, image in boxes])


class TestNotRounded(TestRounded):
    box_gradient = True

    def make(self, channels: int, bins: tuple[int, int]) -> RoIWarp:
        return RoIWarp(bins, samples=3, rounded=False)


class TestMaximum(ExtractorContract):
    in_place = False  # PyTorch keeps the result of a maximum for its gradient

    def make(self, channels: int, bins: tuple[int, int]) -> SampleMax:
        return SampleMax(RoIWarp(bins, rounded=False))

    def reference(self, extractor: SampleMax, x: FeatureMap, r: Regions) -> Tensor:
        boxes = zip(r.boxes.tolist(), r.image.tolist(), strict=True)
        return torch.stack([warp(extractor.extractor, x, box, image).amax(3) for box, image in boxes])


def test_hand_worked_numbers() -> None:
    """On x = column + 5 row, the box (0.6, 1.5) - (3.4, 3.4) is rounded to (1, 2) - (3, 3): samples at 1, 1.5, 2, 2.5
    columns and at 2, 2.25, 2.5, 2.75 rows."""
    x = FeatureMap(torch.arange(25.0).reshape(1, 1, 5, 5), 1)
    r = Regions(torch.tensor([[0.6, 1.5, 3.4, 3.4]]), torch.tensor([0]))
    values = torch.tensor([1, 1.5, 2, 2.5]) + 5 * torch.tensor([2, 2.25, 2.5, 2.75])[:, None]
    close(RoIWarp(4, samples=1)(x, r)[0, 0], values, 1e-6)
    close(RoIWarp(2)(x, r)[0, 0], values.unflatten(0, (2, 2)).unflatten(2, (2, 2)).mean((1, 3)), 1e-6)


def test_its_maximum_is_max_pooling_of_the_warp() -> None:
    x, r = feature_map(), regions()
    close(SampleMax(RoIWarp((3, 2)))(x, r), max_pool2d(RoIWarp((6, 4), samples=1)(x, r), 2), 1e-12)


def test_moved_bins_equal_nested_loops() -> None:
    x, r, e = feature_map(), regions(), RoIWarp((2, 3))
    shift = torch.randn(len(r), 2, 3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    level = torch.zeros_like(r.image)
    y = e.sampling([x], r, level, shift).features([x.data], r.image, level)
    boxes = zip(r.boxes.tolist(), r.image.tolist(), shift, strict=True)
    close(y, torch.stack([warp(e, x, box, image, by).mean(3) for box, image, by in boxes]), 1e-10)
    assert torch.autograd.gradcheck(
        lambda s: e.sampling([x], r, level, s).features([x.data], r.image, level),
        shift.requires_grad_(),
        fast_mode=True,
    )


def test_no_samples_raise() -> None:
    with pytest.raises(ValueError, match="samples: expected a positive number"):
        RoIWarp(7, samples=0)
