"""R-CNN and SPPnet: boxes are given, and classes and boxes fitted to the features of a trained network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from regio.config.systems.backbones import SplitBackbone
from regio.settings import setting

if TYPE_CHECKING:
    from regio.detector import TwoStageDetector
    from regio.recipes import FittedHead, Recipe

__all__ = ["RCNN", "Fitted", "SPPNet"]


@dataclass(frozen=True)
class Fitted(SplitBackbone):
    """Those of the systems whose classes are linear SVMs and whose boxes are ridge regressions, fitted to the features
    of a fine-tuned network."""

    needs_proposals: ClassVar[bool] = True
    shown_score: ClassVar[float] = -0.5  # margins: those of most regions are near -1
    weak_score: ClassVar[float] = -1.1

    output_stride: int = setting(32, "of the map at most, by dilation, where fc is new", ge=1)
    hidden: int = setting(512, "width of fc6 and fc7, where fc is new", ge=1)
    layer: Literal["pool5", "fc6", "fc7"] = setting("fc7", "what the SVMs read")
    box_regression: bool = setting(True, "whether boxes are refined, from pool5")
    fine_tune: bool = setting(True, "whether the network is trained on the regions before the SVMs are fitted")
    regions_per_image: int = setting(64, "in the mini-batch of fine-tuning, a quarter of them objects", ge=1)
    background_low: float = setting(0.0, "lowest IoU with an object of the background in it", ge=0, le=0.5)
    class_rate: float = setting(1.0, "factor on the learning rate of the last layer in fine-tuning", gt=0)
    candidates: int | None = setting(
        40, "regions of a class that are left an image before suppression, in the mean; null for any number", ge=1
    )
    box_penalty: float = setting(1000.0, "of the box regressions", gt=0)
    box_iou: float = setting(0.6, "with an object, above which a region is an example of them", ge=0, le=1)
    feature_type: Literal["float16", "float32"] = setting("float16", "of the features on disk")
    keep_features: bool = setting(False, "whether they stay there")
    fit_memory: float = setting(2.0, "gigabytes that the examples of a fit take at most", gt=0)
    score_threshold: float | None = setting(None, "lowest score of a detection, a margin; null for any")
    nms_threshold: float = setting(0.3, "IoU above which the weaker of two detections of a class goes", ge=0, le=1)
    detections_per_image: int = setting(100, "at most", ge=1)

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
        return self.fitting()

    def fitting(self) -> FittedHead:
        """The stages by which all of these are trained."""
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
    bins: int = setting(3, "along a side of what fc6 and fc7 read of the last map, where fc is new", ge=1)
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
    short_side: int = setting(320, "of no effect: sides are the short sides", ge=1)
    sides: tuple[int, ...] = setting((480, 576, 688, 864, 1200), "short sides to which the image is scaled")
    long_side: int = setting(2000, "at most, at the largest of them, in pixels", ge=1)
    classify: tuple[int, ...] = setting(
        (),
        "side of crops of objects that the network is trained to classify at first, or several, one after the other in "
        "each epoch; [] for no such training",
    )
    background_low: float = setting(0.1, "lowest IoU with an object of the background in it", ge=0, le=0.5)
    box_iou: float = setting(0.5, "with an object, above which a region is an example of them", ge=0, le=1)
    box_penalty: float = setting(4000.0, "of the box regressions", gt=0)

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

        return ClassifierFirst(self.classify, self.fitting()) if self.classify else self.fitting()
