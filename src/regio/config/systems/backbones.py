"""Settings of the systems around a backbone, and backbones by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Literal

from regio.config.systems.base import System
from regio.settings import named, setting

if TYPE_CHECKING:
    from regio.backbones import Backbone
    from regio.roi_heads import FullyConnected

__all__ = ["BACKBONES", "OnBackbone", "SplitBackbone"]

BACKBONES = {
    "efficientnet_lite0": "efficientnet_lite0",
    "aligned_inception_resnet": "aligned_inception_resnet",
    "torchvision": "torchvision_backbone",
    "timm": "timm_backbone",
}
"""Functions of `regio.backbones` by the word before the colon: `efficientnet_lite0`, `aligned_inception_resnet`,
`torchvision:resnet50`, `timm:convnext_tiny`."""


@dataclass(frozen=True)
class OnBackbone(System):
    """Those of the systems that are put together around a backbone."""

    backbone: str = setting(
        "efficientnet_lite0",
        "efficientnet_lite0, aligned_inception_resnet, or one of other libraries as torchvision:NAME, timm:NAME",
    )
    backbone_weights: str | None = setting(
        None,
        "file of ImageNet weights, for a machine that cannot download them; none for random ones, which want frozen=0",
    )
    frozen: int = setting(2, "level of the backbone up to which weights are fixed; 0 for none", ge=0, le=5)
    dilation: int = setting(
        0,
        "cells between the taps of the last convolutions of the backbone larger than 1 x 1, 4 to 8 in the paper of "
        "deformable ones; 0: as they are",
        ge=0,
    )
    dilated_layers: int = setting(3, "number of these convolutions", ge=1)
    deformable_layers: int = setting(
        0, "last convolutions of the backbone larger than 1 x 1 that are deformable, 3 in the paper; 0 for none", ge=0
    )
    deformable_stages: tuple[int, ...] = setting(
        (), "levels of the backbone all of whose convolutions larger than 1 x 1 are deformable, in place of the last"
    )
    deformable_modulated: bool = setting(False, "whether their samples have factors too, as in the second paper")
    deformable_offset_groups: int = setting(1, "groups of their channels with offsets of their own", ge=1)
    deformable_offset_rate: float = setting(
        0.1,
        "factor on the learning rate of their offsets; with SGD 1 in the first paper, 0.1 in the second",
        gt=0,
    )
    short_side: int = setting(320, "of the scaled image, in pixels", ge=1)
    long_side: int = setting(480, "at most, of the scaled image, in pixels", ge=1)

    def make_backbone(self, levels: Sequence[int], output_stride: int, *, pretrained: bool) -> Backbone:
        """The backbone, which gives these levels. Raises ValueError for a `backbone` that names none."""
        from regio import backbones

        kind, _, variant = self.backbone.partition(":")
        make = getattr(backbones, named(BACKBONES, kind, "backbone"))
        of_a_library = "name" in signature(make).parameters
        if of_a_library != bool(variant):
            expected = f"{kind}:NAME, the name of a model of {kind}" if of_a_library else f"{kind} alone"
            raise ValueError(f"backbone: expected {expected}, got {self.backbone}")
        given = pretrained and self.backbone_weights != "none"
        try:
            made: Backbone = make(
                *([variant] if variant else []),
                levels=tuple(levels),
                output_stride=output_stride,
                pretrained=given,
                weights=self.backbone_weights if given else None,
                frozen=self.frozen,
            )
        except FileNotFoundError as error:
            raise FileNotFoundError(f"backbone_weights: {error}") from error
        return self.deformed(self.dilated(made))

    def dilated(self, backbone: Backbone) -> Backbone:
        """`backbone` with the fixed dilation of these settings. Raises ValueError where it cannot have it,
        and for a number of layers without a dilation."""
        if not self.dilation:
            if self.dilated_layers != OnBackbone.dilated_layers:
                raise ValueError("dilated_layers: expected a dilation with it, got none")
            return backbone
        from regio.backbones.dilation import with_dilation

        try:
            return with_dilation(backbone, self.dilated_layers, dilation=self.dilation)
        except ValueError as error:
            raise ValueError(f"dilated_{error}") from error

    def deformed(self, backbone: Backbone) -> Backbone:
        """`backbone` with the deformable convolutions of these settings. Raises ValueError where it cannot have them,
        and where there are none whose settings are not the default."""
        if not self.deformable_layers and not self.deformable_stages:
            for name in ("deformable_modulated", "deformable_offset_groups"):
                if getattr(self, name) != getattr(OnBackbone, name):
                    raise ValueError(f"{name}: expected deformable_layers or deformable_stages with it, got neither")
            return backbone
        if self.deformable_layers and self.deformable_stages:
            raise ValueError(
                f"deformable_layers: expected 0 where deformable_stages says which, got {self.deformable_layers}"
            )
        from regio.backbones.deformable import with_deformable

        try:
            return with_deformable(
                backbone,
                self.deformable_layers,
                stages=self.deformable_stages,
                modulated=self.deformable_modulated,
                offset_groups=self.deformable_offset_groups,
                offset_rate=self.deformable_offset_rate,
            )
        except ValueError as error:
            raise ValueError(f"deformable_{error}") from error


@dataclass(frozen=True)
class SplitBackbone(OnBackbone):
    """Those of the systems that may take over the fully connected layers of a classifier."""

    level: int = setting(5, "of the backbone that the map comes from, where fc is new", ge=2, le=5)
    output_stride: int = setting(16, "of that map at most, by dilation, where fc is new", ge=1)
    fc: Literal["new", "backbone"] = setting(
        "new",
        "layers fc6 and fc7: new ones of width hidden, or those of a torchvision AlexNet or VGG as the backbone, whose "
        "map is then the one that its last pooling reads",
    )

    def parts(self, pretrained: bool, *, centred: bool = True) -> tuple[Backbone, FullyConnected | None]:
        """The backbone, and the layers fc6 and fc7 that come with it. centred: see `split_classifier`. Raises
        ValueError for one that has none."""
        if self.fc == "new":
            return self.make_backbone((self.level,), self.output_stride, pretrained=pretrained), None
        from regio.classifiers import split_classifier

        kind, _, name = self.backbone.partition(":")
        if kind != "torchvision":
            raise ValueError(f"fc: expected a backbone torchvision:alexnet or torchvision:vgg..., got {self.backbone}")
        given = pretrained and self.backbone_weights != "none"
        try:
            parts = split_classifier(
                name,
                pretrained=given,
                weights=self.backbone_weights if given else None,
                frozen=self.frozen,
                centred=centred,
            )
        except FileNotFoundError as error:
            raise FileNotFoundError(f"backbone_weights: {error}") from error
        return self.deformed(self.dilated(parts.backbone)), parts.trunk
