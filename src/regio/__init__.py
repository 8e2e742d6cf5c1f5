"""regio: region-based object detection in PyTorch, from R-CNN to learned region features."""

__version__ = "0.1.0"
