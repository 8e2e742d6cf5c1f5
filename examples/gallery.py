"""Makes the picture of docs/extractors.md, the weights of every extractor for one box:

python examples/gallery.py docs/images/extractors.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from regio.regions import (
    CentreFeature,
    DeformableRoIPool,
    GridPrior,
    LearnedRegionFeatures,
    MaskedBins,
    MaskedRegions,
    PreciseRoIPool,
    RegionExtractor,
    RoIAlign,
    RoIAveragePool,
    RoIPool,
    RoIWarp,
    SampleMax,
    SpatialPyramidPool,
    TriangularBins,
)
from regio.types import FeatureMap

BINS = (3, 3)
CELLS = (13, 16)
STRIDE = 8.0
BOX = (18.0, 13.0, 105.0, 91.0)  # in pixels, on no border between cells


def main(file: Path) -> None:
    torch.manual_seed(3)
    x = smooth_map()
    mask = torch.ones(1, 21, 21)
    mask[:, :11, 11:] = 0
    r = MaskedRegions(torch.tensor([BOX]), torch.zeros(1, dtype=torch.int64), mask)
    rows = extractors(x.data.shape[1])
    figure = Figure(figsize=(15, 11), layout="constrained")
    grid = figure.subplots(5, 6)
    for i, (name, extractor) in enumerate(rows.items()):
        with torch.no_grad():
            weights = extractor.weights(x, r)[0].mean(0)  # [K, H, W]
        parts, one = grid[i // 3][2 * (i % 3)], grid[i // 3][2 * (i % 3) + 1]
        draw(parts, weights.amax(0), name)
        draw(one, weights[min(3, len(weights) - 1)], "one part")
    figure.savefig(file, dpi=90)


def extractors(channels: int) -> dict[str, RegionExtractor]:
    deformable = DeformableRoIPool(RoIAlign(BINS), channels)
    with torch.no_grad():
        deformable.offset.bias.normal_(std=1.5)
    return {
        "RoIPool": RoIPool(BINS),
        "RoIAveragePool": RoIAveragePool(BINS),
        "SpatialPyramidPool": SpatialPyramidPool((3, 2, 1)),
        "RoIAlign": RoIAlign(BINS),
        "SampleMax(RoIAlign)": SampleMax(RoIAlign(BINS)),
        "RoIAlign, adaptive": RoIAlign(BINS, samples=0),
        "RoIWarp": RoIWarp(BINS, samples=2),
        "PreciseRoIPool": PreciseRoIPool(BINS),
        "CentreFeature": CentreFeature(),
        "TriangularBins": TriangularBins(8),
        "MaskedBins(RoIAlign)": MaskedBins(RoIAlign(BINS)),
        "Deformable(RoIAlign)": deformable,
        "Learned, random start": LearnedRegionFeatures(channels, BINS),
        "Learned, grid start": LearnedRegionFeatures(channels, BINS, prior=GridPrior(sigma=1.0)),
        "Learned, appearance": LearnedRegionFeatures(channels, BINS, geometry=False),
    }


def smooth_map() -> FeatureMap:
    """Random features [1, 8, H, W] in which neighbours resemble each other."""
    coarse = torch.randn(1, 8, 5, 6)
    data = torch.nn.functional.interpolate(coarse, CELLS, mode="bicubic", align_corners=True)
    return FeatureMap(data, STRIDE)


def draw(axes: Axes, weights: Tensor, title: str) -> None:
    height, width = weights.shape
    axes.imshow(weights / weights.max().clamp(min=1e-12), cmap="magma", vmin=0, vmax=1, extent=(0, width, height, 0))
    x1, y1, x2, y2 = (side / STRIDE for side in BOX)
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor="#56b4e9", linewidth=2))
    axes.set_title(title, fontsize=10)
    axes.set(xticks=[], yticks=[])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
