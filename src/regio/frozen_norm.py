"""Batch normalisation with fixed statistics, carried out by the convolution before it.

Detectors are trained with a few large images at a time, too few for batch statistics, so the statistics and the affine
parameters of a pretrained backbone stay as they are. What is left, ``x * scale + shift``, is linear, and so is the
convolution in front of it: convolving with ``weight * scale`` and bias `shift` gives the same numbers without a pass
over the activations, forward or backward. The scaling is done anew in each forward pass; so what is trained, the
gradients and the names of the tensors in the state dict are those of the two separate layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

from regio.kernels.depthwise import depthwise_conv

__all__ = ["FoldedConv", "FrozenBatchNorm", "freeze_batch_norm", "pad_same"]


class FrozenBatchNorm(nn.Module):
    """``act((x - mean) / sqrt(var + eps) * weight + bias)`` with all four fixed; they are buffers, not parameters.

    When `folded`, the convolution before it does all but `act`.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: nn.BatchNorm2d | FrozenBatchNorm2d) -> None:
        """From a BatchNorm2d with statistics, which may have an activation `act` (timm), or torchvision's
        FrozenBatchNorm2d. Raises ValueError for one without."""
        super().__init__()
        self.eps = norm.eps
        self.folded = False
        self.act = getattr(norm, "act", nn.Identity())
        if norm.running_mean is None:
            raise ValueError("norm: expected one with running statistics, got one without")
        plain = {"weight": torch.ones_like(norm.running_mean), "bias": torch.zeros_like(norm.running_mean)}
        for name in ("weight", "bias", "running_mean", "running_var"):
            own = getattr(norm, name)  # None for the first two of a norm that is not affine
            self.register_buffer(name, (plain[name] if own is None else own).detach().clone())

    def affine(self) -> tuple[Tensor, Tensor]:
        """Scale [C] and shift [C]."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, x: Tensor) -> Tensor:
        """Normalised `x` [N, C, H, W]."""
        if self.folded:
            return self.act(x)
        scale, shift = self.affine()
        return self.act(torch.addcmul(shift[:, None, None], x, scale[:, None, None]))


class FoldedConv(nn.Conv2d):
    """A convolution that also carries out the `FrozenBatchNorm` after it.

    The norm stays a child of the module that had it; this is a second reference to it, which owns none of its tensors.
    """

    def __init__(self, conv: nn.Conv2d, norm: FrozenBatchNorm) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
            bias=conv.bias is not None,
            device="meta",  # the tensors are those of `conv`
        )
        self.weight, self.bias = conv.weight, conv.bias
        self.pads_like_tensorflow = isinstance(conv, Conv2dSame)
        self.depthwise = conv.groups == conv.in_channels == conv.out_channels and not isinstance(conv.padding, str)
        self.__dict__["norm"] = norm  # not a child: it has one parent already
        norm.folded = True

    def folded(self) -> tuple[Tensor, Tensor]:
        """The weight [out, in, h, w] and the bias [out] of both together."""
        scale, shift = self.__dict__["norm"].affine()
        return self.weight * scale[:, None, None, None], shift if self.bias is None else shift + self.bias * scale

    def unfold(self) -> None:
        """Leave the norm to itself again: for another layer in place of this one, which takes over its tensors."""
        self.__dict__["norm"].folded = False

    def forward(self, x: Tensor) -> Tensor:
        """The convolution of `x` [N, C, H, W], normalised."""
        weight, bias = self.folded()
        if self.pads_like_tensorflow:
            x = pad_same(x, list(self.kernel_size), list(self.stride), list(self.dilation))
        if self.depthwise:
            return depthwise_conv(x, weight, bias, self.stride, self.padding, self.dilation)  # type: ignore[arg-type]
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)


def pad_same(x: Tensor, kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """`x` [N, C, H, W] with the zeros that TensorFlow's padding "SAME" adds before a convolution: of an odd number, one
    more at the right and at the bottom.

    In whole numbers, so that for a side which is known to divide by the stride the padding is known too when a graph of
    images of any size is exported.
    """
    padding: list[int] = []
    for side, kernel, step, apart in zip(x.shape[2:], kernel_size, stride, dilation, strict=True):
        zeros = max((kernel - 1) * apart + 1 - (side % step or step), 0)
        padding = [zeros // 2, zeros - zeros // 2, *padding]
    return F.pad(x, padding)


def freeze_batch_norm(body: nn.Module, images: Tensor) -> None:
    """Replace, in place, each batch normalisation in `body` by a frozen one, folded wherever a convolution feeds it.

    `images` [N, 3, H, W] is an example input: what feeds what is seen by running it. Where folding would change the
    result, as when something else reads the convolution too, nothing is folded.
    """
    for parent in list(body.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d | FrozenBatchNorm2d):
                setattr(parent, name, FrozenBatchNorm(child))
    pairs = _fed_by_convolution(body, images)
    owner = {child: (parent, name) for parent in body.modules() for name, child in parent.named_children()}
    expected = _with_random_norms(body, images)
    for conv, norm in pairs:
        setattr(*owner[conv], FoldedConv(conv, norm))
    result = _with_random_norms(body, images)
    if not all(torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in zip(expected, result, strict=True)):
        for conv, norm in pairs:
            setattr(*owner[conv], conv)
            norm.folded = False


def _fed_by_convolution(body: nn.Module, images: Tensor) -> list[tuple[nn.Conv2d, FrozenBatchNorm]]:
    """The pairs of modules of which the second is given the very tensor that the first returned."""
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # the tensor is kept, so that its id is not used again
    pairs: list[tuple[nn.Conv2d, FrozenBatchNorm]] = []

    def note(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d) and type(module) in (nn.Conv2d, Conv2dSame) and module.padding_mode == "zeros":
            made[id(output)] = (module, output)
        elif isinstance(module, FrozenBatchNorm) and id(args[0]) in made:
            pairs.append((made[id(args[0])][0], module))

    hooks = [m.register_forward_hook(note) for m in body.modules() if isinstance(m, nn.Conv2d | FrozenBatchNorm)]
    with torch.no_grad():
        body(images)
    for hook in hooks:
        hook.remove()
    return pairs


@torch.no_grad()
def _with_random_norms(body: nn.Module, images: Tensor) -> list[Tensor]:
    """The outputs of `body` under random norms, the same in each call: fresh norms do nothing and would not tell."""
    kept = {name: buffer.clone() for name, buffer in body.named_buffers()}
    generator = torch.Generator().manual_seed(0)
    for norm in body.modules():
        if isinstance(norm, FrozenBatchNorm):
            norm.weight.copy_(torch.rand(norm.weight.shape, generator=generator) + 0.5)
            norm.bias.copy_(torch.rand(norm.bias.shape, generator=generator) - 0.5)
    outputs = [output.clone() for output in body(images)]
    for name, buffer in body.named_buffers():
        buffer.copy_(kept[name])
    return outputs
