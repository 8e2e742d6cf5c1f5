"""Depthwise convolution, held to PyTorch's."""

import pytest
import torch
from torch.nn import functional as F

from regio.kernels.depthwise import depthwise_conv

CASES = [
    # channels, (height, width), kernel, stride, padding, dilation
    (3, (9, 7), (5, 5), (1, 1), (2, 2), (1, 1)),
    (70, (6, 11), (5, 5), (2, 2), (0, 0), (1, 1)),
    (5, (13, 12), (5, 5), (1, 1), (4, 4), (2, 2)),
    (4, (12, 9), (7, 3), (2, 3), (3, 5), (1, 2)),
    (2, (5, 5), (5, 5), (1, 1), (6, 6), (1, 1)),
    (130, (1, 3), (5, 5), (3, 1), (2, 2), (1, 1)),
    (6, (9, 10), (3, 3), (1, 1), (2, 2), (2, 2)),
    (6, (9, 10), (3, 3), (2, 2), (1, 1), (1, 1)),
    (6, (9, 10), (3, 3), (1, 1), (1, 1), (1, 1)),
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_gradients_are_those_of_conv2d(case, memory_format: torch.memory_format) -> None:  # type: ignore[no-untyped-def]
    channels, size, kernel, *options = case
    torch.manual_seed(0)
    shapes = ((2, channels, *size), (channels, 1, *kernel), (channels,))
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    x = inputs[0].to(memory_format=memory_format)
    y, expected = depthwise_conv(x, *inputs[1:], *options), F.conv2d(x, *inputs[1:], *options, groups=channels)
    torch.testing.assert_close(y, expected)
    grad = torch.randn_like(y)
    found = torch.autograd.grad(y, inputs, grad)
    for a, b in zip(found, torch.autograd.grad(expected, inputs, grad), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES)
def test_gradients_in_reduced_precision_are_rounded_once(case, dtype: torch.dtype, autocast: bool) -> None:  # type: ignore[no-untyped-def]
    """Those in float32 of the numbers that the layer saw; with autocast the weight and its gradient stay float32."""
    channels, size, kernel, *options = case
    torch.manual_seed(0)
    shapes = ((2, channels, *size), (channels, 1, *kernel), (channels,))
    seen = [torch.randn(shape).to(dtype) for shape in shapes]
    inputs = [each.to(torch.float32 if autocast else dtype).requires_grad_() for each in seen]
    with torch.autocast("cpu", dtype, enabled=autocast):
        y = depthwise_conv(*inputs, *options)
    assert y.dtype == dtype
    precise = [each.float().requires_grad_() for each in seen]
    expected = F.conv2d(*precise, *options, groups=channels)
    resolution = torch.finfo(dtype).eps
    torch.testing.assert_close(y.float(), expected, rtol=2 * resolution, atol=8 * resolution)
    grad = torch.randn_like(y)
    found = torch.autograd.grad(y, inputs, grad)
    for a, b, like in zip(found, torch.autograd.grad(expected, precise, grad.float()), inputs, strict=True):
        assert a.dtype == like.dtype
        torch.testing.assert_close(a.float(), b, rtol=2 * resolution, atol=2 * resolution * float(b.abs().max()))


def test_gradcheck() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 2, 6, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 1, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *a: depthwise_conv(*a, None, (1, 1), (2, 2)), (x, weight))


@pytest.mark.parametrize("case", [CASES[0], CASES[6]])
def test_gradients_have_gradients(case) -> None:  # type: ignore[no-untyped-def]
    """Also of constant incoming gradients, where those of the input depend on the weight alone."""
    channels, size, kernel, *options = case
    torch.manual_seed(0)
    x, weight = (
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in ((1, channels, *size), (channels, 1, *kernel))
    )

    def penalties(y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        of_x, of_weight = torch.autograd.grad(y.sum(), [x, weight], create_graph=True)
        both = of_x.square().sum() + of_weight.square().sum()
        return torch.autograd.grad(both, [x, weight])

    ours = penalties(depthwise_conv(x, weight, None, *options))
    for a, b in zip(ours, penalties(F.conv2d(x, weight, None, *options, groups=channels)), strict=True):
        torch.testing.assert_close(a, b)
        assert float(b.abs().max()) > 1


def test_only_what_is_asked_for() -> None:
    x, weight = torch.randn(1, 4, 8, 8), torch.randn(4, 1, 5, 5)
    assert not depthwise_conv(x, weight, None).requires_grad
    y = depthwise_conv(x, weight.requires_grad_(), None)
    y.sum().backward()
    assert weight.grad is not None and x.grad is None
    with torch.no_grad():
        assert not depthwise_conv(x, weight, None).requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        assert depthwise_conv(x, weight, None).dtype == torch.bfloat16


@pytest.mark.slow
def test_compiles() -> None:
    torch.library.opcheck(
        torch.ops.regio.depthwise_weight_gradient.default,
        (torch.randn(1, 4, 4, 4), torch.randn(1, 4, 8, 8), torch.randn(4, 1, 5, 5), [1, 1], [0, 0], [1, 1]),
    )
