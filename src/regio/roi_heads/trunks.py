"""Trunks of heads: from region features to one vector a region."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regio.necks import Norm

__all__ = ["ConvolutionsAndLinear", "FullyConnected", "LayeredTrunk", "StageAverage", "WholeNetwork"]


class LayeredTrunk(nn.Module, ABC):
    """A trunk whose layers can be read: the last of them is what `forward` gives."""

    @abstractmethod
    def layers(self, y: Tensor) -> dict[str, Tensor]:
        """What each layer gives, by name, [R, width], for region features [R, C, *bins]."""

    @property
    @abstractmethod
    def widths(self) -> dict[str, int]:
        """The width of each of these layers."""


class FullyConnected(LayeredTrunk):
    """Two fully connected layers with ReLU, `fc6` and `fc7` (Fast R-CNN, section 2.1; FPN, section 4.2).

    channels, bins: those of the region features. hidden: width of both layers. dropout: share of the outputs of each
    layer that are set to zero in training mode, 0.5 in AlexNet and VGG, whose layers these are in R-CNN, SPPnet and
    Fast R-CNN. `channels`, `bins` and `width` are attributes. Raises ValueError unless dropout is in [0, 1).
    """

    def __init__(self, channels: int, bins: tuple[int, int], hidden: int = 1024, *, dropout: float = 0.0) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout: expected a share in [0, 1), got {dropout}")
        self.channels, self.bins, self.width = channels, bins, hidden
        self.fc6 = nn.Linear(channels * bins[0] * bins[1], hidden)
        self.fc7 = nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, y: Tensor) -> Tensor:
        """[R, hidden] from region features [R, channels, *bins]."""
        return self.layers(y)["fc7"]

    def layers(self, y: Tensor) -> dict[str, Tensor]:
        """What each layer gives for region features [R, channels, *bins], the last of it what `forward` returns.

        "pool5": the region features [R, channels * bins[0] * bins[1]] themselves. "fc6", "fc7": [R, hidden], after the
        ReLU (R-CNN, section 3.2).
        """
        pool5 = y.flatten(1)
        fc6 = self.dropout(F.relu(self.fc6(pool5)))
        fc7 = self.dropout(F.relu(self.fc7(fc6)))
        return {"pool5": pool5, "fc6": fc6, "fc7": fc7}

    @property
    def widths(self) -> dict[str, int]:
        """Those of `layers`."""
        return {"pool5": self.channels * self.bins[0] * self.bins[1], "fc6": self.width, "fc7": self.width}


class WholeNetwork(LayeredTrunk):
    """A whole network on crops of the image: R-CNN's trunk (Girshick et al. 2014, section 2.1).

    backbone: its convolutions, of whose maps the last is taken; the largest cell of each of ``fully_connected.bins``
    equal parts of it goes on. That is the last pooling of AlexNet (13 x 13 cells to 6 x 6, crops of 227 pixels) and of
    VGG (14 x 14 to 7 x 7). fully_connected: fc6 and fc7.
    """

    def __init__(self, backbone: nn.Module, fully_connected: FullyConnected) -> None:
        super().__init__()
        self.backbone, self.fully_connected = backbone, fully_connected
        self.pool = nn.AdaptiveMaxPool2d(fully_connected.bins)

    def forward(self, y: Tensor) -> Tensor:
        """fc7 [R, width] of crops y [R, 3, H, W], normalised as the backbone wants."""
        return self.layers(y)["fc7"]

    def layers(self, y: Tensor) -> dict[str, Tensor]:
        """ "pool5", "fc6" and "fc7" of crops y [R, 3, H, W]."""
        y = y.contiguous(memory_format=torch.channels_last)
        return self.fully_connected.layers(self.pool(self.backbone(y)[-1].data))

    @property
    def widths(self) -> dict[str, int]:
        """Those of `layers`."""
        return self.fully_connected.widths


class ConvolutionsAndLinear(nn.Module):
    """`layers` 3 x 3 convolutions of the width of the maps, each with a norm and a ReLU, then one fully connected layer
    `fc` with a ReLU (Wu and He 2018, Group normalization, section 4.2: the head of four convolutions).

    channels, bins: those of the region features. hidden: width of the last layer. norm: None for none; then
    convolutions have a bias.
    """

    def __init__(
        self, channels: int, bins: tuple[int, int], hidden: int = 1024, layers: int = 4, norm: Norm | None = None
    ) -> None:
        super().__init__()
        made: list[nn.Module] = []
        for _ in range(layers):
            made.append(nn.Conv2d(channels, channels, 3, padding=1, bias=norm is None))
            made += [nn.ReLU(inplace=True)] if norm is None else [norm(channels), nn.ReLU(inplace=True)]
        self.convolutions = nn.Sequential(*made)
        self.fc = nn.Linear(channels * bins[0] * bins[1], hidden)
        for layer in self.convolutions:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, y: Tensor) -> Tensor:
        """[R, hidden] from region features [R, channels, *bins]."""
        return F.relu(self.fc(self.convolutions(y).flatten(1)))


class StageAverage(nn.Sequential):
    """A stage of a backbone, then the mean over its cells (He et al. 2016, section 3): from region features
    [R, channels, B, B] to [R, width], where `width` is that of the stage's outputs. With the fifth stage of a ResNet it
    is the head of C4 detectors."""

    def __init__(self, stage: nn.Module) -> None:
        super().__init__(stage, nn.AdaptiveAvgPool2d(1), nn.Flatten())
