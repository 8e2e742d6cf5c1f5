"""Detectors that other libraries trained, in this one: rules that read their checkpoints."""

from regio.weights.architecture import Architecture
from regio.weights.detectron2 import DETECTRON2, detectron2_detector, from_detectron2
from regio.weights.named import Trained, load_trained, published, system_of
from regio.weights.torchvision import TORCHVISION, from_torchvision, torchvision_detector

__all__ = [
    "DETECTRON2",
    "TORCHVISION",
    "Architecture",
    "Trained",
    "detectron2_detector",
    "from_detectron2",
    "from_torchvision",
    "load_trained",
    "published",
    "system_of",
    "torchvision_detector",
]
