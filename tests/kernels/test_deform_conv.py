"""Deformable convolution on a CPU: its one operation against loops, and against samples and a product."""

from itertools import product

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import conv2d

from regio.deformable_conv import DeformableConv2d
from regio.kernels import deform_conv as operation
from regio.kernels.cpu import deform_conv as kernels
from regio.kernels.deform_conv import Geometry, deform_conv, deform_conv_reference
from tests.ops.parity import tensor

# images, channels, outputs, (height, width), geometry: kernel, stride, padding, dilation, groups, offset groups
DEPTHWISE = [
    (2, 6, 6, (5, 6), Geometry((3, 3), (1, 1), (1, 1), (1, 1), 6, 1)),
    (2, 4, 4, (7, 5), Geometry((5, 5), (2, 1), (2, 3), (1, 1), 4, 2)),
    (1, 6, 6, (4, 9), Geometry((1, 3), (1, 2), (2, 0), (2, 3), 6, 6)),
    (1, 1, 1, (3, 3), Geometry((2, 2), (1, 1), (0, 0), (1, 1), 1, 1)),
]
# Every width of the vector loops, several blocks of channels and a last one that is smaller.
WIDE = [
    (1, 600, 600, (3, 4), Geometry((3, 3), (1, 1), (1, 1), (1, 1), 600, 1)),
    (1, 300, 300, (3, 4), Geometry((3, 3), (1, 1), (2, 2), (2, 2), 300, 2)),
]
DENSE = [
    (2, 12, 8, (5, 6), Geometry((3, 3), (1, 1), (1, 1), (1, 1), 1, 1)),
    (1, 12, 8, (5, 6), Geometry((3, 2), (2, 1), (1, 0), (1, 2), 4, 6)),
    (1, 600, 8, (3, 4), Geometry((3, 3), (1, 1), (1, 1), (1, 1), 2, 1)),
    (2, 300, 6, (3, 4), Geometry((1, 1), (1, 1), (0, 0), (1, 1), 1, 3)),
    (1, 6, 12, (5, 6), Geometry((3, 3), (1, 1), (1, 1), (1, 1), 6, 2)),
]


def inputs(case: tuple, dtype: torch.dtype = torch.float64, spread: float = 1) -> list[Tensor]:
    """x, offset, weight, bias and mask, requiring gradients."""
    images, channels, outputs, size, g = case
    parts, out = g.offset_groups * g.taps, g.output_size(size)
    shapes = [
        ((images, channels, *size), 1),
        ((images, 2 * parts, *out), spread),
        ((outputs, channels // g.groups, *g.kernel), 1),
        ((outputs,), 1),
        ((images, parts, *out), 1),
    ]
    return [tensor(*s, dtype=dtype, seed=i, spread=by).requires_grad_() for i, (s, by) in enumerate(shapes)]


def by_loops(g: Geometry, x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
    """A depthwise convolution as its equation: the weights of all cells of the map for every tap."""
    images, channels, height, width = x.shape
    out = bias[None, :, None, None].expand(images, channels, *offset.shape[2:]).clone()
    rows, columns = torch.arange(height), torch.arange(width)
    first_row, first_column = (torch.arange(n) * s for n, s in zip(offset.shape[2:], g.stride, strict=True))
    for i, c, n in product(range(images), range(channels), range(g.taps)):
        tap = c // (channels // g.offset_groups) * g.taps + n
        v = first_row[:, None] - g.padding[0] + n // g.kernel[1] * g.dilation[0] + offset[i, 2 * tap]
        u = first_column - g.padding[1] + n % g.kernel[1] * g.dilation[1] + offset[i, 2 * tap + 1]
        of_rows, of_columns = ((1 - (cell - at[..., None]).abs()).clamp(0) for cell, at in ((rows, v), (columns, u)))
        sample = (of_rows[..., :, None] * of_columns[..., None, :] * x[i, c]).sum((2, 3))
        out[i, c] += weight[c, 0].flatten()[n] * mask[i, tap] * sample
    return out


def gradients(y: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(y, leaves, tensor(*y.shape, dtype=y.dtype, seed=9))


def assert_same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float) -> None:
    for a, b in zip(found, expected, strict=True):
        scale = max(1.0, float(b.detach().abs().max()))
        torch.testing.assert_close(a / scale, (b / scale).to(a.dtype), rtol=0, atol=tolerance)


@pytest.mark.parametrize("case", DEPTHWISE)
@pytest.mark.parametrize("spread", [0.4, 3.0])
def test_depthwise_is_its_equation(case: tuple, spread: float) -> None:
    leaves = inputs(case, spread=spread)
    y, expected = deform_conv(case[4], *leaves), by_loops(case[4], *leaves)
    assert_same((y, *gradients(y, leaves)), (expected, *gradients(expected, leaves)), 1e-12)


@pytest.mark.parametrize("case", DEPTHWISE + WIDE + DENSE)
@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0, 1e30])
def test_is_samples_and_a_product(case: tuple, spread: float) -> None:
    """Also where all samples lie on whole numbers, and where most or all of them are far outside."""
    leaves = inputs(case, spread=spread)
    y, expected = deform_conv(case[4], *leaves), deform_conv_reference(case[4], *leaves)
    assert_same((y, *gradients(y, leaves)), (expected, *gradients(expected, leaves)), 1e-12)


@pytest.mark.parametrize("case", [DEPTHWISE[0], WIDE[0], DENSE[0], DENSE[2]])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_other_dtypes(case: tuple, dtype: torch.dtype, tolerance: float, memory_format: torch.memory_format) -> None:
    """The result and all gradients are those of float64 for the same numbers; offsets and masks stay float32."""
    leaves = [t.detach().to(torch.float32 if i in (1, 4) else dtype) for i, t in enumerate(inputs(case))]
    exact = [t.double().requires_grad_() for t in leaves]
    leaves = [(t.to(memory_format=memory_format) if t.ndim == 4 else t).requires_grad_() for t in leaves]
    y, expected = deform_conv(case[4], *leaves), deform_conv_reference(case[4], *exact)
    assert y.dtype == dtype
    found = gradients(y, leaves)
    assert [t.dtype for t in found] == [t.dtype for t in leaves]
    grad = tensor(*y.shape, dtype=dtype, seed=9).double()
    assert_same((y, *found), (expected, *torch.autograd.grad(expected, exact, grad)), tolerance)


@pytest.mark.parametrize("case", [DEPTHWISE[0], DENSE[0]])
def test_weights_of_float32_for_maps_of_bfloat16(case: tuple) -> None:
    """As under autocast: the gradient of a weight has its dtype, and is not that of a rounded one."""
    x, offset, weight, bias, mask = (t.detach().float() for t in inputs(case))
    weight.requires_grad_()
    y = deform_conv(case[4], x.bfloat16(), offset, weight, bias, mask)
    assert y.dtype == torch.bfloat16
    (grad,) = gradients(y, [weight])
    assert grad.dtype == torch.float32
    expected = gradients(deform_conv_reference(case[4], x, offset, weight, bias, mask), [weight])
    assert_same((grad,), expected, 3e-2)


@pytest.mark.parametrize("case", [DEPTHWISE[1], DENSE[1]])
def test_gradcheck(case: tuple) -> None:
    leaves = inputs(case)
    leaves[1] = (leaves[1] * 10).round().div(10).add(0.037).detach().requires_grad_()  # away from whole numbers
    assert torch.autograd.gradcheck(lambda *a: deform_conv(case[4], *a), tuple(leaves), fast_mode=True)


def test_zero_offsets_are_a_plain_depthwise_convolution() -> None:
    g = DEPTHWISE[1][4]
    x, offset, weight, bias, _ = inputs(DEPTHWISE[1], spread=0)
    y = deform_conv(g, x, offset, weight, bias, None)
    expected = conv2d(x, weight, bias, g.stride, g.padding, g.dilation, g.groups)
    leaves = [x, weight, bias]
    assert_same((y, *gradients(y, leaves)), (expected, *gradients(expected, leaves)), 1e-12)


@pytest.mark.parametrize("case", [DEPTHWISE[0], DENSE[0]])
def test_only_what_is_asked_for(case: tuple) -> None:
    x, offset, weight, bias, mask = (t.detach() for t in inputs(case))
    assert not deform_conv(case[4], x, offset, weight, bias, mask).requires_grad
    y = deform_conv(case[4], x, offset.requires_grad_(), weight, None, None)
    y.sum().backward()
    assert offset.grad is not None and offset.grad.any()
    assert x.grad is None and weight.grad is None


@pytest.mark.parametrize("case", [DEPTHWISE[0], DENSE[0], DENSE[1]])
def test_no_images(case: tuple) -> None:
    leaves = inputs((0, *case[1:]))
    y = deform_conv(case[4], *leaves)
    assert y.shape == (0, case[2], *case[4].output_size(case[3]))
    for leaf, grad in zip(leaves, gradients(y, leaves), strict=True):
        assert grad.shape == leaf.shape
        assert not grad.any()


@pytest.mark.parametrize("case", [DEPTHWISE[0], DENSE[0]])
def test_a_cell_that_no_tap_reads_does_not_matter(case: tuple) -> None:
    x, offset, *others = (t.detach() for t in inputs(case, spread=0))
    offset[:, ::2] -= 2  # no tap reaches the last row
    expected = deform_conv(case[4], x, offset, *others)
    x[:, :, -1] = torch.nan
    assert torch.equal(deform_conv(case[4], x, offset, *others), expected)


def test_number_of_threads_does_not_matter() -> None:
    """Of what the kernels sum; the products are PyTorch's."""
    before = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            leaves = inputs(WIDE[0])
            y = deform_conv(WIDE[0][4], *leaves)
            results.append((y, *gradients(y, leaves)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("samples", [1, 250, 2000])
def test_chunks_of_the_reference(samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    leaves = inputs(DENSE[1])
    expected = deform_conv_reference(DENSE[1][4], *leaves)
    grads = gradients(expected, leaves)
    monkeypatch.setattr(operation, "_SAMPLES", samples)
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (sizes.append(x.numel()), x)[1], lambda x: x):
        y = deform_conv_reference(DENSE[1][4], *leaves)
    assert max(sizes) <= max(t.numel() for t in leaves)
    assert_same((y, *gradients(y, leaves)), (expected, *grads), 1e-12)


def test_backward_under_autocast_is_in_the_dtype_of_the_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_COLUMNS", 1200)
    leaves = inputs(DENSE[0], torch.float32)
    expected = gradients(deform_conv(DENSE[0][4], *leaves), leaves)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(deform_conv(DENSE[0][4], *leaves), leaves)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("case", [DEPTHWISE[1], DENSE[1]])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck itself reads it
def test_operation_is_registered_as_pytorch_expects(case: tuple) -> None:
    g, (x, offset, weight, bias, mask) = case[4], inputs(case)
    steps = [*g.stride], [*g.padding], [*g.dilation]
    torch.library.opcheck(torch.ops.regio.deform_conv.default, (x, offset, weight, bias, mask, *steps))
    torch.library.opcheck(torch.ops.regio.deform_conv.default, (x, offset, weight, None, None, *steps))
    fixed = [each.detach() for each in (x, offset, weight, mask)]
    grad = torch.randn_like(operation._deform_conv(*fixed[:3], None, mask.detach(), *steps))
    torch.library.opcheck(torch.ops.regio.deform_conv_backward.default, (grad, *fixed, *steps))


@pytest.mark.parametrize("case", [DEPTHWISE[0], DENSE[0], DENSE[1]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_result_can_be_written_in_place(case: tuple, dtype: torch.dtype) -> None:
    """As by a ReLU after it."""
    leaves = inputs(case, dtype)
    x = leaves[0].to(memory_format=torch.channels_last)
    y = deform_conv(case[4], x, *leaves[1:])
    expected = gradients(y.relu(), leaves)
    found = gradients(deform_conv(case[4], x, *leaves[1:]).relu_(), leaves)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_differentiable_once() -> None:
    leaves = inputs(DEPTHWISE[0])
    (grad,) = torch.autograd.grad(deform_conv(DEPTHWISE[0][4], *leaves).sum(), leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError):
        grad.sum().backward()


@pytest.mark.parametrize("case", [*DEPTHWISE, *DENSE])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_gradients_have_the_strides_that_a_compiler_is_told(case: tuple, form: torch.memory_format) -> None:
    """Also where a tensor of one channel is in both memory formats, as the weights of a depthwise convolution are."""
    x, offset, weight, bias, mask = (each.detach() for each in inputs(case))
    x, weight = (each.contiguous(memory_format=form) for each in (x, weight))
    g = case[-1]
    steps = [*g.stride], [*g.padding], [*g.dilation]
    grad = operation._deform_conv(x, offset, weight, bias, mask, *steps)
    found = operation._backward(grad, x, offset, weight, mask, *steps)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = [mode.from_tensor(each) for each in (grad, x, offset, weight, mask)]
        told = operation._backward(*fake, *steps)
    assert [each.stride() for each in found] == [each.stride() for each in told]


@pytest.mark.slow
def test_a_compiled_depthwise_layer_trains() -> None:
    layer, x = DeformableConv2d(8, 8, 3, padding=1, groups=8), torch.randn(1, 8, 6, 7)
    expected = torch.autograd.grad(layer(x).square().sum(), layer.weight)[0]
    found = torch.autograd.grad(torch.compile(layer)(x).square().sum(), layer.weight)[0]
    torch.testing.assert_close(found, expected)
