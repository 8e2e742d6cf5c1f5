"""The offsets that the deformable convolutions of a network find in images, and where its filters read by them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn

from regio.deformable_conv import DeformableConv2d
from regio.detector import TwoStageDetector
from regio.preprocess import ImageBatch
from regio.types import FeatureMap

__all__ = [
    "LayerOffsets",
    "deformable_backbone",
    "offsets_in_backbone",
    "recorded_offsets",
    "stacked_layers",
    "stacked_sampling_points",
]


@dataclass(frozen=True)
class LayerOffsets:
    """The offsets of one deformable convolution for a batch.

    name: that of the layer in its network. offsets: [N, G * kh * kw * 2, H, W] in cells of the layer's input map, by
    offset group, then tap (row-major), then (y, x), at each cell of its output map. input_size: (rows, columns) of the
    input map. kernel_size, stride, padding, dilation: (height, width) of the convolution. output_stride: pixels of the
    batch per cell of the output map; None where it is not known.
    """

    name: str
    offsets: Tensor
    input_size: tuple[int, int]
    kernel_size: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    output_stride: float | None = None

    @property
    def output_size(self) -> tuple[int, int]:
        """(rows, columns) of the output map."""
        return self.offsets.shape[2], self.offsets.shape[3]

    @property
    def groups(self) -> int:
        """Offset groups."""
        return self.offsets.shape[1] // (2 * prod(self.kernel_size))

    @property
    def lengths(self) -> Tensor:
        """The mean length [N, H, W] of the offsets of each filter's taps, in cells of the input map."""
        return self.offsets.unflatten(1, (-1, 2)).square().sum(2).sqrt().mean(1)

    def samples(self, cells: Tensor, group: int = 0) -> Tensor:
        """Where the filters at `cells` [P, 2] int64 (row, column) of the output map read: [P, kh * kw, 2] as (row,
        column) in cells of the input map, for the channels of one offset group. Of the first image of the batch."""
        steps = zip(self.kernel_size, self.dilation, self.padding, strict=True)
        rows, columns = (torch.arange(k, dtype=torch.float64) * d - p for k, d, p in steps)
        own = self.offsets[0].unflatten(0, (self.groups, -1, 2))[group].cpu().double()  # [kh * kw, 2, H, W]
        offset = own[:, :, cells[:, 0], cells[:, 1]].permute(2, 0, 1)
        return cells[:, None] * torch.tensor(self.stride) + torch.cartesian_prod(rows, columns) + offset


def deformable_backbone(detector: TwoStageDetector) -> bool:
    """Whether there is a deformable convolution in the backbone of `detector`."""
    return any(isinstance(module, DeformableConv2d) for module in detector.backbone.modules())


@contextmanager
def recorded_offsets(network: nn.Module) -> Iterator[list[LayerOffsets]]:
    """Within, each run of a `DeformableConv2d` of `network` adds its offsets to the list, in the order of execution.

    They are kept without gradients, in float32 unless they are float64.
    """
    found: list[LayerOffsets] = []
    handles = []
    for name, layer in network.named_modules():
        if isinstance(layer, DeformableConv2d):
            recorder = _Recorder(name, layer, found)
            handles.append(layer.register_forward_pre_hook(recorder.begins))
            handles.append(layer.offset.register_forward_hook(recorder.has_offsets))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


class _Recorder:
    """Of one layer. What it reads is padded first, by some layers, so that more of it comes to the convolution that
    finds the offsets: as much at both ends, or one cell more at the second."""

    def __init__(self, name: str, layer: DeformableConv2d, found: list[LayerOffsets]) -> None:
        self.name, self.layer, self.found = name, layer, found
        self.size = 0, 0

    def begins(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.size = inputs[0].shape[2], inputs[0].shape[3]

    def has_offsets(self, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        layer = self.layer
        kernel = layer.weight.shape[2], layer.weight.shape[3]
        offsets = output.detach()[:, : 2 * layer.offset_groups * prod(kernel)]  # behind them there may be factors
        offsets = offsets if offsets.dtype == torch.float64 else offsets.float()
        rows, columns = (
            own + (padded - size) // 2
            for own, padded, size in zip(layer.padding, inputs[0].shape[2:], self.size, strict=True)
        )
        self.found.append(
            LayerOffsets(self.name, offsets, self.size, kernel, layer.stride, (rows, columns), layer.dilation)
        )


@torch.no_grad()
def offsets_in_backbone(
    detector: TwoStageDetector, images: Sequence[Tensor]
) -> tuple[ImageBatch, list[FeatureMap], list[LayerOffsets]]:
    """`detector.features` of `images`, and the offsets of the deformable convolutions in its backbone with their
    strides, in the order of execution; none where there is no such layer.

    The stride of a layer's output is that of the backbone's map of its size. A layer whose output is of no such size
    passes it on to the next deformable one, whose input it then is. Raises ValueError naming the layer where its stride
    is not known so.
    """
    maps: list[FeatureMap] = []
    handle = detector.backbone.register_forward_hook(lambda _, __, output: maps.extend(output))
    try:
        with recorded_offsets(detector.backbone) as layers:
            batch, features = detector.features(images)
    finally:
        handle.remove()
    return batch, features, _with_strides(layers, maps)


def _with_strides(layers: Sequence[LayerOffsets], maps: Sequence[FeatureMap]) -> list[LayerOffsets]:
    strides: dict[tuple[int, int], float] = {x.size: float(x.stride) for x in maps}
    found: list[LayerOffsets] = []
    for layer in reversed(layers):
        if layer.output_size not in strides:
            height, width = layer.output_size
            raise ValueError(
                f"{layer.name}: expected an output of the size of a map of the backbone, {sorted(strides)}, or of the "
                f"input of the next deformable layer, got {height} x {width}"
            )
        stride = strides[layer.output_size]
        strides.setdefault(layer.input_size, stride / layer.stride[0])
        found.append(replace(layer, output_stride=stride))
    return found[::-1]


def stacked_layers(layers: Sequence[LayerOffsets], most: int = 3) -> list[LayerOffsets]:
    """The last of `layers`, in the order of execution, at most so many, each of which reads a map of the size of the
    output of the one before it."""
    found = list(layers[-1:])
    for below in reversed(layers[:-1]):
        if len(found) == most or below.output_size != found[0].input_size:
            break
        found.insert(0, below)
    return found


def stacked_sampling_points(
    layers: Sequence[LayerOffsets], location: tuple[int, int], stride: float, *, group: int = 0
) -> Tensor:
    """Where a filter of the last of `layers` reads the input map of the first, [P, 2] as (x, y) in pixels (Dai et al.
    2017, figures 5 and 6): each tap of the filter is followed down to a filter of the layer below, with taps of its
    own. Three layers of 3 x 3 give 9^3 = 729 points.

    layers: in the order of execution, each reading a map of the size of the output of the one before it; of the first
    image of a batch. What is between them is taken to read cell by cell, as the norms and 1 x 1 convolutions of a
    residual block do. location: (row, column) of the filter in the last layer's output map. stride: pixels per cell of
    the first layer's input map, the centre of whose cell i is at (i + 0.5) * stride. group: the offset group that is
    followed, in each layer.

    A tap between cells reads up to four filters of the layer below; the nearest one is followed, as in the code
    released with the paper. One that reads nothing, as it is a cell or more beside the map, is left out.

    Raises ValueError for no layers, for layers that do not fit on each other, and for a location that is not on the map
    or a group that a layer does not have.
    """
    if not layers:
        raise ValueError("layers: expected at least one, got none")
    for below, layer in pairwise(layers):
        if below.output_size != layer.input_size:
            raise ValueError(
                f"layers: expected {layer.name}, which reads a map of {layer.input_size}, behind a layer that gives "
                f"it, got {below.name}, which gives {below.output_size}"
            )
    for layer in layers:
        if not 0 <= group < layer.groups:
            raise ValueError(f"group: expected 0 .. {layer.groups - 1}, those of {layer.name}, got {group}")
    height, width = layers[-1].output_size
    if not (0 <= location[0] < height and 0 <= location[1] < width):
        raise ValueError(f"location: expected (row, column) on a map of {height} x {width}, got {location}")
    cells = torch.tensor([location])
    points = cells.double()
    for layer in reversed(layers):
        size = torch.tensor(layer.input_size)
        points = layer.samples(cells, group).flatten(0, 1)
        points = points[((points > -1) & (points < size)).all(1)]
        cells = (points + 0.5).floor().long().clamp(min=torch.zeros(2, dtype=torch.int64), max=size - 1)
    return (points.flip(1) + 0.5) * stride
