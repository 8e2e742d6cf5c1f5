"""Settings of the second stage: what classifies boxes and refines them."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from regio.config.extractors import EXTRACTORS, Extractor, RoIAlign
from regio.config.systems.backbones import OnBackbone
from regio.settings import setting

if TYPE_CHECKING:
    from regio.detector import TwoStageDetector
    from regio.postprocess import Postprocess

__all__ = ["BoxHead", "Detecting", "FullyConnectedHead"]


@dataclass(frozen=True)
class Detecting(OnBackbone):
    """Those of the systems that classify boxes: which of the scored ones are detections."""

    score_threshold: float = setting(0.05, "lowest score of a detection", ge=0, le=1)
    nms_threshold: float = setting(0.5, "IoU above which the weaker of two detections of a class goes", ge=0, le=1)
    detections_per_image: int = setting(100, "at most", ge=1)

    def postprocess(self) -> Postprocess:
        """What makes detections of scored boxes."""
        from regio.postprocess import Postprocess

        return Postprocess(self.score_threshold, self.nms_threshold, self.detections_per_image)


@dataclass(frozen=True)
class BoxHead(Detecting):
    """Those of the systems whose second stage classifies boxes."""

    extractor: Extractor = setting(RoIAlign(), "what reads region features", choices=EXTRACTORS)
    regions_per_image: int = setting(128, "in the mini-batch of the head", ge=1)
    beta: float = setting(1.0, "where the box loss turns from a square to a line", ge=0)

    def head(self) -> dict[str, Any]:
        """The arguments of the head, but for its extractor."""
        return {
            "regions_per_image": self.regions_per_image,
            "beta": self.beta,
            "postprocess": self.postprocess(),
        }


@dataclass(frozen=True)
class FullyConnectedHead(BoxHead):
    """Those of the second stage of Fast R-CNN."""

    hidden: int = setting(512, "width of the two layers of the box head, fc6 and fc7, where they are new", ge=1)
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
