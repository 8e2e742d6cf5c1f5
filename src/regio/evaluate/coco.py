"""COCO's detection metrics.

The numbers are those of pycocotools, to the last bits, computed by hotcoco. Two habits of pycocotools are not kept: an
object whose annotation has id 0 counts like any other, and a metric that nothing in the data defines is NaN, not -1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

import hotcoco
import numpy as np
import torch
from numpy.typing import NDArray

from regio.data.masks import encode_mask
from regio.evaluate.coco_format import check_rows, class_numbers, require
from regio.types import Detections

__all__ = ["ClassAP", "CocoMetrics", "coco_metrics", "detections_to_coco"]

ALL, SMALL, MEDIUM, LARGE = range(4)  # COCO's area ranges, in their order: all, < 32^2, 32^2 .. 96^2, > 96^2 pixels
IOU_50, IOU_75 = 0, 5  # places in its IoU thresholds .50, .55, ..., .95
SHAPE = {"bbox": "bbox", "segm": "segmentation"}  # what is compared
MOST_1, MOST_10, MOST_100 = range(3)  # places in its limits of detections an image and class


class ClassAP(NamedTuple):
    """Of one class: AP (mean over IoU .50:.95), AP at IoU .50, AP at IoU .75, AR at 100 detections, and the number of
    objects that are no crowds. All but the last are NaN where it is zero."""

    ap: float
    ap50: float
    ap75: float
    ar_100: float
    objects: int


@dataclass(frozen=True)
class CocoMetrics:
    """COCO's twelve numbers in [0, 1], the same per class, and the precision-recall curves at IoU 0.5.

    ap: mean over classes and IoU .50:.05:.95 of the 101-point average precision. ap50, ap75: at one IoU. ap_small,
    ap_medium, ap_large: over objects of area below 32^2, up to 96^2, above. ar_1, ar_10, ar_100: mean over classes and
    IoU of the largest recall with that many detections an image and class; ar_small .. ar_large at 100.
    Classes without objects do not enter a mean; a mean over no class at all is NaN.

    ap_by_iou: [10], the AP at each of the IoU .50, .55, ..., .95. per_class: name -> ClassAP, in the order of the
    categories. precision: [C, 101] at IoU .50, by class in that order; a row is NaN for a class without objects.
    recall: [101], the recalls 0, .01, ..., 1 at which precision is given.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar_1: float
    ar_10: float
    ar_100: float
    ar_small: float
    ar_medium: float
    ar_large: float
    ap_by_iou: NDArray[np.float64]
    per_class: Mapping[str, ClassAP]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]

    def summary(self) -> dict[str, float]:
        """The twelve numbers by name, in COCO's order."""
        return {f.name: getattr(self, f.name) for f in fields(self)[:12]}

    def to_json(self) -> dict[str, Any]:
        """The twelve numbers and `per_class`, with None for NaN (which JSON has no word for)."""
        classes = {name: {k: _or_none(v) for k, v in c._asdict().items()} for name, c in self.per_class.items()}
        return {name: _or_none(value) for name, value in self.summary().items()} | {"per_class": classes}


def coco_metrics(
    ground_truth: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    iou_type: Literal["bbox", "segm"] = "bbox",
) -> CocoMetrics:
    """Measure `detections`, in COCO's results form, against `ground_truth`, in its annotation form.

    ground_truth: "images" (id, height, width), "categories" (id, name), "annotations" (image_id, category_id, bbox as
    [x, y, width, height], and where known area, which decides small, medium and large and is otherwise the box's;
    iscrowd, false if absent; segmentation for `iou_type` "segm"). detections: image_id, category_id, score, and bbox
    or segmentation. A detection is small, medium or large by the area of its own box or mask.

    Neither argument is changed. There may be no detections, no objects, images without objects, and no images.

    Raises ValueError when ids or names of categories repeat, when an annotation or a detection names an image or a
    category that is not there or lacks the box or segmentation, when an annotation has neither area nor box, when a
    detection has no score, and when a score is not a finite number, or a box not four of them.
    """
    classes = class_numbers(ground_truth)
    known = {id: number for number, id in enumerate(sorted({image["id"] for image in ground_truth["images"]}))}
    check_rows("annotation", ground_truth["annotations"], known, classes)
    check_rows("detection", detections, known, classes)

    for kind, rows in (("annotation", ground_truth["annotations"]), ("detection", detections)):
        require(kind, rows, SHAPE[iou_type])

    # Ids of our own: those of files repeat, begin at 0 or are negative, and classes are to stay in their order.
    images = [
        {"id": known[image["id"]]} | {k: image[k] for k in ("height", "width") if k in image}
        for image in ground_truth["images"]
    ]
    names = [str(category["name"]) for category in ground_truth["categories"]]
    categories = [{"id": i, "name": name} for i, name in enumerate(names)]
    annotations = [
        _annotation(i, known[a["image_id"]], a, classes, SHAPE[iou_type])
        for i, a in enumerate(ground_truth["annotations"], start=1)
    ]
    results = [
        {k: d[k] for k in ("score", SHAPE[iou_type])}
        | {"image_id": known[d["image_id"]], "category_id": classes[d["category_id"]]}
        for d in detections
    ]
    truth = hotcoco.COCO({"images": images, "categories": categories, "annotations": annotations})
    evaluation = hotcoco.COCOeval(truth, truth.load_res(results), iou_type)
    evaluation.evaluate()
    evaluation.accumulate()
    assert evaluation.eval is not None
    objects = [0] * len(names)
    for a in annotations:
        objects[a["category_id"]] += not a["iscrowd"]
    return _summarise(evaluation.eval, evaluation.params.rec_thrs, names, objects)


def _annotation(
    number: int, image: int, row: Mapping[str, Any], classes: Mapping[Any, int], shape: str
) -> dict[str, Any]:
    """What the evaluator needs of an annotation, under the id `number`, on the image of the id `image`."""
    box, area = row.get("bbox"), row.get("area")
    if area is None:
        if box is None:
            raise ValueError(f"annotation {number - 1}: expected an area or a bbox, got none")
        area = box[2] * box[3]
    return {
        "id": number,
        "image_id": image,
        "category_id": classes[row["category_id"]],
        "iscrowd": int(row.get("iscrowd") or 0),
        "area": float(area),
        "bbox": [0.0] * 4 if box is None else box,
        shape: row[shape],
    }


def detections_to_coco(
    detections: Detections, image_id: int, category_ids: Sequence[int], size: tuple[int, int] | None = None
) -> list[dict[str, Any]]:
    """`detections` of one image in COCO's results form, in their order.

    Label l becomes category_ids[l - 1]; boxes become [x, y, width, height], subtracted in float64. Masks, where there
    are any, become compressed run-length encodings on the image's `size` (height, width).

    Raises ValueError for a label outside 1 .. len(category_ids), and for masks without a size.
    """
    labels = detections.labels.tolist()
    if labels and not 1 <= min(labels) <= max(labels) <= len(category_ids):
        raise ValueError(f"labels: expected 1 .. {len(category_ids)}, got {min(labels)} .. {max(labels)}")
    boxes = detections.boxes.detach().cpu().double()
    boxes = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1)
    rows: list[dict[str, Any]] = [
        {"image_id": image_id, "category_id": category_ids[label - 1], "bbox": box, "score": score}
        for box, label, score in zip(boxes.tolist(), labels, detections.scores.tolist(), strict=True)
    ]
    if detections.masks is not None:
        if size is None:
            raise ValueError("size: expected the (height, width) of the image, since there are masks, got None")
        whole = np.zeros(size, dtype=bool)
        windows = detections.masks.windows(detections.boxes, size)
        for row, (window, mask) in zip(rows, windows, strict=True):
            whole[window] = mask.cpu().numpy()
            row["segmentation"] = encode_mask(whole)
            whole[window] = False
    return rows


def _summarise(
    arrays: Mapping[str, NDArray[np.float64]], recalls: Sequence[float], names: list[str], objects: list[int]
) -> CocoMetrics:
    """From precision [IoU, recall, class, area, limit] and recall [IoU, class, area, limit]; -1 is undefined."""
    precision = np.where(arrays["precision"] < 0, np.nan, arrays["precision"])
    recall = np.where(arrays["recall"] < 0, np.nan, arrays["recall"])
    full = precision[:, :, :, ALL, MOST_100]
    per_class = {
        name: ClassAP(
            _mean(full[:, :, i]),
            _mean(full[IOU_50, :, i]),
            _mean(full[IOU_75, :, i]),
            _mean(recall[:, i, ALL, MOST_100]),
            objects[i],
        )
        for i, name in enumerate(names)
    }
    return CocoMetrics(
        ap=_mean(full),
        ap50=_mean(full[IOU_50]),
        ap75=_mean(full[IOU_75]),
        ap_small=_mean(precision[:, :, :, SMALL, MOST_100]),
        ap_medium=_mean(precision[:, :, :, MEDIUM, MOST_100]),
        ap_large=_mean(precision[:, :, :, LARGE, MOST_100]),
        ar_1=_mean(recall[:, :, ALL, MOST_1]),
        ar_10=_mean(recall[:, :, ALL, MOST_10]),
        ar_100=_mean(recall[:, :, ALL, MOST_100]),
        ar_small=_mean(recall[:, :, SMALL, MOST_100]),
        ar_medium=_mean(recall[:, :, MEDIUM, MOST_100]),
        ar_large=_mean(recall[:, :, LARGE, MOST_100]),
        ap_by_iou=np.array([_mean(at_iou) for at_iou in full]),
        per_class=per_class,
        precision=full[IOU_50].T.copy(),
        recall=np.asarray(recalls, dtype=np.float64),
    )


def _mean(values: NDArray[np.float64]) -> float:
    """Mean over what is defined; NaN over nothing."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else math.nan


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
