"""regio: region-based object detection in PyTorch, from R-CNN to learned region features.

The modules, in the order data flows: `regio.data` reads images and annotations; `regio.backbones` and `regio.necks`
make feature maps; `regio.proposals` finds boxes; `regio.regions` makes a feature for each; `regio.roi_heads` and
`regio.postprocess` turn features into detections; `regio.detector` is these in a row and `regio.systems` the
detectors of the literature; `regio.train` and `regio.evaluate` do what they say.

The names below are those most programs start from. Each is imported from its module at its first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from regio.config import load_detector as load_detector
    from regio.data import open_dataset as open_dataset
    from regio.data import read_image as read_image
    from regio.detector import TwoStageDetector as TwoStageDetector
    from regio.regions import DeformableRoIPool as DeformableRoIPool
    from regio.regions import LearnedRegionFeatures as LearnedRegionFeatures
    from regio.regions import RegionExtractor as RegionExtractor
    from regio.regions import RoIAlign as RoIAlign
    from regio.regions import RoIPool as RoIPool
    from regio.systems import faster_rcnn as faster_rcnn
    from regio.systems import faster_rcnn_fpn as faster_rcnn_fpn
    from regio.types import Detections as Detections
    from regio.types import FeatureMap as FeatureMap
    from regio.types import Regions as Regions
    from regio.types import Targets as Targets

__version__ = "0.1.0"

_MODULES = {
    "Detections": "regio.types",
    "DeformableRoIPool": "regio.regions",
    "FeatureMap": "regio.types",
    "LearnedRegionFeatures": "regio.regions",
    "RegionExtractor": "regio.regions",
    "Regions": "regio.types",
    "RoIAlign": "regio.regions",
    "RoIPool": "regio.regions",
    "Targets": "regio.types",
    "TwoStageDetector": "regio.detector",
    "faster_rcnn": "regio.systems",
    "faster_rcnn_fpn": "regio.systems",
    "load_detector": "regio.config",
    "open_dataset": "regio.data",
    "read_image": "regio.data",
}

__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'regio' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
