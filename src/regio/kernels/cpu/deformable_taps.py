"""Where the taps of a deformable convolution read: the four cells about each tap, with their bilinear weights.

A tap is one of the M = offset groups * taps places that an output cell reads. The P output cells are numbered image by
image and row by row, and the cells of the map likewise.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from regio.kernels.cpu.compile import compiled

__all__ = ["Geometry", "find_cells"]

Array = np.ndarray[Any, Any]
Pair = tuple[int, ...]
# (H, W), (rows, columns) of the output, kernel, stride, padding, dilation
Geometry = tuple[Pair, Pair, Pair, Pair, Pair, Pair]


@compiled
def find_cells(
    offset: Array, mask: Array, geometry: Geometry, cells: Array, weights: Array, fraction: Array, begin: int, end: int
) -> None:
    """Write what the taps of the output cells [begin, end) read.

    offset: [P, M, 2] as (y, x). mask: [P, M]. cells, weights: [P, M, 4], numbers of cells, -1 outside the map, and
    their weights, the mask included: (top, left), (top, right), (bottom, left), (bottom, right). fraction: [P, M, 2],
    (row, column) of the tap from the first of them on.
    """
    (height, width), (rows, columns), kernel, stride, padding, dilation = geometry
    taps = kernel[0] * kernel[1]
    # Where a tap lies without its offset, from the place of the output cell on: a division for each would take as long
    # as the rest.
    tap_row, tap_column = np.empty(offset.shape[1], offset.dtype), np.empty(offset.shape[1], offset.dtype)
    for m in range(offset.shape[1]):
        tap_row[m] = m % taps // kernel[1] * dilation[0] - padding[0]
        tap_column[m] = m % taps % kernel[1] * dilation[1] - padding[1]
    for p in range(begin, end):
        image, place = p // (rows * columns), p % (rows * columns)
        first_row, first_column = place // columns * stride[0], place % columns * stride[1]
        for m in range(offset.shape[1]):
            v = offset[p, m, 0] + (first_row + tap_row[m])
            u = offset[p, m, 1] + (first_column + tap_column[m])
            near = v >= -1 and v < height and u >= -1 and u < width
            top, left = (int(np.floor(v)), int(np.floor(u))) if near else (-2, -2)
            down, right = (v - top, u - left) if near else (v * 0, u * 0)
            first = (image * height + top) * width + left
            above, below = top >= 0, top >= -1 and top + 1 < height
            cells[p, m, 0] = first if above and left >= 0 else -1
            cells[p, m, 1] = first + 1 if above and left + 1 < width else -1
            cells[p, m, 2] = first + width if below and left >= 0 else -1
            cells[p, m, 3] = first + width + 1 if below and left + 1 < width else -1
            weights[p, m, 0] = mask[p, m] * (1 - down) * (1 - right)
            weights[p, m, 1] = mask[p, m] * (1 - down) * right
            weights[p, m, 2] = mask[p, m] * down * (1 - right)
            weights[p, m, 3] = mask[p, m] * down * right
            fraction[p, m, 0] = down
            fraction[p, m, 1] = right
