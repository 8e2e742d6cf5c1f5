"""Overlap and suppression of boxes, with torchvision's signatures."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor

from regio.kernels import nms as kernels
from regio.kernels.arguments import check_rows
from regio.ops.overriding import overridable
from regio.ops.quantized import dequantized

__all__ = ["batched_nms", "box_iou", "nms"]


@overridable
def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Indices [D] int64 of the boxes that stay, by decreasing score: a box goes whose IoU with a better one that stays
    is above `iou_threshold`.

    boxes: [N, 4] as (x1, y1, x2, y2), floating point or quantized. scores: [N], likewise. Boxes of equal score are
    taken in the order of their index. Raises ValueError or TypeError for shapes, dtypes and devices that do not fit,
    for boxes that are not finite and for scores that are NaN.
    """
    return kernels.nms(dequantized(boxes), dequantized(scores), iou_threshold)


@overridable
def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """`nms` among the boxes [N, 4] of the same category ``idxs`` [N]; the indices of all together, by decreasing score.

    The categories are compared as they are: boxes are not moved apart, so overlaps keep their digits. Raises as `nms`
    does, and ValueError for categories that are NaN.
    """
    if idxs.shape != scores.shape:
        raise ValueError(f"idxs: expected shape {list(scores.shape)}, that of the scores, got {list(idxs.shape)}")
    if idxs.device != boxes.device:
        raise ValueError(f"idxs: expected device {boxes.device}, that of the boxes, got {idxs.device}")
    if idxs.dtype.is_floating_point:  # labels cut out of a table of floats
        check_rows("idxs", idxs, "numbers", torch.isnan)
        idxs = torch.unique(idxs, return_inverse=True)[1]
    return kernels.batched_nms(dequantized(boxes), dequantized(scores), idxs.to(torch.int64), iou_threshold)


@overridable
def box_iou(boxes1: Tensor, boxes2: Tensor, fmt: str = "xyxy") -> Tensor:
    """Intersection over union [..., N, M] of boxes [..., N, 4] and [..., M, 4].

    It is torchvision's own function behind a check of its arguments, with its formats `fmt`, and NaN for two boxes that
    are both empty. `regio.boxes.iou` gives 0 there. Raises ValueError or TypeError for shapes, dtypes or devices that
    do not fit.
    """
    for name, boxes in (("boxes1", boxes1), ("boxes2", boxes2)):
        if not isinstance(boxes, Tensor):
            raise TypeError(f"{name}: expected a tensor [..., N, 4], got {type(boxes).__name__}")
        if boxes.ndim < 2 or boxes.shape[-1] != boxes1.shape[-1]:
            raise ValueError(f"{name}: expected shape [..., N, {boxes1.shape[-1:].numel()}], got {list(boxes.shape)}")
    if boxes1.device != boxes2.device:
        raise ValueError(f"boxes2: expected device {boxes1.device}, that of boxes1, got {boxes2.device}")
    return torchvision.ops.box_iou(boxes1, boxes2, fmt)
