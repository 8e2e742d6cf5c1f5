"""What the networks that look at each anchor share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from regio.boxes import BoxCoder
from regio.convolutions import ConvReLU
from regio.matching import IGNORED, Matcher, Sampler
from regio.proposals.anchors import Anchors
from regio.types import FeatureMap, Targets

__all__ = ["AnchorNetwork"]


class AnchorNetwork(nn.Module):
    """A 3 x 3 convolution over each map, `conv`, whose output the layers of a subclass read: 1 x 1 convolutions with
    some outputs for each anchor. All maps share the layers.

    channels: of the maps. hidden: of the convolution, of which there are `layers`; None for `channels`. extra_level:
    look at one more map, every second cell of the last one (P6 of FPN, section 4.1). level: look at ``maps[level]``
    alone. matcher, sampler: which anchors stand for objects and which enter the mini-batch. coder: how a box is
    written. straddle_threshold: by how many pixels an anchor may leave the image and be trained on, None for any. beta,
    box_weight: of the box loss.
    """

    def __init__(
        self,
        channels: int,
        anchors: Anchors,
        *,
        hidden: int,
        layers: int,
        extra_level: bool,
        level: int | None = None,
        matcher: Matcher,
        sampler: Sampler,
        coder: BoxCoder,
        straddle_threshold: float | None,
        beta: float,
        box_weight: float,
    ) -> None:
        super().__init__()
        self.anchors, self.extra_level, self.level = anchors, extra_level, level
        self.matcher, self.sampler, self.coder = matcher, sampler, coder
        self.straddle_threshold, self.beta, self.box_weight = straddle_threshold, beta, box_weight
        made = [ConvReLU(channels if i == 0 else hidden, hidden, 3, padding=1) for i in range(layers)]
        self.conv = made[0] if layers == 1 else nn.Sequential(*made)

    def initialise(self) -> None:
        """Start all layers as N(0, 0.01), their biases at 0."""
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def levels(self, maps: Sequence[FeatureMap]) -> Sequence[FeatureMap]:
        """The maps that are looked at: `maps`, or the one of them that `level` names, and the extra level."""
        maps = maps if self.level is None else [maps[self.level]]
        if not self.extra_level:
            return maps
        last = maps[-1]
        return (*maps, replace(last, data=last.data[:, :, ::2, ::2], stride=last.stride * 2))

    def outputs(self, maps: Sequence[FeatureMap], *layers: nn.Module) -> list[list[Tensor]]:
        """What each of `layers` gives for the anchors of each map, [N, H * W * A, outputs of an anchor], in the order
        of the anchors and in float32 at least: scores and boxes have no half precision."""
        found: list[list[Tensor]] = [[] for _ in layers]
        for x in maps:
            hidden = self.conv(x.data)
            for layer, rows in zip(layers, found, strict=True):
                y: Tensor = layer(hidden)
                width = y.shape[1] // self.anchors.per_cell
                y = y.permute(0, 2, 3, 1).reshape(y.shape[0], -1, width)
                rows.append(y.to(torch.promote_types(y.dtype, torch.float32)))
        return found

    def match(self, anchors: Tensor, size: tuple[int, int], target: Targets) -> Tensor:
        """For each of the anchors [R, 4] of an image of `size`, the index [R] of its object, see `Matcher`; those that
        take no part are IGNORED."""
        if self.straddle_threshold is None:
            return self.matcher(anchors, target)
        # The best anchor of an object is sought among those that take part.
        inside = _inside(anchors, size, self.straddle_threshold).nonzero()[:, 0]
        match = torch.full_like(anchors[:, 0], IGNORED, dtype=torch.int64)
        match[inside] = self.matcher(anchors[inside], target)
        return match


def _inside(anchors: Tensor, size: tuple[int, int], margin: float) -> Tensor:
    height, width = size
    low = (anchors[:, :2] >= -margin).all(1)
    return low & (anchors[:, 2] <= width + margin) & (anchors[:, 3] <= height + margin)
