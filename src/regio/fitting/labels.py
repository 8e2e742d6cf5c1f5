"""Which regions of an image have features, and what they overlap."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regio.boxes import area, intersection, iou
from regio.data.dataset import DetectionDataset

__all__ = ["LabelledRegions", "count_regions", "label_regions"]


class LabelledRegions(NamedTuple):
    """The regions of one image: its objects, then its proposals.

    boxes: [R, 4] float32, in pixels of the image. labels: [G] int64, 1 .. C, those of the first G regions, which are
    the objects; groups of objects (crowd) are none. overlap: [R, C], the largest IoU with an object of each class.
    crowd: [R, C] bool, whether 0.7 or more of the region lies in a group of that class: it is no negative of it.
    """

    boxes: Tensor
    labels: Tensor
    overlap: Tensor
    crowd: Tensor

    def best_object(self) -> tuple[Tensor, Tensor]:
        """For each region the largest IoU [R] with any object, and the index [R] of that object; 0 and 0 without."""
        if not len(self.labels):
            return self.boxes.new_zeros(len(self.boxes)), torch.zeros(len(self.boxes), dtype=torch.int64)
        best, index = iou(self.boxes, self.boxes[: len(self.labels)]).max(1)
        return best, index


def count_regions(dataset: DetectionDataset) -> list[int]:
    """How many regions `label_regions` gives for each image."""
    return [
        int((~record.crowd).sum()) + len(_proposals(dataset, index)) for index, record in enumerate(dataset.records)
    ]


def label_regions(dataset: DetectionDataset, index: int) -> LabelledRegions:
    """The regions of image `index` of a data set `with_proposals`, without reading the image.

    Raises ValueError where the data set has no proposals.
    """
    record, classes = dataset.records[index], len(dataset.class_names)
    boxes, labels = (torch.from_numpy(each.copy()) for each in (record.boxes.astype(np.float32), record.labels))
    single = torch.from_numpy(~record.crowd)
    objects, labels, groups, group_labels = boxes[single], labels[single], boxes[~single], labels[~single]
    regions = torch.cat([objects, torch.from_numpy(_proposals(dataset, index).astype(np.float32))])
    overlap = torch.zeros(len(regions), classes)
    pairs = iou(regions, objects)
    for column, label in enumerate(labels.tolist()):
        overlap[:, label - 1] = torch.maximum(overlap[:, label - 1], pairs[:, column])
    crowd = torch.zeros(len(regions), classes, dtype=torch.bool)
    inside = intersection(regions, groups) >= 0.7 * area(regions)[:, None]
    for column, label in enumerate(group_labels.tolist()):
        crowd[:, label - 1] |= inside[:, column]
    return LabelledRegions(regions, labels, overlap, crowd)


def _proposals(dataset: DetectionDataset, index: int) -> NDArray[np.float32]:
    boxes = dataset.proposals_of(index)
    if boxes is None:
        raise ValueError("dataset: expected one with proposals, got one without (DetectionDataset.with_proposals)")
    return boxes
