"""Fused layers give what the layers they replace give."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional as F

from regio import fused
from regio.backbones import Backbone, efficientnet_lite0, timm_backbone, torchvision_backbone
from regio.backbones.deformable import deformable_layers, with_deformable
from regio.convolutions import ConvReLU
from regio.deformable_conv import DeformableConv2d
from regio.frozen_norm import FoldedConv, FrozenBatchNorm, freeze_batch_norm
from regio.fused import FusedConv, FusedLinear, fuse

ACTIVATIONS = [nn.Identity(), nn.ReLU(), nn.ReLU6(), nn.SiLU(), nn.Hardswish(), nn.GELU(), nn.GELU("tanh")]


@pytest.fixture(params=["onednn", "plain"])
def any_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "plain":
        monkeypatch.setattr(fused, "_has_onednn", lambda weight: False)
    return request.param


def image(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)


def randomised(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean):
        assert tensor is not None
        tensor.normal_()
    assert norm.running_var is not None
    norm.running_var.uniform_(0.5, 2)
    return norm


@settings(deadline=None, max_examples=40)
@given(
    kernel=st.sampled_from([(1, 1), (3, 3), (5, 5), (3, 1), (2, 2)]),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2, 8]),
    bias=st.booleans(),
    size=st.tuples(st.integers(11, 40), st.integers(11, 40)),
    count=st.integers(0, 5),
    activation=st.sampled_from(ACTIVATIONS),
    onednn=st.booleans(),
)
def test_a_convolution_and_its_activation(
    kernel: tuple[int, int],
    stride: int,
    padding: int,
    dilation: int,
    groups: int,
    bias: bool,
    size: tuple[int, int],
    count: int,
    activation: nn.Module,
    onednn: bool,
) -> None:
    conv = nn.Conv2d(8, 16, kernel, stride, padding, dilation, groups, bias)
    chosen = fused._activation(activation)
    assert chosen is not None
    with torch.no_grad():
        layer = FusedConv(conv, torch.float32, chosen)
        layer.onednn &= onednn
        x = image(count, 8, *size)
        torch.testing.assert_close(layer(x), activation(conv(x)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(32, 64), (33, 65), (32, 65), (31, 31), (7, 8)])
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"),
    [(3, 2, 1), (5, 2, 1), (5, 1, 1), (3, 1, 2), (1, 2, 1), (4, 3, 1), (3, 2, 2), (5, 2, 3)],
)
def test_padding_as_tensorflow_pads(
    size: tuple[int, int], kernel: int, stride: int, dilation: int, any_backend: str
) -> None:
    conv = Conv2dSame(6, 6, kernel, stride, dilation=dilation, groups=6)
    with torch.no_grad():
        x = image(2, 6, *size)
        torch.testing.assert_close(FusedConv(conv, torch.float32)(x), conv(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("dilation", "groups"), [((4, 4), 16), ((1, 8), 16), ((8, 3), 16), ((4, 4), 8)])
def test_wide_padding(dilation: tuple[int, int], groups: int, dtype: torch.dtype, any_backend: str) -> None:
    conv = nn.Conv2d(16, 16, 5, padding=(2 * dilation[0], 2 * dilation[1]), dilation=dilation, groups=groups)
    with torch.no_grad():
        layer = FusedConv(conv, dtype, fused._RELU)
        for size in [(15, 20), (9, 4)]:
            x, added = image(2, 16, *size, dtype=dtype), image(2, 16, *size, dtype=dtype)
            rounding = {torch.float32: 1e-5, torch.bfloat16: 0.03}[dtype]
            torch.testing.assert_close(layer(x).float(), F.relu(conv(x.float())), rtol=rounding, atol=rounding)
            sum_ = F.relu(conv(x.float()) + added.float())
            torch.testing.assert_close(layer(x, added).float(), sum_, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("size", [(32, 64), (33, 64), (31, 31)])
def test_padding_as_tensorflow_pads_along_two_axes(size: tuple[int, int], any_backend: str) -> None:
    conv = Conv2dSame(4, 4, (3, 5), (2, 2), dilation=(2, 1))
    with torch.no_grad():
        x = image(2, 4, *size)
        torch.testing.assert_close(FusedConv(conv, torch.float32)(x), conv(x), rtol=1e-4, atol=1e-5)


def test_one_layer_for_inputs_of_many_sizes() -> None:
    """oneDNN wants the weights of 1152 to 192 channels in another order for small maps than for large ones."""
    conv = nn.Conv2d(1152, 192, 1)
    with torch.no_grad():
        layer = FusedConv(conv, torch.bfloat16)
        for size in [(10, 10), (64, 64), (10, 10), (25, 35)]:
            x = image(1, 1152, *size)
            torch.testing.assert_close(layer(x).float(), conv(x), rtol=0.02, atol=0.02)
    assert not layer.onednn or 1 <= len(layer.layouts) < len(layer.layout_of) == 3


def test_a_sum_is_written_over_its_other_term(any_backend: str) -> None:
    conv = nn.Conv2d(8, 16, 3, padding=1)
    with torch.no_grad():
        x, added = image(2, 8, 20, 30), image(2, 16, 20, 30)
        expected = F.relu(conv(x) + added)
        y = FusedConv(conv, torch.float32, fused._RELU)(x, added)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(added, y)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 37])
@pytest.mark.parametrize("size", [(40, 24), (2100, 2000)], ids=["small", "large"])
def test_a_linear_layer(size: tuple[int, int], rows: int, bias: bool, any_backend: str) -> None:
    linear = nn.Linear(*size, bias=bias)
    x = torch.randn(rows, size[0])
    with torch.no_grad():
        y = FusedLinear(linear, torch.float32, fused._RELU)(x)
        torch.testing.assert_close(y, F.relu(linear(x)), rtol=1e-4, atol=1e-5)
        assert FusedLinear(linear, torch.bfloat16)(x).dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [(40,), (0, 40), (3, 5, 40), (2, 3, 5, 40), (2, 0, 40)])
def test_a_linear_layer_takes_inputs_of_any_rank(shape: tuple[int, ...], any_backend: str) -> None:
    """ConvNeXt's are applied to maps [N, H, W, C]."""
    for width in (24, 60_000):
        linear, x = nn.Linear(40, width), torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(FusedLinear(linear, torch.float32)(x), linear(x), rtol=1e-4, atol=1e-5)


def test_a_folded_norm() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), randomised(nn.BatchNorm2d(8)), nn.ReLU())
    net.eval()
    x = image(1, 3, 64, 64)
    with torch.no_grad():
        expected = net(x)
        freeze_batch_norm(net, x)
        assert isinstance(net[0], FoldedConv)
        assert isinstance(net[1], FrozenBatchNorm)
        torch.testing.assert_close(fuse(net, torch.float32)(x), expected, rtol=1e-4, atol=1e-5)


# Networks that a fusion could get wrong. Each gives a list of maps.


class Residual(nn.Module):
    """As a block of a ResNet: the sum with a convolution of the input may be written over the latter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.down, self.norm, self.act = nn.Conv2d(3, 8, 1), randomised(nn.BatchNorm2d(8)), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> list[Tensor]:
        y = self.norm(self.second(self.act(self.first(x))))
        y += self.down(x)
        return [self.act(y)]


class GivenOut(Residual):
    """The other term of the sum is a result too."""

    def forward(self, x: Tensor) -> list[Tensor]:
        y = self.act(self.first(x))
        return [y, self.second(y) + y]


class ReadLater(Residual):
    """The other term of the sum is read after it."""

    def forward(self, x: Tensor) -> list[Tensor]:
        y = self.first(x)
        return [self.second(self.second(y) + y) * y]


class Seen(Residual):
    """The other term of the sum has a view, which is a result."""

    def forward(self, x: Tensor) -> list[Tensor]:
        y = self.first(x)
        view = y[:, :2]
        return [self.second(y) + y, view]


class Broadcast(Residual):
    """The other term of the sum is smaller than the result."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.second(self.first(x)) + self.second(F.adaptive_avg_pool2d(self.first(x), 1) + torch.zeros(1))]


class Doubled(Residual):
    """Both terms of a sum are one map, and a map has two readers."""

    def forward(self, x: Tensor) -> list[Tensor]:
        y = self.first(x)
        return [y + y, torch.relu(y)]


class NormOfSum(Residual):
    """A norm after a sum, and one after an activation, are not the convolution's."""

    def forward(self, x: Tensor) -> list[Tensor]:
        y = self.norm(self.second(F.relu(self.first(x))) + self.down(x))
        return [self.norm(torch.relu(self.down(x))), F.silu(y)]


class Unknown(Residual):
    """Activations that oneDNN has not, and one that it has not after a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.soft, self.six = nn.Softplus(), nn.ReLU6()

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.soft(self.first(x)), self.six(self.second(self.first(x)) + self.down(x)), self.first(x).sigmoid()]


class BySize(Residual):
    """What it does depends on the size of the image, so it is no fixed sequence of operations."""

    def forward(self, x: Tensor) -> list[Tensor]:
        y = self.first(x)
        return [self.act(y) if x.shape[2] > 64 else y]


class FirstSize(Residual):
    """Remembers a size, which a graph would take for a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0

    def forward(self, x: Tensor) -> list[Tensor]:
        if type(x) is Tensor:
            self.rows = x.shape[2]
        return [self.first(x)[:, :, : self.rows // 2]]


@pytest.mark.parametrize(
    "kind",
    [Residual, GivenOut, ReadLater, Seen, Broadcast, Doubled, NormOfSum, Unknown, BySize, FirstSize],
    ids=lambda kind: kind.__name__,
)
def test_networks_that_could_go_wrong(kind: Callable[[], nn.Module], any_backend: str) -> None:
    net = kind().eval()
    with torch.no_grad():
        made = fuse(copy.deepcopy(net), torch.float32, image(1, 3, 128, 160))
        for size in ((128, 160), (50, 70)):
            x = image(2, 3, *size)
            given = x.clone()
            for ours, theirs in zip(made(x), net(x), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
            assert torch.equal(x, given)


def test_a_residual_block_is_three_operations() -> None:
    with torch.no_grad():
        made = fuse(Residual().eval(), torch.float32, image(1, 3, 128, 160))
    assert [node.op for node in made.graph.nodes] == ["placeholder", *["call_module"] * 3, "output"]


BODIES: list[tuple[str, Callable[[], Backbone]]] = [
    ("lite0", lambda: efficientnet_lite0((3, 4, 5), pretrained=False)),
    ("lite0 dilated", lambda: efficientnet_lite0((5,), output_stride=16, pretrained=False)),
    ("resnet50", lambda: torchvision_backbone("resnet50", (2, 3, 4, 5), pretrained=False)),
    (
        "resnet18, norms of the batch",
        lambda: torchvision_backbone("resnet18", (3, 5), pretrained=False, frozen_norm=False),
    ),
    ("mobilenet_v3_large", lambda: torchvision_backbone("mobilenet_v3_large", (3, 4, 5), pretrained=False)),
    ("timm resnet26d", lambda: timm_backbone("resnet26d", (3, 4, 5), pretrained=False)),
    ("convnext_atto", lambda: timm_backbone("convnext_atto", (3, 4, 5), pretrained=False)),
    (
        "lite0 deformable",
        lambda: moved(with_deformable(efficientnet_lite0((4, 5), pretrained=False), stages=(5,), modulated=True)),
    ),
    ("convnext_tiny", lambda: timm_backbone("convnext_tiny", (4,), pretrained=False)),
    (
        "resnet18 deformable, norms of the batch",
        lambda: moved(
            with_deformable(
                torchvision_backbone("resnet18", (5,), pretrained=False, frozen_norm=False), offset_groups=2
            )
        ),
    ),
]


@torch.no_grad()
def moved(backbone: Backbone) -> Backbone:
    for layer in deformable_layers(backbone).values():
        layer.offset.weight.normal_(0, layer.offset.weight[0].numel() ** -0.5)
        layer.offset.bias.uniform_(-1, 1)
    return backbone


@pytest.mark.slow
@pytest.mark.parametrize("make", [make for _, make in BODIES], ids=[name for name, _ in BODIES])
def test_backbones(make: Callable[[], Backbone]) -> None:
    torch.manual_seed(0)
    body = make().body.eval()
    for module in body.modules():
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm):
            module.running_var.uniform_(0.5, 2)
            module.running_mean.normal_()
    with torch.no_grad():
        made = fuse(copy.deepcopy(body), torch.float32, image(1, 3, 128, 160))
        for size in ((128, 160), (96, 224), (101, 75)):
            x = image(1, 3, *size)
            for ours, theirs in zip(made(x), body(x), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * theirs.abs().max().item())
    left = {type(module) for module in made.modules()}
    assert not left & {nn.Conv2d, nn.BatchNorm2d, nn.Linear, FoldedConv, ConvReLU, nn.ReLU6, DeformableConv2d}


def test_resnet50_is_its_convolutions_and_a_pooling() -> None:
    body = torchvision_backbone("resnet50", (2, 3, 4, 5), pretrained=False).body
    with torch.no_grad():
        made = fuse(body, torch.float32, image(1, 3, 128, 160))
    kinds = [type(made.get_submodule(node.target)) for node in made.graph.nodes if node.op == "call_module"]
    assert kinds.count(FusedConv) == 53
    assert kinds.count(nn.MaxPool2d) == 1 == len(kinds) - 53
    assert not [node for node in made.graph.nodes if node.op in ("call_function", "call_method")]
