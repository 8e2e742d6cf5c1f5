"""Deformable convolution as a layer that learns its own offsets."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from regio.ops.convolution import deform_conv2d
from regio.ops.rois import pair

__all__ = ["DeformableConv2d"]


class DeformableConv2d(nn.Module):
    """A convolution whose taps move by offsets that another convolution reads off the same input (Dai et al. 2017,
    section 2.1); with `modulated`, each tap also gets a factor in (0, 1) (Zhu et al. 2019, section 3.2).

        y(p) = sum over taps n of  w_n  m_n(p)  x(p + p_n + offset_n(p)),  x zero outside the map

    Arguments as of `nn.Conv2d`; offset_groups: the input channels are divided into so many groups with offsets (and
    factors) of their own. The input is [N, in_channels, H, W], the output [N, out_channels, H_out, W_out].

    `offset` is the convolution for the offsets: 2 channels (y, x) for each offset group and tap and then, if modulated,
    1 channel for each, the logit of its factor. It begins at zero. So a new layer equals the convolution with its
    weight and bias; modulated, that with half its weight, as every factor begins at 1/2. In the papers it learns at the
    rate of the layer or a tenth of it; `offset_parameters` gives its parameters to an optimiser group of their own.

    weight and bias have the names, shapes and initial values of `nn.Conv2d`, so the weights of one load into this with
    ``strict=False``. Under autocast the layer runs in the autocast dtype, as a convolution does.

    Raises ValueError where the channels do not divide into groups; `forward` as `regio.ops.deform_conv2d`.
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
        taps = offset_groups * self.weight.shape[2] * self.weight.shape[3]
        self.offset = nn.Conv2d(in_channels, (3 if modulated else 2) * taps, kernel_size, stride, padding, dilation)
        for parameter in self.offset.parameters():
            nn.init.zeros_(parameter)

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
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        offset, mask = self.offset(x), None
        if self.modulated:
            taps = offset.shape[1] // 3
            offset, mask = offset[:, : 2 * taps], offset[:, 2 * taps :].sigmoid()
        return deform_conv2d(x, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask)
