"""Makes the pictures of docs/walkthrough.md, and prints its numbers:

python examples/walkthrough.py docs/images
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor
from torch.nn import functional as F

from regio.backbones import efficientnet_lite0
from regio.data import Shapes
from regio.preprocess import Preprocess
from regio.regions import LearnedRegionFeatures, RegionExtractor, RoIAlign, RoIAlignPrior, RoIPool
from regio.regions.quantisation import DisjointBins, HalfOpenCorners, OverlappingBins
from regio.types import FeatureMap, Regions
from regio.visualize.sample_positions import quantisation_figure
from regio.visualize.weights import parts_figure

MAP = torch.tensor(
    [
        [0.88, 0.44, 0.14, 0.16, 0.37, 0.77, 0.96, 0.27],
        [0.19, 0.45, 0.57, 0.16, 0.63, 0.29, 0.71, 0.70],
        [0.66, 0.26, 0.82, 0.64, 0.54, 0.73, 0.59, 0.26],
        [0.85, 0.34, 0.76, 0.84, 0.29, 0.75, 0.62, 0.25],
        [0.32, 0.74, 0.21, 0.39, 0.34, 0.03, 0.33, 0.48],
        [0.20, 0.14, 0.16, 0.13, 0.73, 0.65, 0.96, 0.32],
        [0.19, 0.69, 0.09, 0.86, 0.88, 0.07, 0.01, 0.48],
        [0.83, 0.24, 0.97, 0.04, 0.24, 0.35, 0.50, 0.91],
    ]
)
X = FeatureMap(MAP[None, None], stride=1)
REGION = Regions(torch.tensor([[0.0, 3.0, 7.0, 8.0]]), torch.zeros(1, dtype=torch.int64))

POOLS = {
    "half-open box, disjoint bins": RoIPool(2, HalfOpenCorners(), DisjointBins()),
    "half-open box, overlapping bins": RoIPool(2, HalfOpenCorners(), OverlappingBins()),
    "box with both corner cells": RoIPool(2),
}
COLOURS = ["#0072b2", "#e69f00", "#cc79a7", "#009e73"]  # Okabe and Ito's
BOX, INK, FAINT = "#111111", "#222222", "#6b6b6b"


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {"pooling.png": pooling(), "aligning.png": aligning(), **scene()}
    for name, figure in pictures.items():
        figure.savefig(folder / name, dpi=100)
    for name, extractor in {**POOLS, "RoIAlign": RoIAlign(2, samples=2)}.items():
        print(f"{name}: {[[round(value, 2) for value in row] for row in result(extractor).tolist()]}")


def result(extractor: RegionExtractor) -> Tensor:
    """The 2 x 2 features of the region, to two digits."""
    return (extractor(X, REGION)[0, 0] * 100).round() / 100


def pooling() -> Figure:
    """The bins of three readings of the same box, with the cell that each takes."""
    figure = Figure(figsize=(12, 5.4))
    for i, (name, pool) in enumerate(POOLS.items()):
        axes = cells(figure, (0.02 + i * 0.33, 0.27, 0.30, 0.66), MAP)
        top, bottom, left, right = (t[0].tolist() for t in pool.cells([X], REGION, torch.zeros(1, dtype=torch.int64)))
        largest = pool.weights(X, REGION)[0, 0]
        for part, colour in enumerate(COLOURS):
            (y1, y2), (x1, x2) = ((a[k], b[k]) for a, b, k in ((top, bottom, part // 2), (left, right, part % 2)))
            axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, facecolor=colour, alpha=0.38, linewidth=0))
            inset = 0.05 + 0.035 * part
            axes.add_patch(
                Rectangle(
                    (x1 + inset, y1 + inset), x2 - x1 - 2 * inset, y2 - y1 - 2 * inset, fill=False, edgecolor=colour,
                    linewidth=2,
                )
            )  # fmt: skip
            row, column = largest[part].nonzero()[0].tolist()
            axes.text(
                column + 0.5, row + 0.5, f"{MAP[row, column]:.2f}", ha="center", va="center", fontsize=10,
                weight="bold", color="white", bbox={"boxstyle": "round,pad=0.25", "facecolor": INK, "linewidth": 0},
            )  # fmt: skip
        box(axes)
        axes.set_title(name, fontsize=12, loc="left", color=INK, pad=8)
        features(figure, (0.02 + i * 0.33 + 0.10, 0.04, 0.10, 0.18), result(pool))
    return figure


def aligning() -> Figure:
    """The samples of RoIAlign, and the weights by which its four parts read the cells."""
    align = RoIAlign(2, samples=2)
    figure = Figure(figsize=(12, 5.4))
    axes = cells(figure, (0.02, 0.27, 0.30, 0.66), MAP, ink=FAINT)
    grid = align.sampling([X], REGION, torch.zeros(1, dtype=torch.int64))
    for part, colour in enumerate(COLOURS):
        rows, columns = grid.rows[0, part // 2] + 0.5, grid.columns[0, part % 2] + 0.5
        axes.add_patch(Rectangle(((part % 2) * 3.5, 3 + (part // 2) * 2.5), 3.5, 2.5, facecolor=colour, alpha=0.38))
        at = torch.cartesian_prod(columns, rows)
        axes.plot(at[:, 0], at[:, 1], "o", markersize=7, color=colour, markeredgecolor="white", markeredgewidth=1.2)
    box(axes)
    axes.set_title("RoIAlign: nothing is rounded", fontsize=12, loc="left", color=INK, pad=8)
    features(figure, (0.12, 0.04, 0.10, 0.18), result(align))

    weights = align.weights(X, REGION)[0, 0]
    names = ["top left", "top right", "bottom left", "bottom right"]
    for part, name in enumerate(names):
        place = 0.42 + (part % 2) * 0.29, 0.53 - (part // 2) * 0.495, 0.23, 0.41
        small = cells(figure, place, weights[part], shade=True)
        box(small)
        small.set_title(f"weights of the bin {name}", fontsize=11, loc="left", color=INK, pad=6)
    return figure


def cells(
    figure: Figure, place: tuple[float, float, float, float], values: Tensor, shade: bool = False, ink: str = INK
) -> Axes:
    """A map with a number in each cell; shaded, cells of zero stay empty and the others are darker the larger."""
    axes = figure.add_axes(place)
    height, width = values.shape
    for row in range(height):
        for column in range(width):
            value = float(values[row, column])
            strength = value / float(values.max()) if shade else 0.0
            axes.add_patch(Rectangle((column, row), 1, 1, facecolor=(1 - 0.8 * strength,) * 3, edgecolor="#bbbbbb"))
            if value or not shade:
                label = f"{value:.2f}".removeprefix("0") if shade else f"{value:.2f}"
                axes.text(
                    column + 0.5, row + 0.5, label, ha="center", va="center", fontsize=7 if shade else 10,
                    color="white" if strength > 0.55 else ink,
                )  # fmt: skip
    axes.set(xlim=(-0.1, width + 0.1), ylim=(height + 0.1, -0.1), aspect="equal")
    axes.axis("off")
    return axes


def box(axes: Axes) -> None:
    x1, y1, x2, y2 = REGION.boxes[0].tolist()
    axes.add_patch(
        Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=BOX, linewidth=2.6, linestyle=(0, (4, 2)))
    )


def features(figure: Figure, place: tuple[float, float, float, float], values: Tensor) -> None:
    """The 2 x 2 result, in the colours of the bins."""
    axes = figure.add_axes(place)
    for part, colour in enumerate(COLOURS):
        row, column = part // 2, part % 2
        axes.add_patch(Rectangle((column, row), 1, 1, facecolor=colour, alpha=0.38, edgecolor="white", linewidth=2))
        axes.text(
            column + 0.5, row + 0.5, f"{values[row, column]:.2f}", ha="center", va="center", fontsize=13, color=INK
        )
    axes.set(xlim=(0, 2), ylim=(2, 0), aspect="equal")
    axes.axis("off")


def scene() -> dict[str, Figure]:
    """The same on a generated scene: rounding, and the weights of two extractors for one of its boxes."""
    sample = Shapes(5, seed=5, size=(240, 320))[4]
    backbone = efficientnet_lite0(levels=(5,), output_stride=16).eval()
    preprocess = Preprocess(512, 1024, backbone.mean, backbone.std)
    batch = preprocess([sample.image])
    with torch.no_grad():
        (x,) = backbone(batch.data)
    image = F.interpolate(sample.image[None].float(), batch.sizes[0], mode="bilinear").round().to(torch.uint8)[0]
    boxes = preprocess.targets([sample.targets], batch)[0].boxes
    largest = int((boxes[:, 2:] - boxes[:, :2]).prod(1).argmax())
    x1, y1, x2, y2 = boxes[largest].tolist()
    region = Regions(boxes[[largest]], torch.zeros(1, dtype=torch.int64))
    torch.manual_seed(0)
    extractors: dict[str, RegionExtractor] = {
        "RoIAlign": RoIAlign(7),
        "LearnedRegionFeatures, before training": LearnedRegionFeatures(x.data.shape[1], prior=RoIAlignPrior()),
    }
    caption = f"a generated scene, {x.size[1]} x {x.size[0]} cells at stride {x.stride:g}"
    title = "The box, rounded or not, in 7 x 7 bins"
    figures = {"rounding.jpg": quantisation_figure(image, x, (x1, y1, x2, y2), RoIPool(7), RoIAlign(7), title, caption)}
    for file, (name, extractor) in zip(("align.jpg", "learned.jpg"), extractors.items(), strict=True):
        weights = extractor.weights(x, region)[0]
        figures[file] = parts_figure(image, weights, (7, 7), x.stride, (x1, y1, x2, y2), name, caption)
    return figures


if __name__ == "__main__":
    main(Path(sys.argv[1]))
