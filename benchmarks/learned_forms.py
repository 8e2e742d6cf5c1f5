"""Learned region features with the same weights, in the exact, the sampled and the dense form: accuracy and time.

    python benchmarks/learned_forms.py RUN [RUN ...] [--project FOLDER] [--limit IMAGES] [--forms FORM ...]

RUN is the folder of a training of a detector that is given boxes, with learned region features on one map (an arm of
`regio compare --study region-features`, say); its boxes are kept in --project. The maps of each of its validation
images are made once and read in all forms, one after the other. Times are of what comes after the maps, in ms for an
image, the median. The maxima of the sampled forms are the paper's, 196 and 196 (its choice) and 49 and 100 (its
fewest), and the same divided by 6.7, which leaves as large a share of a map of 15 x 20 cells.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from regio.analysis import extractor_of
from regio.config.run import read_config
from regio.evaluate import BoxEvaluator
from regio.regions import LearnedRegionFeatures
from regio.regions.learned import Dense, Exact, Mode, Sampled
from regio.run import open_splits
from regio.types import Detections
from regio.weights import load_trained

FORMS: dict[str, Mode] = {
    "exact": Exact(),
    "dense": Dense(),
    "sampled 196 + 196": Sampled(inside=196, outside=196),
    "sampled 49 + 100": Sampled(inside=49, outside=100),
    "sampled 29 + 29": Sampled(inside=29, outside=29),
    "sampled 7 + 15": Sampled(inside=7, outside=15),
}


@torch.no_grad()
def measured(
    run: Path, project: Path, forms: Sequence[str], limit: int | None
) -> dict[str, tuple[dict[str, float], float]]:
    """Metrics and milliseconds an image by form. Raises ValueError for a detector with another extractor."""
    _, images = open_splits(read_config(run / "config.yaml"), Console(quiet=True), project)
    detector = load_trained(run / "weights" / "last.safetensors").detector.eval()
    (extractor, *more) = extractor_of(detector).extractors
    if not isinstance(extractor, LearnedRegionFeatures) or more:
        raise ValueError(f"{run}: expected learned region features on one map, got {type(extractor).__name__}")
    if limit is not None:
        images = images.subset(range(min(limit, len(images))))
    evaluator = BoxEvaluator(images)
    records: dict[str, list[Any]] = {form: [] for form in forms}
    times: dict[str, list[float]] = {form: [] for form in forms}
    for index in range(len(images)):
        sample = images[index]
        assert sample.proposals is not None
        batch, maps = detector.features([sample.image])
        (boxes,) = detector.preprocess.boxes([sample.proposals], batch)
        given = [Detections(boxes, torch.ones(len(boxes), dtype=torch.int64), torch.ones(len(boxes)))]
        for form in forms:
            extractor.mode = FORMS[form]
            began = time.perf_counter()
            found = detector.roi_heads[0](maps, given)
            times[form].append(1000 * (time.perf_counter() - began))
            records[form].append(evaluator.record(sample, detector.preprocess.restore(found, batch)[0]))
    return {form: (evaluator.measure(records[form]), statistics.median(times[form])) for form in forms}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--project", type=Path, help="where boxes are kept (default: three folders above RUN)")
    parser.add_argument("--limit", type=int, help="of the validation images (default: all)")
    parser.add_argument("--forms", choices=FORMS, nargs="+", default=[*FORMS])
    options = parser.parse_args(arguments)
    print("| run | form | AP | AP50 | AP75 | ms an image |\n|---|---|---|---|---|---|")
    for run in options.runs:
        found = measured(run, options.project or run.parents[2], options.forms, options.limit)
        for form, (metrics, ms) in found.items():
            values = " | ".join(f"{metrics[name]:.4f}" for name in ("ap", "ap50", "ap75"))
            print(f"| {run.parent.name}, {run.name} | {form} | {values} | {ms:.1f} |", flush=True)


if __name__ == "__main__":
    main()
