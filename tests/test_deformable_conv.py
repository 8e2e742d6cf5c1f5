"""DeformableConv2d: its beginning, its gradients and its groups."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from regio.deformable_conv import DeformableConv2d
from regio.ops import deform_conv2d
from tests.ops.parity import tensor

SHAPES = [
    {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "padding": 1},
    {"in_channels": 4, "out_channels": 6, "kernel_size": (3, 2), "stride": (2, 1), "dilation": 2, "padding": (2, 1)},
    {"in_channels": 8, "out_channels": 6, "kernel_size": 3, "padding": 1, "groups": 2, "offset_groups": 4},
]


def layer(shape: dict, **arguments: bool) -> DeformableConv2d:
    torch.manual_seed(0)
    return DeformableConv2d(**shape, **arguments).double()


def moved(shape: dict, **arguments: bool) -> DeformableConv2d:
    """A layer whose offsets depend on the input."""
    conv = layer(shape, **arguments)
    with torch.no_grad():
        conv.offset.weight.copy_(tensor(*conv.offset.weight.shape, spread=0.3))
        conv.offset.bias.copy_(tensor(*conv.offset.bias.shape, seed=1, spread=0.5))
    return conv


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("modulated", [False, True])
def test_a_new_layer_is_a_convolution(shape: dict, modulated: bool) -> None:
    conv, x = layer(shape, modulated=modulated), tensor(2, shape["in_channels"], 9, 8)
    expected = conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    torch.testing.assert_close(conv(x), expected, rtol=0, atol=1e-12)


def test_begins_as_a_plain_convolution_with_the_same_seed() -> None:
    conv = layer(SHAPES[2])
    torch.manual_seed(0)
    plain = nn.Conv2d(8, 6, 3, padding=1, groups=2)
    assert torch.equal(conv.weight, plain.weight.double())
    keys = conv.load_state_dict(plain.state_dict(), strict=False)
    assert keys.missing_keys == ["offset.weight", "offset.bias"]
    assert not keys.unexpected_keys


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("modulated", [False, True])
def test_offsets_and_factors_come_from_the_input(shape: dict, modulated: bool) -> None:
    conv, x = moved(shape, modulated=modulated), tensor(2, shape["in_channels"], 9, 8)
    channels = conv.offset(x)
    taps = conv.offset_groups * conv.weight[0, 0].numel()
    assert channels.shape[1] == (3 if modulated else 2) * taps
    mask = 2 * channels[:, 2 * taps :].sigmoid() if modulated else None
    geometry = conv.stride, conv.padding, conv.dilation
    expected = deform_conv2d(x, channels[:, : 2 * taps], conv.weight, conv.bias, *geometry, mask)
    assert torch.equal(conv(x), expected)


def test_gradcheck() -> None:
    conv, x = moved(SHAPES[2], modulated=True), tensor(1, 8, 4, 3).requires_grad_()
    names, values = zip(*conv.named_parameters(), strict=True)

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(conv, dict(zip(names, parameters, strict=True)), x)

    assert torch.autograd.gradcheck(run, (x, *values), fast_mode=True)


def test_learns_offsets_from_zero() -> None:
    """The first step moves the offsets, though all samples lie on whole cells."""
    conv = layer(SHAPES[0])
    conv(tensor(2, 4, 9, 8)).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in conv.offset_parameters())
    assert {id(p) for p in conv.offset_parameters()} == {id(p) for n, p in conv.named_parameters() if "offset" in n}


def test_repr_and_bias() -> None:
    conv = DeformableConv2d(4, 6, (3, 1), stride=2, bias=False, offset_groups=2, modulated=True)
    assert conv.bias is None
    assert repr(conv).startswith("DeformableConv2d(\n  4, 6, kernel_size=(3, 1), stride=(2, 2), padding=(0, 0)")
    assert "offset_groups=2, bias=False, modulated=True" in repr(conv)


def test_autocast_runs_in_its_dtype() -> None:
    conv, x = moved(SHAPES[0], modulated=True).float(), tensor(2, 4, 9, 8, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        low = conv(x)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), conv(x), rtol=0.1, atol=0.2)
    low.float().sum().backward()
    assert conv.weight.grad.dtype == torch.float32


@pytest.mark.slow
def test_compiles_without_a_graph_break() -> None:
    conv, x = moved(SHAPES[1], modulated=True), tensor(2, 4, 9, 8)
    torch.compiler.reset()
    compiled = torch.compile(conv, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), conv(x), rtol=0, atol=1e-10)


def test_bad_groups_raise() -> None:
    with pytest.raises(ValueError, match="^offset_groups: expected a divisor of 4"):
        DeformableConv2d(4, 6, 3, offset_groups=3)
    with pytest.raises(ValueError, match=r"^offset_rate: expected a positive factor, got 0\.0"):
        DeformableConv2d(4, 6, 3, offset_rate=0.0)
    with pytest.raises(ValueError, match="groups"):
        DeformableConv2d(4, 6, 3, groups=3)
    with pytest.raises(ValueError, match="^input: expected shape"):
        DeformableConv2d(4, 6, 3)(tensor(4, 9, 8, dtype=torch.float32))
