"""Deformable convolution as a layer that learns its own offsets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

import torch
from torch import Tensor, nn

from regio.frozen_norm import pad_same
from regio.ops.convolution import deform_conv2d
from regio.ops.rois import pair

__all__ = ["DeformableConv2d", "DeformableConv2dSame", "moves"]


class DeformableConv2d(nn.Module):
    """A convolution whose taps move by offsets that another convolution reads off the same input (Dai et al. 2017,
    section 2.1); with `modulated`, each tap also gets a factor in (0, 2) (Zhu et al. 2019, section 3.2).

        y(p) = sum over taps n of  w_n  m_n(p)  x(p + p_n + offset_n(p)),  x zero outside the map

    Arguments as of `nn.Conv2d`; offset_groups: the input channels are divided into so many groups with offsets (and
    factors) of their own. The input is [N, in_channels, H, W], the output [N, out_channels, H_out, W_out].

    `offset` is the convolution for the offsets: 2 channels (y, x) for each offset group and tap and then, if modulated,
    1 channel for each, the logit of its factor, which is twice the sigmoid of it. It begins at zero, where every factor
    is 1: a new layer equals the convolution with its weight and bias. (In the paper the factor is the sigmoid itself
    and begins at 1/2. That is the same layer with twice the weight, but no trained convolution to begin from.)

    It learns at `offset_rate` times the rate of the others, None for that of the papers: 1, modulated 0.1. That is
    `rate_factors`, which the optimizers of `regio.optimisation` read; for another optimizer `offset_parameters` are a
    group of their own. The papers train by SGD. An optimizer whose steps do not shrink with the gradient, Adam's for
    one, moves the offsets of a filter that reads thousands of numbers by cells at each step, unless its rate is less.

    weight and bias have the names, shapes and initial values of `nn.Conv2d`, so the weights of one load into this with
    ``strict=False``. Under autocast the layer runs in the autocast dtype, as a convolution does.

    Raises ValueError where the channels do not divide into groups, and for a rate that is not positive; `forward` as
    `regio.ops.deform_conv2d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        offset_groups: int = 1,
        bias: bool = True,
        modulated: bool = False,
        offset_rate: float | None = None,
    ) -> None:
        super().__init__()
        if offset_groups < 1 or in_channels % offset_groups:
            raise ValueError(f"offset_groups: expected a divisor of {in_channels} input channels, got {offset_groups}")
        plain = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        self.weight, self.bias = plain.weight, plain.bias
        self.stride, self.padding, self.dilation = (
            pair("stride", stride),
            pair("padding", padding, 0),
            pair("dilation", dilation),
        )
        self.groups, self.offset_groups, self.modulated = groups, offset_groups, modulated
        rate = (0.1 if modulated else 1.0) if offset_rate is None else offset_rate
        if rate <= 0:
            raise ValueError(f"offset_rate: expected a positive factor, got {rate}")
        self.rate_factors = {"offset": rate}  # see `regio.optimisation.rate_groups`
        taps = offset_groups * self.weight.shape[2] * self.weight.shape[3]
        self.offset = nn.Conv2d(in_channels, (3 if modulated else 2) * taps, kernel_size, stride, padding, dilation)
        for parameter in self.offset.parameters():
            nn.init.zeros_(parameter)

    @classmethod
    def in_place_of(
        cls, conv: nn.Conv2d, *, offset_groups: int = 1, modulated: bool = False, offset_rate: float | None = None
    ) -> Self:
        """One that gives what `conv` gives, until it learns: its weight and bias are those of `conv`, not copies. No
        random numbers are drawn."""
        with torch.device("meta"):
            made = cls(
                conv.in_channels,
                conv.out_channels,
                conv.kernel_size,  # type: ignore[arg-type]
                conv.stride,  # type: ignore[arg-type]
                conv.padding,  # type: ignore[arg-type]
                conv.dilation,  # type: ignore[arg-type]
                conv.groups,
                offset_groups,
                conv.bias is not None,
                modulated,
                offset_rate,
            )
        made.weight, made.bias = conv.weight, conv.bias
        made.offset = made.offset.to_empty(device=conv.weight.device).to(conv.weight.dtype)
        for parameter in made.offset.parameters():
            nn.init.zeros_(parameter)
        return made

    def extra_repr(self) -> str:
        outputs, in_group, *kernel = self.weight.shape
        text = f"{in_group * self.groups}, {outputs}, kernel_size={tuple(kernel)}, stride={self.stride}, "
        text += f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, "
        return text + f"offset_groups={self.offset_groups}, bias={self.bias is not None}, modulated={self.modulated}"

    def offset_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that the offsets (and factors) come from: those a learning-rate factor concerns."""
        return self.offset.parameters()

    @torch.no_grad()
    def zero_offsets(self) -> None:
        """Set the parameters that the offsets come from to zero, as in a new layer: the taps are back on their grid.
        Those of the factors stay."""
        offsets = 2 * self.offset_groups * self.weight.shape[2] * self.weight.shape[3]
        for parameter in self.offset.parameters():
            parameter[:offsets] = 0

    def forward(self, x: Tensor) -> Tensor:
        """The convolved map [N, out_channels, H_out, W_out]."""
        device = x.device.type
        if not x.is_meta and torch.is_autocast_enabled(device):  # the meta device has none
            x = x.to(torch.get_autocast_dtype(device))
        offset, mask = moves(self.offset(x), self.modulated)
        return deform_conv2d(x, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask)


def moves(channels: Tensor, modulated: bool) -> tuple[Tensor, Tensor | None]:
    """The offsets of a `DeformableConv2d`, and its factors or None, from what its convolution for them gives."""
    if not modulated:
        return channels, None
    taps = channels.shape[1] // 3
    return channels[:, : 2 * taps], 2 * channels[:, 2 * taps :].sigmoid()


class DeformableConv2dSame(DeformableConv2d):
    """One that pads as TensorFlow does, as much as its input lacks, more at the ends: a `Conv2dSame` of timm that is
    deformable."""

    def forward(self, x: Tensor) -> Tensor:
        """The convolved map [N, out_channels, ceil(H / stride), ceil(W / stride)]."""
        return super().forward(pad_same(x, self.weight.shape[2:], self.stride, self.dilation))
