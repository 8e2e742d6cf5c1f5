"""Detectors of the literature, and a segmentation network, put together: one file a paper."""

from regio.systems.class_aware_rpn import class_aware_rpn, class_aware_rpn_fpn
from regio.systems.deeplab import deeplab
from regio.systems.fast_rcnn import fast_rcnn, fast_rcnn_head, fast_rcnn_svms
from regio.systems.faster_rcnn import faster_rcnn, faster_rcnn_c4, rpn
from regio.systems.fpn import fast_rcnn_fpn, faster_rcnn_fpn, rpn_fpn
from regio.systems.mask_rcnn import mask_rcnn_c4, mask_rcnn_fpn
from regio.systems.rcnn import rcnn
from regio.systems.rfcn import light_head_rcnn, rfcn
from regio.systems.sppnet import sppnet

__all__ = [
    "class_aware_rpn",
    "class_aware_rpn_fpn",
    "deeplab",
    "fast_rcnn",
    "fast_rcnn_fpn",
    "fast_rcnn_head",
    "fast_rcnn_svms",
    "faster_rcnn",
    "faster_rcnn_c4",
    "faster_rcnn_fpn",
    "light_head_rcnn",
    "mask_rcnn_c4",
    "mask_rcnn_fpn",
    "rcnn",
    "rfcn",
    "rpn",
    "rpn_fpn",
    "sppnet",
]
