"""Operators with torchvision's names, signatures, defaults and results: change `torchvision.ops` to `regio.ops` in an
import. Boxes get gradients where they ask for them, which torchvision does not give.

What torchvision lacks has mmcv's signatures. Bad input raises one ValueError or TypeError that names the argument.
"""

from regio.ops.attention import ms_deform_attn
from regio.ops.boxes import batched_nms, box_iou, nms
from regio.ops.convolution import deform_conv2d, modulated_deform_conv2d
from regio.ops.deformable import deform_ps_roi_pool, deform_roi_pool
from regio.ops.layers import DeformConv2d, MultiScaleRoIAlign, PSRoIAlign, PSRoIPool, RoIAlign, RoIPool
from regio.ops.pooling import prroi_pool, roi_align, roi_pool, roi_warp
from regio.ops.position_sensitive import ps_roi_align, ps_roi_pool

__all__ = [
    "DeformConv2d",
    "MultiScaleRoIAlign",
    "PSRoIAlign",
    "PSRoIPool",
    "RoIAlign",
    "RoIPool",
    "batched_nms",
    "box_iou",
    "deform_conv2d",
    "deform_ps_roi_pool",
    "deform_roi_pool",
    "modulated_deform_conv2d",
    "ms_deform_attn",
    "nms",
    "prroi_pool",
    "ps_roi_align",
    "ps_roi_pool",
    "roi_align",
    "roi_pool",
    "roi_warp",
]
