"""Laws of box arithmetic, and numbers worked by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_iou

from regio.boxes import BoxCoder, area, clip, intersection, iou
from tests.strategies import boxes

laws = settings(deadline=None, max_examples=60)
coder = BoxCoder((10.0, 10.0, 5.0, 5.0))


def test_width_is_the_difference() -> None:
    assert area(torch.tensor([[0.0, 0.0, 4.0, 4.0], [1.0, 2.0, 1.0, 9.0]])).tolist() == [16.0, 0.0]


def test_iou_by_hand() -> None:
    a = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    b = torch.tensor([[2.0, 0.0, 6.0, 4.0], [4.0, 0.0, 8.0, 4.0], [0.0, 0.0, 4.0, 4.0], [1.0, 1.0, 1.0, 3.0]])
    torch.testing.assert_close(iou(a, b), torch.tensor([[8 / 24, 0.0, 1.0, 0.0]]))
    assert intersection(a, b).tolist() == [[8.0, 0.0, 16.0, 0.0]]


def test_iou_of_boxes_without_area_is_zero() -> None:
    point = torch.tensor([[3.0, 3.0, 3.0, 3.0]])
    assert iou(point, point).tolist() == [[0.0]]


@laws
@given(boxes(), boxes(), st.floats(-100, 100), st.floats(0.1, 10))
def test_iou_is_symmetric_and_does_not_change_with_place_or_scale(
    a: Tensor, b: Tensor, shift: float, scale: float
) -> None:
    overlap = iou(a, b)
    assert ((overlap >= 0) & (overlap <= 1 + 1e-12)).all()
    torch.testing.assert_close(overlap, iou(b, a).T)
    torch.testing.assert_close(overlap, iou(a * scale + shift, b * scale + shift), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(iou(a, a).diagonal(), torch.ones(len(a), dtype=a.dtype))
    torch.testing.assert_close(overlap, box_iou(a, b))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_iou_of_boxes_in_half_precision_is_that_of_the_same_boxes_in_float32(dtype: torch.dtype) -> None:
    """The area of the first box, 160,000, is beyond float16."""
    b = torch.tensor([[0.0, 0, 400, 400], [0, 0, 290, 290], [8, 8, 1000, 500]]).to(dtype)
    found = iou(b, b)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, iou(b.float(), b.float()), rtol=0, atol=0)
    assert (found.diagonal() == 1).all()


@laws
@given(boxes(minimum=3, maximum=3), boxes(minimum=3, maximum=3))
def test_decode_undoes_encode(box: Tensor, reference: Tensor) -> None:
    wide = BoxCoder((10.0, 10.0, 5.0, 5.0), max_log_scale=math.inf)
    torch.testing.assert_close(wide.decode(wide.encode(box, reference), reference), box, atol=1e-8, rtol=1e-9)


@laws
@given(boxes(minimum=2, maximum=2), boxes(minimum=2, maximum=2), st.floats(-100, 100), st.floats(0.1, 10))
def test_encoding_does_not_change_with_place_or_scale(a: Tensor, b: Tensor, shift: float, scale: float) -> None:
    moved = coder.encode(a * scale + shift, b * scale + shift)
    torch.testing.assert_close(moved, coder.encode(a, b), atol=1e-7, rtol=1e-7)


def test_encoding_by_hand() -> None:
    reference = torch.tensor([[0.0, 0.0, 10.0, 20.0]])
    box = torch.tensor([[5.0, 0.0, 25.0, 20.0]])  # centre 15, 10; sides 20, 20
    expected = torch.tensor([[10 * 10 / 10, 0.0, 5 * math.log(2), 0.0]])
    torch.testing.assert_close(coder.encode(box, reference), expected)


def test_decode_by_class_is_decode_of_each() -> None:
    deltas, reference = torch.randn(3, 5, 4), torch.tensor([[0.0, 0.0, 10.0, 20.0]]).expand(3, 4)
    each = [coder.decode(deltas[:, c], reference) for c in range(5)]
    torch.testing.assert_close(coder.decode(deltas, reference), torch.stack(each, dim=1))
    with pytest.raises(ValueError, match=r"deltas: expected shape \[R, 4\] or \[R, C, 4\], got \[4\]"):
        coder.decode(torch.zeros(4), reference)


def test_decode_stays_finite() -> None:
    reference = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    box = coder.decode(torch.tensor([[0.0, 0.0, 1e6, 1e6]]), reference)
    torch.testing.assert_close(box, torch.tensor([[-492.0, -492.0, 508.0, 508.0]]))  # 1000 / 16 times as large


@laws
@given(boxes(), st.integers(1, 300), st.integers(1, 300))
def test_clipping_twice_is_clipping_once(box: Tensor, height: int, width: int) -> None:
    once = clip(box, (height, width))
    assert torch.equal(clip(once, (height, width)), once)
    assert (area(once) <= area(box) + 1e-9).all()
    assert (once[:, 0::2] <= width).all()
    assert (once[:, 1::2] <= height).all()
    assert (once >= 0).all()
