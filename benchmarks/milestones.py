"""Time per image of R-CNN, SPPnet, Fast R-CNN, the same with truncated SVD, and Faster R-CNN, with one VGG-16.

    python benchmarks/milestones.py PHOTO [--regions 2000] [--crops 100] [--rounds 3]

Random weights, which make no difference to time. PHOTO is scaled to a short side of 600 pixels, SPPnet's also to its
five scales. Every system has the same random boxes, but for Faster R-CNN, which has 300 of its own. Of each: the
convolutions over the image, the proposal network, and the work for each region, in medians of the rounds; and the time
as a multiple of the fastest before it. R-CNN takes minutes an image: its time for `crops` regions is scaled up, since
each crop is a pass of its own. Finding the boxes is not in it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regio.classifiers import split_classifier
from regio.data import read_image
from regio.detector import TwoStageDetector
from regio.postprocess import Postprocess
from regio.systems import fast_rcnn, faster_rcnn, rcnn, sppnet
from regio.truncated_svd import truncate
from regio.types import Detections
from roi import machine

CLASSES = 21
SIDES = (480, 576, 688, 864, 1200)
NONE_FOUND = Postprocess(score_threshold=1e9)  # random weights find a hundred thousand objects, or none
PAPER = {"R-CNN": 47.0, "SPPnet, five scales": 2.3, "Fast R-CNN": 0.32, "Fast R-CNN, SVD": 0.22, "Faster R-CNN": 0.198}


def systems() -> dict[str, Callable[[], TwoStageDetector]]:
    """By name; each with a network of its own, so that only one is in memory."""

    def vgg(centred: bool = True) -> dict[str, Any]:
        return split_classifier("vgg16", pretrained=False, centred=centred)._asdict()

    def fast() -> TwoStageDetector:
        return fast_rcnn(CLASSES, **vgg(), postprocess=NONE_FOUND)

    def compressed() -> TwoStageDetector:
        detector = fast()
        truncate(detector.roi_heads[0].trunk, {"fc6": 1024, "fc7": 256})  # type: ignore[arg-type]
        return detector

    def faster() -> TwoStageDetector:
        backbone, _ = split_classifier("vgg16", pretrained=False)
        return faster_rcnn(CLASSES, backbone, channels=512, hidden=4096, postprocess=NONE_FOUND)

    def by_crops() -> TwoStageDetector:
        backbone, trunk = split_classifier("vgg16", pretrained=False, centred=False)
        return rcnn(CLASSES, backbone, trunk, crop=224, postprocess=NONE_FOUND)

    def pooled(sides: tuple[int, ...]) -> TwoStageDetector:
        backbone, _ = split_classifier("vgg16", pretrained=False)
        return sppnet(CLASSES, backbone, hidden=4096, sides=sides, postprocess=NONE_FOUND)

    return {
        "R-CNN": by_crops,
        "SPPnet, five scales": lambda: pooled(SIDES),
        "SPPnet, one scale": lambda: pooled((600,)),
        "Fast R-CNN": fast,
        "Fast R-CNN, SVD": compressed,
        "Faster R-CNN": faster,
    }


@torch.inference_mode()
def parts(detector: TwoStageDetector, image: Tensor, boxes: Tensor) -> tuple[float, float, float]:
    """Seconds of the convolutions, the proposals, and the regions."""
    began = time.perf_counter()
    batch, maps = detector.features([image])
    convolved = time.perf_counter()
    if detector.proposals is None:
        (given,) = detector.preprocess.boxes([boxes], batch)
        found = [Detections(given, torch.ones(len(given), dtype=torch.int64), torch.ones(len(given)))]
    else:
        found = detector.proposals(maps)
    proposed = time.perf_counter()
    for head in detector.roi_heads:
        found = head(maps, found)
    return convolved - began, proposed - convolved, time.perf_counter() - proposed


def random_boxes(count: int, height: int, width: int) -> Tensor:
    """Of sides from 20 pixels to the whole image."""
    generator = torch.Generator().manual_seed(0)
    low, high = torch.tensor([20.0, 20.0]), torch.tensor([float(width), float(height)])
    sides = low + (high - low) * torch.rand((count, 2), generator=generator)
    corner = torch.rand((count, 2), generator=generator) * (high - sides)
    return torch.cat([corner, corner + sides], 1)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--regions", type=int, default=2000)
    parser.add_argument("--crops", type=int, default=100, help="of R-CNN, scaled up to the regions")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--systems", nargs="+", choices=list(systems()), default=list(systems()))
    args = parser.parse_args()

    image = read_image(args.photo)
    boxes = random_boxes(args.regions, *image.shape[1:])
    print(f"{machine()}; {args.photo.name}, {args.regions} regions, medians of {args.rounds} after a warm-up")
    print("| system | convolutions | proposals | regions | all | times faster than R-CNN | in the papers |")
    print("|---|---|---|---|---|---|---|")
    slowest: float | None = None
    for name in args.systems:
        torch.manual_seed(0)
        detector = systems()[name]().eval()
        share = args.regions / args.crops if name == "R-CNN" else 1.0
        own = boxes[: args.crops] if name == "R-CNN" else boxes
        parts(detector, image, own[:50])
        rounds = [parts(detector, image, own) for _ in range(args.rounds)]
        convolutions, proposals, regions = (statistics.median(each) for each in zip(*rounds, strict=True))
        total = convolutions + proposals + regions * share
        slowest = total if name == "R-CNN" else slowest
        ratio = "" if slowest is None else f"{slowest / total:.0f}"
        paper = f"{PAPER['R-CNN'] / PAPER[name]:.0f}" if name in PAPER else ""
        shown = " | ".join(f"{each:.2f} s" for each in (convolutions, proposals, regions * share, total))
        print(f"| {name} | {shown} | {ratio} | {paper} |", flush=True)
        del detector


if __name__ == "__main__":
    main()
