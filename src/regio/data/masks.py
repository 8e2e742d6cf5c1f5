"""Segmentations in COCO's forms, and masks.

A segmentation is a list of polygons ([[x, y, x, y, ...], ...] in pixels, their union), a run-length encoding with a
list of counts, or one with its counts compressed to text. Counts are the lengths of the runs of 0, 1, 0, ... down the
columns. Polygons are rasterised as by the COCO API, which hotcoco reproduces: vertices are rounded to a five times
finer grid, and a pixel belongs to the mask when its centre is inside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Segmentation", "decode_masks", "encode_mask", "is_polygon", "mask_area", "mask_bounds"]

Segmentation = list[list[float]] | dict[str, Any]


def decode_masks(segmentations: Sequence[Segmentation], size: tuple[int, int]) -> Tensor:
    """Masks [G, H, W] bool of G segmentations in an image of `size` (height, width).

    Raises ValueError when a segmentation is neither polygons nor a sound encoding, or is of another size.
    """
    masks = np.zeros((len(segmentations), *size), dtype=bool)
    for mask, segmentation in zip(masks, segmentations, strict=True):
        mask[:] = _rasterised(segmentation, size) if isinstance(segmentation, list) else _unrolled(segmentation, size)
    return torch.from_numpy(masks)


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """The compressed run-length encoding of `mask` [H, W] bool, with its counts as text (fit for JSON)."""
    return {"size": list(mask.shape), "counts": _api().encode(mask)["counts"].decode("ascii")}


def is_polygon(polygon: Any) -> bool:
    """Whether `polygon` is a list of at least three x, y pairs of finite numbers."""
    if not (isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0):
        return False
    try:
        return {*map(type, polygon)} <= {int, float} and math.isfinite(sum(polygon))
    except OverflowError:  # an integer that no float holds
        return False


def mask_area(segmentation: Segmentation, size: tuple[int, int]) -> float:
    """Area of a segmentation in pixels, of which none is decoded. Raises as `decode_masks`."""
    if isinstance(segmentation, list):
        return float(_api().area(_runs_of(segmentation, size)))
    return float(sum(_run_lengths(segmentation, size)[1::2]))


def mask_bounds(segmentation: Segmentation, size: tuple[int, int]) -> tuple[float, float, float, float] | None:
    """The least box (x1, y1, x2, y2) around the points of polygons, or around the pixels of an encoding in an image of
    `size`; None where there is no pixel. Nothing is rasterised. Raises as `decode_masks`."""
    if isinstance(segmentation, list):
        _require_polygons(segmentation)
        xs, ys = ([polygon[i::2] for polygon in segmentation] for i in (0, 1))
        return min(map(min, xs)), min(map(min, ys)), max(map(max, xs)), max(map(max, ys))
    ends = np.cumsum(_run_lengths(segmentation, size), dtype=np.int64)
    begins, ends = ends[:-1:2], ends[1::2]  # of the runs of 1, as places down the columns
    begins, ends = begins[ends > begins], ends[ends > begins]
    if not len(ends):
        return None
    height = size[0]
    left, right = begins // height, (ends - 1) // height
    whole = (right > left).any()  # a run that goes on in the next column has that column's top and its own's bottom
    top, bottom = (0, height) if whole else ((begins % height).min(), ((ends - 1) % height).max() + 1)
    return float(left.min()), float(top), float(right.max()) + 1, float(bottom)


def _api() -> Any:
    from hotcoco import mask  # on first use: reading boxes does not need it

    return mask


def _rasterised(polygons: list[list[float]], size: tuple[int, int]) -> np.ndarray:
    return _api().decode(_runs_of(polygons, size))


def _runs_of(polygons: list[list[float]], size: tuple[int, int]) -> Any:
    """The encoding of the union of `polygons`."""
    _require_polygons(polygons)
    return _api().merge(_api().frPyObjects(polygons, *size))


def _require_polygons(polygons: list[list[float]]) -> None:
    if not polygons:
        raise ValueError("segmentation: expected at least one polygon, got an empty list")
    for polygon in polygons:
        if not is_polygon(polygon):
            got = f"{_shown(polygon)}, {len(polygon)} numbers" if isinstance(polygon, list) else _shown(polygon)
            raise ValueError(
                f"segmentation: expected polygons of at least three x, y pairs of finite numbers, got {got}"
            )


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _unrolled(encoding: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    counts = _run_lengths(encoding, size)
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(size[1], size[0]).T


def _run_lengths(encoding: dict[str, Any], size: tuple[int, int]) -> list[int]:
    """The lengths of the runs of 0, 1, 0, ... down the columns."""
    if not isinstance(encoding, dict) or "counts" not in encoding or "size" not in encoding:
        raise ValueError(f"segmentation: expected polygons or a run-length encoding, got {_shown(encoding)}")
    if encoding["size"] not in (list(size), size):
        raise ValueError(f"segmentation: expected size {list(size)}, that of the image, got {encoding['size']}")
    counts = encoding["counts"]
    if isinstance(counts, str | bytes):
        counts = _counts(counts.encode() if isinstance(counts, str) else counts)
    elif not isinstance(counts, list) or not all(isinstance(count, int) for count in counts):
        raise ValueError(f"segmentation: expected counts as text or a list of integers, got {_shown(counts)}")
    if any(count < 0 for count in counts):
        raise ValueError(f"segmentation: expected counts of at least 0, got {min(counts)}")
    if sum(counts) != math.prod(size):
        raise ValueError(f"segmentation: the counts sum to {sum(counts)}, expected height x width = {math.prod(size)}")
    return counts


def _counts(text: bytes) -> list[int]:
    """The run lengths that COCO's compressed form holds.

    Each is a number in base 32, the least digit first, in characters from "0" on: bit 5 says that more digits follow,
    bit 4 of the last one is the sign. From the fourth run on, it is the difference to the run before the last.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        digit = character - 48
        if not 0 <= digit < 64:
            raise ValueError(f"segmentation: {chr(character)!r} is no character of an encoding")
        value |= (digit & 31) << shift
        shift += 5
        if not digit & 32:
            value -= (digit & 16) << (shift - 4)
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value = shift = 0
    if shift:
        raise ValueError("segmentation: the encoding ends within a number")
    return counts
