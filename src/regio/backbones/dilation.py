"""Fixed dilation in any backbone: what deformable convolution is compared with (Dai et al. 2017, table 3)."""

from __future__ import annotations

from torch import nn

from regio.backbones.base import Backbone
from regio.backbones.spatial_convolutions import last_convolutions, pads_like_tensorflow, spatial_convolutions

__all__ = ["with_dilation"]


def with_dilation(backbone: Backbone, layers: int = 3, *, dilation: int) -> Backbone:
    """`backbone` itself, with the taps of its last `layers` convolutions larger than 1 x 1 `dilation` cells apart.

    They are counted as by `with_deformable`; 3 are those of res5 in a ResNet, whose dilation the paper sets to 4, 6 and
    8 where its default is 2. Weights, strides and the sizes of maps stay what they were.

    Raises ValueError where there are too few convolutions, for a `dilation` below 1, and for a convolution whose
    kernel is not odd or not centred on its cell by zeros.
    """
    if dilation < 1:
        raise ValueError(f"dilation: expected a positive number of cells, got {dilation}")
    chosen = last_convolutions(spatial_convolutions(backbone), layers)
    for name, conv in chosen.items():
        if not _stays_in_size(conv):
            raise ValueError(
                "layers: expected convolutions of odd kernels, padded with zeros so that the middle tap is on its "
                f"cell, got {name} with kernel {conv.kernel_size} and padding {conv.padding} of {conv.padding_mode}"
            )
    for conv in chosen.values():
        conv.dilation = (dilation, dilation)
        if not pads_like_tensorflow(conv):
            conv.padding = _centred(conv)
    return backbone


def _stays_in_size(conv: nn.Conv2d) -> bool:
    return pads_like_tensorflow(conv) or (
        conv.padding_mode == "zeros" and all(side % 2 for side in conv.kernel_size) and conv.padding == _centred(conv)
    )


def _centred(conv: nn.Conv2d) -> tuple[int, ...]:
    return tuple(apart * (side - 1) // 2 for side, apart in zip(conv.kernel_size, conv.dilation, strict=True))
