"""Truncated SVD of the fully connected layers (Fast R-CNN, section 3.1 and figure 2): what it saves, and what it costs.

    python benchmarks/svd.py time                                # VGG16, 21 classes, 600 x 800 pixels, 2000 boxes
    python benchmarks/svd.py accuracy runs/fast/weights/best.safetensors DATA --proposals FILE

`time` has random weights, which the time does not depend on, and says where the time of an image goes: convolutions,
RoI pooling, fc6 and fc7, the rest (scores, refined boxes, suppression). The median of the rounds, in turns, and their
extremes. The ranks of the paper are 1024 and 256, of 4096.

`accuracy` evaluates a checkpoint of a system with fc6 and fc7 on the validation split of DATA with each share of the
ranks kept; `time` there is that of the two layers alone, on 2000 boxes.
"""

from __future__ import annotations

import argparse
import copy
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import regio.cli  # noqa: F401  # isort: skip  (first, since its settings are read when PyTorch is loaded)
import torch
from rich.console import Console
from torch import Tensor, nn

from regio.classifiers import split_classifier
from regio.config import RunConfig, load_detector, model_from_dict
from regio.evaluate import evaluate
from regio.ready import InferencePrecision, ReadyDetector
from regio.run import open_splits
from regio.systems import fast_rcnn
from regio.truncated_svd import low_rank, truncate
from regio.types import Regions

RANKS = [(None, None), (2048, 1024), (1024, 256), (512, 128), (256, 64)]  # of VGG16's 4096
SHARES = [1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125]
BOXES = 2000


def random_boxes(height: int, width: int) -> Tensor:
    """As many as selective search gives, of 30 pixels to half the image."""
    generator = torch.Generator().manual_seed(0)
    sides = 30 * (torch.tensor([width, height]) / 60) ** torch.rand(BOXES, 2, generator=generator)
    corner = torch.rand(BOXES, 2, generator=generator) * (torch.tensor([width, height]) - sides)
    return torch.cat([corner, corner + sides], 1)


@torch.inference_mode()
def parts_of_an_image(ready: ReadyDetector, image: Tensor, boxes: Tensor) -> dict[str, float]:
    """Seconds of each part."""
    detector, marks = ready.detector, [time.perf_counter()]
    head: Any = detector.roi_heads[0]
    with torch.autocast("cpu", ready.dtype, enabled=ready.dtype != torch.float32):
        batch, maps = detector.features([image])
        marks.append(time.perf_counter())
        scaled = detector.preprocess.boxes([boxes], batch)
        y = head.extractor(maps, Regions.from_list(scaled))
        marks.append(time.perf_counter())
        y = head.trunk(y)
        marks.append(time.perf_counter())
        logits, deltas = head.class_logits(y).float(), head.box_deltas(y).float().unflatten(1, (-1, 4))
        head.detect(head.scores(logits), deltas, scaled, maps[0].image_sizes)
        marks.append(time.perf_counter())
    names = ("convolutions", "RoI pooling", "fc6, fc7", "rest")
    return {name: after - before for name, (before, after) in zip(names, pairwise(marks), strict=True)}


def measure_time(precision: InferencePrecision, rounds: int) -> None:
    """Print a table."""
    torch.manual_seed(0)
    backbone, trunk = split_classifier("vgg16", pretrained=False)
    whole = fast_rcnn(21, backbone, trunk=trunk).eval()
    image, boxes = torch.randint(0, 256, (3, 600, 800), dtype=torch.uint8), random_boxes(600, 800)
    readies = {}
    for fc6, fc7 in RANKS:
        if fc6 is not None and fc7 is not None:
            trunk.fc6, trunk.fc7 = low_rank(25088, 4096, fc6), low_rank(4096, 4096, fc7)  # type: ignore[assignment]
        readies["whole" if fc6 is None else f"{fc6}, {fc7}"] = ReadyDetector(whole, precision=precision)
    times: dict[str, list[dict[str, float]]] = {name: [] for name in readies}
    for _ in range(rounds + 1):
        for name, ready in readies.items():
            times[name].append(parts_of_an_image(ready, image, boxes))
    print(f"VGG16, 600 x 800 pixels, {BOXES} boxes, {precision}, {torch.get_num_threads()} threads; seconds an image\n")
    print("| ranks of fc6, fc7 | convolutions | RoI pooling | fc6, fc7 | rest | all | as fast |")
    print("|---|---|---|---|---|---|---|")
    base = None
    for name, all_rounds in times.items():
        own = all_rounds[1:]
        sums = [sum(each.values()) for each in own]
        base = base or median(sums)
        cells = [f"{median(each[part] for each in own):.2f}" for part in own[0]]
        spread = f"{median(sums):.2f} ({min(sums):.2f} to {max(sums):.2f})"
        print(f"| {name} | {' | '.join(cells)} | {spread} | {base / median(sums):.2f} |")


def layers_time(trunk: nn.Module, y: Tensor) -> float:
    """Seconds of a trunk for region features `y`, the median of five."""
    taken = []
    with torch.inference_mode():
        for _ in range(6):
            began = time.perf_counter()
            trunk(y)
            taken.append(time.perf_counter() - began)
    return median(taken[1:])


def measure_accuracy(weights: Path, data: str, proposals: str | None, shares: list[float]) -> None:
    """Print a table."""
    detector, card = load_detector(weights)
    system = model_from_dict(card.model)
    config = RunConfig(data, model=system, classes=card.class_names, proposals=proposals)
    _, validation = open_splits(config, Console(quiet=True), weights.parent)
    evaluator = system.evaluator(validation)
    head: Any = detector.eval().roi_heads[0]
    whole = head.trunk
    print(f"{weights}, {len(validation)} images of {data}\n")
    print("| share of ranks | fc6, fc7 | weights of fc6, fc7 | ms of fc6, fc7, 2000 boxes | AP | AP50 |")
    print("|---|---|---|---|---|---|")
    y = torch.randn(BOXES, whole.channels, *whole.bins)
    for share in [None, *shares]:
        head.trunk = copy.deepcopy(whole)
        ranks = "whole"
        if share is not None:
            made = truncate(head.trunk, {name: max(1, round(share * whole.width)) for name in ("fc6", "fc7")})
            ranks = ", ".join(str(each.rank) for each in made)
        count = sum(p.numel() for p in head.trunk.parameters())
        found = evaluate(ReadyDetector(detector, precision="32-true"), evaluator).numbers
        milliseconds = layers_time(head.trunk, y) * 1e3
        label = "" if share is None else f"{share:.3g}"
        numbers = f"{milliseconds:.0f} | {found['ap']:.3f} | {found['ap50']:.3f}"
        print(f"| {label} | {ranks} | {count / 1e6:.2f} M | {numbers} |", flush=True)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    timing = commands.add_parser("time")
    timing.add_argument("--precision", choices=["32-true", "bf16-mixed"], default="32-true")
    timing.add_argument("--rounds", type=int, default=3)
    accuracy = commands.add_parser("accuracy")
    accuracy.add_argument("weights", type=Path)
    accuracy.add_argument("data")
    accuracy.add_argument("--proposals", help="file or method, as of regio train")
    accuracy.add_argument("--shares", type=float, nargs="*", default=SHARES)
    chosen = parser.parse_args()
    if chosen.command == "time":
        measure_time(chosen.precision, chosen.rounds)
    else:
        measure_accuracy(chosen.weights, chosen.data, chosen.proposals, chosen.shares)


if __name__ == "__main__":
    main()
