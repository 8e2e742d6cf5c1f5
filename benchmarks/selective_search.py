"""Recall and time of selective search beside OpenCV's, on annotated images.

    python benchmarks/selective_search.py DATA [--split SPLIT] [--images N] [--mode fast|quality] [--repeats N]

Both search the same scaled images, with the same colour spaces, k, sigma, size of segments and combinations of
similarities, and on one core; boxes with a short side are dropped from both. OpenCV's is left out where opencv-contrib
is not installed. Time is that of an image, from its pixels to boxes: in turns, the best of `repeats`, of which the
table has the median over the images and the interquartile range.

OpenCV's segmentation, colour spaces and texture are its own. It has no normalised red and green: in the quality mode
RGB stands for them, as in OpenCV's own quality mode.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regio.data import open_dataset
from regio.evaluate import ProposalRecall
from regio.proposals import SelectiveSearch
from regio.types import Detections

LIMITS = (100, 300, 1000, 2000)
Found = tuple[Tensor, Tensor]


def opencv(method: SelectiveSearch) -> Callable[[Tensor], Found]:
    """OpenCV's selective search with the settings of `method`. Raises ImportError without opencv-contrib."""
    import cv2

    parts: Any = cv2.ximgproc.segmentation
    cv2.setNumThreads(1)
    strategies = {
        "C": parts.createSelectiveSearchSegmentationStrategyColor,
        "T": parts.createSelectiveSearchSegmentationStrategyTexture,
        "S": parts.createSelectiveSearchSegmentationStrategySize,
        "F": parts.createSelectiveSearchSegmentationStrategyFill,
    }
    combined = parts.createSelectiveSearchSegmentationStrategyMultiple

    def search(image: Tensor) -> Found:
        height, width = image.shape[1:]
        scaled = method.scaled(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
        bgr = np.ascontiguousarray(scaled[:, :, ::-1])
        planes = {
            "hsv": lambda: [cv2.cvtColor(bgr, cv2.COLOR_BGR2HSV)],
            "lab": lambda: [cv2.cvtColor(bgr, cv2.COLOR_BGR2Lab)],
            "rgi": lambda: [bgr],
            "h": lambda: [cv2.cvtColor(bgr, cv2.COLOR_BGR2HSV)[:, :, :1].copy()],
            "i": lambda: [cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY)],
        }
        cv2.setRNGSeed(method.seed)
        search = parts.createSelectiveSearchSegmentation()
        search.setBaseImage(bgr)
        search.clearImages()
        search.clearGraphSegmentations()
        search.clearStrategies()
        for colour in method.colours:
            for each in planes[colour]():
                search.addImage(each)
        for k in method.k:
            search.addGraphSegmentation(parts.createGraphSegmentation(method.sigma, k, round(k)))
        for letters in method.similarities:
            made = [strategies[letter]() for letter in letters]
            search.addStrategy(combined(*made) if len(made) > 1 else made[0])
        found = search.process().astype(np.float32).reshape(-1, 4)
        found = found[(found[:, 2:] >= method.min_side).all(1)]
        found[:, 2:] += found[:, :2]
        scale = np.array([width / scaled.shape[1], height / scaled.shape[0]] * 2, np.float32)
        return torch.from_numpy(found * scale), torch.linspace(1, 0, len(found))

    return search


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("--split", default="all")
    parser.add_argument("--images", type=int)
    parser.add_argument("--mode", choices=["fast", "quality"], default="fast")
    parser.add_argument("--width", type=int, default=500, help="0: images as they are")
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    dataset = open_dataset(options.data, options.split)
    if options.images and options.images < len(dataset):
        dataset = dataset.subset(i * len(dataset) // options.images for i in range(options.images))
    method = SelectiveSearch.quality() if options.mode == "quality" else SelectiveSearch.fast()
    method = replace(method, width=options.width or None)
    methods: dict[str, Callable[[Tensor], Found]] = {"regio": method}
    try:
        methods["OpenCV"] = opencv(method)
    except (ImportError, AttributeError):
        print("OpenCV with ximgproc (opencv-contrib-python-headless) is not installed")
    recall = ProposalRecall(dataset, LIMITS)
    records: dict[str, list[Any]] = {name: [] for name in methods}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    counts: dict[str, list[int]] = {name: [] for name in methods}
    for search in methods.values():
        search(dataset[0].image)
    for sample in (dataset[i] for i in range(len(dataset))):
        best = dict.fromkeys(methods, np.inf)
        for turn in range(options.repeats):
            for name, search in methods.items():
                began = time.perf_counter()
                boxes, scores = search(sample.image)
                best[name] = min(best[name], time.perf_counter() - began)
                found = Detections(boxes, torch.ones(len(boxes), dtype=torch.int64), scores)
                if turn == 0:
                    records[name].append(recall.record(sample, found))
                    counts[name].append(len(boxes))
        for name in methods:
            seconds[name].append(best[name])
    objects = sum(len(record) for record in dataset.records)
    print(f"{options.data}: {len(dataset)} images, {objects} objects, {options.mode}, width {method.width}")
    head = " ".join(f"{limit:>6}" for limit in LIMITS)
    measures = {"recall50": "recall at IoU 0.5", "recall70": "recall at IoU 0.7", "abo": "average best overlap"}
    wide = 7 * len(LIMITS)
    print(f"{'':8} {'':>6} {'':>16}" + "".join(f"{what:>{wide + 2}}" for what in measures.values()))
    print(f"{'':8} {'boxes':>6} {'ms (IQR)':>16}" + "".join(f"{head:>{wide + 2}}" for _ in measures))
    for name in methods:
        low, middle, high = np.percentile(np.array(seconds[name]) * 1000, [25, 50, 75])
        numbers = recall.measure(records[name])
        rows = [" ".join(f"{numbers[f'{what}_{limit}']:6.3f}" for limit in LIMITS) for what in measures]
        times = f"{middle:.0f} ({low:.0f}-{high:.0f})"
        print(f"{name:8} {np.median(counts[name]):6.0f} {times:>16}" + "".join(f"{row:>{wide + 2}}" for row in rows))


if __name__ == "__main__":
    main()
