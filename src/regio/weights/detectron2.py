"""The Faster and Mask R-CNN of detectron2's model zoo, in this library: the same boxes, labels, scores and masks.

Their conventions differ from those used elsewhere here. By arguments: images are scaled as bytes by Pillow, anchors are
centred on the corners of cells, RoIAlign takes as many samples as a bin has cells, and the three older networks stride
in the 1 x 1 convolutions. By reordering tensors when they are read: colours are blue, green, red; the background is the
last class, and has no refinement of boxes; anchors of a cell are ordered by size first.
"""

from __future__ import annotations

import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights
from torchvision.ops import FrozenBatchNorm2d

from regio.backbones import Backbone, Chain, Level
from regio.detector import TwoStageDetector
from regio.necks import FPN
from regio.postprocess import Postprocess
from regio.preprocess import PillowPreprocess
from regio.pretrained import existing, published_file
from regio.proposals import RPN, Anchors, ProposalFilter
from regio.regions import FPNLevels, Levels, RoIAlign
from regio.roi_heads import FastRCNNHead, FullyConnected, MaskConvolutions, MaskHead, StageAverage
from regio.settings import named
from regio.state_dicts import load_exactly
from regio.weights.pickles import read_pickle
from regio.weights.renaming import Rule, renamed

__all__ = ["DETECTRON2", "Architecture", "detectron2_detector", "from_detectron2"]

ZOO = "https://dl.fbaipublicfiles.com/detectron2"
POSITIVE = torch.finfo(torch.float32).tiny  # the least side of a box: any but zero
EMPTY_LAST = Postprocess(min_size=0.0, min_kept_size=POSITIVE)  # empty boxes are among the best 100, then dropped
SIZES = (32.0, 64.0, 128.0, 256.0, 512.0)
COCO = tuple(n for n in FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"][1:] if n != "N/A")


@dataclass(frozen=True)
class Network:
    """A residual network of the zoo. model: torchvision's of the same depth and groups. std: of values 0..255, red,
    green, blue. stride_in_1x1: where the first block of a stage halves the map; not, in its 3 x 3 convolution."""

    model: Callable[..., nn.Module]
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    stride_in_1x1: bool = True

    def backbone(self, levels: tuple[int, ...], *, dilated: bool = False) -> Backbone:
        """With random weights. dilated: C5 at stride 16, each of its 3 x 3 convolutions dilated."""
        model: Any = self.model(norm_layer=partial(FrozenBatchNorm2d, eps=1e-5))
        if self.stride_in_1x1:
            for stage in (model.layer2, model.layer3, model.layer4):
                stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
        if dilated:
            first = model.layer4[0]
            first.conv1.stride = first.conv2.stride = first.downsample[0].stride = (1, 1)
            for block in model.layer4:
                block.conv2.dilation = block.conv2.padding = (2, 2)
        layers = {name: child for name, child in model.named_children() if name not in ("avgpool", "fc")}
        return Backbone(
            Chain(layers, ("layer1", "layer2", "layer3", "layer4")),
            [Level(2, 256, 4), Level(3, 512, 8), Level(4, 1024, 16), Level(5, 2048, 16 if dilated else 32)],
            levels=levels,
            mean=(123.675 / 255, 116.280 / 255, 103.530 / 255),
            std=(self.std[0] / 255, self.std[1] / 255, self.std[2] / 255),
            frozen=2,
        )


@dataclass(frozen=True)
class Architecture(ABC):
    """What a detector of the zoo is made of. file: of its published weights, below the address of the zoo."""

    file: str
    network: Network
    masks: bool = False
    short_side: int = 800
    long_side: int = 1333

    @abstractmethod
    def build(self, num_classes: int) -> TwoStageDetector:
        """The detector for so many classes, the background among them, with random weights."""

    @abstractmethod
    def rules(self) -> list[Rule]:
        """From their names to ours."""

    def preprocess(self, backbone: Backbone, divisor: int) -> PillowPreprocess:
        """Images as this network takes them."""
        return PillowPreprocess(self.short_side, self.long_side, backbone.mean, backbone.std, divisor)

    def heads(self, channels: int, num_classes: int) -> list[nn.Module]:
        """Two fully connected layers on 7 x 7 bins, and four convolutions on 14 x 14."""
        rule = FPNLevels(eps=0.0)
        box = FastRCNNHead(
            Levels(RoIAlign(7, samples=0), rule),
            FullyConnected(channels, (7, 7), 1024),
            1024,
            num_classes,
            beta=0.0,
            postprocess=EMPTY_LAST,
        )
        masks = MaskHead(Levels(RoIAlign(14, samples=0), rule), MaskConvolutions(channels), 256, num_classes)
        return [box, masks] if self.masks else [box]


@dataclass(frozen=True)
class C4(Architecture):
    """The fifth stage is the head of boxes and of masks."""

    def build(self, num_classes: int) -> TwoStageDetector:
        backbone, stage = self.network.backbone((4, 5)).split()
        box = FastRCNNHead(
            Levels(RoIAlign(14, samples=0)),
            StageAverage(stage),
            2048,
            num_classes,
            beta=0.0,
            postprocess=EMPTY_LAST,
        )
        masks = MaskHead(box.extractor, nn.Sequential(stage, MaskConvolutions(2048, 256, 0)), 256, num_classes)
        return TwoStageDetector(
            preprocess=self.preprocess(backbone, divisor=1),
            backbone=backbone,
            neck=nn.Identity(),
            proposals=_on_one_map(1024),
            roi_heads=[box, masks] if self.masks else [box],
        )

    def rules(self) -> list[Rule]:
        return [
            *_of_network("backbone.", "backbone.body."),
            *_of_network("roi_heads.", "roi_heads.0.trunk.0."),
            (r"roi_heads\.mask_head\.deconv", "roi_heads.1.trunk.1.0"),
            *_of_heads(),
        ]


@dataclass(frozen=True)
class DilatedC5(Architecture):
    """All is read from C5 at stride 16."""

    def build(self, num_classes: int) -> TwoStageDetector:
        backbone = self.network.backbone((5,), dilated=True)
        return TwoStageDetector(
            preprocess=self.preprocess(backbone, divisor=1),
            backbone=backbone,
            neck=nn.Identity(),
            proposals=_on_one_map(2048),
            roi_heads=self.heads(2048, num_classes),
        )

    def rules(self) -> list[Rule]:
        return [*_of_network("backbone.", "backbone.body."), *_of_heads()]


@dataclass(frozen=True)
class Pyramid(Architecture):
    """A feature pyramid of C2 to C5."""

    def build(self, num_classes: int) -> TwoStageDetector:
        backbone = self.network.backbone((2, 3, 4, 5))
        return TwoStageDetector(
            preprocess=self.preprocess(backbone, divisor=32),
            backbone=backbone,
            neck=FPN(backbone.channels, 256),
            proposals=RPN(
                256,
                Anchors(tuple((size,) for size in SIZES), offset=0.0),
                extra_level=True,
                test=ProposalFilter(pre_nms_top_n=1000, post_nms_top_n=1000, min_size=POSITIVE),
                train=ProposalFilter(pre_nms_top_n=2000, post_nms_top_n=1000, min_size=POSITIVE),
                beta=0.0,
            ),
            roi_heads=self.heads(256, num_classes),
        )

    def rules(self) -> list[Rule]:
        levels = [
            (rf"backbone\.fpn_{part}{i + 2}", f"neck.{part}.{i}") for part in ("lateral", "output") for i in range(4)
        ]
        return [*_of_network("backbone.bottom_up.", "backbone.body."), *levels, *_of_heads()]


def _on_one_map(channels: int) -> RPN:
    return RPN(
        channels,
        Anchors((SIZES,), offset=0.0),
        test=ProposalFilter(pre_nms_top_n=6000, post_nms_top_n=1000, min_size=POSITIVE),
        train=ProposalFilter(pre_nms_top_n=12000, post_nms_top_n=2000, min_size=POSITIVE),
        beta=0.0,
    )


def _of_network(theirs: str, ours: str) -> list[Rule]:
    """Of the layers of a residual network."""
    start = theirs.replace(".", r"\.")
    rules: list[Rule] = [(rf"{start}stem\.conv1\.norm", f"{ours}bn1"), (rf"{start}stem\.conv1", f"{ours}conv1")]
    for i in range(1, 5):
        block, layer = rf"{start}res{i + 1}\.(\d+)", rf"{ours}layer{i}.\1"
        rules += [
            (rf"{block}\.conv(\d)\.norm", rf"{layer}.bn\2"),
            (rf"{block}\.shortcut\.norm", f"{layer}.downsample.1"),
            (rf"{block}\.shortcut", f"{layer}.downsample.0"),
            (block, layer),
        ]
    return rules


def _of_heads() -> list[Rule]:
    return [
        (r"proposal_generator\.rpn_head\.conv", "proposals.conv"),
        (r"proposal_generator\.rpn_head\.objectness_logits", "proposals.objectness"),
        (r"proposal_generator\.rpn_head\.anchor_deltas", "proposals.deltas"),
        (r"roi_heads\.box_head\.fc1", "roi_heads.0.trunk.fc6"),
        (r"roi_heads\.box_head\.fc2", "roi_heads.0.trunk.fc7"),
        (r"roi_heads\.box_predictor\.cls_score", "roi_heads.0.class_logits"),
        (r"roi_heads\.box_predictor\.bbox_pred", "roi_heads.0.box_deltas"),
        *((rf"roi_heads\.mask_head\.mask_fcn{i + 1}", f"roi_heads.1.trunk.{2 * i}") for i in range(4)),
        (r"roi_heads\.mask_head\.deconv", "roi_heads.1.trunk.8"),
        (r"roi_heads\.mask_head\.predictor", "roi_heads.1.mask_logits"),
    ]


def from_detectron2(name: str, state: Mapping[str, Tensor]) -> TwoStageDetector:
    """detectron2's detector `name` (one of `DETECTRON2`) with the weights `state`, a state dict of that model.

    The number of classes is that of the weights. Raises ValueError for another name, and naming the first tensors, by
    their names here, that are missing, unexpected or of another shape.
    """
    kind = named(DETECTRON2, name, "detectron2")
    what, bias = f"{name}: not detectron2's", "roi_heads.box_predictor.cls_score.bias"
    if bias not in state:
        raise ValueError(f"{what}: {bias} is missing")
    detector = kind.build(len(state[bias]))
    given = renamed(state, kind.rules(), _follows_from_the_configuration)
    per_cell = detector.proposals.anchors.per_cell  # type: ignore[union-attr]
    orders: dict[str, Callable[[Tensor], Tensor]] = {
        "backbone.body.conv1.weight": lambda tensor: tensor.flip(1),
        **dict.fromkeys(_layer("roi_heads.0.class_logits"), lambda tensor: tensor.roll(1, 0)),
        **dict.fromkeys(_layer("roi_heads.0.box_deltas"), _with_background),
        **dict.fromkeys(_layer("proposals.objectness"), partial(_ratios_first, per_cell=per_cell)),
        **dict.fromkeys(_layer("proposals.deltas"), partial(_ratios_first, per_cell=per_cell)),
    }
    given |= {key: order(given[key]) for key, order in orders.items() if key in given}
    shared = {key: tensor for key, tensor in given.items() if key.startswith("roi_heads.0.trunk.0.")}
    if len(detector.roi_heads) > 1:  # the stage that both heads of C4 have
        given |= {key.replace("heads.0", "heads.1", 1): tensor for key, tensor in shared.items()}
    load_exactly(detector, given, what)
    return detector


def _follows_from_the_configuration(name: str) -> bool:
    return name in ("pixel_mean", "pixel_std") or ".anchor_generator.cell_anchors." in name


def _layer(name: str) -> tuple[str, str]:
    return f"{name}.weight", f"{name}.bias"


def _with_background(deltas: Tensor) -> Tensor:
    """Refinements of all classes and, before them, of the background, which nothing reads."""
    return torch.cat([torch.zeros_like(deltas[:4]), deltas])


def _ratios_first(tensor: Tensor, per_cell: int) -> Tensor:
    """The outputs of a cell's anchors, given size by size, ratio by ratio."""
    if tensor.shape[0] % per_cell:
        return tensor  # of another shape, which is said elsewhere
    by_size = tensor.unflatten(0, (-1, 3, tensor.shape[0] // per_cell))
    return by_size.transpose(0, 1).flatten(0, 2)


def detectron2_detector(name: str, file: Path | None = None) -> tuple[TwoStageDetector, tuple[str, ...]]:
    """detectron2's detector `name` with its published COCO weights, in evaluation mode, and the names of the labels
    1, 2, ...

    file: where the weights lie, as the zoo has them (.pkl) or as a training leaves them (.pth); None looks in
    torch.hub's cache and downloads them. Nothing in a file is executed. Raises ValueError for another name or a file
    that does not fit, FileNotFoundError naming the file that is wanted and where to put it.
    """
    kind = named(DETECTRON2, name, "detectron2")
    what = f"weights of {name}"
    folder = "COCO-InstanceSegmentation" if kind.masks else "COCO-Detection"
    path = published_file(f"{ZOO}/{folder}/{name}/{kind.file}", name) if file is None else existing(file, what)
    try:
        detector = from_detectron2(name, _read(path))
        classes = len(detector.roi_heads[0].class_logits.bias) - 1  # type: ignore[union-attr, arg-type]
        if classes != len(COCO):
            raise ValueError(f"{name}: expected weights for COCO's {len(COCO)} classes, got {classes}")
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from error
    return detector.eval(), COCO


def _read(file: Path) -> dict[str, Tensor]:
    """The state dict in a file of the zoo or of a training."""
    if zipfile.is_zipfile(file):
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever the unpickler stumbles over
            line = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"{file}: not a file of weights that PyTorch can read ({line})") from error
    else:
        content = read_pickle(file)
    state = content.get("model", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{file}: expected a state dict, a mapping of names to arrays, alone or as 'model'")
    return dict(state)


R50 = Network(torchvision.models.resnet50)
R101 = Network(torchvision.models.resnet101)
X101 = Network(torchvision.models.resnext101_32x8d, std=(58.395, 57.120, 57.375), stride_in_1x1=False)

DETECTRON2: dict[str, Architecture] = {
    "faster_rcnn_R_50_C4_1x": C4("137257644/model_final_721ade.pkl", R50),
    "faster_rcnn_R_50_DC5_1x": DilatedC5("137847829/model_final_51d356.pkl", R50),
    "faster_rcnn_R_50_FPN_1x": Pyramid("137257794/model_final_b275ba.pkl", R50),
    "faster_rcnn_R_50_C4_3x": C4("137849393/model_final_f97cb7.pkl", R50),
    "faster_rcnn_R_50_DC5_3x": DilatedC5("137849425/model_final_68d202.pkl", R50),
    "faster_rcnn_R_50_FPN_3x": Pyramid("137849458/model_final_280758.pkl", R50),
    "faster_rcnn_R_101_C4_3x": C4("138204752/model_final_298dad.pkl", R101),
    "faster_rcnn_R_101_DC5_3x": DilatedC5("138204841/model_final_3e0943.pkl", R101),
    "faster_rcnn_R_101_FPN_3x": Pyramid("137851257/model_final_f6e8b1.pkl", R101),
    "faster_rcnn_X_101_32x8d_FPN_3x": Pyramid("139173657/model_final_68b088.pkl", X101),
    "mask_rcnn_R_50_C4_1x": C4("137259246/model_final_9243eb.pkl", R50, masks=True),
    "mask_rcnn_R_50_DC5_1x": DilatedC5("137260150/model_final_4f86c3.pkl", R50, masks=True),
    "mask_rcnn_R_50_FPN_1x": Pyramid("137260431/model_final_a54504.pkl", R50, masks=True),
    "mask_rcnn_R_50_C4_3x": C4("137849525/model_final_4ce675.pkl", R50, masks=True),
    "mask_rcnn_R_50_DC5_3x": DilatedC5("137849551/model_final_84107b.pkl", R50, masks=True),
    "mask_rcnn_R_50_FPN_3x": Pyramid("137849600/model_final_f10217.pkl", R50, masks=True),
    "mask_rcnn_R_101_C4_3x": C4("138363239/model_final_a2914c.pkl", R101, masks=True),
    "mask_rcnn_R_101_DC5_3x": DilatedC5("138363294/model_final_0464b7.pkl", R101, masks=True),
    "mask_rcnn_R_101_FPN_3x": Pyramid("138205316/model_final_a3ec72.pkl", R101, masks=True),
    "mask_rcnn_X_101_32x8d_FPN_3x": Pyramid("139653917/model_final_2d9806.pkl", X101, masks=True),
}
"""By the names of the zoo's configurations."""
