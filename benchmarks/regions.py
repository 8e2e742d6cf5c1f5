"""What a region costs: the time of an image against the number of its regions.

    python benchmarks/regions.py [--side 600] [--classes 21] [--repeats 7]

R-FCN, its deformable form, Light-Head R-CNN and Faster R-CNN, in the widths of their papers, on the last map of one
backbone (EfficientNet-Lite0 at stride 16), with random weights. Boxes are given; what is timed is the whole detector as
it is used for inference (`ReadyDetector`, float32, one thread) without the suppression of detections, whose number
depends on the scores: no box has one above the threshold.

After a warm-up the systems take turns. Printed are the median and, in brackets, the smallest and the largest time in
milliseconds, and the microseconds that a region more costs from the first to the last number of them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from regio.backbones import Backbone, efficientnet_lite0
from regio.detector import TwoStageDetector
from regio.ready import ReadyDetector
from regio.regions import DeformablePositionSensitive, PositionSensitive, RegionExtractor, RoIAlign, score_maps
from regio.systems import faster_rcnn, light_head_rcnn, rfcn

COUNTS = (300, 1000, 2000)


def r_fcn(classes: int, backbone: Backbone, maps: Callable[[int], RegionExtractor], **scale: int) -> TwoStageDetector:
    return rfcn(classes, backbone, maps(classes), maps(4), **scale)


def systems(classes: int) -> dict[str, Callable[..., TwoStageDetector]]:
    pool = PositionSensitive(RoIAlign(7))
    own = {"classes": classes}
    return {
        "R-FCN": partial(r_fcn, maps=lambda channels: score_maps(1024, channels, pool)),
        "R-FCN, deformable": partial(
            r_fcn,
            maps=lambda channels: DeformablePositionSensitive(
                pool, 1024, channels, **(own if channels == classes else {})
            ),
        ),
        "R-FCN, deformable, one offset for all classes": partial(
            r_fcn, maps=lambda channels: DeformablePositionSensitive(pool, 1024, channels)
        ),
        "Light-Head R-CNN": light_head_rcnn,
        "Faster R-CNN": partial(faster_rcnn, extractor=RoIAlign(7)),
    }


def ready(make: Callable[..., TwoStageDetector], classes: int, side: int) -> ReadyDetector:
    torch.manual_seed(0)
    backbone = efficientnet_lite0((5,), output_stride=16, pretrained=False)
    detector = make(classes, backbone, short_side=side, long_side=2 * side).eval()
    head = detector.roi_heads[0]
    head.postprocess = replace(head.postprocess, score_threshold=1.0)  # type: ignore[assignment, arg-type]
    return ReadyDetector(detector, precision="32-true")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=600, help="short side of the image, 3/4 of the long")
    parser.add_argument("--classes", type=int, default=21, help="with the background")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    image = torch.randint(0, 256, (3, options.side, options.side * 4 // 3), dtype=torch.uint8)
    corners = torch.rand(max(COUNTS), 2) * options.side * 0.6
    boxes = torch.cat([corners, corners + 16 + torch.rand(max(COUNTS), 2) * options.side * 0.3], 1)
    made = {name: ready(make, options.classes, options.side) for name, make in systems(options.classes).items()}
    times: dict[tuple[str, int], list[float]] = {(name, count): [] for name in made for count in COUNTS}
    for repeat in range(-1, options.repeats):
        for (name, count), seen in times.items():
            begin = time.perf_counter()
            made[name]([image], [boxes[:count]])
            if repeat >= 0:
                seen.append(time.perf_counter() - begin)
    print("| | " + " | ".join(f"{count} regions" for count in COUNTS) + " | a region more |")
    print("|---" * (len(COUNTS) + 2) + "|")
    for name in made:
        medians = [statistics.median(times[name, count]) * 1e3 for count in COUNTS]
        cells = [
            f"{median:.0f} ({min(times[name, count]) * 1e3:.0f} to {max(times[name, count]) * 1e3:.0f})"
            for median, count in zip(medians, COUNTS, strict=True)
        ]
        slope = (medians[-1] - medians[0]) / (COUNTS[-1] - COUNTS[0]) * 1e3
        print(f"| {name} | " + " | ".join(cells) + f" | {slope:.1f} us |")


if __name__ == "__main__":
    main()
