"""The CUDA kernels of `attend` against the reference."""

import pytest
import torch
from torch import Tensor

from regio.kernels.attend import attend_reference
from regio.kernels.cuda import attend
from tests.kernels.cuda.cases import DEVICE, assert_close

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor]


def inputs(
    boxes: int = 4,
    parts: int = 3,
    channels: int = 5,
    size: tuple[int, int] = (6, 9),
    images: int = 2,
    dtype: torch.dtype = torch.float64,
    scale: float = 2.0,
) -> Inputs:
    """Random arguments; supports of all sizes, down to empty ones; the images are not sorted."""
    g = torch.Generator().manual_seed(0)
    height, width = size

    def normal(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype).to(DEVICE)

    def ends(length: int) -> Tensor:
        return torch.randint(0, length + 1, (boxes, 2), generator=g).sort(1).values

    u, v = ends(width), ends(height)
    support = torch.stack([u[:, 0], v[:, 0], u[:, 1], v[:, 1]], 1)
    support[::2] = torch.tensor([0, 0, width, height])
    support[1:2, 2] = support[1:2, 0]
    term = torch.float64 if dtype == torch.float64 else torch.float32
    return (
        normal(images, channels, height, width),
        torch.randint(0, images, (boxes,), generator=g).to(DEVICE),
        normal(boxes, parts, width, dtype=term) * scale,
        normal(boxes, parts, height, dtype=term) * scale,
        normal(images, parts, height, width, dtype=term) * scale,
        support.to(DEVICE),
    )


def check(arguments: Inputs, tolerance: float, dtype: torch.dtype | None = None, loss: float = 1.0) -> None:
    """loss: what the gradient of the result is multiplied by, and those that follow from it are divided by."""
    leaves = [a.detach().requires_grad_() if a is not None and a.is_floating_point() else a for a in arguments]
    expected = attend_reference(*leaves)
    toward = torch.cos(torch.arange(expected.numel(), dtype=torch.float64)).view(expected.shape).to(expected)
    wanted = [a for a in leaves if a is not None and a.is_floating_point()]
    expected_grads = torch.autograd.grad(expected, wanted, toward)
    dtype = dtype or arguments[0].dtype
    assert_close(attend.forward(*arguments, dtype), expected.detach(), tolerance)
    grads = attend.backward(toward * loss, *arguments, dtype)
    again = attend.backward(toward * loss, *arguments, dtype)
    assert all(torch.equal(a, b) for a, b in zip(grads, again, strict=True))
    for grad, want in zip(grads, expected_grads, strict=False):
        assert_close(grad / loss, want, tolerance)


@pytest.mark.parametrize("with_appearance", [True, False])
def test_equals_reference(with_appearance: bool) -> None:
    arguments = inputs()
    if not with_appearance:
        arguments = (*arguments[:4], None, arguments[5])
        assert attend.backward(torch.zeros(4, 5, 3).to(arguments[0]), *arguments, torch.float64)[3].numel() == 0
    check(arguments, 1e-10)


@pytest.mark.parametrize("scale", [0.0, 30.0, 1e4])
def test_any_range_of_logits(scale: float) -> None:
    check(inputs(boxes=3, size=(4, 5), scale=scale), 1e-9)


on_a_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="the interpreter of Triton 3.9 multiplies bfloat16 as integers")


@pytest.mark.parametrize(
    ("dtype", "product", "tolerance"),
    [
        # On a GPU the products of float32 are those of three TF32 numbers, which is about as exact.
        (torch.float32, torch.float32, 2e-5),
        (torch.float16, torch.float16, 4e-3),
        (torch.bfloat16, torch.float32, 1.6e-2),
        pytest.param(torch.float32, torch.bfloat16, 3e-2, marks=on_a_gpu),
        pytest.param(torch.bfloat16, torch.bfloat16, 3e-2, marks=on_a_gpu),
    ],
)
def test_precision(dtype: torch.dtype, product: torch.dtype, tolerance: float) -> None:
    check(inputs(boxes=3, dtype=dtype, scale=1.0), tolerance, product)


@pytest.mark.parametrize("scale", [0.01, 30.0, 1e3])
def test_float16_for_any_range_of_logits(scale: float) -> None:
    check(inputs(boxes=3, dtype=torch.float32, scale=scale), 4e-3, torch.float16)


@pytest.mark.parametrize("loss", [1e-9, 1e7])
def test_float16_products_with_gradients_of_any_size(loss: float) -> None:
    """Far below and above what float16 holds."""
    check(inputs(boxes=3, dtype=torch.float32, scale=1.0), 4e-3, torch.float16, loss)


def test_float16_keeps_the_digits_of_small_weights() -> None:
    """A cell of weight 6.8e-8, 1.14 times the smallest number of float16, that holds a large feature."""
    x = torch.tensor([0.0, 6e4], device=DEVICE, dtype=torch.float16).view(1, 1, 1, 2)
    column, row = torch.tensor([[[0.0, -16.5]]], device=DEVICE), torch.zeros(1, 1, 1, device=DEVICE)
    image, support = torch.zeros(1, dtype=torch.int64, device=DEVICE), torch.tensor([[0, 0, 2, 1]], device=DEVICE)
    weight = column.double().softmax(2)[0, 0, 1]
    out = attend.forward(x, image, column, row, None, support, torch.float16)
    torch.testing.assert_close(out.double().view(()), 6e4 * weight, rtol=2e-3, atol=0)
    to_x = attend.backward(torch.ones_like(out) * 1e4, x, image, column, row, None, support, torch.float16)[0]
    torch.testing.assert_close(to_x[0, 0, 0, 1].double(), 1e4 * weight, rtol=2e-3, atol=0)


def test_no_boxes_in_float16() -> None:
    check(inputs(boxes=0, dtype=torch.float16), 0.0)


def test_several_blocks() -> None:
    """More parts, channels, rows and columns than a program takes at a time."""
    check(inputs(boxes=2, parts=66, channels=36, size=(9, 20), images=1), 1e-10)


def test_factors_that_peak_apart_keep_their_range() -> None:
    """The column term wants the first cell and the appearance the last, by 500 each: the two share the weight."""
    x = torch.tensor([1.0, 7.0, 3.0], device=DEVICE).view(1, 1, 1, 3)
    column, appearance = torch.tensor([[500.0, 0, 0], [0.0, 0, 500]], device=DEVICE)
    image, support = torch.zeros(1, dtype=torch.int64, device=DEVICE), torch.tensor([[0, 0, 3, 1]], device=DEVICE)
    row = torch.zeros(1, 1, 1, device=DEVICE)
    out = attend.forward(x, image, column[None, None], row, appearance[None, None, None], support, x.dtype)
    torch.testing.assert_close(out, torch.full((1, 1, 1), 2.0, device=DEVICE))


def test_not_a_number_is_not_hidden() -> None:
    arguments = inputs()
    arguments[2][0, 0, 0] = float("nan")
    out = attend.forward(*arguments, torch.float64)
    assert out[0, :, 0].isnan().all() and not out[0, :, 1:].isnan().any() and not out[1:].isnan().any()


def test_no_boxes() -> None:
    check(inputs(boxes=0), 0.0)
