"""roi_pool and roi_align: parity with torchvision, gradients of boxes, and bad input."""

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor

from regio import ops
from tests.ops.parity import TOLERANCE, rois, same, tensor

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
functions = pytest.mark.parametrize("function", [ops.roi_pool, ops.roi_align, ops.prroi_pool, ops.roi_warp])


@dtypes
@pytest.mark.parametrize("size", [1, 3, (2, 5)])
@pytest.mark.parametrize("scale", [0.25, 0.3])
def test_roi_pool_parity(dtype: torch.dtype, size: int | tuple[int, int], scale: float) -> None:
    x, boxes = tensor(2, 5, 9, 11, dtype=dtype).requires_grad_(), rois(dtype, random=40)
    same(
        lambda x: ops.roi_pool(x, boxes, size, scale),
        lambda x: torchvision.ops.roi_pool(x, boxes, size, scale),
        x,
        tolerance=TOLERANCE[dtype],
    )


@dtypes
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [-1, 0, 1, 2, 3])
@pytest.mark.parametrize("size", [3, (2, 5)])
def test_roi_align_parity(dtype: torch.dtype, aligned: bool, ratio: int, size: int | tuple[int, int]) -> None:
    x, boxes = tensor(2, 5, 9, 11, dtype=dtype).requires_grad_(), rois(dtype, random=40)
    if ratio <= 0 and aligned:
        boxes = boxes[(boxes[:, 3:] >= boxes[:, 1:3]).all(1)]  # torchvision fails on the others; see below
    same(
        lambda x: ops.roi_align(x, boxes, size, 0.25, ratio, aligned),
        lambda x: torchvision.ops.roi_align(x, boxes, size, 0.25, ratio, aligned),
        x,
        tolerance=TOLERANCE[dtype],
    )


def test_an_adaptive_number_of_samples_is_zero_on_inverted_boxes() -> None:
    x, boxes = tensor(2, 5, 9, 11), rois()
    inverted = (boxes[:, 3:] < boxes[:, 1:3]).any(1)
    y = ops.roi_align(x, boxes, 2, 0.25, -1, aligned=True)
    assert inverted.sum() == 4
    assert not y[inverted].any()
    assert y[~inverted].any(1).any(1).any(1)[:2].all()


@pytest.mark.parametrize("name", ["roi_pool", "roi_align"])
def test_defaults(name: str) -> None:
    function, theirs = getattr(ops, name), getattr(torchvision.ops, name)
    x, boxes = tensor(2, 5, 36, 44), rois()
    torch.testing.assert_close(function(x, boxes, 2), theirs(x, boxes, 2), rtol=0, atol=1e-10)


@functions
def test_boxes_of_each_image_as_a_list(function: Callable[..., Tensor]) -> None:
    x, boxes = tensor(3, 5, 9, 11), rois(images=1)[:, 1:]
    each = [boxes[:5], boxes[:0], boxes[5:]]
    image = torch.tensor([0.0] * 5 + [2.0] * (len(boxes) - 5), dtype=torch.float64)
    expected = function(x, torch.cat([image[:, None], boxes], 1), 2, 0.25)
    assert torch.equal(function(x, each, 2, 0.25), expected)
    assert torch.equal(function(x, tuple(each), [2, 2], 0.25), expected)
    assert torch.equal(function(x, each[:1], 2, 0.25), expected[:5])


@functions
def test_results_are_contiguous(function: Callable[..., Tensor]) -> None:
    """So that `view`, which works on torchvision's results, works on these."""
    x = tensor(2, 5, 9, 11)
    for data in (x, x.to(memory_format=torch.channels_last)):
        assert function(data, rois(), 2, 0.25).view(len(rois()), -1).shape == (len(rois()), 20)


def test_lists_of_boxes_in_low_precision_read_their_own_images() -> None:
    """The number of an image, 257 for instance, is exact whatever the boxes are."""
    x = torch.arange(299.0)[:, None, None, None].expand(299, 1, 2, 2).contiguous()
    for dtype in (torch.bfloat16, torch.float16):
        boxes = [torch.tensor([[0.0, 0, 2, 2]], dtype=dtype)] * len(x)
        assert torch.equal(ops.roi_align(x, boxes, 1).flatten(), torch.arange(299.0))


@pytest.mark.parametrize("function", [ops.roi_align, ops.roi_pool, ops.prroi_pool])
def test_large_results_may_be_changed_in_place(function: Callable[..., Tensor]) -> None:
    x = torch.randn(1, 64, 30, 30, requires_grad=True)
    boxes = torch.tensor([[0.0, 0, 0, 20, 20]]).repeat(90, 1)
    torch.relu_(function(x, boxes, 7)).sum().backward()
    assert x.grad is not None and x.grad.any()


@pytest.mark.parametrize("size", [(2.9, 2), 2.5, (1, 2, 3), 0, "7"])
def test_sizes_are_whole_numbers(size: object) -> None:
    with pytest.raises((ValueError, TypeError), match="output_size: expected one or two whole numbers"):
        ops.roi_pool(torch.zeros(1, 1, 4, 4), torch.zeros(1, 5), size)  # type: ignore[arg-type]


@functions
def test_no_boxes_and_no_images(function: Callable[..., Tensor]) -> None:
    for images in (0, 2):
        x = tensor(images, 5, 9, 11).requires_grad_()
        y = function(x, rois()[:0], (2, 3), 0.25)
        assert y.shape == (0, 5, 2, 3)
        y.sum().backward()
        assert not x.grad.any()


@functions
def test_autocast_and_low_precision(function: Callable[..., Tensor]) -> None:
    x, boxes = tensor(2, 5, 9, 11, dtype=torch.float32), rois(torch.float32)
    expected = function(x, boxes, 2, 0.25)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(function(x, boxes, 2, 0.25), expected)
        low = function(x.bfloat16(), boxes, 2, 0.25)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), expected, rtol=0.02, atol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    "function",
    [
        lambda x, boxes: ops.roi_pool(x, boxes, 2, 0.25),
        lambda x, boxes: ops.roi_align(x, boxes, 2, 0.25, 2),
        lambda x, boxes: ops.prroi_pool(x, boxes, 2, 0.25),
        lambda x, boxes: ops.roi_warp(x, boxes, 2, 0.25),
        lambda x, boxes: ops.ps_roi_pool(x, boxes, 2, 0.25),
        lambda x, boxes: ops.ps_roi_align(x, boxes, 2, 0.25, 2),
        lambda x, boxes: ops.deform_roi_pool(x, boxes, boxes[:, 1:].view(-1, 2, 2, 1) / 40, (2, 1), 0.25, 2),
        lambda x, boxes: ops.deform_ps_roi_pool(x, boxes, boxes[:, 1:, None, None] / 40, 2, 0.25),
    ],
)
def test_compiles_without_a_graph_break(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    torch.compiler.reset()
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    x, boxes = tensor(2, 8, 9, 11).requires_grad_(), rois()
    same(lambda x: compiled(x, boxes), lambda x: function(x, boxes), x, tolerance=1e-12)


def test_boxes_receive_gradients() -> None:
    x, boxes = tensor(1, 2, 9, 11).requires_grad_(), rois(images=1)[:1].requires_grad_()
    assert torch.autograd.gradcheck(lambda x, b: ops.roi_align(x, b, 2, 0.25, 2, True), (x, boxes), fast_mode=True)
    each = [boxes.detach()[:, 1:].requires_grad_()]
    ops.roi_align(x, each, 2, 0.25, 2, True).sum().backward()
    assert each[0].grad.abs().sum() > 0


def test_prroi_pool_is_the_integral() -> None:
    """On an affine map the mean over a bin is the value at its centre; the centre of cell 0 is at 0."""
    v, u = torch.meshgrid(torch.arange(9.0), torch.arange(11.0), indexing="ij")
    x = (u + 5 * v)[None, None].double()
    boxes = torch.tensor([[0, 4.0, 8.0, 12.0, 24.0]]).double()
    y = ops.prroi_pool(x, boxes, 2, 0.25)
    columns, rows = torch.tensor([1.5, 2.5]), torch.tensor([3.0, 5.0])[:, None]
    torch.testing.assert_close(y[0, 0], (columns + 5 * rows).double(), rtol=0, atol=1e-12)


def test_prroi_pool_approaches_many_samples() -> None:
    """The integral is the limit of `roi_align`, whose samples are taken in cells centred at 0 too."""
    x, boxes = tensor(1, 3, 9, 11), torch.tensor([[0, 5.3, 4.1, 30.9, 29.9]]).double()
    many = ops.roi_align(x, boxes, 3, 0.25, 200)
    torch.testing.assert_close(ops.prroi_pool(x, boxes, 3, 0.25), many, rtol=0, atol=1e-4)


def test_prroi_pool_gives_zeros_for_boxes_without_area() -> None:
    x, boxes = tensor(2, 5, 9, 11).requires_grad_(), rois()
    y = ops.prroi_pool(x, boxes, 2, 0.25)
    empty = (boxes[:, 3:] <= boxes[:, 1:3]).any(1)
    assert empty.sum() == 5
    assert not y[empty].any()
    y[empty].sum().backward()
    assert not x.grad.any()


def test_prroi_pool_gradients() -> None:
    x, boxes = tensor(1, 2, 9, 11).requires_grad_(), torch.tensor([[0, 5.3, 4.1, 30.9, 29.9]]).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, b: ops.prroi_pool(x, b, 2, 0.25), (x, boxes), fast_mode=True)


def test_roi_warp_reads_the_beginnings_of_bins() -> None:
    """A box of 2 x 2 cells from (1, 1) on, in 4 x 4 bins: cells at 1, 1.5, 2, 2.5."""
    x = torch.arange(25.0).reshape(1, 1, 5, 5)
    y = ops.roi_warp(x, [torch.tensor([[4.4, 3.6, 12.4, 11.6]])], 4, 0.25)
    at = torch.tensor([1, 1.5, 2, 2.5])
    torch.testing.assert_close(y[0, 0], at + 5 * at[:, None], rtol=0, atol=1e-6)
    means = ops.roi_warp(x, [torch.tensor([[4.4, 3.6, 12.4, 11.6]])], 2, 0.25, sampling_ratio=2)
    torch.testing.assert_close(means, torch.nn.functional.avg_pool2d(y, 2), rtol=0, atol=1e-6)


BAD = [
    ("input", ValueError, lambda f, x, b: f(x[0], b, 2)),
    ("input", TypeError, lambda f, x, b: f(x.int(), b, 2)),
    ("input", TypeError, lambda f, x, b: f(x.numpy(), b, 2)),
    ("boxes", ValueError, lambda f, x, b: f(x, b[:, 1:], 2)),
    ("boxes", ValueError, lambda f, x, b: f(x, [b], 2)),
    ("boxes", ValueError, lambda f, x, b: f(x, [], 2)),
    ("boxes", TypeError, lambda f, x, b: f(x, b.int(), 2)),
    ("boxes", TypeError, lambda f, x, b: f(x, [[1.0, 2.0, 3.0, 4.0]], 2)),
    ("boxes", ValueError, lambda f, x, b: f(x, b.to("meta"), 2)),
    ("boxes", ValueError, lambda f, x, b: f(x, b + torch.tensor([0, torch.nan, 0, 0, 0]), 2)),
    ("boxes", ValueError, lambda f, x, b: f(x, b + torch.tensor([0, 0, 0, torch.inf, 0]), 2)),
    ("boxes", ValueError, lambda f, x, b: f(x, b + torch.tensor([1.0, 0, 0, 0, 0]), 2)),
    ("boxes", ValueError, lambda f, x, b: f(x, b - torch.tensor([2.0, 0, 0, 0, 0]), 2)),
    ("boxes", ValueError, lambda f, x, b: f(x, [b[:, 1:]] * 3, 2)),
    ("output_size", ValueError, lambda f, x, b: f(x, b, 0)),
    ("output_size", ValueError, lambda f, x, b: f(x, b, (2, 2, 2))),
    ("spatial_scale", ValueError, lambda f, x, b: f(x, b, 2, 0.0)),
]


@functions
@pytest.mark.parametrize(("name", "error", "call"), BAD)
def test_bad_input_raises(
    function: Callable[..., Tensor], name: str, error: type[Exception], call: Callable[..., Tensor]
) -> None:
    """mmcv's functions call the boxes rois, and prroi_pool the input features."""
    names = {"input": "(input|features)", "boxes": "(boxes|rois)"}
    with pytest.raises(error, match=f"^{names.get(name, name)}: expected"):
        call(function, tensor(2, 4, 9, 11), rois())
