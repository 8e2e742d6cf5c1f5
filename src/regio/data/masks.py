"""Segmentations in COCO's forms, and masks.

A segmentation is a list of polygons ([[x, y, x, y, ...], ...] in pixels, their union), a run-length encoding with a
list of counts, or one with compressed counts. The rasteriser is that of the COCO API, which faster-coco-eval ships:
it rounds vertices to a five-times finer grid and takes a pixel when its centre is inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Segmentation", "decode_masks", "encode_mask", "mask_area"]

Segmentation = list[list[float]] | dict[str, Any]


def decode_masks(segmentations: Sequence[Segmentation], size: tuple[int, int]) -> Tensor:
    """Masks [G, H, W] bool of G segmentations in an image of `size` (height, width).

    Raises ValueError when a segmentation is neither polygons nor a sound encoding, or is of another size.
    """
    height, width = size
    masks = np.zeros((len(segmentations), height, width), dtype=bool)
    for mask, segmentation in zip(masks, segmentations, strict=True):
        runs = _runs(segmentation, size)
        try:
            mask[:] = _api().decode(runs)
        except RuntimeError as error:  # what the decoder raises for text that is no encoding
            raise ValueError(f"segmentation: {error}") from error
    return torch.from_numpy(masks)


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """The compressed run-length encoding of `mask` [H, W] bool, with its counts as text (fit for JSON)."""
    runs = _api().encode(np.asfortranarray(mask, dtype=np.uint8))
    counts = runs["counts"]
    return {"size": list(mask.shape), "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}


def mask_area(segmentation: Segmentation, size: tuple[int, int]) -> float:
    """Area of a segmentation in pixels. Raises as `decode_masks`."""
    return float(_api().area(_runs(segmentation, size)))


def _api() -> Any:
    from faster_coco_eval.core import mask  # on first use: reading boxes does not need it

    return mask


def _runs(segmentation: Segmentation, size: tuple[int, int]) -> dict[str, Any]:
    """`segmentation` as one compressed run-length encoding."""
    height, width = size
    if isinstance(segmentation, list):
        if not segmentation or any(not isinstance(p, list) or len(p) < 6 or len(p) % 2 for p in segmentation):
            raise ValueError(
                f"segmentation: expected polygons of at least three x, y pairs, got {str(segmentation)[:80]}"
            )
        return _api().merge(_api().frPyObjects(segmentation, height, width))
    if not isinstance(segmentation, dict) or "counts" not in segmentation or "size" not in segmentation:
        raise ValueError(f"segmentation: expected polygons or a run-length encoding, got {str(segmentation)[:80]}")
    if list(segmentation["size"]) != [height, width]:
        raise ValueError(
            f"segmentation: expected size {[height, width]}, that of the image, got {segmentation['size']}"
        )
    counts = segmentation["counts"]
    if isinstance(counts, list):
        if sum(counts) != height * width:
            raise ValueError(f"segmentation: counts sum to {sum(counts)}, expected height x width = {height * width}")
        return _api().frPyObjects(segmentation, height, width)
    return {"size": [height, width], "counts": counts.encode("ascii") if isinstance(counts, str) else counts}
