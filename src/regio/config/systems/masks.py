"""Mask R-CNN: settings of a mask head, and what measures masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from regio.config.extractors import EXTRACTORS, Extractor, RoIAlign
from regio.config.systems.two_stage import FasterRCNNOnC4, FasterRCNNOnFPN
from regio.settings import setting

if TYPE_CHECKING:
    from regio.data import DetectionDataset
    from regio.detector import TwoStageDetector
    from regio.evaluate import Evaluator

__all__ = ["MaskRCNN", "MaskRCNNOnC4", "mask_evaluator"]


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
        return mask_evaluator(dataset)


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
class MaskRCNNOnC4(Masks, FasterRCNNOnC4):
    """Mask R-CNN on C4, whose mask head shares the extractor and the stage of the box head."""

    def build(self, classes: int, *, pretrained: bool = True) -> TwoStageDetector:
        from regio.systems import mask_rcnn_c4

        backbone, stage = self.stage(pretrained)
        return self.adjusted(mask_rcnn_c4(classes + 1, backbone, **self.masks(), **stage))


def mask_evaluator(dataset: DetectionDataset) -> Evaluator:
    """What measures masks and boxes; boxes alone, with a note of that, where no object of `dataset` has a mask."""
    from regio.evaluate import BoxEvaluator, MaskEvaluator

    if dataset.has_masks:
        return MaskEvaluator(dataset.with_known_masks())
    return BoxEvaluator(dataset.with_note("no object has a segmentation: boxes are measured, masks are not"))
