"""Deformable convolution in any backbone (Dai et al. 2017, section 2.3; all of some stages, Zhu et al. 2019, section
3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.layers import Conv2dSame
from torch import nn

from regio.backbones import Backbone
from regio.backbones.spatial_convolutions import (
    executed,
    last_convolutions,
    pads_like_tensorflow,
    spatial_convolutions,
)
from regio.deformable_conv import DeformableConv2d, DeformableConv2dSame
from regio.frozen_norm import FoldedConv

__all__ = ["deformable_layers", "with_deformable"]


def with_deformable(
    backbone: Backbone,
    layers: int = 3,
    *,
    stages: Sequence[int] = (),
    modulated: bool = False,
    offset_groups: int = 1,
    offset_rate: float | None = None,
) -> Backbone:
    """`backbone` itself, with deformable convolutions in place of its last convolutions with a kernel larger than 1.

    layers: their number, counted in the order in which they are executed, up to the last level that the backbone gives:
    3 in the first paper, which are those of res5 in a ResNet. stages: where there are any, all such convolutions of
    these levels instead: (3, 4, 5) in the second. modulated, offset_groups, offset_rate: see `DeformableConv2d`; the
    first paper's code has 4 groups in ResNet-101.

    The maps stay what they were, but for rounding, until the offsets learn: weights, strides, dilation and padding are
    those of the convolutions that give way. A frozen norm that one of them carried out runs by itself again.

    Raises ValueError where the backbone has too few convolutions or a stage has none; where it is deformable already;
    where one is fixed (`frozen`), whose offsets would not learn either; and for one that is of a class of its own.
    """
    by_stage = spatial_convolutions(backbone)
    for stage in stages:
        if not by_stage.get(stage):
            some = [level for level, convolutions in by_stage.items() if convolutions]
            raise ValueError(f"stages: expected some of {some}, which have convolutions larger than 1 x 1, got {stage}")
    if stages:
        chosen = {name: conv for stage in stages for name, conv in by_stage[stage].items()}
    else:
        chosen = last_convolutions(by_stage, layers)
    what = "stages" if stages else "layers"
    for name, conv in chosen.items():
        _require_replaceable(what, name, conv)
    for name, conv in chosen.items():
        kind = DeformableConv2dSame if pads_like_tensorflow(conv) else DeformableConv2d
        layer = kind.in_place_of(conv, offset_groups=offset_groups, modulated=modulated, offset_rate=offset_rate)
        if isinstance(conv, FoldedConv):
            conv.unfold()
        parent, _, own = name.rpartition(".")
        setattr(backbone.body.get_submodule(parent), own, layer)
    return backbone


def deformable_layers(model: nn.Module) -> dict[str, DeformableConv2d]:
    """The deformable convolutions of a model by their names in it: those of its backbones in the order in which they
    are executed, then others, such as those of a stage that a head has, in the order of its modules."""
    layers = {each: name for name, each in model.named_modules() if isinstance(each, DeformableConv2d)}
    order: list[Any] = []
    for backbone in (each for each in model.modules() if isinstance(each, Backbone)):
        order += executed(backbone, DeformableConv2d).values()
    return {layers[each]: each for each in dict.fromkeys([*order, *layers])}


def _require_replaceable(what: str, name: str, conv: nn.Conv2d) -> None:
    if type(conv) not in (nn.Conv2d, Conv2dSame, FoldedConv) or conv.padding_mode != "zeros" or _pads_by_name(conv):
        raise ValueError(
            f"{what}: expected convolutions padded with a number of zeros, got {name}, {type(conv).__name__} with "
            f"padding {conv.padding} of {conv.padding_mode}"
        )
    if not conv.weight.requires_grad:
        raise ValueError(f"{what}: expected convolutions that are trained, got {name}, which is fixed (frozen)")


def _pads_by_name(conv: nn.Conv2d) -> bool:
    return isinstance(conv.padding, str)
