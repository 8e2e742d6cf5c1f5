"""torchvision's published Faster R-CNN, in this library.

The conventions of that release differ from those used elsewhere here in four places, each an argument below: RoIAlign
without the shift by half a cell, anchors centred on the corners of cells and rounded to whole pixels, strides of
anchors inferred from sizes, and batch normalisation without `eps`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torchvision
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from regio.backbones import Backbone, Level
from regio.detector import TwoStageDetector
from regio.necks import FPN
from regio.preprocess import Preprocess
from regio.proposals import RPN, Anchors, ProposalFilter
from regio.regions import Levels, RoIAlign
from regio.roi_heads import FastRCNNHead, FullyConnected
from regio.types import FeatureMap

__all__ = ["fasterrcnn_resnet50_fpn_from_torchvision"]


@dataclass(frozen=True)
class InferredStrideAnchors(Anchors):
    """Anchors whose strides are the whole quotients of image size and map size, as torchvision has them.

    They differ from the strides of the maps where a side has an odd number of cells, as P5's 25 of 800 pixels: P6 then
    has 13 and its anchors lie 61 pixels apart.
    """

    def __call__(self, maps: Sequence[FeatureMap]) -> list[Tensor]:
        """As `Anchors`; `maps` are finest first, and the finest covers the image exactly."""
        height, width = (round(cells * maps[0].stride) for cells in maps[0].size)
        strides = [(float(height // x.size[0]), float(width // x.size[1])) for x in maps]
        return self.on_grids([x.size for x in maps], strides, maps[0].data.device)


def fasterrcnn_resnet50_fpn_from_torchvision(
    state_dict: Mapping[str, Tensor], *, norm_eps: float = 0.0, frozen: int = 2
) -> TwoStageDetector:
    """The detector of ``torchvision.models.detection.fasterrcnn_resnet50_fpn`` with the weights `state_dict`.

    It gives the same boxes, labels and scores. The number of classes is that of the weights. norm_eps: what is added to
    the variance in batch normalisation; 0 belongs to the weights published as COCO_V1, 1e-5 to any that torchvision
    trained from other weights. frozen: see `regio.backbones`.

    Raises ValueError naming the first tensors that are missing, unexpected or of another shape.
    """
    detector = _build(len(_tensor(state_dict, "roi_heads.box_predictor.cls_score.bias")), norm_eps, frozen)
    own = detector.state_dict()
    given = {_rename(name): tensor for name, tensor in state_dict.items() if not name.endswith("num_batches_tracked")}
    wrong = [f"{name} is missing" for name in own if name not in given]
    wrong += [f"{name} is not a part of it" for name in given if name not in own]
    wrong += [
        f"{name} has shape {list(given[name].shape)}, expected {list(own[name].shape)}"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    if wrong:
        raise ValueError(f"state_dict: not torchvision's fasterrcnn_resnet50_fpn: {'; '.join(wrong[:5])}")
    detector.load_state_dict(given)
    return detector


def _build(num_classes: int, norm_eps: float, frozen: int) -> TwoStageDetector:
    body = torchvision.models.resnet50(norm_layer=lambda width: FrozenBatchNorm2d(width, eps=norm_eps))
    backbone = Backbone(
        _ResNetBody(body),
        [Level(2, 256, 4), Level(3, 512, 8), Level(4, 1024, 16), Level(5, 2048, 32)],
        levels=(2, 3, 4, 5),
        frozen=frozen,
    )
    sizes = tuple((float(size),) for size in (32, 64, 128, 256, 512))
    extractor = RoIAlign(7, samples=2, aligned=False)
    return TwoStageDetector(
        preprocess=Preprocess(800, 1333, backbone.mean, backbone.std, divisor=32),
        backbone=backbone,
        neck=FPN(backbone.channels, 256),
        proposals=RPN(
            256,
            InferredStrideAnchors(sizes, ratios=(0.5, 1.0, 2.0), offset=0.0, rounded=True),
            extra_level=True,
            test=ProposalFilter(pre_nms_top_n=1000, post_nms_top_n=1000, nms_threshold=0.7),
            train=ProposalFilter(pre_nms_top_n=2000, post_nms_top_n=2000, nms_threshold=0.7),
        ),
        roi_heads=[
            FastRCNNHead(Levels(extractor), FullyConnected(256, extractor.bins, 1024), 1024, num_classes, beta=1 / 9)
        ],
    )


class _ResNetBody(nn.Module):
    """The stages of a ResNet under torchvision's names, giving C2 to C5."""

    def __init__(self, resnet: nn.Module) -> None:
        super().__init__()
        for name, child in resnet.named_children():
            if name not in ("avgpool", "fc"):
                self.add_module(name, child)

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = []
        for name, child in self.named_children():
            x = child(x)
            if name.startswith("layer"):
                outputs.append(x)
        return outputs


_NAMES = (
    ("backbone.body.", "backbone.body."),
    ("backbone.fpn.inner_blocks.", "neck.lateral."),
    ("backbone.fpn.layer_blocks.", "neck.output."),
    ("rpn.head.conv.0.0.", "proposals.conv."),
    ("rpn.head.conv.", "proposals.conv."),  # files from before torchvision 0.13, COCO_V1 among them
    ("rpn.head.cls_logits.", "proposals.objectness."),
    ("rpn.head.bbox_pred.", "proposals.deltas."),
    ("roi_heads.box_head.", "roi_heads.0.trunk."),
    ("roi_heads.box_predictor.cls_score.", "roi_heads.0.class_logits."),
    ("roi_heads.box_predictor.bbox_pred.", "roi_heads.0.box_deltas."),
)


def _rename(name: str) -> str:
    """The name here of a tensor of torchvision's."""
    for theirs, ours in _NAMES:
        if name.startswith(theirs):
            # Before 0.13 the blocks of the pyramid were convolutions themselves; since, they are sequences of one.
            blocks = name[len(theirs) :].replace(".0.", ".") if ours.startswith("neck.") else name[len(theirs) :]
            return ours + blocks
    return name


def _tensor(state_dict: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in state_dict:
        raise ValueError(f"state_dict: not torchvision's fasterrcnn_resnet50_fpn: {name} is missing")
    return state_dict[name]
