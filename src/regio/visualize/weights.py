"""Which cells a region feature reads, and how much, over the image (Gu et al. 2018, figure 2).

Pictures are matplotlib figures that need no display; save one with ``figure.savefig("weights.png", dpi=150)``. Image,
box and stride share one frame: pixels of the image at the scale at which the map was made from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from math import prod

import matplotlib.patheffects as effects
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor

from regio.visualize.text import literal

__all__ = [
    "BESIDE",
    "BOX",
    "FAINT",
    "INK",
    "colour_scale",
    "extent_of",
    "four_parts",
    "grey_of",
    "header",
    "outline",
    "overlay",
    "part_name",
    "parts_figure",
    "parts_of",
    "place",
    "show_image",
    "terms_figure",
]

Box = tuple[float, float, float, float]

COLOURS = "inferno"  # even in lightness, and read alike by the colour-blind
BOX, INK, FAINT, BESIDE = "#4cc9ff", "#222222", "#6b6b6b", "#c8c8c8"  # the last where a map is larger than the image
MARGIN, GAP, TITLE, HEADER, FOOTER = 0.2, 0.18, 0.3, 0.75, 0.55  # inches
MOST_WIDTH, MOST_HEIGHT = 12.8, 8.5  # inches, of a figure
LEAST_SIDE = 1.9  # inches, of a picture: its title needs them


def parts_figure(
    image: Tensor, weights: Tensor, bins: tuple[int, int], stride: float, box: Box, title: str, caption: str = ""
) -> Figure:
    """In the centre, at each cell, the largest weight of all parts of a box; around it four of the parts on their own.

    image: uint8 [3, h, w]. weights: [1 or C, K, H, W] with K = prod(bins), averaged over channels. stride: pixels per
    cell. Each map is divided by its maximum and blended half and half with the image in grey, so that colour means
    weight alone; cells beside the image, which padding adds, are shown as well. The parts are those a quarter of the
    rows and columns away from the corners, drawn where they belong; of parts in a list, of four or more, four spread
    over it.
    title, caption: two lines above.

    Raises ValueError when the weights are not of this shape.
    """
    parts = parts_of(weights, bins)
    around = four_parts(bins)
    grey, extent = grey_of(image), extent_of(image, weights, stride)
    aspect = extent[0] / extent[1]
    side, centre = _sides(aspect)
    height = 2 * (side / aspect + TITLE) + GAP
    figure = Figure(figsize=(2 * MARGIN + 2 * side + centre + 2 * GAP, HEADER + height + FOOTER))
    width = figure.get_figwidth()
    header(figure, title, caption)

    axes = place(figure, (width - centre) / 2, HEADER + TITLE, centre, centre / aspect)
    overlay(axes, grey, parts.max(0), stride, box, f"largest of {len(parts)} parts")
    for (down, right), part in around.items():
        left = width - MARGIN - side if right else MARGIN
        top = HEADER + TITLE + down * (side / aspect + TITLE + GAP)
        axes = place(figure, left, top, side, side / aspect)
        overlay(axes, grey, parts[part], stride, box, part_name(part, bins), small=True)
    colour_scale(figure)
    return figure


def terms_figure(
    image: Tensor, weights: Mapping[str, Tensor], stride: float, box: Box, title: str, caption: str = ""
) -> Figure:
    """Side by side, the largest weight of all parts at each cell for several `weights` [1 or C, K, H, W] of one box,
    under their names: for instance those of the geometric term, of the appearance term and of both.

    Image, blending and the other arguments as in `parts_figure`. Raises ValueError for no weights, or of another rank.
    """
    if not weights:
        raise ValueError("weights: expected at least one, got none")
    width, height = extent_of(image, next(iter(weights.values())), stride)
    aspect, count = width / height, len(weights)
    by_width = (MOST_WIDTH - 2 * MARGIN - (count - 1) * GAP) / count
    side = max(min(by_width, (MOST_HEIGHT - HEADER - TITLE - FOOTER) * aspect), LEAST_SIDE)
    width = max(2 * MARGIN + count * side + (count - 1) * GAP, 6)
    figure = Figure(figsize=(width, HEADER + TITLE + side / aspect + FOOTER))
    header(figure, title, caption)
    for i, (name, each) in enumerate(weights.items()):
        parts = parts_of(each, (1, each.shape[1]) if each.ndim == 4 else (0, 0))
        left = width / 2 + (i - count / 2) * (side + GAP) + GAP / 2
        axes = place(figure, left, HEADER + TITLE, side, side / aspect)
        overlay(axes, grey_of(image), parts.max(0), stride, box, name)
    colour_scale(figure)
    return figure


def part_name(part: int, bins: tuple[int, int]) -> str:
    """Where part k of a grid lies, or which of a list it is, counted from 1."""
    return f"part {part + 1}" if 1 in bins else f"row {part // bins[1] + 1}, column {part % bins[1] + 1}"


def show_image(axes: Axes, pixels: NDArray[np.uint8]) -> None:
    """Draw an image [h, w] or [h, w, 3] in its own pixels, pixel i from i to i + 1, without axes."""
    height, width = pixels.shape[:2]
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0), interpolation="bilinear")
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def outline(axes: Axes, box: Box, colour: str = BOX, line: float = 2.0, style: str = "-") -> None:
    """Draw the border of `box` with a dark edge, so that it is seen on any ground."""
    x1, y1, x2, y2 = box
    edge = [effects.Stroke(linewidth=line + 1.6, foreground="#101010"), effects.Normal()]
    axes.add_patch(
        Rectangle(
            (x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=line, linestyle=style,
            path_effects=edge, joinstyle="miter", clip_on=False, zorder=5,
        )
    )  # fmt: skip


def overlay(
    axes: Axes,
    grey: NDArray[np.uint8],
    weights: NDArray[np.float64],
    stride: float,
    box: Box,
    name: str,
    small: bool = False,
) -> None:
    """Show `weights` [H, W], of a map of this stride, and the border of `box` over the photo `grey` [h, w]; above it
    `name` and the largest weight. small: with a thinner border."""
    height, width = weights.shape
    largest = weights.max()
    show_image(axes, grey)
    axes.imshow(
        weights / (largest or 1), cmap=COLOURS, vmin=0, vmax=1, alpha=0.5, interpolation="nearest",
        extent=(0, width * stride, height * stride, 0),
    )  # fmt: skip
    right, bottom = max(grey.shape[1], width * stride), max(grey.shape[0], height * stride)
    axes.set(xlim=(0, right), ylim=(bottom, 0), facecolor=BESIDE)
    outline(axes, box, line=1.4 if small else 2.2)
    axes.set_title(name, fontsize=11, loc="left", color=INK, pad=5)
    axes.set_title(f"max {largest:#.2g}", fontsize=9, loc="right", color=FAINT, pad=5)


def extent_of(image: Tensor, weights: Tensor, stride: float) -> tuple[float, float]:
    """Width and height of what is shown: the image, and the map where it is larger, which padding makes it."""
    return max(image.shape[2], weights.shape[-1] * stride), max(image.shape[1], weights.shape[-2] * stride)


def parts_of(weights: Tensor, bins: tuple[int, int]) -> NDArray[np.float64]:
    """[K, H, W], the mean over channels."""
    if weights.ndim != 4 or weights.shape[1] != bins[0] * bins[1]:
        raise ValueError(f"weights: expected shape [1 or C, {bins[0] * bins[1]}, H, W], got {list(weights.shape)}")
    return weights.detach().double().mean(0).cpu().numpy()


def four_parts(bins: tuple[int, int]) -> dict[tuple[int, int], int]:
    """Parts to show on their own by their place, (0, 0) at the top left and (1, 1) at the bottom right."""
    count = prod(bins)
    if 1 in bins and count >= 4:  # parts in a list: four of them, spread over it
        return {(i // 2, i % 2): (2 * i + 1) * count // 8 for i in range(4)}
    rows, columns = ((n // 4, n - 1 - n // 4) for n in bins)
    places = {(down, right): rows[down] * bins[1] + columns[right] for down, right in product((0, 1), (0, 1))}
    first = {part: place for place, part in reversed(places.items())}
    return {place: part for place, part in places.items() if first[part] == place}


def _sides(aspect: float) -> tuple[float, float]:
    """Widths in inches of the small pictures and of the one in the centre, which is as high as two of them."""
    between = TITLE + GAP
    by_width = (MOST_WIDTH - 2 * MARGIN - 2 * GAP - between * aspect) / 4
    by_height = (MOST_HEIGHT - HEADER - FOOTER - 2 * TITLE - GAP) / 2 * aspect
    side = max(min(by_width, by_height), LEAST_SIDE)
    return side, 2 * side + between * aspect


def place(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes placed in inches from the top left."""
    whole_width, whole_height = figure.get_size_inches()
    bottom = whole_height - top - height
    return figure.add_axes((left / whole_width, bottom / whole_height, width / whole_width, height / whole_height))


def header(figure: Figure, title: str, caption: str) -> None:
    """The title of a picture, and a line below it, at the top left."""
    width, height = figure.get_size_inches()
    figure.text(MARGIN / width, 1 - 0.16 / height, literal(title), fontsize=15, weight="bold", color=INK, va="top")
    figure.text(MARGIN / width, 1 - 0.46 / height, literal(caption), fontsize=10, color=FAINT, va="top")


def colour_scale(figure: Figure) -> None:
    """The scale of colours, at the bottom."""
    width, height = figure.get_size_inches()
    axes = figure.add_axes(((width - 3) / 2 / width, 0.29 / height, 3 / width, 0.09 / height))
    bar = figure.colorbar(ScalarMappable(cmap=COLOURS), cax=axes, orientation="horizontal", ticks=[0, 0.5, 1])
    bar.outline.set_visible(False)
    axes.set_xticklabels(["0", "weight", "max"], fontsize=9, color=FAINT)
    axes.tick_params(length=0, pad=2)


def grey_of(image: Tensor) -> NDArray[np.uint8]:
    """[h, w], the luma of `image`."""
    if image.ndim != 3 or image.shape[0] != 3 or str(image.dtype) != "torch.uint8":
        raise ValueError(f"image: expected uint8 [3, h, w], got {image.dtype} {list(image.shape)}")
    red, green, blue = image.detach().cpu().numpy().astype(np.float64)
    return (0.299 * red + 0.587 * green + 0.114 * blue).round().astype(np.uint8)
