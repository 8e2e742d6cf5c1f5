"""Where three stacked deformable layers read, for units on the background, a small and a large object (Dai et al. 2017,
figures 5 and 6).

Pictures are matplotlib figures, as in `regio.visualize.weights`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from regio.analysis import offsets_in_backbone, stacked_layers, stacked_sampling_points
from regio.boxes import area
from regio.data import DetectionDataset
from regio.detector import TwoStageDetector
from regio.visualize.text import literal
from regio.visualize.weights import FAINT, INK, header, outline, place, show_image

__all__ = [
    "PhotoPoints",
    "UnitPoints",
    "photo_points",
    "points_on_objects",
    "sampling_points_figure",
    "typical_photos",
]

Box = tuple[float, float, float, float]
Point = tuple[float, float]

UNIT, SAMPLE, OBJECT = "#00c000", "#e8000b", "#ffd400"  # green and red as in the paper; apart also in size and shape
WIDTH, MARGIN, GAP, TOP, ROW, FOOTER = 12.8, 0.2, 0.15, 0.8, 0.5, 0.5  # inches; row: the titles above pictures


@dataclass(frozen=True)
class UnitPoints:
    """A unit of the last layer and where it reads: `at` (x, y), its centre, and points [P, 2], in pixels of the photo.
    title: what it is on. box: of the object that it is on, if any."""

    title: str
    at: Point
    points: Tensor
    box: Box | None = None


@dataclass(frozen=True)
class PhotoPoints:
    """A photo uint8 [3, H, W], its name, and some units. layers: of those stacked, in words."""

    image: Tensor
    name: str
    layers: str
    units: list[UnitPoints]


def photo_points(
    detector: TwoStageDetector,
    image: Tensor,
    name: str,
    at: Mapping[str, Point],
    boxes: Mapping[str, Box] | None = None,
) -> PhotoPoints:
    """Where the last three stacked deformable layers in the backbone of `detector` read for units at some places.

    image: uint8 [3, H, W]. at: places (x, y) by their titles, in pixels of it; the unit is that of the cell around the
    place. boxes: of the objects that they are on, by the same titles. Of several offset groups the first is followed.

    Raises ValueError where the backbone has no deformable layer, for a place beside the image, and as
    `regio.analysis.offsets_in_backbone`.
    """
    height, width = image.shape[1:]
    for x, y in at.values():
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(f"at: expected a place in the image of {width} x {height} pixels, got {x:g},{y:g}")
    device = next(detector.parameters()).device
    batch, _, layers = offsets_in_backbone(detector, [image.to(device)])
    stack = stacked_layers(layers)
    if not stack:
        raise ValueError("detector: expected deformable convolutions in its backbone, got none")
    top, bottom = stack[-1], stack[0]
    assert top.output_stride is not None and bottom.output_stride is not None
    scale = torch.tensor([width / batch.sizes[0][1], height / batch.sizes[0][0]], dtype=torch.float64)
    units = []
    for title, place_of in at.items():
        column, row = (torch.tensor(place_of) / scale / top.output_stride).floor().long().tolist()
        cell = min(row, top.output_size[0] - 1), min(column, top.output_size[1] - 1)  # a border that is dropped
        points = stacked_sampling_points(stack, cell, bottom.output_stride / bottom.stride[0]) * scale
        x, y = ((torch.tensor([cell[1], cell[0]]) + 0.5) * top.output_stride * scale).tolist()
        units.append(UnitPoints(title, (x, y), points, (boxes or {}).get(title)))
    names = ", ".join(each.name.removeprefix("body.") for each in stack)
    return PhotoPoints(image, name, names, units)


def points_on_objects(
    detector: TwoStageDetector, image: Tensor, name: str, boxes: Tensor, areas: Tensor | None = None
) -> PhotoPoints:
    """`photo_points` on the background, and at the centres of the smallest and of the largest of the objects `boxes`
    [G, 4]; areas: [G], those of the boxes unless given.

    The place on the background is the one farthest from all objects and from the border of the image; there is none
    where objects cover the image. Raises ValueError for no boxes, and as `photo_points`.
    """
    if not len(boxes):
        raise ValueError(f"boxes: expected at least one object in {name}, got none")
    areas = area(boxes) if areas is None else areas
    small, large = int(areas.argmin()), int(areas.argmax())
    chosen = {"small object": small, "large object": large} if small != large else {"object": large}
    at: dict[str, Point] = {}
    background = _farthest(boxes, (image.shape[1], image.shape[2]))
    if background is not None:
        at["background"] = background
    own: dict[str, Box] = {}
    for title, i in chosen.items():
        x1, y1, x2, y2 = boxes[i].tolist()
        own[title] = (x1, y1, x2, y2)
        at[title] = (min(max((x1 + x2) / 2, 0), image.shape[2] - 1), min(max((y1 + y2) / 2, 0), image.shape[1] - 1))
    return photo_points(detector, image, name, at, own)


def _farthest(boxes: Tensor, size: tuple[int, int]) -> Point | None:
    """The centre of a pixel of an image of `size` whose distance to the nearest box or border is the largest."""
    y, x = (torch.arange(n) + 0.5 for n in size)
    nearest = torch.full(size, torch.inf)  # the squared distance to the nearest of the boxes so far
    for x1, y1, x2, y2 in boxes.cpu():
        across = torch.maximum(x1 - x, x - x2).clamp(min=0)
        down = torch.maximum(y1 - y, y - y2).clamp(min=0)
        nearest = torch.minimum(nearest, across.square() + down.square()[:, None])
    to_border = torch.minimum(torch.minimum(x, size[1] - x), torch.minimum(y, size[0] - y)[:, None])
    distance = torch.minimum(nearest.sqrt(), to_border)
    if distance.max() == 0:
        return None
    row, column = divmod(int(distance.argmax()), size[1])
    return float(x[column]), float(y[row])


def typical_photos(dataset: DetectionDataset, most: int = 3) -> list[int]:
    """The images, at most so many, in which a small and a large object are seen best: those of the fewest objects among
    those whose largest has four times the area of the smallest, or of any where there is none. Crowds are left out.

    Raises ValueError where there is no object.
    """
    areas = [record.area[~record.crowd] for record in dataset.records]
    some = [i for i, each in enumerate(areas) if len(each)]
    if not some:
        raise ValueError(f"dataset: expected objects, got none in {len(dataset)} images")
    unlike = [i for i in some if areas[i].max() >= 4 * areas[i].min() > 0]
    return sorted(unlike or some, key=lambda i: (len(areas[i]), i))[:most]


def sampling_points_figure(photos: Sequence[PhotoPoints], title: str, caption: str = "") -> Figure:
    """A row for each of `photos` and a picture for each of its units: the unit, and the points that it reads. Points
    beside the photo, where it is padded, are not shown; the number of all is above the picture.

    Raises ValueError for no photos.
    """
    if not photos:
        raise ValueError("photos: expected at least one, got none")
    columns = max(len(photo.units) for photo in photos)
    side = (WIDTH - 2 * MARGIN - (columns - 1) * GAP) / max(columns, 2)
    heights = [side * photo.image.shape[1] / photo.image.shape[2] for photo in photos]
    figure = Figure(figsize=(WIDTH, TOP + sum(heights) + ROW * len(photos) + FOOTER))
    header(figure, title, caption)
    top = TOP
    for photo, height in zip(photos, heights, strict=True):
        for i, unit in enumerate(photo.units):
            axes = place(figure, MARGIN + i * (side + GAP), top + ROW, side, height)
            show_image(axes, photo.image.permute(1, 2, 0).cpu().numpy())
            if unit.box is not None:
                outline(axes, unit.box, OBJECT, 1.4)
            x, y = unit.points.unbind(1)
            axes.plot(x, y, linestyle="", marker="o", markersize=1.7, color=SAMPLE, zorder=6)
            axes.plot(
                *unit.at, linestyle="", marker="o", markersize=7.5, color=UNIT, markeredgecolor="#ffffff", zorder=7
            )
            name = f"{photo.name}: {unit.title}" if i == 0 else unit.title
            axes.set_title(literal(name), fontsize=10, loc="left", color=INK, pad=5)
            axes.set_title(f"{len(unit.points)} points", fontsize=9, loc="right", color=FAINT, pad=5)
        top += ROW + height
    marks = (("unit", UNIT, 7.5), ("point that it reads", SAMPLE, 4))
    handles = [Line2D([], [], linestyle="", marker="o", markersize=size, color=colour) for _, colour, size in marks]
    figure.legend(
        handles, [word for word, _, _ in marks], loc="lower center", ncols=2, frameon=False, fontsize=10, labelcolor=INK
    )
    return figure
