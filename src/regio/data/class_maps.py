"""Class maps: the label of every pixel, from files of them and from the segmentations of objects.

A pixel that several objects cover is of the smallest of them, by the pixels of their masks, and of the first annotated
of two that are equally large: a pizza is in front of the table that it lies on. A crowd leaves its pixels unknown where
no object is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regio.data.images import opened
from regio.data.masks import Segmentation, decode_masks
from regio.types import IGNORED

__all__ = ["LabelImage", "paint_class_map", "read_label_image"]

UNEXPECTED = -1


@dataclass(frozen=True)
class LabelImage:
    """An image file whose pixel values are classes, or objects of which each has a class.

    label: [256] int64, the label of a pixel by its value: 0 for the background, `IGNORED` where it is not known, -1 for
    a value that must not occur.
    """

    path: Path
    label: NDArray[np.int64]

    @staticmethod
    def of(path: Path, labels: Sequence[int]) -> LabelImage:
        """The file in which the value i stands for labels[i - 1], 0 for the background and 255 for unknown, as in
        Pascal VOC."""
        label = np.full(256, UNEXPECTED, dtype=np.int64)
        label[0], label[IGNORED] = 0, IGNORED
        label[1 : len(labels) + 1] = labels
        return LabelImage(path, label)

    def relabelled(self, new: NDArray[np.int64]) -> LabelImage:
        """The same with new labels: new [C + 1] is the new one by the old one, 0 for none."""
        known = (self.label >= 0) & (self.label < len(new))
        return replace(self, label=np.where(known, new[np.where(known, self.label, 0)], self.label))


def read_label_image(file: LabelImage, size: tuple[int, int]) -> Tensor:
    """The class map [H, W] uint8 of an image of `size` (height, width).

    Raises ValueError, naming the file, where there is none, where it is damaged, is no image of one byte a pixel (a
    palette or grey), has another size, or has a value that must not occur. Of another size only the header is read.
    """
    with opened(file.path) as image:
        mode, (width, height) = image.mode, image.size
        fits = mode in ("P", "L") and (height, width) == size
        values = np.asarray(image) if fits else np.zeros(size, dtype=np.uint8)
    if mode not in ("P", "L"):
        raise ValueError(
            f"{file.path}: expected the numbers of classes, in a palette or grey of 8 bits; got mode {mode}"
        )
    if not fits:
        raise ValueError(
            f"{file.path}: expected the size of its photo, {size[1]} x {size[0]} pixels (width x height), "
            f"got {width} x {height}"
        )
    labels = file.label[values]
    if (labels == UNEXPECTED).any():
        highest = int(np.flatnonzero((file.label >= 0) & (np.arange(256) != IGNORED))[-1])
        wrong = int(values[labels == UNEXPECTED][0])
        raise ValueError(f"{file.path}: expected pixels of 0 .. {highest} or {IGNORED}, got {wrong}")
    return torch.from_numpy(labels.astype(np.uint8))


def paint_class_map(
    segmentations: Sequence[Segmentation], labels: Sequence[int], crowd: Sequence[bool], size: tuple[int, int]
) -> Tensor:
    """The class map [H, W] uint8 of an image of `size` (height, width), in which each object has a segmentation, a
    label and a mark whether it is a crowd; see the head of this file for pixels that several cover.

    One mask is decoded at a time. Raises as `decode_masks`, the message beginning with the place of the object.
    """
    painted = np.zeros(size, dtype=np.uint8)
    front = np.full(size, np.inf, dtype=np.float64)  # pixels of the object that is in front
    for i, (segmentation, label, is_crowd) in enumerate(zip(segmentations, labels, crowd, strict=True)):
        try:
            mask = decode_masks([segmentation], size)[0].numpy()
        except ValueError as error:
            raise ValueError(f"object {i}: {error}") from error
        if is_crowd:
            painted[mask & np.isinf(front)] = IGNORED
            continue
        nearer = mask & (mask.sum() < front)
        painted[nearer], front[nearer] = label, mask.sum()
    return torch.from_numpy(painted)
