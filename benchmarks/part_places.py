"""Where in their boxes the parts of a trained extractor read: how far from its bin each one is, and how much of that
differs from box to box.

    python benchmarks/part_places.py DATA CHECKPOINT [CHECKPOINT ...] [--images IMAGES]

The place of a part is the mean of the positions of its cells by their weights, from the centre of its bin, in bins. At
the annotated boxes of the validation images, by the size of the object; root mean square, along x and y: over the
parts, of the mean over boxes, which a head can learn; and over boxes and parts, of what is left, which it is not told.
Of learned region features also for the geometric term alone; for comparison RoIAlign on the same maps. And by map, the
mean length of the features of a cell, and the standard deviation over the cells of an image of the appearance term, the
mean over parts and images.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from regio.analysis import extractor_of
from regio.analysis.object_sizes import SIZES, size_class
from regio.analysis.trained import weights_by_level
from regio.data import DetectionDataset, open_dataset
from regio.detector import TwoStageDetector
from regio.regions import Levels, RoIAlign
from regio.types import FeatureMap, Regions
from regio.weights import load_trained


def places(weights: Tensor, boxes: Tensor, bins: tuple[int, int]) -> Tensor:
    """Of weights [R, 1, K, H, W] and boxes [R, 4] in cells, [R, K, 2] as (x, y) in bins, 0 in the centre of a bin."""
    across, down = weights[:, 0].sum(2), weights[:, 0].sum(3)  # [R, K, W] and [R, K, H]
    found = []
    for axis, (each, count) in enumerate(((across, bins[1]), (down, bins[0]))):
        cells = torch.arange(each.shape[-1], dtype=each.dtype) + 0.5
        at = (each * cells).sum(-1) / each.sum(-1)
        low, high = boxes[:, None, axis], boxes[:, None, axis + 2]
        part = torch.arange(bins[0] * bins[1])
        index = part % bins[1] if axis == 0 else part // bins[1]
        found.append((at - low) / (high - low) * count - index - 0.5)
    return torch.stack(found, -1)


@torch.no_grad()
def measured(detector: TwoStageDetector, images: DetectionDataset) -> dict[tuple[str, str], Tensor]:
    """Places [R, K, 2] by extractor and size of the object."""
    levels = extractor_of(detector)
    (own,) = levels.extractors
    geometry = own.terms_alone().get("geometry alone")
    readers = {"as trained": levels, "RoIAlign": Levels(RoIAlign(levels.bins, samples=2), levels.rule)}
    if geometry is not None:
        readers["geometry alone"] = Levels(geometry, levels.rule)
    found: dict[tuple[str, str], list[Tensor]] = defaultdict(list)
    for index, record in enumerate(images.records):
        sample = images[index]
        batch, maps = detector.features([sample.image])
        targets = detector.preprocess.targets([sample.targets], batch)[0]
        sizes = size_class(torch.from_numpy(record.area))[~targets.crowd]
        r = Regions.from_list([targets.boxes[~targets.crowd]])
        for name, reader in readers.items():
            for level, rows, weights in weights_by_level(reader, maps, r):
                for place, size in zip(
                    places(weights, r.boxes[rows] / maps[level].stride, levels.bins), sizes[rows], strict=True
                ):
                    found[name, SIZES[int(size)]].append(place)
    return {key: torch.stack(each) for key, each in found.items()}


@torch.no_grad()
def lengths(detector: TwoStageDetector, images: DetectionDataset) -> list[tuple[float, float]]:
    """Of each map of the pyramid: the mean length of a cell, and the deviation of the appearance term (0 where there is
    none)."""
    (own,) = extractor_of(detector).extractors
    found: list[list[tuple[float, float]]] = []
    for index in range(len(images)):
        _, maps = detector.features([images[index].image])
        found.append([])
        for x in maps:
            height, width = x.extents[0]
            cropped = FeatureMap(x.data[..., :height, :width], x.stride)
            term = own.terms(cropped, Regions.from_list([torch.zeros(0, 4)]))[2] if hasattr(own, "terms") else None
            deviation = 0.0 if term is None else float(term.flatten(2).std(2).mean())
            found[-1].append((float(cropped.data.norm(dim=1).mean()), deviation))
    return [(float(a), float(b)) for a, b in torch.tensor(found).mean(0)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT")
    parser.add_argument("--images", type=int, help="of the validation images (default: all)")
    options = parser.parse_args(arguments)
    print("| checkpoint | map | length of a cell | deviation of the appearance term |")
    print("|---|---|---|---|")
    opened = {}
    for path in options.checkpoints:
        trained = load_trained(path)
        assert isinstance(trained.detector, TwoStageDetector)
        images = open_dataset(options.data, "val").keep_classes(trained.labels)
        if options.images is not None:
            images = images.subset(range(min(options.images, len(images))))
        opened[path] = trained.detector.eval(), images
        for index, (length, deviation) in enumerate(lengths(*opened[path])):
            print(f"| {path} | {index} | {length:.1f} | {deviation:.2f} |", flush=True)
    print("\n| checkpoint | extractor | objects | boxes | of the part, x and y | from box to box |")
    print("|---|---|---|---|---|---|")
    for path, (detector, images) in opened.items():
        for (name, size), each in sorted(measured(detector, images).items()):
            mean = each.mean(0)
            shared, left = mean.square().mean(0).sqrt(), (each - mean).square().mean((0, 1)).sqrt()
            numbers = " | ".join(f"{a:.2f} {b:.2f}" for a, b in (shared.tolist(), left.tolist()))
            print(f"| {path} | {name} | {size} | {len(each)} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
