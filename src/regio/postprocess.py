"""From class scores and refined boxes to detections."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from regio.boxes import BoxCoder, clip, sides
from regio.heads import HeadOutput
from regio.kernels.nms import batched_nms
from regio.preprocess import Batch, resize_boxes
from regio.types import Detections

__all__ = ["Postprocess"]


@dataclass(frozen=True)
class Postprocess:
    """Softmax, decode, clip, threshold, suppress per class, keep the best.

    Every class of a box is a candidate of its own. Candidates with a score up to `score_threshold` or a side under
    `min_size` (in pixels of the batch) are dropped; of candidates of one class with IoU above `iou_threshold`
    only the best stays; at most `max_detections` remain of an image.
    """

    coder: BoxCoder
    score_threshold: float = 0.05
    iou_threshold: float = 0.5
    max_detections: int = 100
    min_size: float = 1e-2

    def __call__(self, output: HeadOutput, proposals: list[Tensor], batch: Batch) -> list[Detections]:
        """Detections of each image, in pixels of the images as given, from the head's output for `proposals`."""
        counts = [len(boxes) for boxes in proposals]
        scores = output.logits.softmax(1).split(counts)
        deltas = output.deltas.split(counts)
        detections = []
        for i, boxes in enumerate(proposals):
            found = self._of_image(scores[i], deltas[i], boxes, batch.sizes[i])
            in_image = resize_boxes(found.boxes, batch.sizes[i], batch.original[i])
            detections.append(Detections(in_image, found.labels, found.scores))
        return detections

    def _of_image(self, scores: Tensor, deltas: Tensor, proposals: Tensor, size: tuple[int, int]) -> Detections:
        # Thresholding first leaves a few hundred of the R x C candidates to be decoded.
        row, label = (scores[:, 1:] > self.score_threshold).nonzero(as_tuple=True)
        label = label + 1
        score = scores[row, label]
        boxes = clip(self.coder.decode(deltas[row, label], proposals[row]), size)
        width, height = sides(boxes)
        large = (width >= self.min_size) & (height >= self.min_size)
        boxes, label, score = boxes[large], label[large], score[large]
        best = batched_nms(boxes, score, label, self.iou_threshold)[: self.max_detections]
        return Detections(boxes[best], label[best], score[best])
