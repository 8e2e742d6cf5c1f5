"""Mask heads alone, on annotated boxes: the comparisons of Mask R-CNN's table 2 where boxes are not what is hard.

    python benchmarks/mask_heads.py TRAINING VALIDATION --steps 600 --seeds 0 1 2

TRAINING and VALIDATION are folders or COCO JSON files with masks. A pyramid and a mask head are trained on the maps of
a frozen ImageNet backbone, computed once; boxes are annotated ones, each side moved by up to a tenth as proposals are.
Of each arm and seed: the mean IoU of pasted and annotated masks on the annotated boxes of the validation images, the
share of objects of an IoU of at least 0.5 and 0.75, and the loss of the first and the last twenty steps. A seed decides
the initial weights, the order of images and the boxes, the same for all arms.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regio.backbones import Backbone, efficientnet_lite0
from regio.boxes import clip, resize_boxes
from regio.data import DetectionDataset, open_undivided
from regio.masks import GridMasks, Masks, cover
from regio.necks import FPN
from regio.optimisation import Cosine
from regio.preprocess import Preprocess
from regio.regions import Levels, RegionExtractor, RoIAlign, RoIPool, RoIWarp
from regio.roi_heads import MaskConvolutions, MaskHead, MaskOutput, SigmoidMasks, SoftmaxMasks
from regio.types import Detections, FeatureMap, Targets
from roi import machine

CHANNELS, LAYERS, BINS = 64, 2, 14
BATCH, RATE, JITTER = 4, 1e-3, 0.1
ARMS: dict[str, tuple[Callable[[], RegionExtractor], MaskOutput]] = {
    "align": (lambda: RoIAlign(BINS, samples=2), SigmoidMasks()),
    "warp": (lambda: RoIWarp(BINS), SigmoidMasks()),
    "pool": (lambda: RoIPool(BINS), SigmoidMasks()),
    "align-softmax": (lambda: RoIAlign(BINS, samples=2), SoftmaxMasks()),
    "align-agnostic": (lambda: RoIAlign(BINS, samples=2), SigmoidMasks(class_agnostic=True)),
}


@dataclass(frozen=True)
class Image:
    """An image as the mask head sees it. maps: [C_i, H_i, W_i] in half precision. size: (height, width) as scaled.
    targets: objects with a mask, boxes and masks in pixels of the image as annotated."""

    maps: list[Tensor]
    size: tuple[int, int]
    targets: Targets

    @property
    def annotated_size(self) -> tuple[int, int]:
        """(height, width) of the masks."""
        assert self.targets.masks is not None
        return self.targets.masks.shape[1], self.targets.masks.shape[2]

    def boxes(self) -> Tensor:
        """[G, 4] in pixels of the scaled image."""
        return resize_boxes(self.targets.boxes, self.annotated_size, self.size)


@torch.no_grad()
def cached(backbone: Backbone, dataset: DetectionDataset, short_side: int) -> list[Image]:
    """The images with an object that has a mask and is no crowd."""
    preprocess = Preprocess(short_side, short_side * 4 // 3, backbone.mean, backbone.std)
    images = []
    for sample in dataset.with_known_masks():
        every = sample.targets
        assert every.masks is not None
        kept = ~every.crowd & every.masks.any(2).any(1)
        if kept.any():
            batch = preprocess([sample.image])
            maps = [each.data[0].half() for each in backbone(batch.data)]
            targets = Targets(every.boxes[kept], every.labels[kept], masks=every.masks[kept])
            images.append(Image(maps, batch.sizes[0], targets))
    return images


def together(images: Sequence[Image], strides: Sequence[int]) -> list[FeatureMap]:
    """The maps of a batch, padded at the right and at the bottom."""
    made = []
    for stride, *maps in zip(strides, *(each.maps for each in images), strict=True):
        height, width = (max(each.shape[axis] for each in maps) for axis in (1, 2))
        padded = [F.pad(each, (0, width - each.shape[2], 0, height - each.shape[1])) for each in maps]
        made.append(FeatureMap(torch.stack(padded).float(), stride, tuple(each.size for each in images)))
    return made


def jittered(image: Image, generator: torch.Generator) -> Targets:
    """The targets of `image`, boxes in pixels of the scaled image, each side moved by up to `JITTER` of the box."""
    boxes = image.boxes()
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    moved = boxes + (torch.rand(boxes.shape, generator=generator) * 2 - 1) * JITTER * sides
    return replace(image.targets, boxes=clip(moved, image.size))


def order(images: int, steps: int, generator: torch.Generator) -> Iterator[list[int]]:
    """The images of each step: one permutation after the other, of which what fills no batch is left out."""
    batch = min(BATCH, images)
    rows: list[Tensor] = []
    for _ in range(steps):
        rows = rows or list(torch.randperm(images, generator=generator)[: images // batch * batch].split(batch))
        yield rows.pop().tolist()


def built(arm: str, seed: int, channels: Sequence[int], num_classes: int) -> tuple[FPN, MaskHead]:
    """A pyramid and a mask head. The pyramid and the convolutions start alike in all arms of a seed."""
    torch.manual_seed(seed)
    make, output = ARMS[arm]
    trunk = MaskConvolutions(CHANNELS, CHANNELS, LAYERS)
    return FPN(channels, CHANNELS), MaskHead(Levels(make()), trunk, CHANNELS, num_classes, output=output)


def trained(
    model: tuple[FPN, MaskHead], images: Sequence[Image], strides: Sequence[int], steps: int, seed: int
) -> list[float]:
    """The loss of each step."""
    neck, head = model
    optimizer = torch.optim.AdamW(nn.ModuleList(model).parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: Cosine()(step, steps))
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for rows in order(len(images), steps, generator):
        batch = [images[row] for row in rows]
        moved = [jittered(each, generator) for each in batch]
        true = [replace(each.targets, boxes=each.boxes()) for each in batch]
        found = head.losses(neck(together(batch, strides)), [each.boxes for each in moved], true)[1]["mask"]
        optimizer.zero_grad()
        found.backward()
        optimizer.step()
        schedule.step()
        losses.append(found.item())
    return losses


@torch.no_grad()
def overlaps(model: tuple[FPN, MaskHead], images: Sequence[Image], strides: Sequence[int]) -> Tensor:
    """IoU of each object of `images` on its annotated box, the class known."""
    neck, head = model
    found = []
    for image in images:
        labels = image.targets.labels
        (given,) = head(neck(together([image], strides)), [Detections(image.boxes(), labels, torch.ones(len(labels)))])
        assert given.masks is not None
        found.append(ious(given.masks, image))
    return torch.cat(found)


def ious(masks: Masks, image: Image) -> Tensor:
    """[G] of masks on the annotated boxes of `image`, on its pixels as annotated."""
    annotated = image.targets.masks
    assert annotated is not None
    values = []
    for (window, mask), other in zip(masks.windows(image.targets.boxes, image.annotated_size), annotated, strict=True):
        both = int((mask & other[window]).sum())
        values.append(both / (int(mask.sum()) + int(other.sum()) - both))
    return torch.tensor(values)


def baselines(training: Sequence[Image], validation: Sequence[Image]) -> dict[str, Tensor]:
    """IoUs of what needs no network: the whole box as mask, and the mean mask of the training objects."""
    covers = [cover(each.targets.masks, each.targets.boxes, 2 * BINS) for each in training]  # type: ignore[arg-type]
    grids = {"the whole box": torch.ones(2 * BINS, 2 * BINS), "the mean mask": torch.cat(covers).mean(0)}
    return {
        name: torch.cat([ious(GridMasks(grid.expand(len(each.targets), -1, -1)), each) for each in validation])
        for name, grid in grids.items()
    }


def row(name: str, seed: str, found: Tensor, rest: str = "|") -> str:
    """A row of the table."""
    shares = [float((found >= least).float().mean()) for least in (0.5, 0.75)]
    return f"| {name} | {seed} | {found.mean():.4f} | {shares[0]:.3f} | {shares[1]:.3f} | {rest} |"


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("training", type=Path)
    parser.add_argument("validation", type=Path)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--levels", nargs="+", type=int, default=[3, 4, 5], help="of the backbone (default 3 4 5)")
    parser.add_argument("--short-side", type=int, default=240, help="of the scaled images, in pixels (default 240)")
    arguments = parser.parse_args()
    words = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(words, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    print({"commit": commit.stdout.strip(), "levels": arguments.levels, "steps": arguments.steps} | machine())
    backbone = efficientnet_lite0(arguments.levels).eval()
    datasets = [open_undivided(arguments.training, "train"), open_undivided(arguments.validation, "val")]
    training, validation = (cached(backbone, each, arguments.short_side) for each in datasets)
    counts = [sum(len(each.targets) for each in images) for images in (training, validation)]
    print(f"{len(training)} training images, {counts[0]} objects; {len(validation)} and {counts[1]}\n")
    print("| arm | seed | mean IoU | IoU >= 0.5 | IoU >= 0.75 | loss, first and last 20 steps | seconds |")
    print("|---|---|---|---|---|---|---|")
    for name, found in baselines(training, validation).items():
        print(row(name, "", found), flush=True)
    for seed in arguments.seeds:
        for arm in arguments.arms:
            model = built(arm, seed, backbone.channels, 1 + len(datasets[0].class_names))
            began = time.perf_counter()
            losses = trained(model, training, backbone.strides, arguments.steps, seed)
            ends = [statistics.mean(part) for part in (losses[:20], losses[-20:])]
            rest = f"{ends[0]:.3f}, {ends[1]:.3f} | {time.perf_counter() - began:.0f}"
            print(row(arm, str(seed), overlaps(model, validation, backbone.strides), rest), flush=True)


if __name__ == "__main__":
    main()
