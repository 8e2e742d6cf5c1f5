"""Detections in the forms of other libraries, and back.

Labels here begin at 1, since 0 is the background; class ids of COCO are those of the data set, and those of supervision
begin at 0: label l is class id l - 1 there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from regio.evaluate.coco import detections_to_coco
from regio.masks import EncodedMasks, PixelMasks
from regio.types import Detections

__all__ = ["detections_from_coco", "detections_to_coco", "from_supervision", "to_supervision"]


def detections_from_coco(rows: Sequence[Mapping[str, Any]], category_ids: Sequence[int]) -> Detections:
    """The detections of one image from COCO's results form, in their order: the inverse of `detections_to_coco`.

    category_ids: category_ids[l - 1] is the category of label l. Masks are those of the rows where all have one.
    Raises ValueError for a category that is not among them.
    """
    label = {category: i for i, category in enumerate(category_ids, start=1)}
    unknown = [row["category_id"] for row in rows if row["category_id"] not in label]
    if unknown:
        raise ValueError(f"category_id: expected one of {list(category_ids)}, got {unknown[0]}")
    boxes = torch.tensor([row["bbox"] for row in rows], dtype=torch.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    encodings = [row["segmentation"] for row in rows if row.get("segmentation") is not None]
    return Detections(
        boxes.float(),
        torch.tensor([label[row["category_id"]] for row in rows], dtype=torch.int64),
        torch.tensor([row["score"] for row in rows], dtype=torch.float32),
        EncodedMasks(encodings) if rows and len(encodings) == len(rows) else None,
    )


def to_supervision(found: Detections, class_names: Sequence[str], size: tuple[int, int] | None = None) -> Any:
    """`found` as `supervision.Detections`, with class_names[l - 1] of label l under ``data["class_name"]``.

    size: (height, width) of the image, which masks need; they become pixels of it, all at once.

    Raises ImportError where supervision is not installed, and ValueError for masks without a size.
    """
    import supervision

    if found.masks is not None and size is None:
        raise ValueError("size: expected the (height, width) of the image, since there are masks, got None")
    class_id = (found.labels - 1).cpu().numpy()
    return supervision.Detections(
        xyxy=found.boxes.detach().cpu().float().numpy().reshape(-1, 4),
        mask=None if found.masks is None else found.masks.paste(found.boxes, size).cpu().numpy(),  # type: ignore[arg-type]
        confidence=found.scores.detach().cpu().float().numpy(),
        class_id=class_id,
        data={"class_name": np.array([class_names[i] for i in class_id], dtype=str)},
    )


def from_supervision(found: Any) -> Detections:
    """`supervision.Detections` as `Detections`, in their order; what else they hold (trackers, data) is left out.

    Raises ValueError where they have no class ids or no confidences.
    """
    for name in ("class_id", "confidence"):
        if getattr(found, name) is None:
            raise ValueError(f"{name}: expected one a detection, got None")
    return Detections(
        torch.as_tensor(np.asarray(found.xyxy, dtype=np.float32)).reshape(-1, 4),
        torch.as_tensor(np.asarray(found.class_id, dtype=np.int64)) + 1,
        torch.as_tensor(np.asarray(found.confidence, dtype=np.float32)),
        None if found.mask is None else PixelMasks(torch.as_tensor(np.asarray(found.mask, dtype=bool))),
    )
