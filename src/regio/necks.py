"""Between backbone and proposals: maps of one width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor, nn
from torch.nn import functional as F

from regio.types import FeatureMap

__all__ = ["FPN", "Norm", "ReducedLast", "SingleMap"]

Norm = Callable[[int], nn.Module]
"""Makes a normalisation layer for so many channels, such as ``nn.BatchNorm2d`` or ``partial(nn.GroupNorm, 32)``."""


class SingleMap(nn.Module):
    """The last map of the backbone, brought to `channels` by a 1 x 1 convolution.

    `in_channels` is the width of that map. No non-linearity follows, so a region feature is linear in it. norm: what
    follows the convolution, which then has no bias.
    """

    def __init__(self, in_channels: int, channels: int = 256, norm: Norm | None = None) -> None:
        super().__init__()
        self.channels = channels
        self.reduce = _conv(in_channels, channels, 1, norm)

    def forward(self, maps: Sequence[FeatureMap]) -> tuple[FeatureMap]:
        """One map [N, channels, H, W] with the stride of the last of `maps`."""
        last = maps[-1]
        return (replace(last, data=self.reduce(last.data)),)


class ReducedLast(nn.Module):
    """The maps of the backbone, the last of them brought to `channels` by a 1 x 1 convolution and a ReLU: R-FCN's (Dai
    et al. 2016, section 2.2), whose proposals may read the map before it as it is.

    `in_channels` is the width of the last map. norm: between convolution and ReLU; the convolution then has no bias.
    rate: factor on the learning rate of these layers, 3 in the released code of deformable ConvNets.
    """

    def __init__(self, in_channels: int, channels: int = 1024, norm: Norm | None = None, *, rate: float = 1.0) -> None:
        super().__init__()
        self.channels = channels
        self.reduce = nn.Sequential(_conv(in_channels, channels, 1, norm), nn.ReLU(inplace=True))
        self.rate_factors = {"reduce": rate}

    def forward(self, maps: Sequence[FeatureMap]) -> tuple[FeatureMap, ...]:
        """As many maps as are given, of which the last is [N, channels, H, W] with the stride that it had."""
        *others, last = maps
        return (*others, replace(last, data=self.reduce(last.data)))


class FPN(nn.Module):
    """Feature pyramid network (Lin et al. 2017, section 3).

    Each map gets a 1 x 1 lateral convolution to `channels`; from the coarsest down, a map is scaled to the next finer
    one's size (nearest) and added to it; a 3 x 3 convolution on each sum gives the output. There is no non-linearity.
    `in_channels` are the widths of the backbone's maps, finest first; any run of levels will do. (P6, which only the
    proposals use, is made by `regio.proposals.RPN`.) norm: what follows each convolution, which then has no bias.
    """

    def __init__(self, in_channels: Sequence[int], channels: int = 256, norm: Norm | None = None) -> None:
        super().__init__()
        self.channels = channels
        self.lateral = nn.ModuleList([_conv(width, channels, 1, norm) for width in in_channels])
        self.output = nn.ModuleList([_conv(channels, channels, 3, norm) for _ in in_channels])

    def forward(self, maps: Sequence[FeatureMap]) -> tuple[FeatureMap, ...]:
        """Maps [N, channels, H_i, W_i] with the strides of `maps`, finest first.

        Raises ValueError when the number of maps is not that of `in_channels`.
        """
        if len(maps) != len(self.lateral):
            raise ValueError(f"maps: expected {len(self.lateral)}, got {len(maps)}")
        merged: list[Tensor] = []
        for lateral, fine in zip(reversed(self.lateral), reversed(maps), strict=True):
            merged.append(self.merge(lateral, fine.data, merged[-1]) if merged else lateral(fine.data))
        return tuple(
            replace(fine, data=output(each))
            for output, each, fine in zip(self.output, reversed(merged), maps, strict=True)
        )

    def merge(self, lateral: nn.Module, fine: Tensor, coarser: Tensor) -> Tensor:
        """The lateral convolution of a map, and the next coarser one, scaled to its size, added to it."""
        here = lateral(fine)
        return here + F.interpolate(coarser, size=here.shape[-2:], mode="nearest")


def _conv(in_channels: int, channels: int, size: int, norm: Norm | None) -> nn.Module:
    """A convolution whose output varies as much as its input at the start (Detectron's choice for these layers)."""
    layer = nn.Conv2d(in_channels, channels, size, padding=size // 2, bias=norm is None)
    nn.init.kaiming_uniform_(layer.weight, a=1)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer if norm is None else nn.Sequential(layer, norm(channels))
