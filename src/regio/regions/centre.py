"""CentreFeature: what a one-stage detector reads of a box."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regio.regions.axes import clamp_to_border
from regio.regions.sampling import SampleGrid, Samples, SamplingExtractor, boxes_in_cells
from regio.types import FeatureMap, Regions

__all__ = ["CentreFeature"]


class CentreFeature(SamplingExtractor):
    """One part with weight one at the centre of the box, bilinear between cells: the region feature of one-stage
    detectors (Gu et al. 2018, section 2). [R, C, 1, 1].

    A centre up to one cell outside the outermost cells of the map reads the border, one further out zero, as in
    `RoIAlign`. Law: it is ``RoIAlign(1, samples=1)``. Features and boxes receive gradients.
    """

    bins = (1, 1)

    def sampling(self, maps: Sequence[FeatureMap], r: Regions, level: Tensor, shift: Tensor | None = None) -> Samples:
        """The centre of each box; see `SamplingExtractor.sampling`."""
        boxes, size = boxes_in_cells(maps, r, level)
        centre = (boxes[:, :2] + boxes[:, 2:]) / 2 - 0.5  # the centre of cell 0 is at half a cell
        if shift is not None:
            centre = centre + shift[:, 0, 0].to(centre.dtype)
        u, v = centre[:, :, None, None].unbind(1)
        columns, column_weight = clamp_to_border(u, torch.ones_like(u), size[:, 1, None, None], margin=1)
        rows, row_weight = clamp_to_border(v, torch.ones_like(v), size[:, 0, None, None], margin=1)
        return SampleGrid(rows, columns, row_weight, column_weight)
