"""Greedy non-maximum suppression."""

from __future__ import annotations

import numpy as np
import torch
import torchvision
from torch import Tensor

from regio.boxes import iou
from regio.kernels.arguments import check_rows

__all__ = ["batched_nms", "floor_to", "moved_apart", "nms", "nms_reference"]


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Indices [D] int64 of the boxes that stay, by decreasing score.

    The best box stays and every box whose IoU with it is above `iou_threshold` is dropped; then the best of the rest,
    and so on (R-CNN, section 2.2). Boxes of equal score are taken in the order of their index. Boxes [R, 4] of zero
    size overlap nothing. Not differentiable.

    Raises ValueError or TypeError for shapes, dtypes or devices that do not fit, for boxes that are not finite and for
    scores that are NaN. (A compiled graph looks at the numbers on a CPU only.)
    """
    return batched_nms(boxes, scores, torch.zeros_like(scores, dtype=torch.int64), iou_threshold)


def batched_nms(boxes: Tensor, scores: Tensor, group: Tensor, iou_threshold: float) -> Tensor:
    """`nms` among the boxes of the same `group` [R] int64 (a class, an image, a level); the indices of all groups
    together, by decreasing score."""
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes: expected shape [R, 4], got {list(boxes.shape)}")
    for name, column in (("scores", scores), ("group", group)):
        if column.shape != boxes.shape[:1]:
            raise ValueError(f"{name}: expected shape [{len(boxes)}], got {list(column.shape)}")
        if column.device != boxes.device:
            raise ValueError(f"{name}: expected device {boxes.device}, that of the boxes, got {column.device}")
    if not boxes.dtype.is_floating_point:
        raise TypeError(f"boxes: expected a floating point dtype, got {boxes.dtype}")
    if group.dtype != torch.int64:
        raise TypeError(f"group: expected dtype torch.int64, got {group.dtype}")
    if boxes.device.type != "cpu":
        check_rows("boxes", boxes, "finite coordinates", lambda b: ~torch.isfinite(b))
        check_rows("scores", scores, "numbers", torch.isnan)
        return torchvision.ops.nms(moved_apart(boxes, group), scores.to(torch.float64), iou_threshold)
    return _nms(boxes.detach(), scores.detach(), group, iou_threshold)


def moved_apart(boxes: Tensor, group: Tensor) -> Tensor:
    """Boxes [R, 4] so moved that those of different groups do not meet, in float64, in which the overlaps of boxes of
    an image keep the digits that they have in float32 for a billion of groups."""
    wide = boxes.detach().to(torch.float64)
    if not len(wide):
        return wide
    low = wide.min()
    return wide - low + ((group - group.min()) * (wide.max() - low + 1))[:, None]


def nms_reference(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """`nms` in plain PyTorch, from the matrix of all overlaps."""
    order = scores.argsort(descending=True, stable=True)
    above = iou(boxes[order], boxes[order]) > iou_threshold
    dropped = torch.zeros(len(order), dtype=torch.bool)
    for i in range(len(order)):
        if not dropped[i]:
            dropped[i + 1 :] |= above[i, i + 1 :]
    return order[~dropped]


@torch.library.custom_op("regio::nms", mutates_args=(), device_types="cpu")
def _nms(boxes: Tensor, scores: Tensor, group: Tensor, iou_threshold: float) -> Tensor:
    from regio.kernels.cpu.nms import suppress

    dtype = torch.float64 if boxes.dtype == torch.float64 else torch.float32
    score = scores.to(torch.float64 if scores.dtype == torch.float64 else torch.float32).numpy()
    corners = boxes.to(dtype).numpy()
    if not np.isfinite(corners).all():
        row = int(np.isfinite(corners).all(1).argmin())
        raise ValueError(f"boxes: expected finite coordinates, got {corners[row].tolist()} at row {row}")
    if np.isnan(score).any():
        raise ValueError(f"scores: expected numbers, got nan at row {int(np.isnan(score).argmax())}")
    by_score = np.argsort(-score, kind="stable")
    by_group = by_score[np.argsort(group.numpy()[by_score], kind="stable")]
    sorted_group = group.numpy()[by_group]
    starts = np.flatnonzero(sorted_group[1:] != sorted_group[:-1]) + 1
    begins = np.concatenate([[0], starts, [len(score)]]).astype(np.int64)
    # An overlap is compared in its own precision: above the largest value that does not exceed the threshold.
    threshold = floor_to(iou_threshold, np.float64 if dtype == torch.float64 else np.float32)
    keep = np.empty(len(score), np.bool_)
    suppress(corners[by_group], begins, threshold, keep)
    stays = np.empty(len(score), np.bool_)
    stays[by_group] = keep
    return torch.from_numpy(by_score[stays[by_score]])


def floor_to(value: float, dtype: type[np.floating]) -> np.floating:
    """The largest number of `dtype` that is at most `value`."""
    rounded = dtype(value)
    return np.nextafter(rounded, dtype(-np.inf)) if float(rounded) > value else rounded


@_nms.register_fake
def _(boxes, scores, group, iou_threshold):  # type: ignore[no-untyped-def]
    return boxes.new_empty((torch.library.get_ctx().new_dynamic_size(),), dtype=torch.int64)
