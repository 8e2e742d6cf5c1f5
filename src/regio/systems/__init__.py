"""Detectors of the literature, put together: one file a paper."""

from regio.systems.faster_rcnn import faster_rcnn
from regio.systems.fpn import faster_rcnn_fpn
from regio.systems.torchvision_weights import fasterrcnn_resnet50_fpn_from_torchvision

__all__ = ["faster_rcnn", "faster_rcnn_fpn", "fasterrcnn_resnet50_fpn_from_torchvision"]
