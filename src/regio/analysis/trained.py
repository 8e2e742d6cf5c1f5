"""The divergences of weights over a data set, for a trained detector or over the steps of a training (Gu et al. 2018,
figure 3).

One measure for all extractors: each is asked for its weights, whatever they are made of.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from regio.analysis.divergence import kl_between_parts, kl_of_mask, masks_to_cells
from regio.analysis.object_sizes import SIZES, Statistic, by_class, size_class
from regio.checkpoints import kept_checkpoints
from regio.config import load_detector
from regio.csv_files import write_csv
from regio.data import DetectionDataset
from regio.detector import TwoStageDetector
from regio.regions import Levels
from regio.types import FeatureMap, Regions

__all__ = [
    "MOST_PARTS",
    "Divergences",
    "divergence_of_checkpoints",
    "divergence_of_detector",
    "divergence_over_training",
    "divergence_rows",
    "extractor_of",
    "has_measurable_weights",
    "measured_images",
    "weights_by_level",
    "write_divergences",
]

MOST_PARTS = 1024
"""Parts of an extractor whose weights can be looked at: each has one for every cell of the map."""
COLUMNS = ("run", "step", "measure", "size", "objects", "mean", "deviation", "unread")
AT_ONCE = 2**20  # weights that are held together, unless those of one box are more


@dataclass(frozen=True)
class Divergences:
    """Statistics over the objects of each size in `SIZES`, in nats.

    of_mask counts only objects whose mask has a pixel. unread: objects left out of both, because a part of theirs reads
    no cell (a bin that RoIPool has rounded to beyond the map).
    """

    between_parts: dict[str, Statistic]
    of_mask: dict[str, Statistic]
    unread: int


def extractor_of(detector: TwoStageDetector) -> Levels:
    """The extractor of the detector's first RoI head. Raises TypeError where there is none, or none of a pyramid."""
    head = next(iter(detector.roi_heads), None)
    extractor = getattr(head, "extractor", None)
    if not isinstance(extractor, Levels):
        raise TypeError(
            f"detector: expected a first RoI head with an extractor of type Levels, got {type(head).__name__} "
            f"with {type(extractor).__name__}"
        )
    return extractor


def has_measurable_weights(detector: TwoStageDetector) -> bool:
    """Whether `divergence_of_detector` measures it: its first RoI head has an extractor of up to `MOST_PARTS` parts."""
    extractor = getattr(next(iter(detector.roi_heads), None), "extractor", None)
    return isinstance(extractor, Levels) and prod(extractor.bins) <= MOST_PARTS


def weights_by_level(levels: Levels, maps: Sequence[FeatureMap], r: Regions) -> Iterator[tuple[int, Tensor, Tensor]]:
    """For each level of a pyramid that boxes are read from: its index, those rows [B] of `r`, and their weights
    [B, 1, K, H, W] on that level, the mean over channels, a few boxes at a time."""
    level = levels.assign(maps, r) if len(maps) > 1 else torch.zeros_like(r.image)
    for i, (extractor, x) in enumerate(zip(levels.by_level(maps), maps, strict=True)):
        rows, count = (level == i).nonzero()[:, 0], 1
        while len(rows):
            some, rows = rows[:count], rows[count:]
            weights = extractor.mean_weights(x, r[some])
            yield i, some, weights
            count = max(1, AT_ONCE // weights[0].numel())


def measured_images(dataset: DetectionDataset, most: int = 40) -> DetectionDataset:
    """At most so many images of `dataset`, spread over those with objects; where any object has a segmentation, over
    those with such objects, and with their masks.

    Raises ValueError where no image has an object.
    """
    some = dataset.without_empty()
    if some.has_masks:
        masked = (i for i, record in enumerate(some.records) if any(s is not None for s in record.segmentations))
        some = some.subset(masked).with_known_masks()
    if not len(some):
        raise ValueError(f"dataset: expected objects, got none in {len(dataset)} images")
    return some.subset(i * len(some) // most for i in range(most)) if most < len(some) else some


@torch.no_grad()
def divergence_of_detector(
    detector: TwoStageDetector, dataset: DetectionDataset, *, diagonal: bool = True, floor: float = 1e-12
) -> Divergences:
    """Mean KL between parts and KL of mask of the weights with which `detector` reads the annotated boxes.

    Boxes of crowds are left out. Sizes are COCO's, by the annotated area (that of the mask where there is one), in
    pixels of the image as given. For KL of mask the dataset must be one `with_masks` or `with_known_masks`; masks are
    brought to cells by the share of each that they cover. diagonal, floor: as in `regio.analysis.divergence`.

    Raises TypeError as `extractor_of`, and ValueError for more than `MOST_PARTS` parts: those of R-CNN's crop are the
    pixels of an image.
    """
    levels = extractor_of(detector)
    if prod(levels.bins) > MOST_PARTS:
        raise ValueError(
            f"detector: expected an extractor of up to {MOST_PARTS} parts, got {type(levels.extractors[0]).__name__} "
            f"of {levels.bins[0]} x {levels.bins[1]}"
        )
    device = next(detector.parameters()).device
    between, of_mask, unread = _Values(), _Values(), 0
    for index, record in enumerate(dataset.records):
        sample = dataset[index]
        batch, maps = detector.features([sample.image.to(device)])
        targets = detector.preprocess.targets([sample.targets.to(device)], batch)[0]
        objects = (~targets.crowd).nonzero()[:, 0]
        sizes = size_class(torch.from_numpy(record.area).to(device))
        r = Regions.from_list([targets.boxes[objects]])
        for level, rows, weights in weights_by_level(levels, maps, r):
            read = (weights.sum((3, 4)) > 0).all(2).all(1)
            unread += int((~read).sum())
            weights, rows = weights[read], objects[rows[read]]
            between.add(kl_between_parts(weights, diagonal=diagonal, floor=floor), sizes[rows])
            if targets.masks is not None and len(rows):
                cells = masks_to_cells(targets.masks[rows], maps[level], batch.sizes[0])
                seen = cells.flatten(1).any(1)
                of_mask.add(kl_of_mask(weights[seen], cells[seen], floor=floor), sizes[rows[seen]])
    return Divergences(between.by_size(), of_mask.by_size(), unread)


def divergence_of_checkpoints(
    paths: Iterable[Path],
    dataset: DetectionDataset,
    *,
    diagonal: bool = True,
    floor: float = 1e-12,
    device: torch.device | str = "cpu",
) -> dict[Path, Divergences]:
    """`divergence_of_detector` for each checkpoint. Raises as that and as `regio.config.load_detector`."""
    found = {}
    for path in paths:
        detector, _ = load_detector(path)
        found[path] = divergence_of_detector(detector.to(device).eval(), dataset, diagonal=diagonal, floor=floor)
    return found


def divergence_over_training(
    folder: Path,
    dataset: DetectionDataset,
    *,
    diagonal: bool = True,
    floor: float = 1e-12,
    device: torch.device | str = "cpu",
) -> dict[int, Divergences]:
    """`divergence_of_detector` by step, for each checkpoint that the run in `folder` has kept (figure 3); its training
    must have had `keep_every`. dataset: `measured_images` gives a few.

    Raises as `divergence_of_checkpoints` and `regio.checkpoints.kept_checkpoints`.
    """
    kept = kept_checkpoints(folder)
    found = divergence_of_checkpoints(kept.values(), dataset, diagonal=diagonal, floor=floor, device=device)
    return {step: found[path] for step, path in kept.items()}


def divergence_rows(series: Mapping[str, Mapping[int, Divergences]]) -> list[dict[str, str | int | float]]:
    """The numbers of several trainings as a table, a row for each run, step, measure ("between_parts", "of_mask") and
    size: the number of objects, their mean and standard deviation in nats, and how many of all sizes are unread.

    series: by the name of each run, `divergence_over_training`. Sizes without objects have no row.
    """
    return [
        {
            "run": run,
            "step": step,
            "measure": measure,
            "size": size,
            "objects": each.count,
            "mean": each.mean,
            "deviation": each.deviation,
            "unread": found.unread,
        }
        for run, steps in series.items()
        for step, found in steps.items()
        for measure, by_size in (("between_parts", found.between_parts), ("of_mask", found.of_mask))
        for size, each in by_size.items()
        if each.count
    ]


def write_divergences(path: Path, series: Mapping[str, Mapping[int, Divergences]]) -> None:
    """Write the table of `divergence_rows` as CSV; of no objects, its first line alone."""
    write_csv(path, COLUMNS, divergence_rows(series))


class _Values:
    """Values and sizes of objects, collected image by image."""

    def __init__(self) -> None:
        self.values = [torch.empty(0, dtype=torch.float64)]
        self.sizes = [torch.empty(0, dtype=torch.int64)]

    def add(self, values: Tensor, sizes: Tensor) -> None:
        self.values.append(values.cpu())
        self.sizes.append(sizes.cpu())

    def by_size(self) -> dict[str, Statistic]:
        return by_class(torch.cat(self.values), torch.cat(self.sizes), SIZES)
