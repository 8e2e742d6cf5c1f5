"""Systems by name: what makes each detector from words and numbers, and by what it is measured.

A row of the table is a class here: its settings, `build`, and its evaluator.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from regio.config.extractors import EXTRACTORS, Extractor, RoIAlign, RoIPool
from regio.settings import named, setting

if TYPE_CHECKING:
    from regio.backbones import Backbone
    from regio.data import DetectionDataset
    from regio.detector import TwoStageDetector
    from regio.evaluate import Evaluator
    from regio.necks import Norm
    from regio.recipes import Recipe
    from regio.roi_heads import FullyConnected
    from regio.run_report import Results
    from regio.weights import Architecture

__all__ = ["BACKBONES", "SYSTEMS", "Published", "System"]

BACKBONES = {
    "efficientnet_lite0": "efficientnet_lite0",
    "torchvision": "torchvision_backbone",
    "timm": "timm_backbone",
}
"""Functions of `regio.backbones` by the word before the colon: `efficientnet_lite0`, `torchvision:resnet50`,
`timm:convnext_tiny`."""


@dataclass(frozen=True)
class System(ABC):
    """The settings of a system. needs_proposals: whether boxes are given to its model with each image, in training and
    afterwards, since it finds none itself."""

    needs_proposals: ClassVar[bool] = False

    @abstractmethod
    def build(self, classes: int, *, pretrained: bool = True) -> TwoStageDetector:
        """The model for `classes` classes, not counting the background.

        With `pretrained` False the backbone starts from random weights, for a checkpoint that brings its own. Raises
        ValueError for settings that do not fit, FileNotFoundError for weights that are nowhere (naming the file).
        """

    def dataset(self, dataset: DetectionDataset) -> DetectionDataset:
        """`dataset` with what this system is trained on: masks, for some. Raises ValueError where it has none."""
        return dataset

    def prepare(self, detector: TwoStageDetector, dataset: DetectionDataset) -> list[str]:
        """Give `detector`, just built, what it takes from the data that it will be trained on: nothing, for most.
        Returns what a user should know of it."""
        return []

    @abstractmethod
    def evaluator(self, dataset: DetectionDataset) -> Evaluator:
        """What measures the model on `dataset`, as far as that is annotated: its notes say what is not measured."""

    @abstractmethod
    def results(self, evaluator: Any, records: Sequence[Any]) -> Results:
        """What a run leaves for people to look at, of the records of this system's evaluator."""

    def recipe(self) -> Recipe:
        """How the model is trained."""
        from regio.recipes import Joint

        return Joint()

    def labels(self, class_names: Sequence[str]) -> tuple[str, ...]:
        """The names of the labels 1, 2, ... of what the model finds."""
        return tuple(class_names)

    def with_score_threshold(self, threshold: float) -> System:
        """The same with another lowest score of a detection, for a system whose detections have one."""
        return self


@dataclass(frozen=True)
class OnBackbone(System):
    """Those of the systems that are put together around a backbone."""

    backbone: str = setting(
        "efficientnet_lite0", "efficientnet_lite0, or one of other libraries as torchvision:NAME, timm:NAME"
    )
    backbone_weights: str | None = setting(
        None, "file of ImageNet weights, for a machine that cannot download them; none for random ones"
    )
    frozen: int = setting(2, "level of the backbone up to which weights are fixed; 0 for none", ge=0, le=5)
    short_side: int = setting(320, "of the scaled image, in pixels", ge=1)
    long_side: int = setting(480, "at most, of the scaled image, in pixels", ge=1)

    def make_backbone(self, levels: Sequence[int], output_stride: int, *, pretrained: bool) -> Backbone:
        """The backbone, which gives these levels."""
        from regio import backbones

        kind, _, variant = self.backbone.partition(":")
        make = getattr(backbones, named(BACKBONES, kind, "backbone"))
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
        return made


@dataclass(frozen=True)
class Proposing(OnBackbone):
    """Those of all systems with a proposal network."""

    anchor_ratios: tuple[float, ...] = setting((0.5, 1.0, 2.0), "height / width of anchors")
    rpn_box_weight: float = setting(1.0, "of the proposals' box loss, the paper's lambda / 10", ge=0)

    def adjusted(self, detector: TwoStageDetector) -> TwoStageDetector:
        """`detector` with those of the settings that its proposal network has."""
        rpn: Any = detector.proposals
        rpn.box_weight = self.rpn_box_weight
        return detector

    def evaluator(self, dataset: DetectionDataset) -> Evaluator:
        from regio.evaluate import ProposalRecall

        return ProposalRecall(dataset)

    def results(self, evaluator: Any, records: Sequence[Any]) -> Results:
        from regio.run_report import ProposalResults

        return ProposalResults(evaluator, records)

    def labels(self, class_names: Sequence[str]) -> tuple[str, ...]:
        """All that a proposal network finds are objects."""
        return ("object",)


@dataclass(frozen=True)
class TwoStage(Proposing):
    """Those of the systems with a proposal network and heads."""

    scheme: Literal["approximate", "joint", "alternating"] = setting(
        "approximate",
        "proposals and heads trained jointly without gradients into the coordinates of boxes; with them (joint), for "
        "extractors that have them; or in the four alternating steps of Faster R-CNN, each of as many steps",
    )

    def recipe(self) -> Recipe:
        from regio.recipes import Alternating, Joint

        return Alternating() if self.scheme == "alternating" else Joint()

    def adjusted(self, detector: TwoStageDetector) -> TwoStageDetector:
        """As `Proposing.adjusted`. Raises ValueError where boxes are to be trained through an extractor that has no
        gradient for them."""
        if self.scheme == "joint":
            from regio.recipes import require_box_gradients

            rpn: Any = detector.proposals
            require_box_gradients(detector)
            rpn.box_gradients = True
        return super().adjusted(detector)


@dataclass(frozen=True)
class Necked(Proposing):
    """Those of the systems with a neck between the backbone and the proposals."""

    channels: int = setting(128, "of the maps that proposals and region features are made from", ge=1)
    norm: Literal["none", "batch", "group"] = setting("none", "normalisation in the neck")

    def make_norm(self) -> Norm | None:
        """The normalisation of the neck."""
        from torch import nn

        norms: dict[str, Norm | None] = {"none": None, "batch": nn.BatchNorm2d, "group": partial(nn.GroupNorm, 32)}
        return norms[self.norm]


@dataclass(frozen=True)
class OneMap(Necked):
    """Those of the systems on one map."""

    level: int = setting(5, "of the backbone that the map comes from", ge=2, le=5)
    output_stride: int = setting(16, "of that map at most, by dilation", ge=1)
    anchor_sizes: tuple[float, ...] = setting((32.0, 64.0, 128.0, 256.0), "in pixels of the scaled image")
    straddle_threshold: float | None = setting(
        None, "pixels by which an anchor may leave the image and be trained on; null for any"
    )

    def stage(self, pretrained: bool) -> tuple[Backbone, dict[str, Any]]:
        """The backbone, and the arguments of the proposal network."""
        from regio.proposals import Anchors

        return self.make_backbone((self.level,), self.output_stride, pretrained=pretrained), {
            "channels": self.channels,
            "short_side": self.short_side,
            "long_side": self.long_side,
            "anchors": Anchors((self.anchor_sizes,), self.anchor_ratios),
            "straddle_threshold": self.straddle_threshold,
            "norm": self.make_norm(),
        }


@dataclass(frozen=True)
class Pyramid(Necked):
    """Those of the systems on a feature pyramid."""

    levels: tuple[int, ...] = setting((3, 4, 5), "of the backbone, which the pyramid is made of")
    anchor_sizes: tuple[float, ...] = setting(
        (32.0, 64.0, 128.0, 256.0), "in pixels of the scaled image, one for each level and one more"
    )

    def stage(self, pretrained: bool) -> tuple[Backbone, dict[str, Any]]:
        """The backbone, and the arguments of the proposal network."""
        from regio.proposals import Anchors

        if len(self.anchor_sizes) != len(self.levels) + 1:
            raise ValueError(
                f"anchor_sizes: expected {len(self.levels) + 1}, one for each of levels and one more, "
                f"got {list(self.anchor_sizes)}"
            )
        return self.make_backbone(self.levels, 32, pretrained=pretrained), {
            "channels": self.channels,
            "short_side": self.short_side,
            "long_side": self.long_side,
            "anchors": Anchors(tuple((size,) for size in self.anchor_sizes), self.anchor_ratios),
            "norm": self.make_norm(),
        }


@dataclass(frozen=True)
class BoxHead(OnBackbone):
    """Those of the systems whose second stage classifies boxes."""

    extractor: Extractor = setting(RoIAlign(), "what reads region features", choices=EXTRACTORS)
    regions_per_image: int = setting(128, "in the mini-batch of the head", ge=1)
    beta: float = setting(1.0, "where the box loss turns from a square to a line", ge=0)
    score_threshold: float = setting(0.05, "lowest score of a detection", ge=0, le=1)
    nms_threshold: float = setting(0.5, "IoU above which the weaker of two detections of a class goes", ge=0, le=1)
    detections_per_image: int = setting(100, "at most", ge=1)

    def evaluator(self, dataset: DetectionDataset) -> Evaluator:
        return _of_boxes(dataset)

    def results(self, evaluator: Any, records: Sequence[Any]) -> Results:
        return _results(evaluator, records)

    def labels(self, class_names: Sequence[str]) -> tuple[str, ...]:
        return tuple(class_names)

    def with_score_threshold(self, threshold: float) -> System:
        return replace(self, score_threshold=threshold)

    def head(self) -> dict[str, Any]:
        """The arguments of the head, but for its extractor."""
        from regio.postprocess import Postprocess

        return {
            "regions_per_image": self.regions_per_image,
            "beta": self.beta,
            "postprocess": Postprocess(self.score_threshold, self.nms_threshold, self.detections_per_image),
        }


@dataclass(frozen=True)
class FullyConnectedHead(BoxHead):
    """Those of the second stage of Fast R-CNN."""

    hidden: int = setting(512, "width of the two layers of the box head, fc6 and fc7", ge=1)
    fc6_rank: int | None = setting(
        None, "of fc6 in two layers by truncated SVD, which regio convert --svd makes; null for one layer", ge=1
    )
    fc7_rank: int | None = setting(None, "the same of fc7", ge=1)

    def head(self) -> dict[str, Any]:
        return {"hidden": self.hidden, **super().head()}

    def build(self, classes: int, *, pretrained: bool = True) -> TwoStageDetector:
        from regio.truncated_svd import low_rank

        detector = self.whole(classes, pretrained=pretrained)
        trunk: Any = detector.roi_heads[0].trunk
        for name, rank in (("fc6", self.fc6_rank), ("fc7", self.fc7_rank)):
            if rank is not None:
                layer = getattr(trunk, name)
                setattr(trunk, name, low_rank(layer.in_features, layer.out_features, rank))
        return detector

    @abstractmethod
    def whole(self, classes: int, *, pretrained: bool) -> TwoStageDetector:
        """The detector whose layers are not taken apart; see `build`."""


@dataclass(frozen=True)
class Masks:
    """Those of a mask head; no system by itself, so that its fields alone are added to those of a system."""

    mask_channels: int = setting(128, "of the convolutions of the mask head", ge=1)
    mask_output: Literal["sigmoid", "class-agnostic", "softmax"] = setting(
        "sigmoid", "a mask for each class on its own; one for all; or classes that compete at each cell"
    )

    def masks(self) -> dict[str, Any]:
        """The arguments of the mask head."""
        from regio.roi_heads import SigmoidMasks, SoftmaxMasks

        outputs = {"sigmoid": SigmoidMasks(), "class-agnostic": SigmoidMasks(True), "softmax": SoftmaxMasks()}
        return {"mask_channels": self.mask_channels, "output": outputs[self.mask_output]}

    def dataset(self, dataset: DetectionDataset) -> DetectionDataset:
        return dataset.with_known_masks()

    def evaluator(self, dataset: DetectionDataset) -> Evaluator:
        return _of_masks(dataset)


@dataclass(frozen=True)
class RPN(OneMap):
    """The proposal network of Faster R-CNN alone."""

    def build(self, classes: int, *, pretrained: bool = True) -> TwoStageDetector:
        from regio.systems import rpn

        backbone, stage = self.stage(pretrained)
        return self.adjusted(rpn(backbone, **stage))


@dataclass(frozen=True)
class RPNOnFPN(Pyramid):
    """The proposal network of FPN alone."""

    def build(self, classes: int, *, pretrained: bool = True) -> TwoStageDetector:
        from regio.systems import rpn_fpn

        backbone, stage = self.stage(pretrained)
        return self.adjusted(rpn_fpn(backbone, **stage))


@dataclass(frozen=True)
class FasterRCNN(FullyConnectedHead, TwoStage, OneMap):
    """Faster R-CNN on one map."""

    def whole(self, classes: int, *, pretrained: bool) -> TwoStageDetector:
        from regio.systems import faster_rcnn

        backbone, stage = self.stage(pretrained)
        extractor = self.extractor.build(self.channels)
        return self.adjusted(faster_rcnn(classes + 1, backbone, extractor, **stage, **self.head()))


@dataclass(frozen=True)
class FasterRCNNOnFPN(FullyConnectedHead, TwoStage, Pyramid):
    """Faster R-CNN on a feature pyramid."""

    def whole(self, classes: int, *, pretrained: bool) -> TwoStageDetector:
        from regio.systems import faster_rcnn_fpn

        backbone, stage = self.stage(pretrained)
        extractor = self.extractor.build(self.channels)
        return self.adjusted(faster_rcnn_fpn(classes + 1, backbone, extractor, **stage, **self.head()))


@dataclass(frozen=True)
class SplitBackbone(OnBackbone):
    """Those of the systems that may take over the fully connected layers of a classifier."""

    level: int = setting(5, "of the backbone that the map comes from", ge=2, le=5)
    output_stride: int = setting(16, "of that map at most, by dilation", ge=1)
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
        return parts.backbone, parts.trunk


@dataclass(frozen=True)
class FastRCNN(FullyConnectedHead, SplitBackbone):
    """Fast R-CNN: boxes are given, as a rule by selective search."""

    needs_proposals: ClassVar[bool] = True

    channels: int | None = setting(None, "to which a 1 x 1 convolution brings the map; null for the map as it is", ge=1)
    extractor: Extractor = setting(RoIPool(), "what reads region features", choices=EXTRACTORS)
    sides: tuple[int, ...] = setting((), "short sides of an image pyramid, in place of short_side; [] for none")
    regions_per_image: int = setting(64, "in the mini-batch of the head", ge=1)
    background_low: float = setting(0.1, "lowest IoU with an object of the background in the mini-batch", ge=0, le=0.5)
    box_weight: float = setting(1.0, "factor on the box loss, lambda in the paper; 0 for a classifier alone", ge=0)
    targets: Literal["fixed", "class"] = setting(
        "fixed",
        "box targets divided by 0.1, 0.1, 0.2, 0.2; or brought to zero mean and unit variance of each class over the "
        "proposals of the training data, as in the paper",
    )
    nms_threshold: float = setting(0.3, "IoU above which the weaker of two detections of a class goes", ge=0, le=1)

    def whole(self, classes: int, *, pretrained: bool) -> TwoStageDetector:
        from regio.box_targets import ClassBoxCoder
        from regio.boxes import BoxCoder
        from regio.systems import fast_rcnn

        backbone, trunk = self.parts(pretrained)
        return fast_rcnn(
            classes + 1,
            backbone,
            self.extractor.build(backbone.channels[-1] if self.channels is None else self.channels),
            trunk=trunk,
            channels=self.channels,
            short_side=self.short_side,
            long_side=self.long_side,
            sides=self.sides,
            background_low=self.background_low,
            coder=ClassBoxCoder(classes + 1) if self.targets == "class" else BoxCoder((10.0, 10.0, 5.0, 5.0)),
            box_weight=self.box_weight,
            **self.head(),
        )

    def prepare(self, detector: TwoStageDetector, dataset: DetectionDataset) -> list[str]:
        from regio.box_targets import ClassBoxCoder, target_statistics

        coder: Any = detector.roi_heads[0].coder
        if not isinstance(coder, ClassBoxCoder):
            return []
        found = target_statistics(dataset)
        coder.set(found)
        few = [name for name, std in zip(dataset.class_names, found.std[1:], strict=True) if not bool(std.all())]
        what = "too few proposals to normalise box targets by"
        return [f"{what}: {', '.join(few)} (fixed numbers instead)"] if few else []


@dataclass(frozen=True)
class MaskRCNN(Masks, FasterRCNNOnFPN):
    """Mask R-CNN on a feature pyramid."""

    mask_extractor: Extractor = setting(
        RoIAlign((14, 14)),
        "what reads the features of masks, which have twice the cells a side",
        choices=EXTRACTORS,
    )
    mask_layers: int = setting(4, "convolutions before the one that doubles the size", ge=0)

    def whole(self, classes: int, *, pretrained: bool) -> TwoStageDetector:
        from regio.systems import mask_rcnn_fpn

        backbone, stage = self.stage(pretrained)
        made = mask_rcnn_fpn(
            classes + 1,
            backbone,
            self.extractor.build(self.channels),
            self.mask_extractor.build(self.channels),
            mask_layers=self.mask_layers,
            **self.masks(),
            **stage,
            **self.head(),
        )
        return self.adjusted(made)


@dataclass(frozen=True)
class FasterRCNNOnC4(BoxHead, TwoStage):
    """Faster R-CNN on C4, with the stage after it as the head."""

    backbone: str = setting("torchvision:resnet50", "a chain of stages: a ResNet as torchvision:NAME, timm:NAME")
    level: int = setting(4, "of the backbone that is read; the stage to the next one is the head", ge=2, le=4)
    anchor_sizes: tuple[float, ...] = setting((32.0, 64.0, 128.0, 256.0), "in pixels of the scaled image")
    proposal_channels: int = setting(256, "of the convolution of the proposal network", ge=1)
    extractor: Extractor = setting(
        RoIAlign((14, 14)), "what reads region features, whose bins the stage halves", choices=EXTRACTORS
    )
    regions_per_image: int = setting(64, "in the mini-batch of the head", ge=1)

    def stage(self, pretrained: bool) -> tuple[Backbone, dict[str, Any]]:
        """The backbone, with the stage that becomes the head, and the other arguments of the system."""
        from regio.proposals import Anchors

        backbone = self.make_backbone((self.level, self.level + 1), 32, pretrained=pretrained)
        return backbone, {
            "extractor": self.extractor.build(backbone.channels[0]),
            "proposal_channels": self.proposal_channels,
            "short_side": self.short_side,
            "long_side": self.long_side,
            "anchors": Anchors((self.anchor_sizes,), self.anchor_ratios),
            **self.head(),
        }

    def build(self, classes: int, *, pretrained: bool = True) -> TwoStageDetector:
        from regio.systems import faster_rcnn_c4

        backbone, stage = self.stage(pretrained)
        return self.adjusted(faster_rcnn_c4(classes + 1, backbone, **stage))


@dataclass(frozen=True)
class MaskRCNNOnC4(Masks, FasterRCNNOnC4):
    """Mask R-CNN on C4, whose mask head shares the extractor and the stage of the box head."""

    def build(self, classes: int, *, pretrained: bool = True) -> TwoStageDetector:
        from regio.systems import mask_rcnn_c4

        backbone, stage = self.stage(pretrained)
        return self.adjusted(mask_rcnn_c4(classes + 1, backbone, **self.masks(), **stage))


@dataclass(frozen=True)
class Published(System):
    """Those of the detectors that other libraries have trained, to begin a training with their weights."""

    detector: str = setting("", "its name there")
    short_side: int | None = setting(None, "of the scaled image, in pixels; null for as published", ge=1)
    long_side: int | None = setting(None, "at most, of the scaled image, in pixels; null for as published", ge=1)
    score_threshold: float = setting(0.05, "lowest score of a detection", ge=0, le=1)

    @abstractmethod
    def architecture(self) -> Architecture:
        """What the detector is made of. Raises ValueError for a name that the library does not have."""

    def build(self, classes: int, *, pretrained: bool = True) -> TwoStageDetector:
        """Its weights are random: those of the library are loaded by `regio.weights`."""
        made = self.architecture().build(classes + 1)
        self.adjust(made)
        return made

    def adjust(self, detector: TwoStageDetector) -> None:
        """Give `detector` the sizes and the threshold of these settings."""
        own = detector.preprocess
        detector.preprocess = replace(
            own, short_side=self.short_side or own.short_side, long_side=self.long_side or own.long_side
        )
        head: Any = detector.roi_heads[0]
        head.postprocess = replace(head.postprocess, score_threshold=self.score_threshold)

    def dataset(self, dataset: DetectionDataset) -> DetectionDataset:
        return dataset.with_known_masks() if self.architecture().masks else dataset

    def evaluator(self, dataset: DetectionDataset) -> Evaluator:
        return _of_masks(dataset) if self.architecture().masks else _of_boxes(dataset)

    def results(self, evaluator: Any, records: Sequence[Any]) -> Results:
        return _results(evaluator, records)

    def with_score_threshold(self, threshold: float) -> System:
        return replace(self, score_threshold=threshold)


@dataclass(frozen=True)
class Torchvision(Published):
    """A detector of torchvision."""

    detector: str = setting("fasterrcnn_resnet50_fpn_v2", "one of regio.weights.TORCHVISION")

    def architecture(self) -> Architecture:
        from regio.weights import TORCHVISION

        return named(TORCHVISION, self.detector, "torchvision")


@dataclass(frozen=True)
class Detectron2(Published):
    """A detector of detectron2's model zoo."""

    detector: str = setting("faster_rcnn_R_50_FPN_3x", "one of regio.weights.DETECTRON2")

    def architecture(self) -> Architecture:
        from regio.weights import DETECTRON2

        return named(DETECTRON2, self.detector, "detectron2")


@dataclass(frozen=True)
class Fitted(SplitBackbone):
    """Those of the systems whose classes are linear SVMs and whose boxes are ridge regressions, fitted to the features
    of a fine-tuned network."""

    needs_proposals: ClassVar[bool] = True

    output_stride: int = setting(32, "of the map at most, by dilation", ge=1)
    hidden: int = setting(512, "width of new layers fc6 and fc7", ge=1)
    layer: Literal["pool5", "fc6", "fc7"] = setting("fc7", "what the SVMs read")
    box_regression: bool = setting(True, "whether boxes are refined, from pool5")
    fine_tune: bool = setting(True, "whether the network is trained on the regions before the SVMs are fitted")
    regions_per_image: int = setting(64, "in the mini-batch of fine-tuning, a quarter of them objects", ge=1)
    background_low: float = setting(0.0, "lowest IoU with an object of the background in it", ge=0, le=0.5)
    class_rate: float = setting(1.0, "factor on the learning rate of the last layer in fine-tuning", gt=0)
    candidates: int | None = setting(
        40, "regions of a class that are left an image before suppression, in the mean; null for any number", ge=1
    )
    box_penalty: float = setting(1000.0, "of the box regressions", ge=0)
    box_iou: float = setting(0.6, "with an object, above which a region is an example of them", ge=0, le=1)
    feature_type: Literal["float16", "float32"] = setting("float16", "of the features on disk")
    keep_features: bool = setting(False, "whether they stay there")
    fit_memory: float = setting(2.0, "gigabytes that the examples of a fit take at most", gt=0)
    score_threshold: float | None = setting(None, "lowest score of a detection, a margin; null for any")
    nms_threshold: float = setting(0.3, "IoU above which the weaker of two detections of a class goes", ge=0, le=1)
    detections_per_image: int = setting(100, "at most", ge=1)

    def evaluator(self, dataset: DetectionDataset) -> Evaluator:
        return _of_boxes(dataset)

    def results(self, evaluator: Any, records: Sequence[Any]) -> Results:
        return _results(evaluator, records)

    def with_score_threshold(self, threshold: float) -> System:
        return replace(self, score_threshold=threshold)

    def head(self) -> dict[str, Any]:
        """The arguments of the head, but for its extractor."""
        from regio.postprocess import Postprocess

        lowest = -math.inf if self.score_threshold is None else self.score_threshold
        return {
            "hidden": self.hidden,
            "layer": self.layer,
            "box_layer": "pool5" if self.box_regression else None,
            "postprocess": Postprocess(lowest, self.nms_threshold, self.detections_per_image),
        }

    def recipe(self) -> Recipe:
        from regio.fitting import BoxRegression, HardNegativeMining
        from regio.recipes import FittedHead

        memory = int(self.fit_memory * 1e9)
        return FittedHead(
            fine_tune=self.fine_tune,
            regions_per_image=self.regions_per_image,
            background_low=self.background_low,
            rate=self.class_rate,
            mining=HardNegativeMining(memory=memory),
            regression=BoxRegression(self.box_penalty, self.box_iou, memory=memory),
            candidates=self.candidates,
            dtype=self.feature_type,
            keep_features=self.keep_features,
        )


@dataclass(frozen=True)
class RCNN(Fitted):
    """R-CNN: the crop of each region goes through a whole network."""

    short_side: int = setting(600, "of the image, above which it is scaled down, in pixels", ge=1)
    long_side: int = setting(1000, "the same of its long side", ge=1)
    crop: int = setting(227, "side of the warped crops, in pixels", ge=1)
    context: int = setting(16, "pixels of it on each side that show what is around the box", ge=0)
    square: bool = setting(False, "whether crops keep their aspect ratio: the tightest square around the box")
    bins: int = setting(3, "along a side of what new layers fc6 and fc7 read of the last map", ge=1)
    chunk: int = setting(32, "crops that are read at once", ge=1)

    def build(self, classes: int, *, pretrained: bool = True) -> TwoStageDetector:
        from regio.regions import TightestSquare, Warp
        from regio.systems import rcnn

        backbone, layers = self.parts(pretrained, centred=False)
        return rcnn(
            classes + 1,
            backbone,
            layers,
            crop=self.crop,
            context=self.context,
            shape=TightestSquare() if self.square else Warp(),
            bins=(self.bins, self.bins),
            short_side=self.short_side,
            long_side=self.long_side,
            chunk=self.chunk,
            **self.head(),
        )


@dataclass(frozen=True)
class SPPNet(Fitted):
    """SPPnet: a spatial pyramid over each region of maps of the whole image, at several scales."""

    output_stride: int = setting(16, "of the map at most, by dilation", ge=1)
    pyramid: tuple[int, ...] = setting((6, 3, 2, 1), "bins along a side of each grid of the spatial pyramid")
    corners: Literal["paper", "released"] = setting("paper", "how a box becomes cells: the appendix, or the code")
    sides: tuple[int, ...] = setting((480, 576, 688, 864, 1200), "short sides to which the image is scaled")
    long_side: int = setting(2000, "at most, at the largest of them, in pixels", ge=1)
    classify: tuple[int, ...] = setting(
        (),
        "side of crops of objects that the network is trained to classify at first, or several, one after the other in "
        "each epoch; [] for no such training",
    )
    background_low: float = setting(0.1, "lowest IoU with an object of the background in it", ge=0, le=0.5)
    box_iou: float = setting(0.5, "with an object, above which a region is an example of them", ge=0, le=1)
    box_penalty: float = setting(4000.0, "of the box regressions", ge=0)

    def build(self, classes: int, *, pretrained: bool = True) -> TwoStageDetector:
        from regio.regions import SPPNetCorners, SPPNetReleasedCorners
        from regio.systems import sppnet

        if self.fc != "new":
            raise ValueError(f"fc: expected new layers, which read the spatial pyramid, got {self.fc}")
        backbone, _ = self.parts(pretrained)
        return sppnet(
            classes + 1,
            backbone,
            levels=self.pyramid,
            corners=SPPNetReleasedCorners() if self.corners == "released" else SPPNetCorners(),
            sides=self.sides,
            long_side=self.long_side,
            **self.head(),
        )

    def recipe(self) -> Recipe:
        from regio.recipes import ClassifierFirst

        return ClassifierFirst(self.classify, super().recipe()) if self.classify else super().recipe()


def _of_boxes(dataset: DetectionDataset) -> Evaluator:
    from regio.evaluate import BoxEvaluator

    return BoxEvaluator(dataset)


def _of_masks(dataset: DetectionDataset) -> Evaluator:
    from regio.evaluate import MaskEvaluator

    if dataset.has_masks:
        return MaskEvaluator(dataset.with_known_masks())
    return _of_boxes(dataset.with_note("no object has a segmentation: boxes are measured, masks are not"))


def _results(evaluator: Any, records: Sequence[Any]) -> Results:
    from regio.evaluate import MaskEvaluator
    from regio.run_report import BoxResults, MaskResults

    return MaskResults(evaluator, records) if isinstance(evaluator, MaskEvaluator) else BoxResults(evaluator, records)


SYSTEMS: dict[str, type[System]] = {
    "faster-rcnn-fpn": FasterRCNNOnFPN,
    "faster-rcnn": FasterRCNN,
    "fast-rcnn": FastRCNN,
    "mask-rcnn": MaskRCNN,
    "faster-rcnn-c4": FasterRCNNOnC4,
    "mask-rcnn-c4": MaskRCNNOnC4,
    "rpn-fpn": RPNOnFPN,
    "rpn": RPN,
    "rcnn": RCNN,
    "sppnet": SPPNet,
    "torchvision": Torchvision,
    "detectron2": Detectron2,
}
"""By the name on the command line and in files."""
