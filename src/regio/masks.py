"""Masks of instances: on a grid over a box, on the pixels of an image, and from one to the other.

A mask that a detector finds is a small grid of probabilities over its box. It becomes pixels when somebody asks for
them, one object after the other, so that a hundred objects on a large photo need no hundred photos of memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["EncodedMasks", "GridMasks", "Masks", "PasteAtCentres", "PasteRounded", "Pasting", "PixelMasks", "cover"]

Window = tuple[slice, slice]


class Masks(Protocol):
    """The masks of D objects of one image, in whatever form."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor, /) -> Masks:
        """The masks at `rows` (a boolean mask [D] or int64 indices)."""
        ...

    def to(self, device: torch.device | str, /) -> Masks:
        """The same masks on `device`."""
        ...

    def windows(self, boxes: Tensor, size: tuple[int, int], /) -> Iterator[tuple[Window, Tensor]]:
        """For each object, whose box is one of boxes [D, 4] in pixels of an image of `size` (height, width): a window
        of the image, as slices of its rows and columns, and the mask [h, w] bool in it. Outside there is no mask."""
        ...

    def paste(self, boxes: Tensor, size: tuple[int, int], /) -> Tensor:
        """All masks on the image: [D, H, W] bool. Large; `windows` needs less."""
        ...


class _Pasted:
    """What all forms share."""

    def paste(self: Masks, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """All masks on the image: [D, H, W] bool. Large; `windows` needs less."""
        pasted = torch.zeros((len(self), *size), dtype=torch.bool, device=boxes.device)
        for mask, (window, values) in zip(pasted, self.windows(boxes, size), strict=True):
            mask[window] = values
        return pasted


class Pasting(Protocol):
    """How a grid over a box becomes pixels."""

    def __call__(self, grid: Tensor, box: Tensor, size: tuple[int, int], /) -> tuple[Window, Tensor]:
        """The window of an image of `size` (height, width) that grid [M, M] over box [4] reaches, as slices of its rows
        and columns, and the values [h, w] there; outside it they are 0."""
        ...


@dataclass(frozen=True)
class PasteAtCentres:
    """The value of a pixel is the grid, bilinear between the centres of its cells and falling to 0 outside, at the
    pixel's centre. Nothing is rounded (detectron2's `paste_masks_in_image`)."""

    def __call__(self, grid: Tensor, box: Tensor, size: tuple[int, int]) -> tuple[Window, Tensor]:
        (height, width), cells = size, torch.tensor(grid.shape[::-1], dtype=box.dtype, device=box.device)
        side = (box[2:] - box[:2]).clamp(min=1e-6)
        reach = (side / cells / 2).tolist()  # half a cell outside the box the grid has fallen to 0
        x1, y1, x2, y2 = box.tolist()
        rows = _pixels(y1 - reach[1], y2 + reach[1], height)
        columns = _pixels(x1 - reach[0], x2 + reach[0], width)
        u, v = (
            (torch.arange(each.start, each.stop, dtype=box.dtype, device=box.device) + 0.5 - low) / length * 2 - 1
            for each, low, length in ((columns, box[0], side[0]), (rows, box[1], side[1]))
        )
        where = torch.stack([u[None].expand(len(v), -1), v[:, None].expand(-1, len(u))], -1)
        values = F.grid_sample(grid[None, None].to(box.dtype), where[None], align_corners=False)[0, 0]
        return (rows, columns), values


@dataclass(frozen=True)
class PasteRounded:
    """The grid with a border of one empty cell, scaled bilinearly to the box with that border, whose corners are cut to
    whole pixels and whose sides gain one (torchvision's `paste_masks_in_image`, from Detectron)."""

    def __call__(self, grid: Tensor, box: Tensor, size: tuple[int, int]) -> tuple[Window, Tensor]:
        cells = grid.shape[-1]
        padded = F.pad(grid, (1, 1, 1, 1))
        centre, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2 * ((cells + 2) / cells)
        x1, y1, x2, y2 = (int(v) for v in torch.cat([centre - half, centre + half]).tolist())
        width, height = max(x2 - x1 + 1, 1), max(y2 - y1 + 1, 1)
        scaled = F.interpolate(padded[None, None], (height, width), mode="bilinear", align_corners=False)[0, 0]
        rows, columns = slice(max(y1, 0), min(y2 + 1, size[0])), slice(max(x1, 0), min(x2 + 1, size[1]))
        rows, columns = (slice(each.start, max(each.start, each.stop)) for each in (rows, columns))
        values = scaled[rows.start - y1 : rows.stop - y1, columns.start - x1 : columns.stop - x1]
        return (rows, columns), values


@dataclass(frozen=True)
class GridMasks(_Pasted):
    """The masks of D objects, each on a grid over its box.

    values: [D, M, M], the probability that a cell belongs to the object. pasting: how they become pixels. threshold: a
    pixel of this probability or more belongs to the mask.

    Raises ValueError for another shape.
    """

    values: Tensor
    pasting: Pasting = field(default_factory=PasteAtCentres)
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if self.values.ndim != 3 or self.values.shape[1] != self.values.shape[2]:
            raise ValueError(f"values: expected shape [D, M, M], got {list(self.values.shape)}")

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: Tensor) -> GridMasks:
        """The masks at `rows` (a boolean mask [D] or int64 indices)."""
        return GridMasks(self.values[rows], self.pasting, self.threshold)

    def to(self, device: torch.device | str) -> GridMasks:
        """The same masks on `device`."""
        return GridMasks(self.values.to(device), self.pasting, self.threshold)

    def windows(self, boxes: Tensor, size: tuple[int, int]) -> Iterator[tuple[Window, Tensor]]:
        """See `Masks`: the window is what the grid reaches."""
        for grid, box in zip(self.values, boxes, strict=True):
            window, values = self.pasting(grid, box, size)
            yield window, values >= self.threshold


@dataclass(frozen=True)
class PixelMasks(_Pasted):
    """Masks on all pixels of their image: [D, H, W] bool. Raises ValueError for another shape."""

    values: Tensor

    def __post_init__(self) -> None:
        if self.values.ndim != 3 or self.values.dtype != torch.bool:
            raise ValueError(f"values: expected [D, H, W] bool, got {list(self.values.shape)} {self.values.dtype}")

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: Tensor) -> PixelMasks:
        """The masks at `rows` (a boolean mask [D] or int64 indices)."""
        return PixelMasks(self.values[rows])

    def to(self, device: torch.device | str) -> PixelMasks:
        """The same masks on `device`."""
        return PixelMasks(self.values.to(device))

    def windows(self, boxes: Tensor, size: tuple[int, int]) -> Iterator[tuple[Window, Tensor]]:
        """See `Masks`: the window is the whole image. Raises ValueError for an image of another size."""
        _require_size(self.values.shape[1:], size)
        for mask in self.values:
            yield (slice(0, size[0]), slice(0, size[1])), mask


@dataclass(frozen=True)
class EncodedMasks(_Pasted):
    """Masks as COCO's segmentations, run-length encodings or polygons, decoded one at a time; None for no mask."""

    encodings: Sequence[Mapping[str, Any] | list[list[float]] | None]

    def __len__(self) -> int:
        return len(self.encodings)

    def __getitem__(self, rows: Tensor) -> EncodedMasks:
        """The masks at `rows` (a boolean mask [D] or int64 indices)."""
        return EncodedMasks([self.encodings[i] for i in torch.arange(len(self))[rows.cpu()].tolist()])

    def to(self, device: torch.device | str) -> EncodedMasks:
        """These masks, which are on no device."""
        return self

    def windows(self, boxes: Tensor, size: tuple[int, int]) -> Iterator[tuple[Window, Tensor]]:
        """See `Masks`: the window is the whole image. Raises ValueError for an image of another size."""
        from regio.data.masks import decode_masks

        for encoding in self.encodings:
            if encoding is None:
                yield (slice(0, 0), slice(0, 0)), torch.zeros((0, 0), dtype=torch.bool, device=boxes.device)
            else:
                mask = decode_masks([encoding if isinstance(encoding, list) else dict(encoding)], size)[0]
                yield (slice(0, size[0]), slice(0, size[1])), mask.to(boxes.device)


def _require_size(found: Sequence[int], size: tuple[int, int]) -> None:
    if tuple(found) != tuple(size):
        raise ValueError(f"masks: expected the size {list(size)} of the image, got {list(found)}")


def cover(masks: Tensor | Sequence[Tensor], boxes: Tensor, cells: int) -> Tensor:
    """The share in [0, 1] of each cell of a grid over each box that its mask covers: [R, cells, cells].

    masks: R of them, each [H, W] bool; a mask that several boxes share may stand there several times without taking
    memory again. boxes: [R, 4] in their pixels. Exact: the integral of a mask up to a point is bilinear in the
    point between the corners of pixels, so four values of it give the area in any rectangle. Nothing is covered outside
    the mask's image; a box without area covers nothing. (Mask R-CNN, section 3: the target is the intersection of a
    region and its object's mask.)

    Law: for boxes on whole pixels with a whole number of pixels a cell it is ``avg_pool2d`` of the crop.
    """
    dtype = torch.promote_types(boxes.dtype, torch.float32)
    steps = torch.linspace(0, 1, cells + 1, dtype=dtype, device=boxes.device)
    low, side = boxes[:, :2].to(dtype), (boxes[:, 2:] - boxes[:, :2]).to(dtype)
    x, y = (low[:, i, None] + side[:, i, None] * steps for i in (0, 1))  # [R, cells + 1]
    covered = [
        _integral(mask, u.clamp(0, mask.shape[1]), v.clamp(0, mask.shape[0])).diff(dim=0).diff(dim=1)
        for mask, u, v in zip(masks, x, y, strict=True)
    ]
    if not covered:
        return boxes.new_zeros((0, cells, cells), dtype=dtype)
    area = (side.prod(1) / cells**2).clamp(min=torch.finfo(dtype).tiny)
    return torch.stack(covered).div_(area[:, None, None]).clamp_(0, 1)


def _integral(mask: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The area of `mask` [H, W] left of x [n] and above y [n]: [n, n], rows by y. The points are on the image."""
    u0, v0 = (int(each.min()) for each in (x, y))
    u1, v1 = (math.ceil(float(each.max())) for each in (x, y))
    window = mask[v0:v1, u0:u1].to(torch.int32)
    sums = F.pad(window.cumsum(0, dtype=torch.int32).cumsum(1, dtype=torch.int32), (1, 0, 1, 0)).to(x.dtype)
    along = _between(sums, (y - v0), 0)
    return _between(along, (x - u0), 1)


def _between(values: Tensor, at: Tensor, axis: int) -> Tensor:
    """`values` along `axis`, linear between whole numbers."""
    low = at.floor().clamp(max=max(values.shape[axis] - 2, 0))
    share = (at - low).unsqueeze(1 - axis)
    index = low.to(torch.int64)
    after = (index + 1).clamp(max=values.shape[axis] - 1)
    return values.index_select(axis, index) * (1 - share) + values.index_select(axis, after) * share


def _pixels(low: float, high: float, length: int) -> slice:
    """Those whose centres lie between `low` and `high`, of `length`."""
    start = min(max(math.floor(low), 0), length)
    return slice(start, max(start, min(math.ceil(high), length)))
