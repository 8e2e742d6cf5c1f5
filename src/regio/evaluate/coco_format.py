"""What every evaluator asks of annotations and detections in COCO's forms."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from numbers import Real
from typing import Any

__all__ = ["check_rows", "class_numbers", "require"]


def class_numbers(ground_truth: Mapping[str, Any]) -> dict[Any, int]:
    """Category id -> 0 .. C - 1, in the order of "categories". Raises ValueError when ids or names repeat."""
    categories = ground_truth["categories"]
    for key in ("id", "name"):
        values = [c[key] for c in categories]
        if len(set(values)) < len(values):
            repeated = next(v for i, v in enumerate(values) if v in values[:i])
            raise ValueError(f"categories: expected distinct {key}s, got {repeated!r} twice")
    return {c["id"]: i for i, c in enumerate(categories)}


def check_rows(
    kind: str, rows: Sequence[Mapping[str, Any]], images: Container[Any], categories: Mapping[Any, int]
) -> None:
    """Raise ValueError for a row whose image or category is unknown, whose score is not finite or whose box is not four
    finite numbers, and for a detection without a score.

    kind: "annotation" or "detection", for the message.
    """
    if kind == "detection":
        require(kind, rows, "score")
    for i, row in enumerate(rows):
        if row["image_id"] not in images:
            raise ValueError(f"{kind} {i}: expected the id of an image of the ground truth, got {row['image_id']!r}")
        if row["category_id"] not in categories:
            raise ValueError(f"{kind} {i}: expected one of the categories {[*categories]}, got {row['category_id']!r}")
        box, score = row.get("bbox"), row.get("score")
        given = [*([] if box is None else box), *([] if score is None else [score])]
        if not all(isinstance(each, Real) and math.isfinite(each) for each in given):
            raise ValueError(f"{kind} {i}: expected finite numbers, got bbox {box}, score {score}")
        if box is not None and len(box) != 4:
            raise ValueError(f"{kind} {i}: expected a bbox of four numbers, got {box}")


def require(kind: str, rows: Sequence[Mapping[str, Any]], key: str) -> None:
    """Raise ValueError for the first row that has no `key`."""
    lacking = next((i for i, row in enumerate(rows) if row.get(key) is None), None)
    if lacking is not None:
        raise ValueError(f"{kind} {lacking}: expected a {key}, got none")
