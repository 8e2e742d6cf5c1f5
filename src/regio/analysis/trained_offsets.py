"""What the offsets of a trained detector are over a data set, over the steps of its training, and what they are worth
(Dai et al. 2017, section 5 and table 2).

Deformable convolutions are those of the backbone; deformable RoI pooling is measured on the annotated boxes.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from regio.analysis.dilation import FILTER_CLASSES, effective_dilation, filter_class
from regio.analysis.layer_offsets import LayerOffsets, offsets_in_backbone
from regio.analysis.object_sizes import Statistic, by_class
from regio.checkpoints import kept_checkpoints
from regio.config import load_detector
from regio.csv_files import write_csv
from regio.data import DetectionDataset
from regio.deformable_conv import DeformableConv2d
from regio.detector import TwoStageDetector
from regio.regions import DeformablePrior, Levels
from regio.regions.deformable import DeformablePositionSensitive, DeformableRoIPool
from regio.types import FeatureMap, Regions

__all__ = [
    "PUBLISHED_DILATION",
    "OffsetStatistics",
    "has_offsets",
    "offset_variants",
    "offsets_of_detector",
    "offsets_over_training",
    "without_offsets",
    "write_dilation",
    "write_offset_lengths",
    "write_without_offsets",
]

PUBLISHED_DILATION = {
    "res5c": {"small": (5.3, 3.3), "medium": (5.8, 3.5), "large": (8.4, 4.5), "background": (6.2, 3.0)},
    "res5b": {"small": (2.5, 1.3), "medium": (3.1, 1.5), "large": (5.1, 2.5), "background": (3.2, 1.2)},
    "res5a": {"small": (2.2, 1.2), "medium": (2.9, 1.3), "large": (4.2, 1.6), "background": (3.1, 1.1)},
}
"""Table 2 of Dai et al. 2017: mean and standard deviation of the effective dilation, R-FCN on VOC 2007 test."""

CONVOLUTIONS = (DeformableConv2d,)
M = TypeVar("M", bound=nn.Module)
POOLING = (DeformableRoIPool, DeformablePositionSensitive, DeformablePrior)


@dataclass(frozen=True)
class OffsetStatistics:
    """Of the offsets of a detector over a data set, by the names of its layers, in the order of execution.

    dilation: effective dilation, in cells of the layer's input map, of the filters whose centre is on an object of each
    size, or on the background; of layers with more than one tap. length: of deformable convolutions the mean length of
    the offsets of a filter's taps, of deformable pooling that of the shifts of a box's parts, both in cells of the map
    that is read.
    """

    dilation: dict[str, dict[str, Statistic]]
    length: dict[str, Statistic]


def has_offsets(network: nn.Module) -> bool:
    """Whether there is a deformable convolution or deformable pooling in it."""
    return any(isinstance(module, CONVOLUTIONS + POOLING) for module in network.modules())


@torch.no_grad()
def offsets_of_detector(detector: TwoStageDetector, dataset: DetectionDataset) -> OffsetStatistics:
    """The offsets with which `detector` reads the images of `dataset`, and their annotated boxes.

    The class of a filter is that of `filter_class`: sizes are COCO's, by the annotated area in pixels of the image as
    given. Filters centred on the padding of an image or on a crowd are not counted in the effective dilation, nor in
    the length. A filter of several offset groups counts once, with its mean over them.

    Raises ValueError as `regio.analysis.offsets_in_backbone`.
    """
    device = next(detector.parameters()).device
    dilation, classes, length = (defaultdict[str, list[Tensor]](list) for _ in range(3))
    for index, record in enumerate(dataset.records):
        sample = dataset[index]
        batch, maps, layers = offsets_in_backbone(detector, [sample.image.to(device)])
        targets = detector.preprocess.targets([sample.targets.to(device)], batch)[0]
        area = torch.from_numpy(record.area).to(device)
        for layer in layers:
            counted, kinds = _filters(layer, targets.boxes, area, targets.crowd, batch.sizes[0])
            length[layer.name].append(layer.lengths[0][counted].cpu())
            if prod(layer.kernel_size) > 1:
                each = effective_dilation(layer.offsets, layer.kernel_size, layer.dilation)[0].mean(0)
                dilation[layer.name].append(each[counted].cpu())
                classes[layer.name].append(kinds[counted].cpu())
        r = Regions.from_list([targets.boxes[~targets.crowd]])
        for name, shifts in _part_shifts(detector, maps, r):
            length[name].append(shifts.square().sum(-1).sqrt().mean((1, 2, 3)).cpu())
    return OffsetStatistics(
        {name: by_class(torch.cat(each), torch.cat(classes[name]), FILTER_CLASSES) for name, each in dilation.items()},
        {name: _statistic(torch.cat(each)) for name, each in length.items()},
    )


def _filters(
    layer: LayerOffsets, boxes: Tensor, area: Tensor, crowd: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Which filters of a layer count [H, W] bool, and their classes [H, W]; size: of the image in the batch."""
    stride = layer.output_stride
    assert stride is not None
    y, x = ((torch.arange(n, device=boxes.device) + 0.5) * stride for n in layer.output_size)
    inside = (y < size[0])[:, None] & (x < size[1])
    background = FILTER_CLASSES.index("background")
    crowded = filter_class(boxes[crowd], layer.output_size, stride) != background
    return inside & ~crowded, filter_class(boxes[~crowd], layer.output_size, stride, area=area[~crowd])


def _part_shifts(detector: nn.Module, maps: list[FeatureMap], r: Regions) -> Iterator[tuple[str, Tensor]]:
    """The shifts of each extractor that moves its parts, [R_l, D, Kh, Kw, 2] in cells, a level at a time. A map that
    no box is read from is not looked at: it may have other channels than the extractor reads."""
    for name, levels in detector.named_modules():
        if not isinstance(levels, Levels) or not has_offsets(levels):
            continue
        level = levels.assign(maps, r) if len(maps) > 1 else torch.zeros_like(r.image)
        for i, (extractor, x) in enumerate(zip(levels.by_level(maps), maps, strict=True)):
            if has_offsets(extractor):
                own = r[(level == i).nonzero()[:, 0]]
                shifts = extractor.part_shifts(x, own) if len(own) else None
                yield name, own.boxes.new_zeros(0, 1, *extractor.bins, 2) if shifts is None else shifts


def _statistic(values: Tensor) -> Statistic:
    return by_class(values, torch.zeros_like(values, dtype=torch.int64), ("all",))["all"]


def offsets_over_training(
    folder: Path, dataset: DetectionDataset, *, device: torch.device | str = "cpu"
) -> dict[int, OffsetStatistics]:
    """`offsets_of_detector` by step, for each checkpoint that the run in `folder` has kept; see
    `regio.checkpoints.kept_checkpoints`, and for errors."""
    found = {}
    for step, path in kept_checkpoints(folder).items():
        detector, _ = load_detector(path)
        found[step] = offsets_of_detector(detector.to(device).eval(), dataset)
    return found


def without_offsets(network: M, kinds: tuple[type[nn.Module], ...] = CONVOLUTIONS + POOLING) -> M:
    """A copy of `network` whose deformable layers of these kinds have no offsets: their taps, and the parts of boxes,
    are on their regular grids. All else is as trained, also the factors of modulated deformable convolution."""
    copied = copy.deepcopy(network)
    for module in copied.modules():
        if isinstance(module, kinds) and isinstance(module, CONVOLUTIONS + POOLING):
            module.zero_offsets()
    return copied


def offset_variants(detector: M) -> dict[str, M]:
    """By labels, `detector` as trained, and copies `without_offsets`: without those of its deformable convolutions, of
    its deformable pooling, and of both, as far as it has them.

    A detector has learned the rest of its weights beside these offsets. So what a variant finds is what they do in this
    detector, not what one trained without them would reach.
    """
    variants = {"as trained": detector}
    kinds = {"no offsets of convolutions": CONVOLUTIONS, "no offsets of pooling": POOLING}
    there = {label: own for label, own in kinds.items() if any(isinstance(m, own) for m in detector.modules())}
    variants |= {label: without_offsets(detector, own) for label, own in there.items()}
    if len(there) > 1:
        variants["no offsets"] = without_offsets(detector)
    return variants


def write_dilation(path: Path, series: Mapping[str, Mapping[int, OffsetStatistics]]) -> None:
    """Write the effective dilations of several trainings as CSV, a row for each run, step, layer and class of filters,
    in cells; classes without a filter have no row. series: by run, `offsets_over_training`."""
    rows = (
        {"run": run, "step": step, "layer": layer, "class": name, "filters": each.count, **_columns(each)}
        for run, steps in series.items()
        for step, found in steps.items()
        for layer, classes in found.dilation.items()
        for name, each in classes.items()
        if each.count
    )
    write_csv(path, ("run", "step", "layer", "class", "filters", "mean", "deviation"), rows)


def write_offset_lengths(path: Path, series: Mapping[str, Mapping[int, OffsetStatistics]]) -> None:
    """Write the lengths of offsets of several trainings as CSV, a row for each run, step and layer, in cells. count: of
    filters or boxes; layers without any have no row. series: by run, `offsets_over_training`."""
    rows = (
        {"run": run, "step": step, "layer": layer, "count": each.count, **_columns(each)}
        for run, steps in series.items()
        for step, found in steps.items()
        for layer, each in found.length.items()
        if each.count
    )
    write_csv(path, ("run", "step", "layer", "count", "mean", "deviation"), rows)


def write_without_offsets(path: Path, results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """Write what is measured of `offset_variants` as CSV: a row for each run, variant and measure."""
    rows = (
        {"run": run, "offsets": variant, "measure": measure, "value": value}
        for run, variants in results.items()
        for variant, numbers in variants.items()
        for measure, value in numbers.items()
    )
    write_csv(path, ("run", "offsets", "measure", "value"), rows)


def _columns(each: Statistic) -> dict[str, float]:
    return {"mean": each.mean, "deviation": each.deviation}
