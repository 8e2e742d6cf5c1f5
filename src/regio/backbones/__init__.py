"""Backbones: networks that give feature maps and say what they are.

A level is named as in the papers: C1 to C5 are the last maps of natural stride 2 to 32. A backbone gives the levels it
was asked for, finest first, and declares their `channels` and `strides` and the `mean` and `std` of the images it was
trained on. `output_stride` keeps later levels at that stride and dilates their convolutions instead.

Batch normalisation is frozen unless `frozen_norm` is False, and so are the weights up to level `frozen` (0 for none):
those that this level depends on get no gradient, and no activation of theirs is kept.
"""

from __future__ import annotations

from regio.backbones.base import Backbone, ImageItself
from regio.backbones.chain import Chain, Level
from regio.backbones.later_levels import LaterLevels
from regio.backbones.models import aligned_inception_resnet, efficientnet_lite0, timm_backbone, torchvision_backbone

__all__ = [
    "Backbone",
    "Chain",
    "ImageItself",
    "LaterLevels",
    "Level",
    "aligned_inception_resnet",
    "efficientnet_lite0",
    "timm_backbone",
    "torchvision_backbone",
]
