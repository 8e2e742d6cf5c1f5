"""Where a region feature reads: rounded bins, sample points, and points and bins moved by learned offsets.

Pictures are matplotlib figures; image, box and stride share one frame, as in `regio.visualize.weights`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import cast

import matplotlib.patheffects as effects
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, Rectangle
from torch import Tensor

from regio.regions.roi_align import RoIAlign
from regio.regions.roi_pool import RoIPool
from regio.regions.sampling import SampleGrid, SamplePoints
from regio.types import FeatureMap, Regions
from regio.visualize.text import literal
from regio.visualize.weights import BESIDE, BOX, INK, outline, show_image

__all__ = ["moved_bins_figure", "offsets_figure", "quantisation_figure"]

Box = tuple[float, float, float, float]

EVEN, ODD, POINT, PLAIN = (
    "#0072b2",
    "#e69f00",
    "#ffb000",
    "#ffffff",
)  # Okabe and Ito's, which the colour-blind tell apart
ROI, BIN = "#ffd400", "#e8000b"  # yellow and red, as in Dai et al. 2017
FAINT = "#6b6b6b"


def quantisation_figure(
    image: Tensor, x: FeatureMap, box: Box, pool: RoIPool, align: RoIAlign, title: str, caption: str = ""
) -> Figure:
    """What `pool` makes of a box, its corners and bins rounded to cells, beside the samples of `align`, which rounds
    nothing.

    image: uint8 [3, h, w]. x: the map of this one image; only size and stride matter. Left, the box as it is, the
    rounded box, and its bins in two colours, mixed where bins share cells. Right, bins and samples. Thin lines bound
    cells; only the surroundings of the box are shown.
    """
    boxes = torch.tensor([box], dtype=torch.float32, device=x.data.device)
    r = Regions(boxes, torch.zeros(1, dtype=torch.int64, device=boxes.device))
    level = torch.zeros_like(r.image)
    top, bottom, left, right = (t[0].tolist() for t in pool.cells([x], r, level))
    grid = align.sampling([x], r, level)
    assert isinstance(grid, SampleGrid)
    rounded = (min(left) * x.stride, min(top) * x.stride, max(right) * x.stride, max(bottom) * x.stride)
    figure, (first, second) = _zoomed(image, x, _around([box, rounded], 1.2 * x.stride), 2, title, caption)

    for (i, (y1, y2)), (j, (x1, x2)) in product(
        enumerate(zip(top, bottom, strict=True)), enumerate(zip(left, right, strict=True))
    ):
        colour = (EVEN, ODD)[(i + j) % 2]
        place = (x1 * x.stride, y1 * x.stride), (x2 - x1) * x.stride, (y2 - y1) * x.stride
        first.add_patch(Rectangle(*place, facecolor=colour, alpha=0.45, linewidth=0))
        first.add_patch(Rectangle(*place, fill=False, edgecolor=colour, linewidth=1.2))
    outline(first, rounded, colour=PLAIN, style="--")
    outline(first, box)
    _title(first, "RoIPool", f"{max(right) - min(left)} x {max(bottom) - min(top)} cells after rounding")

    x1, y1, x2, y2 = box
    for i in range(1, align.bins[0]):
        second.plot([x1, x2], [y1 + (y2 - y1) * i / align.bins[0]] * 2, color=BOX, linewidth=1)
    for j in range(1, align.bins[1]):
        second.plot([x1 + (x2 - x1) * j / align.bins[1]] * 2, [y1, y2], color=BOX, linewidth=1)
    rows, columns = (t[0][c[0] > 0] for t, c in ((grid.rows, grid.row_weight), (grid.columns, grid.column_weight)))
    points = (torch.cartesian_prod(columns.detach(), rows.detach()).cpu().double() + 0.5) * x.stride
    _dots(second, points, POINT)
    outline(second, box)
    _title(second, "RoIAlign", f"{(x2 - x1) / x.stride:.1f} x {(y2 - y1) / x.stride:.1f} cells, {len(points)} samples")
    bins = tuple(Rectangle((0, 0), 1, 1, facecolor=colour, alpha=0.6) for colour in (EVEN, ODD))
    dashed = Line2D([], [], color=FAINT, linewidth=2.2, linestyle="--")
    names = ["box", "rounded box", "bins, mixed where they share cells", "sample"]
    _legend(figure, [Line2D([], [], color=BOX, linewidth=2.2), dashed, bins, _dot(POINT)], names)
    return figure


def offsets_figure(
    image: Tensor, x: FeatureMap, box: Box, moved: SamplePoints, unmoved: SamplePoints, title: str, caption: str = ""
) -> Figure:
    """The samples of deformable pooling, and from where its offsets have taken each part.

    image: uint8 [3, h, w]. x: the map of this one image; only size and stride matter. moved, unmoved: the samples of
    this one box with and without offsets (`DeformableRoIPool.samples`); those of weight 0 read nothing and are not
    drawn. An arrow leads from the mean of a part's samples without offsets to that with them.

    Raises ValueError unless both are of one box with the same parts.
    """
    if moved.weight.shape[:3] != unmoved.weight.shape[:3] or len(moved.weight) != 1:
        raise ValueError(
            "moved, unmoved: expected weights [1, Kh, Kw, S] with the same parts, "
            f"got {list(moved.weight.shape)} and {list(unmoved.weight.shape)}"
        )
    after, before = ([_read(p, c, x.stride) for p, c in _each_part(s)] for s in (moved, unmoved))
    everything = torch.cat([*after, *before, torch.tensor(box).reshape(2, 2)])
    around = (*everything.amin(0).tolist(), *everything.amax(0).tolist())
    figure, (axes,) = _zoomed(image, x, _around([around], 1.2 * x.stride), 1, title, caption)
    _dots(axes, torch.cat(before), PLAIN, size=2.4)
    _dots(axes, torch.cat(after), POINT)
    distances = []
    for head, tail in ((a.mean(0), b.mean(0)) for a, b in zip(after, before, strict=True) if len(a) and len(b)):
        distances.append(float((head - tail).norm()) / x.stride)
        if distances[-1] > 0.05:
            _arrow(axes, tail, head)
    outline(axes, box)
    mean, most = (sum(distances) / len(distances), max(distances)) if distances else (0.0, 0.0)
    _title(axes, f"{len(after)} parts", f"moved by {mean:.2f} cells in the mean, {most:.2f} at most")
    handles = [Line2D([], [], color=BOX, linewidth=2.2), _dot(PLAIN, 4), _dot(POINT)]
    _legend(figure, handles, ["box", "sample without offset", "sample"])
    return figure


def moved_bins_figure(image: Tensor, x: FeatureMap, box: Box, shift: Tensor, title: str, caption: str = "") -> Figure:
    """The bins of a box, each where deformable pooling has moved it (Dai et al. 2017, figure 7).

    image: uint8 [3, h, w]. x: the map of this one image; only size and stride matter. shift: [Kh, Kw, 2] as (x, y) in
    cells, by how much each bin is moved; see `RegionExtractor.part_shifts`.

    Raises ValueError for shifts of another shape.
    """
    if shift.ndim != 3 or shift.shape[2] != 2 or 0 in shift.shape:
        raise ValueError(f"shift: expected shape [Kh, Kw, 2], got {list(shift.shape)}")
    x1, y1, x2, y2 = box
    rows, columns = shift.shape[:2]
    width, height = (x2 - x1) / columns, (y2 - y1) / rows
    moved = (shift.detach().cpu().double() * x.stride).tolist()
    bins: list[Box] = []
    for i, j in product(range(rows), range(columns)):
        left, top = x1 + j * width + moved[i][j][0], y1 + i * height + moved[i][j][1]
        bins.append((left, top, left + width, top + height))
    figure, (axes,) = _zoomed(image, x, _around([box, *bins], 1.2 * x.stride), 1, title, caption)
    outline(axes, box, colour=ROI)
    for left, top, right, bottom in bins:
        axes.add_patch(
            Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=BIN, linewidth=1.3, zorder=6)
        )
    cells = shift.detach().double().square().sum(2).sqrt()
    _title(
        axes, f"{rows} x {columns} bins", f"moved by {cells.mean():.2f} cells in the mean, {cells.max():.2f} at most"
    )
    lines = [Line2D([], [], color=colour, linewidth=2.2) for colour in (ROI, BIN)]
    _legend(figure, lines, ["box", "its bins, moved"])
    return figure


def _each_part(samples: SamplePoints) -> Iterator[tuple[Tensor, Tensor]]:
    """Points [S, 2] and weights [S] of each part of the one box."""
    return zip(samples.points[0].flatten(0, 1), samples.weight[0].flatten(0, 1), strict=True)


def _read(points: Tensor, weight: Tensor, stride: float) -> Tensor:
    """Those of the points [S, 2] in cells that are read, in pixels."""
    return (points.detach()[weight.detach() != 0].cpu().double() + 0.5) * stride


def _zoomed(
    image: Tensor, x: FeatureMap, view: Box, panels: int, title: str, caption: str
) -> tuple[Figure, list[Axes]]:
    """A figure with the part `view` of the image and its cells in each panel."""
    x1, y1, x2, y2 = view
    aspect = (x2 - x1) / (y2 - y1)
    side = min(12.4 / panels - 0.2, 6.5 * aspect)
    width = max(panels * (side + 0.2) + 0.2, 7.0)
    height = side / aspect + 1.65
    figure = Figure(figsize=(width, height))
    figure.text(0.2 / width, 1 - 0.16 / height, literal(title), fontsize=15, weight="bold", color=INK, va="top")
    figure.text(0.2 / width, 1 - 0.46 / height, literal(caption), fontsize=10, color=FAINT, va="top")
    every = []
    for i in range(panels):
        left = width / 2 + (i - panels / 2) * (side + 0.2) + 0.1
        axes = figure.add_axes((left / width, 0.6 / height, side / width, side / aspect / height))
        show_image(axes, image.detach().cpu().permute(1, 2, 0).numpy())
        _cell_lines(axes, x, side * 72 / (x2 - x1) * x.stride)
        axes.set(xlim=(x1, x2), ylim=(y2, y1), facecolor=BESIDE)
        every.append(axes)
    return figure, every


def _cell_lines(axes: Axes, x: FeatureMap, points: float) -> None:
    """The borders of the cells, thinner the smaller they are drawn; points: 1/72 inches per cell."""
    height, width = x.size
    line = min(0.7, points / 16)
    for lines, count, other in ((axes.hlines, height, width), (axes.vlines, width, height)):
        lines([i * x.stride for i in range(count + 1)], 0, other * x.stride, colors=PLAIN, linewidth=line, alpha=0.65)


def _dots(axes: Axes, points: Tensor, colour: str, size: float = 4.0) -> None:
    """Points [M, 2] (x, y) in pixels."""
    axes.plot(
        points[:, 0], points[:, 1], linestyle="", marker="o", markersize=size, color=colour,
        markeredgecolor="#101010", markeredgewidth=0.7, zorder=6,
    )  # fmt: skip


def _dot(colour: str, size: float = 6.0) -> Line2D:
    return Line2D([], [], linestyle="", marker="o", markersize=size, color=colour, markeredgecolor="#101010")


def _title(axes: Axes, name: str, note: str) -> None:
    axes.set_title(name, fontsize=12, loc="left", color=INK, pad=6)
    axes.set_title(note, fontsize=9.5, loc="right", color=FAINT, pad=6)


def _arrow(axes: Axes, tail: Tensor, head: Tensor) -> None:
    (x1, y1), (x2, y2) = tail.tolist(), head.tolist()
    edge = [effects.Stroke(linewidth=2.8, foreground="#101010"), effects.Normal()]
    axes.add_patch(
        FancyArrowPatch(
            (x1, y1), (x2, y2), arrowstyle="-|>", color=PLAIN, linewidth=1.4, shrinkA=0, shrinkB=0, mutation_scale=9,
            zorder=7, path_effects=edge,
        )
    )  # fmt: skip


def _legend(figure: Figure, handles: Sequence[Artist | tuple[Artist, ...]], names: Sequence[str]) -> None:
    figure.legend(
        cast(Sequence[Artist], handles), names, loc="lower center", ncols=len(handles), frameon=False, fontsize=10,
        labelcolor=INK, handletextpad=0.6, columnspacing=1.6, borderaxespad=0.4,
        handler_map={tuple: HandlerTuple(None, pad=0)},
    )  # fmt: skip


def _around(boxes: list[Box], margin: float) -> Box:
    """The smallest box around all of `boxes`, with a margin, and not narrower than a quarter of its length."""
    x1, y1, x2, y2 = (f(v) for f, v in zip((min, min, max, max), zip(*boxes, strict=True), strict=True))
    least = max(x2 - x1, y2 - y1) / 4
    more_x, more_y = (margin + max(0, least - side) / 2 for side in (x2 - x1, y2 - y1))
    return x1 - more_x, y1 - more_y, x2 + more_x, y2 + more_y
