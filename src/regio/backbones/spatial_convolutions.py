"""The convolutions of a backbone that read more than one cell, in the order in which they are executed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from timm.layers import Conv2dSame
from torch import nn

from regio.backbones.base import Backbone
from regio.deformable_conv import DeformableConv2d
from regio.evaluation_mode import evaluation_mode

__all__ = ["executed", "last_convolutions", "pads_like_tensorflow", "spatial_convolutions"]


def spatial_convolutions(backbone: Backbone) -> dict[int, dict[str, nn.Conv2d]]:
    """Those of each stage with a kernel larger than 1, by their names in the body. Raises ValueError where some are
    deformable already: the convolutions that their offsets come from are no others."""
    moved = [name for name, each in backbone.body.named_modules() if isinstance(each, DeformableConv2d)]
    if moved:
        raise ValueError(f"backbone: expected one without deformable convolutions, got {len(moved)}: {moved[0]}, ...")
    found = executed(backbone, nn.Conv2d)
    return {
        level: {
            name: conv for name, conv in found.items() if f"{name}.weight" in parameters and max(conv.kernel_size) > 1
        }
        for level, parameters in backbone.stages().items()
    }


def last_convolutions(by_stage: Mapping[int, Mapping[str, nn.Conv2d]], layers: int) -> dict[str, nn.Conv2d]:
    """The last `layers` of them. Raises ValueError where there are fewer, and for none."""
    every = {name: conv for convolutions in by_stage.values() for name, conv in convolutions.items()}
    if not 1 <= layers <= len(every):
        raise ValueError(
            f"layers: expected 1 to {len(every)}, the number of convolutions larger than 1 x 1, got {layers}"
        )
    return dict([*every.items()][-layers:])


def executed(backbone: Backbone, kind: type[Any]) -> dict[str, Any]:
    """The modules of `kind` by their names in the body, in the order in which a small image meets them."""
    names = {each: name for name, each in backbone.body.named_modules() if isinstance(each, kind)}
    found: dict[str, Any] = {}

    def note(module: nn.Module, arguments: object) -> None:
        found.setdefault(names[module], module)

    hooks = [each.register_forward_pre_hook(note) for each in names]
    like = next(backbone.parameters())
    try:
        with evaluation_mode(backbone.body), torch.no_grad():
            backbone.body(torch.zeros(1, 3, 64, 96, device=like.device, dtype=like.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def pads_like_tensorflow(conv: nn.Conv2d) -> bool:
    """Whether the padding is worked out in each pass, from the size of the map and the dilation."""
    return isinstance(conv, Conv2dSame) or getattr(conv, "pads_like_tensorflow", False)
