"""From scored and refined boxes to detections."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from regio.boxes import Coder, clip, sides
from regio.kernels.nms import batched_nms
from regio.types import Detections

__all__ = ["Postprocess"]


@dataclass(frozen=True)
class Postprocess:
    """Threshold, decode, clip, suppress per class, keep the best.

    Every class of a box is a candidate of its own. Candidates with a score up to `score_threshold` or a side under
    `min_size` (in pixels of the batch) are dropped; of candidates of one class with IoU above `nms_threshold` only the
    best stays; at most `detections_per_image` remain. Of these, what has a side under `min_kept_size` is dropped
    and not replaced (detectron2, of empty boxes).
    """

    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    detections_per_image: int = 100
    min_size: float = 1e-2
    min_kept_size: float = 0.0

    def __call__(
        self, scores: Tensor, deltas: Tensor, boxes: Tensor, coder: Coder, size: tuple[int, int]
    ) -> Detections:
        """Detections of one image of `size` (height, width), best first, in pixels of the batch.

        scores: [P, classes], without the background. deltas: [P, 1 + classes, 4], or [P, 1, 4] for all classes, which
        refine boxes [P, 4].
        """
        return self.suppress(self.candidates(scores, deltas, boxes, coder, size))

    def candidates(
        self, scores: Tensor, deltas: Tensor, boxes: Tensor, coder: Coder, size: tuple[int, int]
    ) -> Detections:
        """All candidates, in no order; arguments as above."""
        # Thresholding first leaves a few hundred of the P x classes candidates to be decoded.
        row, column = (scores > self.score_threshold).nonzero(as_tuple=True)
        score, label = scores[row, column], column + 1
        refined = coder.decode(deltas[row, label if deltas.shape[1] > 1 else 0], boxes[row], label)
        refined = clip(refined, size)
        large = _large(refined, self.min_size)
        return Detections(refined[large], label[large], score[large])

    def suppress(self, found: Detections) -> Detections:
        """The detections among candidates, best first."""
        best = batched_nms(found.boxes, found.scores, found.labels, self.nms_threshold)[: self.detections_per_image]
        if self.min_kept_size > 0:
            best = best[_large(found.boxes[best], self.min_kept_size)]
        return found[best]


def _large(boxes: Tensor, side: float) -> Tensor:
    width, height = sides(boxes)
    return (width >= side) & (height >= side)
