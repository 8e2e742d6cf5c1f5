"""Frozen normalisation, apart and folded into convolutions."""

import copy
from itertools import product

import pytest
import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from timm.layers import pad_same as timm_pad_same
from torch import Tensor, nn
from torch.nn import functional as F

from regio.frozen_norm import FoldedConv, FrozenBatchNorm, freeze_batch_norm, pad_same


def randomise(body: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for norm in body.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
                assert tensor is not None
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.2)
    return body.eval()


class Outputs(nn.Sequential):
    """A sequence as a body: a list with one output."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return [super().forward(x)]


def chain() -> nn.Module:
    torch.manual_seed(0)
    body = Outputs(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8),
        nn.BatchNorm2d(8),
        Conv2dSame(8, 6, 5, stride=2, bias=False),
        BatchNormAct2d(6),
    )
    return randomise(body)


def folded(body: nn.Module) -> list[bool]:
    return [norm.folded for norm in body.modules() if isinstance(norm, FrozenBatchNorm)]


def test_folding_changes_neither_result_nor_gradient_nor_names() -> None:
    plain, frozen = chain(), chain()
    freeze_batch_norm(frozen, torch.rand(1, 3, 20, 20))
    assert folded(frozen) == [True, True, True]
    assert set(frozen.state_dict()) == {name for name in plain.state_dict() if "num_batches" not in name}
    x = torch.randn(2, 3, 21, 34)
    torch.testing.assert_close(frozen(x)[0], plain(x)[0], rtol=1e-4, atol=1e-5)
    for body in (plain, frozen):
        body(x)[0].square().sum().backward()
    for name, parameter in frozen.named_parameters():
        torch.testing.assert_close(parameter.grad, plain.get_parameter(name).grad, rtol=1e-4, atol=1e-4)
    assert not any("1." in name[:2] for name, _ in frozen.named_parameters())  # the norm has nothing to train


def test_a_norm_without_weights_of_its_own() -> None:
    norm = nn.BatchNorm2d(4, affine=False)
    norm.running_mean, norm.running_var = torch.randn(4), torch.rand(4) + 0.5
    x = torch.randn(2, 4, 3, 5)
    torch.testing.assert_close(FrozenBatchNorm(norm)(x), norm.eval()(x))
    with pytest.raises(ValueError, match="norm: expected one with running statistics"):
        FrozenBatchNorm(nn.BatchNorm2d(4, track_running_stats=False))


def test_train_mode_changes_nothing() -> None:
    body = chain()
    freeze_batch_norm(body, torch.rand(1, 3, 20, 20))
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        before, state = body.eval()(x)[0], copy.deepcopy(body.state_dict())
        assert torch.equal(body.train()(x)[0], before)
    assert all(torch.equal(value, state[name]) for name, value in body.state_dict().items())


def test_loaded_statistics_are_used() -> None:
    body, other = chain(), chain()
    freeze_batch_norm(body, torch.rand(1, 3, 20, 20))
    other[1].running_mean += 1  # type: ignore[operator]
    body.load_state_dict({name: value for name, value in other.state_dict().items() if "num_batches" not in name})
    x = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(body(x)[0], other(x)[0], rtol=1e-4, atol=1e-5)


def test_a_copy_has_its_own_norm() -> None:
    body = chain()
    freeze_batch_norm(body, torch.rand(1, 3, 20, 20))
    twin = copy.deepcopy(body)
    assert isinstance(twin[0], FoldedConv) and twin[0].__dict__["norm"] is twin[1]  # type: ignore[index]
    x = torch.randn(1, 3, 16, 16)
    before = body(x)[0]
    twin[1].bias.add_(1.0)  # type: ignore[index]
    assert torch.equal(body(x)[0], before)
    assert not torch.equal(twin(x)[0], before)


class SharedConvolution(nn.Module):
    """The convolution is read by the norm and by somebody else."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> list[Tensor]:
        y = self.conv(x)
        return [self.norm(y) + F.relu(y)]


class NormFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.conv(self.norm(x))]


@pytest.mark.parametrize("kind", [SharedConvolution, NormFirst])
def test_what_cannot_be_folded_is_not(kind: type[nn.Module]) -> None:
    body = kind().eval()  # fresh norms, for which any folding looks right
    plain = copy.deepcopy(body)
    freeze_batch_norm(body, torch.rand(1, 3, 20, 20))
    assert folded(body) == [False]
    randomise(plain)
    body.load_state_dict({name: value for name, value in plain.state_dict().items() if "num_batches" not in name})
    x = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(body(x)[0], plain(x)[0], rtol=1e-4, atol=1e-5)


def test_padding_is_tensorflows() -> None:
    """As timm computes it in floating point, for sides longer and shorter than the kernel's reach."""
    for size, kernel, stride, dilation in product(((1, 9), (8, 5), (13, 2)), (1, 2, 3, 5), (1, 2, 3), (1, 2)):
        x = torch.rand(1, 1, *size)
        arguments = ([kernel, kernel + 1], [stride, stride], [dilation, 1])
        assert torch.equal(pad_same(x, *arguments), timm_pad_same(x, *arguments))
