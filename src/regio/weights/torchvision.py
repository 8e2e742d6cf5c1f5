"""torchvision's published detectors, in this library: the same boxes, labels, scores and masks.

The conventions of these releases differ from those used elsewhere here in five places, each an argument below: RoIAlign
without the shift by half a cell, anchors centred on the corners of cells and rounded to whole pixels, strides of
anchors inferred from sizes, batch normalisation without `eps` in the oldest, and boxes of masks rounded to pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from regio.backbones import Backbone, Chain, Level
from regio.detector import TwoStageDetector
from regio.masks import PasteRounded
from regio.necks import FPN, Norm
from regio.preprocess import Preprocess
from regio.pretrained import published_state, read_state
from regio.proposals import RPN, Anchors, ProposalFilter
from regio.regions import FPNLevels, LevelRule, Levels, RoIAlign
from regio.roi_heads import ConvolutionsAndLinear, FastRCNNHead, FullyConnected, MaskConvolutions, MaskHead
from regio.state_dicts import load_exactly
from regio.types import FeatureMap
from regio.weights.renaming import Rule, renamed

__all__ = ["TORCHVISION", "Architecture", "InferredStrideAnchors", "from_torchvision", "torchvision_detector"]


@dataclass(frozen=True)
class Architecture:
    """What a detector of torchvision is made of.

    weights: its enum there. backbone: makes it, for the `eps` of its norms. sizes: of anchors, for each map. eps: that
    of the published weights. norm: in pyramid and heads; those with one also have deeper heads. masks: whether it has a
    mask head. test: proposals of an image.
    """

    weights: str
    backbone: Callable[[float], Backbone]
    sizes: tuple[tuple[float, ...], ...]
    eps: float = 1e-5
    norm: Norm | None = None
    masks: bool = False
    short_side: int = 800
    long_side: int = 1333
    test: ProposalFilter = ProposalFilter(pre_nms_top_n=1000, post_nms_top_n=1000)  # noqa: RUF009 (frozen)

    def build(self, num_classes: int) -> TwoStageDetector:
        """The detector for so many classes, the background among them, with random weights."""
        backbone = self.backbone(self.eps)
        rule: LevelRule = _FinestMap() if len(set(backbone.strides)) == 1 else FPNLevels()
        if self.norm is None:
            trunk: nn.Module = FullyConnected(256, (7, 7), 1024)
        else:
            trunk = ConvolutionsAndLinear(256, (7, 7), 1024, norm=self.norm)
        box = FastRCNNHead(
            Levels(RoIAlign(7, samples=2, aligned=False), rule),
            trunk,
            1024,
            num_classes,
            beta=1.0 if self.norm else 1 / 9,
        )
        heads: list[nn.Module] = [box]
        if self.masks:
            masks = MaskConvolutions(256, norm=self.norm)
            extractor = Levels(RoIAlign(14, samples=2, aligned=False))
            heads.append(MaskHead(extractor, masks, 256, num_classes, pasting=PasteRounded()))
        return TwoStageDetector(
            preprocess=Preprocess(self.short_side, self.long_side, backbone.mean, backbone.std, divisor=32),
            backbone=backbone,
            neck=FPN(backbone.channels, 256, self.norm),
            proposals=RPN(
                256,
                InferredStrideAnchors(self.sizes, ratios=(0.5, 1.0, 2.0), offset=0.0, rounded=True),
                layers=1 if self.norm is None else 2,
                extra_level=True,
                test=self.test,
                train=ProposalFilter(pre_nms_top_n=2000, post_nms_top_n=2000, nms_threshold=0.7),
            ),
            roi_heads=heads,
        )

    def rules(self) -> list[Rule]:
        """From their names to ours."""
        layers = 2 if self.norm is None else 3  # of a convolution in a sequence: with a norm, three
        block = r"\1" if self.norm is None else r"\1.\2"
        rules: list[Rule] = [
            (r"backbone\.fpn\.inner_blocks\.(\d+)(?:\.(\d+))?(?=\.\w+$)", rf"neck.lateral.{block}"),
            (r"backbone\.fpn\.layer_blocks\.(\d+)(?:\.(\d+))?(?=\.\w+$)", rf"neck.output.{block}"),
            (r"rpn\.head\.cls_logits", "proposals.objectness"),
            (r"rpn\.head\.bbox_pred", "proposals.deltas"),
            (r"roi_heads\.box_predictor\.cls_score", "roi_heads.0.class_logits"),
            (r"roi_heads\.box_predictor\.bbox_pred", "roi_heads.0.box_deltas"),
            (r"roi_heads\.box_head\.5", "roi_heads.0.trunk.fc"),
            (r"roi_heads\.box_head\.(fc\d)", r"roi_heads.0.trunk.\1"),
            (r"roi_heads\.mask_predictor\.conv5_mask", f"roi_heads.1.trunk.{4 * layers}"),
            (r"roi_heads\.mask_predictor\.mask_fcn_logits", "roi_heads.1.mask_logits"),
        ]
        if self.norm is None:  # the names from before torchvision 0.13 as well, which COCO_V1 has
            rules += [(r"rpn\.head\.conv(?:\.0\.0)?", "proposals.conv")]
        for i in range(4):
            of_mask = f"roi_heads.1.trunk.{i * layers}"
            rules += [
                (rf"rpn\.head\.conv\.{i}\.0", f"proposals.conv.{i}"),
                (rf"roi_heads\.box_head\.{i}\.0", f"roi_heads.0.trunk.convolutions.{i * layers}"),
                (rf"roi_heads\.box_head\.{i}\.1", f"roi_heads.0.trunk.convolutions.{i * layers + 1}"),
                (rf"roi_heads\.mask_head\.(?:mask_fcn{i + 1}|{i}\.0)", of_mask),
                (rf"roi_heads\.mask_head\.{i}\.1", f"roi_heads.1.trunk.{i * layers + 1}"),
            ]
        return rules


def from_torchvision(name: str, state: Mapping[str, Tensor], *, eps: float | None = None) -> TwoStageDetector:
    """torchvision's detector `name` (one of `TORCHVISION`) with the weights `state`, a state dict of that model.

    The number of classes is that of the weights. eps: what is added to the variance in the backbone's batch
    normalisation; None is that of the published weights, which is 0 for the two oldest; 1e-5 belongs to any that
    torchvision trained from others. Mask heads there have a mask for the background, which nothing reads: it is left
    out.

    Raises ValueError for another name, and naming the first tensors that are missing, unexpected or of another shape.
    """
    if name not in TORCHVISION:
        raise ValueError(f"torchvision: expected one of {', '.join(TORCHVISION)}, got '{name}'")
    what, bias = f"{name}: not torchvision's", "roi_heads.box_predictor.cls_score.bias"
    if bias not in state:
        raise ValueError(f"{what}: {bias} is missing")
    kind = TORCHVISION[name] if eps is None else replace(TORCHVISION[name], eps=eps)
    detector = kind.build(len(state[bias]))
    given = renamed(state, kind.rules(), lambda key: key.endswith("num_batches_tracked"))
    for key in [key for key in given if key.startswith("roi_heads.1.mask_logits.")]:
        given[key] = given[key][1:]
    own = {key: tensor for key, tensor in detector.state_dict().items() if key.endswith("num_batches_tracked")}
    load_exactly(detector, given | own, what)
    return detector


def torchvision_detector(name: str, file: Path | None = None) -> tuple[TwoStageDetector, tuple[str, ...]]:
    """torchvision's detector `name` with its published COCO weights, in evaluation mode, and the names of the labels
    1, 2, ...

    file: where the weights lie; None looks in torch.hub's cache and downloads them. Raises ValueError for another name
    or a file that does not fit, FileNotFoundError naming the file that is wanted and where to put it.
    """
    if name not in TORCHVISION:
        raise ValueError(f"torchvision: expected one of {', '.join(TORCHVISION)}, got '{name}'")
    weights = torchvision.models.get_weight(f"{TORCHVISION[name].weights}.DEFAULT")
    state = published_state(weights.url, name) if file is None else read_state(file, f"weights of {name}")
    names = tuple(weights.meta["categories"][1:])
    try:
        detector = from_torchvision(name, state)
        classes = len(detector.roi_heads[0].class_logits.bias) - 1  # type: ignore[union-attr, arg-type]
        if classes != len(names):
            raise ValueError(f"{name}: expected weights for COCO's {len(names)} categories, got {classes}")
    except ValueError as error:
        raise ValueError(f"{file}: {error}" if file else str(error)) from error
    return detector.eval(), names


@dataclass(frozen=True)
class InferredStrideAnchors(Anchors):
    """Anchors whose strides are the whole quotients of image size and map size, as torchvision has them.

    They differ from the strides of the maps where a side has an odd number of cells, as P5's 25 of 800 pixels: P6 then
    has 13 and its anchors lie 61 pixels apart.
    """

    def __call__(self, maps: Sequence[FeatureMap]) -> list[Tensor]:
        """As `Anchors`; `maps` are finest first, and the finest covers the image exactly."""
        height, width = (round(cells * maps[0].stride) for cells in maps[0].size)
        strides = [(height // x.size[0], width // x.size[1]) for x in maps]
        return self.on_grids([x.size for x in maps], strides, maps[0].data.device)


@dataclass(frozen=True)
class _FinestMap:
    """All boxes are read from the finest map: what torchvision's rule comes to where all maps have one stride."""

    def __call__(self, boxes: Tensor, strides: Sequence[float]) -> Tensor:
        return torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)


def _resnet50(eps: float) -> Backbone:
    body = torchvision.models.resnet50(norm_layer=lambda width: FrozenBatchNorm2d(width, eps=eps))
    levels = [Level(2, 256, 4), Level(3, 512, 8), Level(4, 1024, 16), Level(5, 2048, 32)]
    stages = ("layer1", "layer2", "layer3", "layer4")
    layers = {name: child for name, child in body.named_children() if name not in ("avgpool", "fc")}
    return Backbone(Chain(layers, stages), levels, levels=(2, 3, 4, 5), frozen=2)


def _mobilenet(eps: float) -> Backbone:
    net = torchvision.models.mobilenet_v3_large(norm_layer=lambda width: FrozenBatchNorm2d(width, eps=eps))
    body = Chain(dict(net.features.named_children()), ("13", "16"))  # which give two maps at stride 32
    return Backbone(body, [Level(4, 160, 32), Level(5, 960, 32)], levels=(4, 5), frozen=0)


_ONE_EACH = tuple((float(size),) for size in (32, 64, 128, 256, 512))
_ALL = ((32.0, 64.0, 128.0, 256.0, 512.0),) * 3
_MOBILE = ProposalFilter(pre_nms_top_n=1000, post_nms_top_n=1000, nms_threshold=0.7, score_threshold=0.05)
_FEW = ProposalFilter(pre_nms_top_n=150, post_nms_top_n=150, nms_threshold=0.7, score_threshold=0.05)

TORCHVISION: dict[str, Architecture] = {
    "fasterrcnn_resnet50_fpn": Architecture("FasterRCNN_ResNet50_FPN_Weights", _resnet50, _ONE_EACH, eps=0.0),
    "fasterrcnn_resnet50_fpn_v2": Architecture(
        "FasterRCNN_ResNet50_FPN_V2_Weights", _resnet50, _ONE_EACH, norm=nn.BatchNorm2d
    ),
    "fasterrcnn_mobilenet_v3_large_fpn": Architecture(
        "FasterRCNN_MobileNet_V3_Large_FPN_Weights", _mobilenet, _ALL, test=_MOBILE
    ),
    "fasterrcnn_mobilenet_v3_large_320_fpn": Architecture(
        "FasterRCNN_MobileNet_V3_Large_320_FPN_Weights", _mobilenet, _ALL, short_side=320, long_side=640, test=_FEW
    ),
    "maskrcnn_resnet50_fpn": Architecture("MaskRCNN_ResNet50_FPN_Weights", _resnet50, _ONE_EACH, eps=0.0, masks=True),
    "maskrcnn_resnet50_fpn_v2": Architecture(
        "MaskRCNN_ResNet50_FPN_V2_Weights", _resnet50, _ONE_EACH, norm=nn.BatchNorm2d, masks=True
    ),
}
"""By torchvision's names."""
