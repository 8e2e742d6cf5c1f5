"""DeepLab: settings of a segmentation network, and what measures and shows class maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from regio.config.systems.backbones import OnBackbone
from regio.config.systems.proposal_networks import make_norm
from regio.settings import setting

if TYPE_CHECKING:
    import torch

    from regio.compare.kinds import Kind
    from regio.data import DetectionDataset
    from regio.evaluate import Evaluator
    from regio.outputs import Output
    from regio.ready import InferencePrecision, Ready
    from regio.run_report import Results
    from regio.segmentation import SegmentationNetwork

__all__ = ["DeepLab"]


@dataclass(frozen=True)
class DeepLab(OnBackbone):
    """DeepLab: the class of every pixel, from one map."""

    shown_score: ClassVar[float | None] = None
    drops_difficult: ClassVar[bool] = False  # their pixels would be those of the background

    level: int = setting(5, "of the backbone that the map comes from", ge=2, le=5)
    output_stride: int = setting(16, "of that map at most, by dilation", ge=1)
    channels: int = setting(256, "of the 1 x 1 convolution before the classifier", ge=1)
    norm: Literal["none", "batch", "group"] = setting("batch", "normalisation after that convolution")

    def build(self, classes: int, *, pretrained: bool = True) -> SegmentationNetwork:
        from regio.systems import deeplab

        return deeplab(
            classes + 1,
            self.make_backbone((self.level,), self.output_stride, pretrained=pretrained),
            channels=self.channels,
            short_side=self.short_side,
            long_side=self.long_side,
            norm=make_norm(self.norm),
        )

    def images(self, dataset: DetectionDataset) -> DetectionDataset:
        return dataset.with_class_maps()

    def dataset(self, dataset: DetectionDataset) -> DetectionDataset:
        return dataset.with_class_maps()

    def evaluator(self, dataset: DetectionDataset) -> Evaluator:
        from regio.evaluate import MeanIoU

        return MeanIoU(dataset.with_class_maps())

    def results(self, evaluator: Any, records: Sequence[Any]) -> Results:
        from regio.run_report import SegmentationResults

        return SegmentationResults(evaluator, records)

    def ready(self, model: Any, device: torch.device, precision: InferencePrecision) -> Ready:
        from regio.ready import ReadySegmentation

        return ReadySegmentation(model, device, precision)

    def output(self, labels: Sequence[str], score: float | None) -> Output:
        from regio.outputs import ClassMapOutput

        return ClassMapOutput(labels)

    def compared_as(self) -> Kind:
        from regio.compare.kinds import CLASS_MAPS

        return CLASS_MAPS
