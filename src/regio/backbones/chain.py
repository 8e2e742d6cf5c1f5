"""A chain of stages: the body of most backbones, which can be taken apart at a level."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from timm.models import FeatureListNet
from timm.models.efficientnet import EfficientNetFeatures
from torch import Tensor, nn

__all__ = ["Chain", "Level"]


class Level(NamedTuple):
    """A map of a backbone: `level` 4 is C4. `stride` is 2 ** level unless the backbone is dilated."""

    level: int
    channels: int
    stride: int


class Chain(nn.Module):
    """Layers one after the other, by name, of which those in `ends` give the maps."""

    def __init__(self, layers: Mapping[str, nn.Module], ends: Sequence[str] = ()) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.ends = tuple(ends)

    @staticmethod
    def of_classifier(model: nn.Module) -> Chain:
        """The convolutional stages of a torchvision classifier."""
        stages, layers = model, dict[str, nn.Module]()
        for name in ("features", "layers"):
            if isinstance(getattr(model, name, None), nn.Sequential):
                stages = getattr(model, name)
        for name, child in stages.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d | nn.Linear | nn.Flatten):
                break
            layers |= dict(child.named_children()) if name == "trunk_output" else {name: child}
        return Chain(layers)

    @staticmethod
    def of(body: nn.Module) -> Chain | None:
        """The layers of the body of a backbone, or None where it is not a chain."""
        if isinstance(body, FeatureListNet):
            return Chain(dict(body.named_children()), list(body.return_layers))
        if isinstance(body, EfficientNetFeatures) and body.feature_hooks is None:
            blocks = {f"block_{i}": block for i, block in enumerate(body.blocks, 1)}
            ends = [f"block_{i}" if i else "bn1" for i in body._stage_out_idx]
            return Chain({"conv_stem": body.conv_stem, "bn1": body.bn1, **blocks}, ends)
        return body if isinstance(body, Chain) else None

    def part(self, ends: Sequence[str], after: str | None = None) -> Chain:
        """The layers up to the last of `ends`, from the one after `after` or the first on. They are those of this
        chain, not copies."""
        layers = [*self.named_children()]
        names = [name for name, _ in layers]
        start = 0 if after is None else names.index(after) + 1
        return Chain(dict(layers[start : names.index(ends[-1]) + 1]), ends)

    def forward(self, x: Tensor) -> list[Tensor]:
        """The outputs of the children in `ends`, in order."""
        outputs = []
        for name, child in self.named_children():
            x = child(x)
            if name in self.ends:
                outputs.append(x)
        return outputs

    def levels(self, name: str, last: int) -> dict[str, Level]:
        """The child that ends each level up to `last`, seen by running an image through the chain."""
        x = torch.empty(1, 3, 256, 256, device="meta")
        found: dict[int, tuple[str, Level]] = {}
        for child_name, child in self.named_children():
            try:
                x = child(x)
            except (RuntimeError, AssertionError, TypeError, ValueError):  # it does something else between its parts
                x = x.flatten()
            if x.ndim != 4 or x.shape[2] != x.shape[3]:
                raise ValueError(f"name: {name} is not a chain of convolutional stages; try timm_backbone")
            level = round(math.log2(256 / x.shape[2]))
            found[level] = (child_name, Level(level, x.shape[1], 2**level))
        return dict(found[level] for level in sorted(found) if level <= last)

    def cut(self, ends: dict[str, Level], output_stride: int) -> list[Level]:
        """Give the maps after the children `ends`, drop what comes after the last of them."""
        self.ends = tuple(ends)
        names = [name for name, _ in self.named_children()]
        for name in names[names.index(self.ends[-1]) + 1 :]:
            delattr(self, name)
        return [each._replace(stride=min(each.stride, output_stride)) for each in ends.values()]
