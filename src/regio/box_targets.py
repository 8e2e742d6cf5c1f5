"""Box targets with zero mean and unit variance, of each class on its own (Fast R-CNN, section 2.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regio.boxes import BoxCoder
from regio.data import DetectionDataset
from regio.matching import Matcher
from regio.types import Targets

__all__ = ["ClassBoxCoder", "TargetStatistics", "target_statistics"]

TYPICAL = (0.1, 0.1, 0.2, 0.2)
"""Standard deviations in py-faster-rcnn, whose proposals come from a network and are not known beforehand."""
ROUNDING = 1e-4
"""Of targets, which are parts of the side of a box: a hundredth of a pixel where a side is 100."""


class ClassBoxCoder(nn.Module):
    """R-CNN's box parameterisation, from which the mean of the class is subtracted, and which its standard deviation
    divides: ``(t - mean[label]) / std[label]``. A `regio.boxes.Coder`.

    mean, std: buffers [num_classes, 4], the background being class 0, which has no targets. They are a part of the
    state of the detector, so a checkpoint carries them. Unless `set` they are 0 and (0.1, 0.1, 0.2, 0.2), which is
    ``BoxCoder((10, 10, 5, 5))``. Law: ``decode(encode(b, a, l), a, l) == b``.

    Raises ValueError for fewer than two classes.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes: expected the background and at least one class, got {num_classes}")
        self.plain = BoxCoder()
        self.register_buffer("mean", torch.zeros(num_classes, 4))
        self.register_buffer("std", torch.tensor(TYPICAL).repeat(num_classes, 1))

    def encode(self, boxes: Tensor, reference: Tensor, labels: Tensor) -> Tensor:
        """Targets [R, 4] that take `reference` [R, 4] to `boxes` [R, 4], objects of the classes `labels` [R]."""
        raw = self.plain.encode(boxes, reference)
        return (raw - self.mean[labels].to(raw.dtype)) / self.std[labels].to(raw.dtype)

    def decode(self, deltas: Tensor, reference: Tensor, labels: Tensor) -> Tensor:
        """Boxes [R, 4] from `deltas` [R, 4] for the classes `labels` [R], and `reference` [R, 4]."""
        raw = deltas * self.std[labels].to(deltas.dtype) + self.mean[labels].to(deltas.dtype)
        return self.plain.decode(raw, reference)

    def set(self, statistics: TargetStatistics) -> None:
        """Take mean and standard deviation of each class. A class that is not `known` keeps what it has.

        Raises ValueError for another number of classes.
        """
        if statistics.mean.shape != self.mean.shape:
            raise ValueError(
                f"statistics: expected {len(self.mean)} classes with the background, got {len(statistics.mean)}"
            )
        known = statistics.known
        self.mean[known] = statistics.mean[known].to(self.mean)
        self.std[known] = statistics.std[known].to(self.std)


@dataclass(frozen=True)
class TargetStatistics:
    """Of the box targets of each class, the background being class 0, which has none.

    mean, std: [C, 4], 0 where there are no targets. count: [C] int64, from how many.
    """

    mean: Tensor
    std: Tensor
    count: Tensor

    @property
    def known(self) -> Tensor:
        """Of which classes [C] each of the four targets varies, bool: by more than the rounding of float32 boxes."""
        return (self.std > ROUNDING).all(1)


def target_statistics(dataset: DetectionDataset, positive: float = 0.5) -> TargetStatistics:
    """Mean and standard deviation of R-CNN's box targets over all proposals of `dataset` that overlap an object by an
    IoU of `positive` at least, and over the objects themselves, which training adds to the proposals and whose targets
    are 0. As the released code of Fast R-CNN. No image is read. Images count as they are, not mirrored.

    Raises ValueError for a data set without proposals.
    """
    matcher, coder = Matcher(positive, positive), BoxCoder()
    classes = len(dataset.class_names) + 1
    count = torch.zeros(classes, dtype=torch.int64)
    total, squares = torch.zeros(2, classes, 4, dtype=torch.float64)
    for index, record in enumerate(dataset.records):
        proposals = dataset.proposals_of(index)
        if proposals is None:
            raise ValueError("dataset: expected one with proposals, see DetectionDataset.with_proposals")
        targets = Targets(
            torch.from_numpy(record.boxes).to(torch.float64),
            torch.from_numpy(record.labels),
            torch.from_numpy(record.crowd),
        )
        boxes = torch.cat([torch.tensor(proposals, dtype=torch.float64), targets.boxes[~targets.crowd]])
        match = matcher(boxes, targets)
        rows = (match >= 0).nonzero()[:, 0]
        labels = targets.labels[match[rows]]
        deltas = coder.encode(targets.boxes[match[rows]], boxes[rows])
        count += torch.bincount(labels, minlength=classes)
        total.index_add_(0, labels, deltas)
        squares.index_add_(0, labels, deltas**2)
    some = count.clamp(min=1)[:, None]
    mean = total / some
    return TargetStatistics(mean, (squares / some - mean**2).clamp(min=0).sqrt(), count)
