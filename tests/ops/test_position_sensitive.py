"""ps_roi_pool and ps_roi_align: parity with torchvision and bad input."""

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor

from regio import ops
from tests.ops.parity import TOLERANCE, rois, same, tensor

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
functions = pytest.mark.parametrize("function", [ops.ps_roi_pool, ops.ps_roi_align, ops.deform_ps_roi_pool])


def call(function: Callable[..., Tensor], x: Tensor, boxes: Tensor, size: int | tuple[int, int]) -> Tensor:
    return function(x, boxes, None, size) if function is ops.deform_ps_roi_pool else function(x, boxes, size)


@dtypes
@pytest.mark.parametrize("size", [1, 2, (3, 2)])
@pytest.mark.parametrize("scale", [0.25, 0.3])
def test_ps_roi_pool_parity(dtype: torch.dtype, size: int | tuple[int, int], scale: float) -> None:
    x, boxes = tensor(2, 12, 9, 11, dtype=dtype), rois(dtype, random=40)
    reaches = torch.cat([boxes[:, 1:3] + 1 / scale, boxes[:, 3:]], 1) * scale >= torch.tensor([10.5, 8.5] * 2)
    reaches = reaches.any(1)  # the last row or column
    for some, gradients in ((boxes, False), (boxes[~reaches], True)):
        same(
            lambda x, b=some: ops.ps_roi_pool(x, b, size, scale),
            lambda x, b=some: torchvision.ops.ps_roi_pool(x, b, size, scale),
            x.clone().requires_grad_(gradients),
            tolerance=TOLERANCE[dtype],
        )


def test_the_gradient_of_ps_roi_pool_is_that_of_its_result() -> None:
    """Torchvision's is not for boxes that reach the last row or column: it divides by cells that it did not read."""
    x, boxes = tensor(1, 4, 6, 7).requires_grad_(), torch.tensor([[0, 2, 2, 7, 6]]).double()
    assert torch.autograd.gradcheck(lambda x: ops.ps_roi_pool(x, boxes, 2), (x,))
    assert not torch.autograd.gradcheck(lambda x: torchvision.ops.ps_roi_pool(x, boxes, 2), (x,), raise_exception=False)


@dtypes
@pytest.mark.parametrize("size", [1, 2, (3, 2)])
@pytest.mark.parametrize("ratio", [-1, 1, 3])
def test_ps_roi_align_parity(dtype: torch.dtype, size: int | tuple[int, int], ratio: int) -> None:
    x, boxes = tensor(2, 12, 9, 11, dtype=dtype).requires_grad_(), rois(dtype, random=40)
    if ratio < 0:
        boxes = boxes[(boxes[:, 3:] > boxes[:, 1:3]).all(1)]  # torchvision divides zero by zero on the others
    same(
        lambda x: ops.ps_roi_align(x, boxes, size, 0.25, ratio),
        lambda x: torchvision.ops.ps_roi_align(x, boxes, size, 0.25, ratio),
        x,
        tolerance=TOLERANCE[dtype],
    )


def test_an_adaptive_number_of_samples_is_zero_on_boxes_without_extent() -> None:
    x, boxes = tensor(2, 12, 9, 11), rois()
    empty = (boxes[:, 3:] <= boxes[:, 1:3]).any(1)
    assert not ops.ps_roi_align(x, boxes, 2, 0.25)[empty].any()


def test_defaults() -> None:
    x, boxes = tensor(2, 8, 36, 44), rois()[:4]
    torch.testing.assert_close(
        ops.ps_roi_pool(x, boxes, 2), torchvision.ops.ps_roi_pool(x, boxes, 2), rtol=0, atol=1e-10
    )
    expected = torchvision.ops.ps_roi_align(x, boxes, 2)
    torch.testing.assert_close(ops.ps_roi_align(x, boxes, 2), expected, rtol=0, atol=1e-10)


@functions
def test_no_boxes_lists_and_layout(function: Callable[..., Tensor]) -> None:
    x, boxes = tensor(2, 8, 36, 44).requires_grad_(), rois(images=1)
    y = call(function, x, boxes[:0], 2)
    assert y.shape == (0, 2, 2, 2)
    y.sum().backward()
    assert not x.grad.any()
    expected = call(function, x, boxes, 2)
    assert expected.is_contiguous()
    assert torch.equal(call(function, x, [boxes[:, 1:]], 2), expected)


@functions
def test_autocast_and_low_precision(function: Callable[..., Tensor]) -> None:
    x, boxes = tensor(2, 8, 36, 44, dtype=torch.float32), rois(torch.float32)
    expected = call(function, x, boxes, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(call(function, x, boxes, 2), expected)
        low = call(function, x.bfloat16(), boxes, 2)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), expected, rtol=0.02, atol=0.02)


@functions
def test_channels_that_do_not_divide_raise(function: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match="^input: expected channels divisible by 3 x 2, got 8"):
        call(function, tensor(2, 8, 9, 11), rois(), (3, 2))
    with pytest.raises(ValueError, match="^(boxes|rois): expected shape"):
        call(function, tensor(2, 8, 9, 11), rois()[:, 1:], 2)
    with pytest.raises(ValueError, match="^output_size: expected"):
        call(function, tensor(2, 8, 9, 11), rois(), (0, 2))
