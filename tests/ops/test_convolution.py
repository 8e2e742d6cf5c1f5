"""Deformable convolution: parity with torchvision, with plain convolution at zero offsets, and bad input."""

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor
from torch.nn.functional import conv2d

from regio import ops
from regio.kernels.cpu import deform_conv
from tests.ops.parity import TOLERANCE, same, tensor

# channels, outputs, kernel, stride, padding, dilation, groups, offset groups
CASES = [
    (4, 3, (3, 3), (1, 1), (1, 1), (1, 1), 1, 1),
    (4, 6, (3, 2), (2, 1), (0, 2), (1, 2), 1, 2),
    (6, 4, (1, 3), (1, 2), (1, 0), (2, 1), 2, 1),
    (6, 6, (3, 3), (1, 1), (1, 1), (1, 1), 2, 6),
    (6, 6, (2, 2), (1, 1), (0, 0), (1, 1), 6, 2),
    (12, 4, (2, 2), (1, 1), (1, 1), (1, 1), 4, 6),
    (6, 2, (1, 1), (1, 1), (0, 0), (1, 1), 1, 3),
]


def inputs(case: tuple, dtype: torch.dtype = torch.float64, spread: float = 2, images: int = 2) -> dict[str, Tensor]:
    """Every tensor of a convolution over maps of 8 x 7 cells, requiring gradients."""
    channels, outputs, kernel, stride, padding, dilation, groups, offset_groups = case
    axes = zip((8, 7), kernel, stride, padding, dilation, strict=True)
    size = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes]
    parts = offset_groups * kernel[0] * kernel[1]
    shapes = {
        "input": (images, channels, 8, 7),
        "offset": (images, 2 * parts, *size),
        "weight": (outputs, channels // groups, *kernel),
        "bias": (outputs,),
        "mask": (images, parts, *size),
    }
    spreads = {"offset": spread}
    return {
        name: tensor(*shape, dtype=dtype, seed=i, spread=spreads.get(name, 1)).requires_grad_()
        for i, (name, shape) in enumerate(shapes.items())
    }


def geometry(case: tuple) -> tuple:
    return case[3:6]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_parity(case: tuple, masked: bool, dtype: torch.dtype) -> None:
    t = inputs(case, dtype)
    mask = [t["mask"]] if masked else []

    def run(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, o, w, b, *m: function(x, o, w, b, *geometry(case), m[0] if m else None)

    arguments = (t["input"], t["offset"], t["weight"], t["bias"], *mask)
    same(run(ops.deform_conv2d), run(torchvision.ops.deform_conv2d), *arguments, tolerance=TOLERANCE[dtype])


def test_parity_with_large_offsets_and_defaults() -> None:
    case = CASES[0]
    t = inputs((*case[:4], (0, 0), *case[5:]), spread=30)
    arguments = t["input"], t["offset"], t["weight"]
    same(ops.deform_conv2d, torchvision.ops.deform_conv2d, *arguments, tolerance=1e-10)


@pytest.mark.parametrize("case", CASES)
def test_zero_offsets_are_a_plain_convolution(case: tuple) -> None:
    t = inputs(case, spread=0)
    same(
        lambda x, w, b: ops.deform_conv2d(x, t["offset"].detach(), w, b, *geometry(case)),
        lambda x, w, b: conv2d(x, w, b, *geometry(case), case[6]),
        t["input"],
        t["weight"],
        t["bias"],
        tolerance=1e-10,
    )


def test_gradient_of_zero_offsets_is_torchvisions() -> None:
    """A new layer has every sample on a whole number, also one cell outside the map, where gradients are one-sided."""
    t = inputs(CASES[0], spread=0)
    arguments = t["input"], t["offset"], t["weight"], t["bias"]
    geometry_of = geometry(CASES[0])
    same(
        lambda *a: ops.deform_conv2d(*a, *geometry_of),
        lambda *a: torchvision.ops.deform_conv2d(*a, *geometry_of),
        *arguments,
        tolerance=1e-10,
    )


@pytest.mark.parametrize("case", [CASES[1], CASES[5]])
@pytest.mark.parametrize("size", [8, 2000, 16000, 40000])
def test_chunks_do_not_change_the_result(case: tuple, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    t = inputs(case, images=3)

    def run(*a: Tensor) -> Tensor:
        return ops.deform_conv2d(*a[:4], *geometry(case), a[4])

    expected = run(*t.values())
    grads = torch.autograd.grad(expected, list(t.values()), tensor(*expected.shape))
    monkeypatch.setattr(deform_conv, "_COLUMNS", size)
    y = run(*t.values())
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    for a, b in zip(torch.autograd.grad(y, list(t.values()), tensor(*y.shape)), grads, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def test_samples_are_not_kept() -> None:
    """The largest tensor kept for the backward pass is an argument, not the samples of all cells."""
    t = inputs(CASES[0], images=4)
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (sizes.append(x.numel()), x)[1], lambda x: x):
        ops.deform_conv2d(t["input"], t["offset"], t["weight"], None, *geometry(CASES[0]))
    assert 0 < max(sizes) <= t["offset"].numel()


def test_gradcheck() -> None:
    case = (4, 2, (2, 2), (1, 1), (1, 0), (1, 1), 2, 2)
    t = inputs(case, spread=0.7)
    t["offset"] = (t["offset"] * 10).round().div(10).add(0.037).detach().requires_grad_()  # away from whole numbers

    def run(x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
        return ops.deform_conv2d(x, offset, weight, bias, *geometry(case), mask)

    assert torch.autograd.gradcheck(run, tuple(t.values()), fast_mode=True)


def test_result_has_the_memory_format_of_the_input() -> None:
    t = inputs((*CASES[0][:4], (0, 0), *CASES[0][5:]))
    last = t["input"].to(memory_format=torch.channels_last)
    results = [ops.deform_conv2d(x, t["offset"], t["weight"], t["bias"]) for x in (t["input"], last)]
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-12)
    assert results[0].is_contiguous()
    assert results[1].is_contiguous(memory_format=torch.channels_last)


def test_no_images() -> None:
    t = inputs(CASES[0], images=0)
    y = ops.deform_conv2d(t["input"], t["offset"], t["weight"], t["bias"], *geometry(CASES[0]), t["mask"])
    assert y.shape == (0, 3, 8, 7)
    y.sum().backward()
    assert not t["weight"].grad.any()


def test_autocast_keeps_the_dtype_of_the_input() -> None:
    t = inputs(CASES[0], torch.float32)
    run = lambda x: ops.deform_conv2d(x, t["offset"], t["weight"], t["bias"], *geometry(CASES[0]), t["mask"])  # noqa: E731
    expected = run(t["input"])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(run(t["input"]), expected)
        low = run(t["input"].bfloat16())
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), expected, rtol=0.05, atol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("case", [CASES[1], CASES[4]])
def test_compiles_without_a_graph_break(case: tuple) -> None:
    t = inputs(case, torch.float32)

    def run(*a: Tensor) -> Tensor:
        return ops.deform_conv2d(*a[:4], *geometry(case), a[4])

    torch.compiler.reset()
    same(torch.compile(run, backend="aot_eager", fullgraph=True), run, *t.values(), tolerance=1e-5)


def test_modulated_is_deform_conv2d_in_mmcvs_order() -> None:
    t = inputs(CASES[5])
    expected = ops.deform_conv2d(t["input"], t["offset"], t["weight"], t["bias"], 1, 1, 1, t["mask"])
    y = ops.modulated_deform_conv2d(t["input"], t["offset"], t["mask"], t["weight"], t["bias"], 1, 1, 1, 4, 6)
    assert torch.equal(y, expected)
    for name, groups in (("groups", (2, 6)), ("deform_groups", (4, 3))):
        with pytest.raises(ValueError, match=f"^{name}: expected"):
            ops.modulated_deform_conv2d(t["input"], t["offset"], t["mask"], t["weight"], None, 1, 1, 1, *groups)


BAD = [
    ("input", ValueError, {"input": lambda x: x[0]}),
    ("input", ValueError, {"input": lambda x: x[:, :, :1], "padding": 0}),
    ("input", TypeError, {"input": lambda x: x.int()}),
    ("offset", ValueError, {"offset": lambda x: x[:, :, 1:]}),
    ("offset", ValueError, {"offset": lambda x: x[:, 1:]}),
    ("offset", ValueError, {"offset": lambda x: x[:1]}),
    ("offset", ValueError, {"offset": lambda x: x.detach().clone().fill_(torch.nan)}),
    ("offset", TypeError, {"offset": lambda x: x.int()}),
    ("weight", ValueError, {"weight": lambda x: x[:, 1:]}),
    ("weight", ValueError, {"weight": lambda x: x[..., 0]}),
    ("weight", TypeError, {"weight": lambda x: x.float()}),
    ("weight", ValueError, {"weight": lambda x: x.to("meta")}),
    ("bias", ValueError, {"bias": lambda x: x[1:]}),
    ("bias", TypeError, {"bias": lambda x: x.float()}),
    ("mask", ValueError, {"mask": lambda x: x[:, 1:]}),
    ("stride", ValueError, {"stride": 0}),
    ("padding", ValueError, {"padding": (1, -1)}),
    ("dilation", ValueError, {"dilation": (1, 1, 1)}),
]


@pytest.mark.parametrize(("name", "error", "change"), BAD)
def test_bad_input_raises(name: str, error: type[Exception], change: dict) -> None:
    arguments = {**inputs(CASES[0]), "stride": 1, "padding": 1, "dilation": 1}
    changed = {key: (value(arguments[key]) if callable(value) else value) for key, value in change.items()}
    with pytest.raises(error, match=f"^{name}: expected"):
        ops.deform_conv2d(**(arguments | changed))
