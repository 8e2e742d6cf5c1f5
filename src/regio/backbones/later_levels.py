"""The rest of a backbone, where the maps of its first levels are kept."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from regio.backbones.base import Backbone
from regio.backbones.chain import Chain, Level
from regio.types import FeatureMap

__all__ = ["LaterLevels"]


class LaterLevels(nn.Module):
    """`backbone` where the maps of `kept`, the backbone of its first levels (`Backbone.up_to`) or it itself, are there
    already: they are its input, and it runs the layers after the last of them. Its output, its modules and so its state
    dict are those of `backbone`."""

    later: Chain | None

    def __init__(self, backbone: Backbone, kept: Backbone) -> None:
        super().__init__()
        self.levels, self.channels, self.strides = backbone.levels, backbone.channels, backbone.strides
        self.mean, self.std = backbone.mean, backbone.std
        self.kept = [Level(*each) for each in zip(kept.levels, kept.channels, kept.strides, strict=True)]
        self.body = backbone.body
        # Not a child: it has the same layers as the body.
        self.__dict__["later"] = None if kept is backbone else backbone.after(kept.levels[-1])

    def forward(self, maps: Sequence[FeatureMap]) -> tuple[FeatureMap, ...]:
        """All maps, finest first, from the kept ones."""
        known = {level.level: x for level, x in zip(self.kept, maps, strict=True)}
        if self.later is not None:
            later = [
                (level, stride) for level, stride in zip(self.levels, self.strides, strict=True) if level not in known
            ]
            for (level, stride), x in zip(later, self.later(maps[-1].data), strict=True):
                known[level] = FeatureMap(x, stride)
        return tuple(known[level] for level in self.levels)
