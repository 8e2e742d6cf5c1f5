"""Detectors that other libraries trained, in this one: rules that read their checkpoints."""

from regio.weights.named import Trained, load_trained
from regio.weights.torchvision import TORCHVISION, from_torchvision, torchvision_detector

__all__ = ["TORCHVISION", "Trained", "from_torchvision", "load_trained", "torchvision_detector"]
