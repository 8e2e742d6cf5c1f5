"""A segmentation network as one graph of tensors; see `regio.export.graph`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regio.export.graph import scaled_batch, scaled_sizes
from regio.preprocess import Preprocess
from regio.segmentation import SegmentationNetwork
from regio.types import IGNORED

__all__ = ["SegmentationGraph"]


class SegmentationGraph(nn.Module):
    """`forward` of a segmentation network on a padded batch of images of any sizes, in operations without Python
    numbers. outputs, free_axes: as those of `DetectorGraph`."""

    outputs = ("labels", "scores")
    free_axes = ("images", "height", "width")

    def __init__(self, network: SegmentationNetwork) -> None:
        super().__init__()
        self.network = network
        self.scales = type(network.preprocess) is Preprocess and not network.preprocess.antialias

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """The labels [N, H, W] int64 of the pixels of the images, 255 beside them; and their probabilities [N, H, W],
        0 beside them. images, sizes: see `DetectorGraph.forward`."""
        network = self.network
        scaled = scaled_sizes(network.preprocess, sizes) if self.scales else sizes
        dtype = next(network.backbone.parameters()).dtype
        x = network.backbone(scaled_batch(network.preprocess, images, sizes, scaled, dtype))[-1]
        cells = network.classifier(network.hidden(x.data))
        rows, columns = (
            _hats(images.shape[2 + axis], sizes[:, axis], scaled[:, axis], x.stride, cells.shape[2 + axis], dtype)
            for axis in (0, 1)
        )
        pixels = rows[:, None] @ (cells @ columns[:, None].mT)
        highest, labels = pixels.max(1)
        scores = (highest - pixels.logsumexp(1)).exp()
        inside = _inside(images.shape[2], sizes[:, 0])[:, :, None] & _inside(images.shape[3], sizes[:, 1])[:, None]
        return labels.where(inside, IGNORED), scores.where(inside, 0)


def _hats(pixels: int, size: Tensor, scaled: Tensor, stride: float, cells: int, dtype: torch.dtype) -> Tensor:
    """The weights [N, pixels, cells] of the cells of one axis at the centres of pixels of sides `size` [N], which are
    `scaled` [N] in the batch; see `regio.segmentation.bilinear_at`."""
    step = scaled.to(dtype) / size.to(dtype) / stride
    at = (torch.arange(pixels, device=size.device).to(dtype) + 0.5) * step[:, None] - 0.5
    last = (scaled.to(dtype) / stride).ceil().clamp(max=cells) - 1
    inside = torch.minimum(at.clamp(min=0), last[:, None])
    return (1 - (inside[:, :, None] - torch.arange(cells, device=size.device).to(dtype)).abs()).clamp(min=0)


def _inside(pixels: int, size: Tensor) -> Tensor:
    """Which of the pixels [N, pixels] of one axis are in the images."""
    return torch.arange(pixels, device=size.device) < size[:, None]
