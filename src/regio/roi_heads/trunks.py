"""Trunks of heads: from region features to one vector a region."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["FullyConnected"]


class FullyConnected(nn.Module):
    """Two fully connected layers with ReLU, `fc6` and `fc7` (Fast R-CNN, section 2.1; FPN, section 4.2).

    channels, bins: those of the region features. hidden: width of both layers.
    """

    def __init__(self, channels: int, bins: tuple[int, int], hidden: int = 1024) -> None:
        super().__init__()
        self.fc6 = nn.Linear(channels * bins[0] * bins[1], hidden)
        self.fc7 = nn.Linear(hidden, hidden)

    def forward(self, y: Tensor) -> Tensor:
        """[R, hidden] from region features [R, channels, *bins]."""
        return F.relu(self.fc7(F.relu(self.fc6(y.flatten(1)))))
