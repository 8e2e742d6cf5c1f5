"""TriangularBins: a box cut into triangles that meet at its centre."""

from __future__ import annotations

import torch
from torch import Tensor

from regio.kernels.arguments import coordinate_dtype
from regio.regions.base import RegionExtractor
from regio.types import FeatureMap, Regions

__all__ = ["TriangularBins"]

# Of (below the centre, right of it, nearer to the horizontal axis): the eighth, clockwise from the right half of the
# right side downwards.
_EIGHTHS = [[[5, 4], [6, 7]], [[2, 3], [1, 0]]]


class TriangularBins(RegionExtractor):
    """The mean of the cells in each triangle between the centre of the box and a piece of its border: bins that are
    not rectangles (the shape that Gu et al. 2018, section 2, attribute to MaskLab). [R, C, triangles, 1].

    triangles: 4 stand on the sides, 8 on half sides. Part 0 begins at the right side (at its middle for 8, its upper
    corner for 4) and parts follow clockwise. The geometry is regio's own: the source names the shape and no more.

    A cell belongs to the triangle that its centre lies in, and to exactly one; one on the border between two goes to
    the one nearer to the horizontal axis, on an axis to that below or to the right. A cell whose centre lies outside
    the box, or outside the map, counts nowhere; a triangle without cells gives 0. Features receive gradients, boxes
    none.

    Raises ValueError for any other number of triangles.
    """

    def __init__(self, triangles: int = 8) -> None:
        super().__init__()
        if triangles not in (4, 8):
            raise ValueError(f"triangles: expected 4 or 8, got {triangles}")
        self.triangles = triangles
        self.bins = (triangles, 1)

    def extra_repr(self) -> str:
        return f"triangles={self.triangles}"

    def weights(self, x: FeatureMap, r: Regions) -> Tensor:
        """The weights [R, 1, K, H, W]."""
        r.check(x)
        dtype = coordinate_dtype(x.data)
        x1, y1, x2, y2 = (r.boxes.detach().to(dtype) * (1 / x.stride))[:, :, None].unbind(1)
        v, u = (torch.arange(n, device=r.boxes.device, dtype=dtype) + 0.5 for n in x.size)
        inside = ((v >= y1) & (v < y2))[:, :, None] & ((u >= x1) & (u < x2))[:, None, :]
        # In a frame where the box is a square, so that its diagonals are the diagonals.
        right = ((u - (x1 + x2) / 2) * (y2 - y1))[:, None, :]
        down = ((v - (y1 + y2) / 2) * (x2 - x1))[:, :, None]
        eighths = torch.tensor(_EIGHTHS, device=r.boxes.device)
        part = eighths[(down >= 0).long(), (right >= 0).long(), (right.abs() >= down.abs()).long()]
        if self.triangles == 4:
            part = (part + 1) // 2 % 4
        parts = torch.arange(self.triangles, device=r.boxes.device)[:, None, None]
        cells = (inside[:, None] & (part[:, None] == parts)).to(dtype)
        return (cells / cells.sum((2, 3), keepdim=True).clamp(min=1))[:, None]
