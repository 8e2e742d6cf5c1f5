"""RoIPool: the contract, the worked example, and parity with torchvision."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import roi_pool

from regio.regions.pool import RoIPool
from regio.types import FeatureMap, Regions
from tests.regions.contract import BOXES, ExtractorContract, feature_map


def c_round(value: float) -> int:
    return int(abs(value) + 0.5) * (1 if value >= 0 else -1)


class TestRoIPool(ExtractorContract):
    box_gradient = False

    def make(self, channels: int, bins: tuple[int, int]) -> RoIPool:
        return RoIPool(bins)

    def reference(self, extractor: RoIPool, x: FeatureMap, r: Regions) -> Tensor:
        out = x.data.new_zeros(len(r), x.data.shape[1], *extractor.bins)
        for n, (box, image) in enumerate(zip(r.boxes.tolist(), r.image.tolist(), strict=True)):
            x1, y1, x2, y2 = (c_round(c / x.stride) for c in box)
            height, width = max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)
            for i in range(extractor.bins[0]):
                for j in range(extractor.bins[1]):
                    cells = [
                        x.data[image, :, v, u]
                        for v in range(
                            y1 + i * height // extractor.bins[0], y1 - (-(i + 1) * height // extractor.bins[0])
                        )
                        for u in range(
                            x1 + j * width // extractor.bins[1], x1 - (-(j + 1) * width // extractor.bins[1])
                        )
                        if 0 <= v < x.size[0] and 0 <= u < x.size[1]
                    ]
                    if cells:
                        out[n, :, i, j] = torch.stack(cells).amax(0)
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000), channels=st.sampled_from([1, 5, 16, 37, 300]), whole=st.booleans())
def test_parity_with_torchvision(dtype: torch.dtype, seed: int, channels: int, whole: bool) -> None:
    """Equal outputs and feature gradients; `whole` boxes fall on halves of a cell, and features tie."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(12, 2, generator=generator, dtype=dtype) * 60 - 10
    side = torch.rand(12, 2, generator=generator, dtype=dtype) ** 3 * 60
    boxes = torch.cat([torch.cat([corner, corner + side], 1), torch.tensor(BOXES, dtype=dtype)])
    data = feature_map(channels, dtype, seed=seed).data
    if whole:
        boxes, data = boxes.round(), data.round()
    r = Regions(boxes, torch.randint(0, 2, (len(boxes),), generator=generator))
    ours, theirs = (data.clone().requires_grad_() for _ in range(2))
    y = RoIPool((3, 4))(FeatureMap(ours, 4), r)
    rois = torch.cat([r.image[:, None].to(dtype), boxes], 1)
    expected = roi_pool(theirs, rois, (3, 4), 1 / 4)
    assert torch.equal(y, expected)
    grad = torch.randn(y.shape, generator=generator, dtype=dtype)
    y.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5)


def test_bins_share_a_cell() -> None:
    """Five rows in two bins are rows 0-2 and 2-4; seven columns are columns 0-3 and 3-6."""
    data = torch.arange(35.0).reshape(1, 1, 5, 7)
    r = Regions(torch.tensor([[0.0, 0.0, 6.0, 4.0]]), torch.tensor([0]))
    assert RoIPool(2)(FeatureMap(data, 1), r)[0, 0].tolist() == [[17.0, 20.0], [31.0, 34.0]]
    top, bottom, left, right = RoIPool(2).cells([FeatureMap(data, 1)], r, r.image)
    assert (top.tolist(), bottom.tolist()) == ([[0, 2]], [[3, 5]])
    assert (left.tolist(), right.tolist()) == ([[0, 3]], [[4, 7]])


def test_halves_round_away_from_zero() -> None:
    data = torch.arange(36.0).reshape(1, 1, 6, 6)
    r = Regions(torch.tensor([[5.0, 5.0, 5.0, 5.0]]), torch.tensor([0]))  # 2.5 cells: cell 3, not cell 2
    assert RoIPool(1)(FeatureMap(data, 2), r).item() == 21.0


def test_no_bins_raise() -> None:
    with pytest.raises(ValueError, match="bins: expected"):
        RoIPool((0, 7))
