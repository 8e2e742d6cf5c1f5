"""Convolutions with what always follows them, and one made of several."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ConvReLU", "LargeSeparable"]


class ConvReLU(nn.Conv2d):
    """``relu(conv(x))``, with the names of a convolution."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, out, H', W'] from x [N, in, H, W]."""
        return F.relu(super().forward(x), inplace=True)


class LargeSeparable(nn.Module):
    """A convolution of size x size cells made of thin ones: a column of cells and then a row, plus a row and then a
    column, each with `hidden` channels between the two, and a ReLU (Li et al. 2017, Light-Head R-CNN, section 3.2: 15
    cells, 256 channels).

    All four start as N(0, 0.01), their biases at 0, as in the released code. Raises ValueError for an even size.
    """

    def __init__(self, in_channels: int, channels: int, hidden: int = 256, size: int = 15) -> None:
        super().__init__()
        if size < 1 or size % 2 == 0:
            raise ValueError(f"size: expected an odd number of cells, got {size}")
        column, row = ((size, 1), (size // 2, 0)), ((1, size), (0, size // 2))  # cells, padding
        self.column_row, self.row_column = (
            nn.Sequential(
                nn.Conv2d(in_channels, hidden, first[0], padding=first[1]),
                nn.Conv2d(hidden, channels, second[0], padding=second[1]),
            )
            for first, second in ((column, row), (row, column))
        )
        for layer in (*self.column_row, *self.row_column):
            assert isinstance(layer, nn.Conv2d) and layer.bias is not None
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] from x [N, in_channels, H, W]."""
        return F.relu(self.column_row(x) + self.row_column(x))
