"""Fast R-CNN, whose boxes are given: on one map, and on a feature pyramid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from regio.config.extractors import EXTRACTORS, Extractor, RoIPool
from regio.config.systems.backbones import SplitBackbone
from regio.config.systems.box_heads import FullyConnectedHead
from regio.settings import setting

if TYPE_CHECKING:
    from regio.data import DetectionDataset
    from regio.detector import TwoStageDetector

__all__ = ["FastRCNN", "FastRCNNOnFPN"]


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

    def prepare(self, detector: Any, dataset: DetectionDataset) -> list[str]:
        from regio.box_targets import ClassBoxCoder, target_statistics

        coder = detector.roi_heads[0].coder
        if not isinstance(coder, ClassBoxCoder):
            return []
        found = target_statistics(dataset)
        coder.set(found)
        few = [name for name, known in zip(dataset.class_names, found.known[1:], strict=True) if not known]
        what = "too few proposals to normalise box targets by"
        return [f"{what}: {', '.join(few)} (fixed numbers instead)"] if few else []


@dataclass(frozen=True)
class FastRCNNOnFPN(FullyConnectedHead):
    """Fast R-CNN on a feature pyramid: boxes are given, by selective search or a proposal network."""

    needs_proposals: ClassVar[bool] = True

    levels: tuple[int, ...] = setting((3, 4, 5), "of the backbone, which the pyramid is made of")
    channels: int = setting(128, "of the maps of the pyramid", ge=1)
    background_low: float = setting(0.0, "lowest IoU with an object of the background in the mini-batch", ge=0, le=0.5)

    def whole(self, classes: int, *, pretrained: bool) -> TwoStageDetector:
        from regio.systems import fast_rcnn_fpn

        return fast_rcnn_fpn(
            classes + 1,
            self.make_backbone(self.levels, 32, pretrained=pretrained),
            self.extractor.build(self.channels),
            channels=self.channels,
            short_side=self.short_side,
            long_side=self.long_side,
            background_low=self.background_low,
            **self.head(),
        )
