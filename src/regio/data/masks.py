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

__all__ = ["Segmentation", "decode_masks", "encode_mask", "is_polygon", "mask_area"]

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
    return all(isinstance(value, int | float) and math.isfinite(value) for value in polygon)


def mask_area(segmentation: Segmentation, size: tuple[int, int]) -> float:
    """Area of a segmentation in pixels. Raises as `decode_masks`."""
    return float(decode_masks([segmentation], size).sum())


def _api() -> Any:
    from hotcoco import mask  # on first use: reading boxes does not need it

    return mask


def _rasterised(polygons: list[list[float]], size: tuple[int, int]) -> np.ndarray:
    for polygon in polygons:
        if not is_polygon(polygon):
            raise ValueError(f"segmentation: expected polygons of at least three x, y pairs, got {str(polygon)[:80]}")
    return _api().decode(_api().merge(_api().frPyObjects(polygons, *size)))


def _unrolled(encoding: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    if not isinstance(encoding, dict) or "counts" not in encoding or "size" not in encoding:
        raise ValueError(f"segmentation: expected polygons or a run-length encoding, got {str(encoding)[:80]}")
    if encoding["size"] not in (list(size), size):
        raise ValueError(f"segmentation: expected size {list(size)}, that of the image, got {encoding['size']}")
    counts = encoding["counts"]
    if isinstance(counts, str | bytes):
        counts = _counts(counts.encode() if isinstance(counts, str) else counts)
    elif not isinstance(counts, list) or not all(isinstance(count, int) for count in counts):
        raise ValueError(f"segmentation: expected counts as text or a list of integers, got {str(counts)[:80]}")
    if any(count < 0 for count in counts):
        raise ValueError(f"segmentation: expected counts of at least 0, got {min(counts)}")
    if sum(counts) != math.prod(size):
        raise ValueError(f"segmentation: the counts sum to {sum(counts)}, expected height x width = {math.prod(size)}")
    return np.repeat(np.arange(len(counts)) % 2, counts).reshape(size[1], size[0]).T


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
