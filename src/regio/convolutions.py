"""Convolutions with what always follows them."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ConvReLU"]


class ConvReLU(nn.Conv2d):
    """``relu(conv(x))``, with the names of a convolution."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, out, H', W'] from x [N, in, H, W]."""
        return F.relu(super().forward(x), inplace=True)
