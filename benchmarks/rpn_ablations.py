"""Which parts of a trained proposal network matter at test time: the lower half of Faster R-CNN's table 2.

    python benchmarks/rpn_ablations.py WEIGHTS DATA [--split val] [--counts 100 300 1000] [--proposals FILE]

WEIGHTS is a checkpoint of a detector with a proposal network, DATA the images it is measured on. The head stays as it
is, and gets other proposals: fewer or more of them, without suppression, of random rank (no objectness), or the anchors
themselves (no refinement). --proposals gives it the boxes of a file instead, those of selective search for instance.
Of each row: AP, AP50, and the recall of the proposals at IoU 0.5 and 0.7.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from regio.config import load_detector
from regio.data import DetectionDataset, Sample, open_dataset, read_proposals
from regio.detector import TwoStageDetector
from regio.evaluate import BoxEvaluator, ProposalRecall, evaluate
from regio.proposals import RPN
from regio.types import Detections


class RandomScores(nn.Module):
    """In place of the objectness layer: scores that know nothing of the image."""

    def __init__(self, anchors: int) -> None:
        super().__init__()
        self.anchors = anchors
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        """[N, anchors, H, W]."""
        return torch.randn((len(x), self.anchors, *x.shape[2:]), generator=self.generator).to(x)


class NoRefinement(nn.Module):
    """In place of the layer of box refinements: every anchor stays where it is."""

    def __init__(self, anchors: int) -> None:
        super().__init__()
        self.anchors = anchors

    def forward(self, x: Tensor) -> Tensor:
        """Zeros [N, 4 anchors, H, W]."""
        return x.new_zeros((len(x), 4 * self.anchors, *x.shape[2:]))


@dataclass(frozen=True)
class Both:
    """Detections and proposals of the same images, measured in one pass."""

    boxes: BoxEvaluator
    recall: ProposalRecall
    selects: str = "ap"

    @property
    def dataset(self) -> DetectionDataset:
        """That of both."""
        return self.boxes.dataset

    @property
    def names(self) -> tuple[str, ...]:
        """Those of both."""
        return (*self.boxes.names, *self.recall.names)

    def record(self, sample: Sample, prediction: tuple[Detections, Detections]) -> tuple[Any, Any]:
        """A record of each."""
        found, proposed = prediction
        return self.boxes.record(sample, found), self.recall.record(sample, proposed)

    def measure(self, records: Sequence[tuple[Any, Any]]) -> dict[str, float]:
        """The numbers of both."""
        found, proposed = zip(*records, strict=True)
        return self.boxes.measure(found) | self.recall.measure(proposed)

    def save(self, records: Sequence[Any], folder: Path) -> None:
        """Nothing."""


def two_results(detector: TwoStageDetector) -> Any:
    """Predicts the detections and the proposals that they come from."""

    def run(images: Sequence[Tensor], proposals: Sequence[Tensor] | None = None) -> list[tuple[Detections, Detections]]:
        batch, maps = detector.features(images)
        if proposals is None:
            proposed = cast(RPN, detector.proposals)(maps)
        else:
            given = detector.preprocess.boxes(proposals, batch)
            proposed = [
                Detections(b, torch.ones(len(b), dtype=torch.int64), -torch.arange(len(b), dtype=b.dtype))
                for b in given
            ]
        found = proposed
        for head in detector.roi_heads:
            found = head(maps, found)
        restore = detector.preprocess.restore
        return list(zip(restore(found, batch), restore(proposed, batch), strict=True))

    return run


@contextmanager
def changed(rpn: RPN, count: int, nms: bool = True, objectness: bool = True, refinement: bool = True) -> Iterator[None]:
    """Within, `rpn` proposes `count` boxes, with some of its parts taken out."""
    own = rpn.test_filter, rpn.objectness, rpn.deltas
    threshold = own[0].nms_threshold if nms else 1.0
    first = max(own[0].pre_nms_top_n, count) if nms else count
    rpn.test_filter = replace(own[0], post_nms_top_n=count, pre_nms_top_n=first, nms_threshold=threshold)
    anchors = rpn.anchors.per_cell
    modules: Any = rpn
    if not objectness:
        modules.objectness = RandomScores(anchors)
    if not refinement:
        modules.deltas = NoRefinement(anchors)
    try:
        yield
    finally:
        rpn.test_filter, modules.objectness, modules.deltas = own


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("data")
    parser.add_argument("--split", default="val")
    parser.add_argument("--counts", type=int, nargs="+", default=[100, 300, 1000])
    parser.add_argument("--proposals", type=Path, help="a file, whose best boxes are given instead")
    parser.add_argument("--images", type=int, help="the first so many (default: all)")
    args = parser.parse_args()

    detector, card = load_detector(args.weights)
    detector.eval()
    dataset = open_dataset(args.data, args.split).keep_classes(card.class_names)
    dataset = dataset if args.images is None else dataset.subset(range(args.images))
    if not isinstance(detector.proposals, RPN) or not detector.roi_heads:
        parser.error(f"{args.weights}: expected a detector with a proposal network and heads")
    rpn = detector.proposals
    print(f"{args.weights}: {len(dataset)} images, {len(card.class_names)} classes")
    print("| proposals | number | AP | AP50 | recall at 0.5 | recall at 0.7 |\n|---|---|---|---|---|---|")

    def row(name: str, count: int, data: DetectionDataset) -> None:
        with torch.no_grad():
            numbers = evaluate(
                two_results(detector), Both(BoxEvaluator(data), ProposalRecall(data, limits=(count,)))
            ).numbers
        values = (numbers[key] for key in ("ap", "ap50", f"recall50_{count}", f"recall70_{count}"))
        print(f"| {name} | {count} | " + " | ".join(f"{value:.3f}" for value in values) + " |", flush=True)

    most = max(args.counts)
    for count in args.counts:
        with changed(rpn, count):
            row("RPN", count, dataset)
    with changed(rpn, 6000, nms=False):
        row("RPN, no suppression", 6000, dataset)
    for count in args.counts:
        with changed(rpn, count, nms=False, objectness=False):
            row("no objectness: drawn at random", count, dataset)
    for count in (300, most):
        with changed(rpn, count, refinement=False):
            row("no refinement: anchors", count, dataset)
    if args.proposals is not None:
        for count in args.counts:
            given = read_proposals(args.proposals, count)
            row(args.proposals.stem, count, dataset.with_proposals(given))


if __name__ == "__main__":
    main()
