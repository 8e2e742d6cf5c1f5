"""The divergences of weights over a data set, for a trained detector or several checkpoints of one (Gu et al. 2018,
figure 3)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from regio.analysis.divergence import kl_between_parts, kl_of_mask, masks_to_cells
from regio.analysis.object_sizes import SIZES, Statistic, by_class, size_class
from regio.config import load_detector
from regio.data import DetectionDataset
from regio.detector import TwoStageDetector
from regio.regions import Levels
from regio.types import FeatureMap, Regions

__all__ = ["Divergences", "divergence_of_checkpoints", "divergence_of_detector", "extractor_of", "weights_by_level"]

BOXES_AT_ONCE = 8  # whose weights are held together: 8 x 49 maps of 100 x 167 cells are 50 MB in float64


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


def weights_by_level(levels: Levels, maps: Sequence[FeatureMap], r: Regions) -> Iterator[tuple[int, Tensor, Tensor]]:
    """For each level of a pyramid that boxes are read from: its index, those rows [B] of `r`, and their weights
    [B, 1 or C, K, H, W] on that level, a few boxes at a time."""
    level = levels.assign(maps, r) if len(maps) > 1 else torch.zeros_like(r.image)
    for i in range(len(maps)):
        for rows in (level == i).nonzero()[:, 0].split(BOXES_AT_ONCE):
            if len(rows):
                yield i, rows, levels.weights(maps, r[rows])[i]


@torch.no_grad()
def divergence_of_detector(
    detector: TwoStageDetector, dataset: DetectionDataset, *, diagonal: bool = True, floor: float = 1e-12
) -> Divergences:
    """Mean KL between parts and KL of mask of the weights with which `detector` reads the annotated boxes.

    Boxes of crowds are left out. Sizes are COCO's, by the annotated area (that of the mask where there is one), in
    pixels of the image as given. For KL of mask the dataset must be one `with_masks`; masks are brought to cells by
    the share of each that they cover. diagonal, floor: as in `regio.analysis.divergence`.

    Raises TypeError as `extractor_of`.
    """
    levels = extractor_of(detector)
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
            if targets.masks is not None:
                cells = masks_to_cells(_scaled(targets.masks[rows], batch.sizes[0]), maps[level])
                seen = cells.flatten(1).any(1)
                of_mask.add(kl_of_mask(weights[seen], cells[seen], floor=floor), sizes[rows[seen]])
    return Divergences(between.by_size(), of_mask.by_size(), unread)


def divergence_of_checkpoints(
    paths: Iterable[Path], dataset: DetectionDataset, *, diagonal: bool = True, floor: float = 1e-12
) -> dict[Path, Divergences]:
    """`divergence_of_detector` for each checkpoint, on the CPU. Raises as that and as `regio.config.load_detector`."""
    return {
        path: divergence_of_detector(load_detector(path)[0].eval(), dataset, diagonal=diagonal, floor=floor)
        for path in paths
    }


def _scaled(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks [R, h, w], to nearest, on an image of `size`."""
    return F.interpolate(masks[None].to(torch.uint8), size, mode="nearest")[0].to(torch.bool)


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
