"""Effective dilation: how far apart the taps of a deformable filter are (Dai et al. 2017, section 5 and table 2)."""

from __future__ import annotations

from itertools import product
from typing import Literal

import torch
from torch import Tensor

from regio.analysis.object_sizes import SIZES, size_class
from regio.boxes import area as box_area

__all__ = ["FILTER_CLASSES", "effective_dilation", "filter_class"]

FILTER_CLASSES = (*SIZES, "background")
"""What the centre of a filter lies on."""


def effective_dilation(
    offsets: Tensor,
    kernel_size: tuple[int, int] = (3, 3),
    dilation: tuple[int, int] = (1, 1),
    *,
    neighbours: Literal[4, 8] = 4,
) -> Tensor:
    """The mean distance [N, G, H, W], in cells of the input map, between adjacent taps of the filter at each output.

    offsets: [N, G * kh * kw * 2, H, W] in cells, by offset group, then tap (row-major), then (y, x): the layout of
    `deform_conv2d`. kernel_size, dilation: (height, width) of the filter. neighbours: which taps are adjacent; the
    paper does not say. 4, the default, joins taps beside and above each other, 12 pairs in a 3 x 3 filter, and gives
    exactly d for zero offsets and a dilation (d, d); 8 adds the 8 diagonal pairs, which makes that 1.166 d. Which taps
    are adjacent is fixed by the kernel, not by where the offsets take them.

    Raises ValueError for another number of channels, for other neighbours and for a kernel without adjacent taps.
    """
    height, width = kernel_size
    taps = height * width
    if offsets.ndim != 4 or offsets.shape[1] == 0 or offsets.shape[1] % (2 * taps):
        raise ValueError(
            f"offsets: expected shape [N, G * {2 * taps}, H, W] for a kernel of {height} x {width}, "
            f"got {list(offsets.shape)}"
        )
    first, second = _adjacent(height, width, neighbours)
    if len(first) == 0:
        raise ValueError(f"kernel_size: expected at least two taps, got {kernel_size}")
    rows, columns = (torch.arange(n, dtype=offsets.dtype) * d for n, d in zip(kernel_size, dilation, strict=True))
    grid = torch.cartesian_prod(rows, columns).to(offsets.device)  # [taps, 2] (y, x)
    points = offsets.unflatten(1, (-1, taps, 2)) + grid[:, :, None, None]  # [N, G, taps, 2, H, W]
    return (points[:, :, first] - points[:, :, second]).square().sum(3).sqrt().mean(2)


def _adjacent(height: int, width: int, neighbours: int) -> tuple[list[int], list[int]]:
    """Both taps of each adjacent pair, as row-major indices."""
    if neighbours not in (4, 8):
        raise ValueError(f"neighbours: expected 4 or 8, got {neighbours}")
    steps = [(0, 1), (1, 0), (1, 1), (1, -1)][: neighbours // 2]
    pairs = [
        (row * width + column, (row + down) * width + column + right)
        for row, column, (down, right) in product(range(height), range(width), steps)
        if row + down < height and 0 <= column + right < width
    ]
    return [a for a, _ in pairs], [b for _, b in pairs]


def filter_class(boxes: Tensor, size: tuple[int, int], stride: float, *, area: Tensor | None = None) -> Tensor:
    """The index into `FILTER_CLASSES` [H, W] int64 of each filter of one image, by the object that its centre is in.

    boxes: [G, 4] ground truth, in pixels of the image that the map is of. size, stride: of the output map, whose cell
    (v, u) is the filter centred at ((u + 0.5) stride, (v + 0.5) stride). area: [G] in square pixels of the original
    image, where that was scaled or masks are known; that of the boxes unless given. A centre in several boxes belongs
    to the one of smallest area; the paper does not say.
    """
    area = box_area(boxes) if area is None else area
    if area.shape != boxes.shape[:1]:
        raise ValueError(f"area: expected shape {list(boxes.shape[:1])}, one a box, got {list(area.shape)}")
    y, x = ((torch.arange(n, dtype=boxes.dtype, device=boxes.device) + 0.5) * stride for n in size)
    x1, y1, x2, y2 = boxes[:, :, None].unbind(1)
    inside = ((y >= y1) & (y < y2))[:, :, None] & ((x >= x1) & (x < x2))[:, None, :]  # [G, H, W]
    classes = torch.full(size, len(SIZES), device=boxes.device)
    for i in area.argsort(descending=True, stable=True).tolist():  # the smallest last, on top
        classes[inside[i]] = size_class(area[i])
    return classes
