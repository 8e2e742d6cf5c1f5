"""Systems by name: what makes each network from words and numbers, and by what it is measured.

A row of the table is a class of this package: its settings, `build`, and its evaluator. Its parents have the settings
that it shares with others.
"""

from __future__ import annotations

from regio.config.systems.backbones import BACKBONES, OnBackbone
from regio.config.systems.base import System
from regio.config.systems.box_heads import FullyConnectedHead
from regio.config.systems.class_aware import ClassAwareRPN, ClassAwareRPNOnFPN
from regio.config.systems.fitted import RCNN, SPPNet
from regio.config.systems.given_boxes import FastRCNN, FastRCNNOnFPN
from regio.config.systems.masks import MaskRCNN, MaskRCNNOnC4
from regio.config.systems.proposal_networks import RPN, RPNOnFPN
from regio.config.systems.published import Detectron2, Published, Torchvision
from regio.config.systems.rfcn import RFCN, LightHeadRCNN
from regio.config.systems.segmentation import DeepLab
from regio.config.systems.two_stage import FasterRCNN, FasterRCNNOnC4, FasterRCNNOnFPN

__all__ = [
    "BACKBONES",
    "RCNN",
    "RFCN",
    "RPN",
    "SYSTEMS",
    "ClassAwareRPN",
    "ClassAwareRPNOnFPN",
    "DeepLab",
    "Detectron2",
    "FastRCNN",
    "FastRCNNOnFPN",
    "FasterRCNN",
    "FasterRCNNOnC4",
    "FasterRCNNOnFPN",
    "FullyConnectedHead",
    "MaskRCNN",
    "MaskRCNNOnC4",
    "OnBackbone",
    "Published",
    "RPNOnFPN",
    "SPPNet",
    "System",
    "Torchvision",
]

SYSTEMS: dict[str, type[System]] = {
    "faster-rcnn-fpn": FasterRCNNOnFPN,
    "faster-rcnn": FasterRCNN,
    "fast-rcnn": FastRCNN,
    "fast-rcnn-fpn": FastRCNNOnFPN,
    "mask-rcnn": MaskRCNN,
    "faster-rcnn-c4": FasterRCNNOnC4,
    "mask-rcnn-c4": MaskRCNNOnC4,
    "rfcn": RFCN,
    "light-head-rcnn": LightHeadRCNN,
    "rpn-fpn": RPNOnFPN,
    "rpn": RPN,
    "class-aware-rpn": ClassAwareRPN,
    "class-aware-rpn-fpn": ClassAwareRPNOnFPN,
    "rcnn": RCNN,
    "sppnet": SPPNet,
    "deeplab": DeepLab,
    "torchvision": Torchvision,
    "detectron2": Detectron2,
}
"""By the name on the command line and in files."""
