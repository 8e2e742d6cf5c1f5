"""Weights for detectron2's detectors that follow from the names of tensors, so that nobody has to store them."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

LAST = {
    "proposal_generator.rpn_head.objectness_logits": 2.0,
    "proposal_generator.rpn_head.anchor_deltas": 0.3,
    "roi_heads.box_predictor.cls_score": 3.0,
    "roi_heads.box_predictor.bbox_pred": 1.0,
    "roi_heads.mask_head.predictor": 3.0,
}
"""The layers whose factors and biases are stored, and how much their outputs vary on the photo."""


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    """The tensors of the zoo's detector `name`, by detectron2's names."""
    depth, form = ("50" if "_R_50" in name else "101"), ("FPN" if "FPN" in name else "DC5" if "DC5" in name else "C4")
    blocks = {2: 3, 3: 4, 4: 6 if depth == "50" else 23, 5: 3}
    groups, width = (32, 256) if "X_101" in name else (1, 64)
    network = "backbone.bottom_up" if form == "FPN" else "backbone"
    made: dict[str, tuple[int, ...]] = {}

    def convolution(layer: str, out: int, channels: int, size: int) -> None:
        made[f"{layer}.weight"] = (out, channels, size, size)
        for part in ("weight", "bias", "running_mean", "running_var"):
            made[f"{layer}.norm.{part}"] = (out,)

    def plain(layer: str, *shape: int) -> None:
        made[f"{layer}.weight"] = shape
        made[f"{layer}.bias"] = (shape[1] if "deconv" in layer else shape[0],)

    convolution(f"{network}.stem.conv1", 64, 3, 7)
    for stage, count in blocks.items():
        out, inner = 2 ** (stage + 6), width * 2 ** (stage - 2)
        where = "roi_heads" if form == "C4" and stage == 5 else network
        for i in range(count):
            channels = out if i else max(out // 2, 64) if stage > 2 else 64
            block = f"{where}.res{stage}.{i}"
            if i == 0:
                convolution(f"{block}.shortcut", out, channels, 1)
            convolution(f"{block}.conv1", inner, channels, 1)
            convolution(f"{block}.conv2", inner, inner // groups, 3)
            convolution(f"{block}.conv3", out, inner, 1)
    if form == "FPN":
        for level in (2, 3, 4, 5):
            plain(f"backbone.fpn_lateral{level}", 256, 2 ** (level + 6), 1, 1)
            plain(f"backbone.fpn_output{level}", 256, 256, 3, 3)
    channels, anchors = {"FPN": (256, 3), "DC5": (2048, 15), "C4": (1024, 15)}[form]
    plain("proposal_generator.rpn_head.conv", channels, channels, 3, 3)
    plain("proposal_generator.rpn_head.objectness_logits", anchors, channels, 1, 1)
    plain("proposal_generator.rpn_head.anchor_deltas", 4 * anchors, channels, 1, 1)
    if form != "C4":
        plain("roi_heads.box_head.fc1", 1024, channels * 49)
        plain("roi_heads.box_head.fc2", 1024, 1024)
    hidden = 2048 if form == "C4" else 1024
    plain("roi_heads.box_predictor.cls_score", 81, hidden)
    plain("roi_heads.box_predictor.bbox_pred", 320, hidden)
    if name.startswith("mask"):
        for i in range(0 if form == "C4" else 4):
            plain(f"roi_heads.mask_head.mask_fcn{i + 1}", 256, 256 if i else channels, 3, 3)
        plain("roi_heads.mask_head.deconv", 2048 if form == "C4" else 256, 256, 2, 2)
        plain("roi_heads.mask_head.predictor", 80, 256, 1, 1)
    return made


def weights(name: str, last: Mapping[str, Sequence[float]]) -> dict[str, Tensor]:
    """The state dict, float32. last: of each of `LAST`, the factor on its weights, then its biases."""
    return {key: _tensor(name, key, shape, last) for key, shape in shapes(name).items()}


def _tensor(name: str, key: str, shape: tuple[int, ...], last: Mapping[str, Sequence[float]]) -> Tensor:
    layer, _, part = key.rpartition(".")
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    if ".norm" in key:
        if part == "running_var":
            spread = 3600 if "stem" in key and "X_101" not in name else 1  # values 0..255 as they are
            return spread * (0.5 + torch.rand(shape, generator=generator))
        values = 0.1 * torch.randn(shape, generator=generator)
        return (0.3 if "conv3" in key else 1.0) + values if part == "weight" else values
    if layer in last and part == "bias":
        return torch.tensor(last[layer][1:])
    if part == "bias":
        return 0.1 * torch.randn(shape, generator=generator)
    values = torch.randn(shape, generator=generator)
    inward = (0, 2, 3) if "deconv" in key else tuple(range(1, len(shape)))
    values -= values.mean(inward, keepdim=True)  # or what all channels have in common drowns what differs
    fan_in = shape[0] if "deconv" in key else math.prod(shape[1:])
    scale = 1.0 if "fpn" in key else math.sqrt(2)
    return values * (last[layer][0] if layer in last else scale / math.sqrt(fan_in))
