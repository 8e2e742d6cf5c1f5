import contextlib
import copy
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from regio.data.masks import decode_masks, encode_mask
from regio.evaluate import coco_metrics, confusion_matrix, detections_to_coco, voc_metrics
from regio.masks import PixelMasks
from regio.types import Detections

NAMES = ["ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"]
NAMES += ["ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large"]


def reference(truth: dict[str, Any], detections: list[dict[str, Any]], iou_type: str = "bbox") -> COCOeval:
    """pycocotools, told nothing but the files."""
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO()
        api.dataset = copy.deepcopy(truth)
        api.createIndex()
        evaluation = COCOeval(api, api.loadRes(copy.deepcopy(detections)), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def assert_equal_to_reference(truth: dict[str, Any], detections: list[dict[str, Any]], iou_type: Any = "bbox") -> None:
    expected = reference(truth, detections, iou_type)
    metrics = coco_metrics(truth, detections, iou_type)
    stats = np.where(expected.stats == -1, np.nan, expected.stats)
    np.testing.assert_allclose([*metrics.summary().values()], stats, rtol=0, atol=1e-12)
    by_iou = np.where(expected.eval["precision"] < 0, np.nan, expected.eval["precision"])[:, :, :, 0, 2]
    means = [math.nan if np.isnan(each).all() else np.nanmean(each) for each in by_iou]
    np.testing.assert_allclose(metrics.ap_by_iou, means, rtol=0, atol=1e-12)
    precision = expected.eval["precision"][:, :, :, 0, 2]
    ids = {category_id: i for i, category_id in enumerate(sorted(c["id"] for c in truth["categories"]))}
    for row, category in enumerate(truth["categories"]):
        curves = precision[:, :, ids[category["id"]]]
        result = metrics.per_class[category["name"]]
        if (curves == -1).all():
            assert math.isnan(result.ap) and math.isnan(result.ap50) and np.isnan(metrics.precision[row]).all()
        else:
            np.testing.assert_allclose([result.ap, result.ap50], [curves.mean(), curves[0].mean()], atol=1e-12)
            np.testing.assert_allclose(metrics.precision[row], curves[0], rtol=0, atol=1e-12)
    assert list(metrics.per_class) == [c["name"] for c in truth["categories"]]


@pytest.fixture
def real(shared_data: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    folder = shared_data / "eval_reference" / "coco_eval"
    truth = json.loads((folder / "gts" / "sampled_gts_bbox_area.json").read_text())
    return truth, json.loads((folder / "cocoapi_results.json").read_text())


def scene(boxes: list[tuple[int, int, list[float]]], **extra: Any) -> dict[str, Any]:
    """Ground truth of two images and classes 3 and 7 from (image, category, box)."""
    annotations = [
        {"id": i, "image_id": image, "category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for i, (image, category, box) in enumerate(boxes, start=1)
    ]
    images = [{"id": i, "height": 200, "width": 200} for i in (1, 2)]
    categories = [{"id": 7, "name": "seven"}, {"id": 3, "name": "three"}]
    return {"images": images, "categories": categories, "annotations": annotations} | extra


def found(image: int, category: int, box: list[float], score: float) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def test_published_values(real: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    """The numbers that the authors of these files got from COCO's own implementation (Padilla et al. 2021)."""
    published = [0.503647, 0.696973, 0.571667, 0.593252, 0.557991, 0.489363]
    published += [0.386813, 0.593680, 0.595353, 0.654764, 0.603130, 0.553744]
    metrics = coco_metrics(*real)
    np.testing.assert_allclose([*metrics.summary().values()], published, rtol=0, atol=1e-6)
    assert list(metrics.summary()) == NAMES
    assert metrics.recall.shape == (101,) and metrics.precision.shape == (80, 101)
    assert sum(c.objects for c in metrics.per_class.values()) == sum(1 - a["iscrowd"] for a in real[0]["annotations"])


def test_equals_pycocotools_on_real_detections(real: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    truth, detections = real
    before = copy.deepcopy((truth, detections))
    assert_equal_to_reference(truth, detections)
    assert (truth, detections) == before


def test_equals_pycocotools_on_noisy_detections_with_crowds_ties_and_many_boxes(shared_data: Path) -> None:
    truth = json.loads((shared_data / "coco_s320" / "annotations" / "instances_val.json").read_text())
    images = {image["id"] for image in truth["images"][:60]}
    truth["images"] = truth["images"][:60]
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] in images]
    assert any(a["iscrowd"] for a in truth["annotations"])
    rng = np.random.default_rng(0)
    detections = []
    for a in truth["annotations"]:
        for _ in range(6):
            x, y, w, h = a["bbox"]
            dx, dy, dw, dh = rng.normal(0, 0.1, 4)
            box = [x + dx * w, y + dy * h, w * math.exp(dw), h * math.exp(dh)]
            category = a["category_id"] if rng.random() < 0.8 else 1
            detections.append(found(a["image_id"], category, box, round(float(rng.random()), 1)))
    crowded = truth["annotations"][0]["image_id"]
    detections += [found(crowded, 1, [*rng.uniform(0, 100, 4)], float(rng.random())) for _ in range(150)]
    assert_equal_to_reference(truth, detections)


@pytest.mark.parametrize("shift", [-(10**9), 2**62])
def test_ids_of_images_may_be_any_numbers(shift: int, real: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    truth, detections = copy.deepcopy(real)
    for row in truth["images"]:
        row["id"] += shift
    for row in truth["annotations"] + detections:
        row["image_id"] += shift
    assert coco_metrics(truth, detections).summary() == pytest.approx(coco_metrics(*real).summary())


def test_masks_equal_pycocotools(shared_data: Path) -> None:
    truth = json.loads((shared_data / "coco_s320" / "annotations" / "masks_val.json").read_text())
    truth["images"] = truth["images"][:40]
    images = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] in images]
    ids = [c["id"] for c in truth["categories"]]
    rng = np.random.default_rng(1)
    detections: list[dict[str, Any]] = []
    for a in truth["annotations"]:
        down, right = rng.integers(-3, 4, 2).tolist()
        mask = decode_masks([a["segmentation"]], images[a["image_id"]]).roll((down, right), (1, 2))
        x, y, w, h = a["bbox"]
        one = Detections(
            torch.tensor([[x, y, x + w, y + h]]),
            torch.tensor([ids.index(a["category_id"]) + 1]),
            torch.rand(1, generator=torch.Generator().manual_seed(a["id"] % 2**31)),
            PixelMasks(mask),
        )
        detections += detections_to_coco(one, a["image_id"], ids, images[a["image_id"]])
    masks_only = [{k: v for k, v in d.items() if k != "bbox"} for d in detections]
    assert_equal_to_reference(truth, masks_only, "segm")
    assert 0.2 < coco_metrics(truth, masks_only, "segm").ap < 1


def test_hand_worked_average_precision() -> None:
    """Two objects of a class; found first, missed by a false one, found second: precision 1 to recall 1/2, then 2/3."""
    truth = scene([(1, 3, [0, 0, 40, 40]), (2, 3, [50, 50, 100, 100])])
    detections = [
        found(1, 3, [0, 0, 40, 40], 0.9),
        found(1, 3, [100, 100, 40, 40], 0.8),
        found(2, 3, [50, 50, 100, 100], 0.7),
    ]
    metrics = coco_metrics(truth, detections)
    expected = (51 * 1 + 50 * 2 / 3) / 101
    assert metrics.ap == pytest.approx(expected, abs=1e-12)
    assert metrics.per_class["three"].ap50 == pytest.approx(expected, abs=1e-12)
    assert (metrics.ap_medium, metrics.ap_large) == pytest.approx((1, 1))  # a false one of another size is not counted
    assert math.isnan(metrics.ap_small)
    assert metrics.ar_100 == 1 and metrics.ar_1 == 1


def test_area_comes_from_the_annotation() -> None:
    truth = scene([(1, 3, [0, 0, 40, 40])])
    truth["annotations"][0]["area"] = 500.0  # a thin object in a 40 x 40 box: small
    metrics = coco_metrics(truth, [found(1, 3, [0, 0, 40, 40], 0.9)])
    assert metrics.ap_small == pytest.approx(1) and math.isnan(metrics.ap_medium)
    del truth["annotations"][0]["area"]
    metrics = coco_metrics(truth, [found(1, 3, [0, 0, 40, 40], 0.9)])
    assert metrics.ap_medium == pytest.approx(1) and math.isnan(metrics.ap_small)


def test_an_object_with_annotation_id_zero_can_be_found() -> None:
    truth = scene([(1, 3, [0, 0, 40, 40])])
    truth["annotations"][0]["id"] = 0
    detections = [found(1, 3, [0, 0, 40, 40], 0.9)]
    assert coco_metrics(truth, detections).ap == pytest.approx(1)
    assert reference(truth, detections).stats[0] == 0  # what pycocotools makes of it


def test_crowds_are_neither_found_nor_missed() -> None:
    truth = scene([(1, 3, [0, 0, 40, 40]), (1, 3, [60, 60, 100, 100])])
    truth["annotations"][1]["iscrowd"] = 1
    detections = [found(1, 3, [70, 70, 20, 20], 0.95), found(1, 3, [0, 0, 40, 40], 0.9)]
    metrics = coco_metrics(truth, detections)
    assert metrics.ap == pytest.approx(1)
    assert metrics.per_class["three"].objects == 1


def test_no_detections_give_zero_and_no_objects_give_nan() -> None:
    nothing_found = coco_metrics(scene([(1, 3, [0, 0, 40, 40])]), [])
    assert nothing_found.ap == nothing_found.ar_100 == 0
    assert nothing_found.per_class["three"].ap == 0 and math.isnan(nothing_found.per_class["seven"].ap)
    for truth in (scene([]), scene([], images=[]), scene([], categories=[])):
        detections = [found(1, 3, [0, 0, 4, 4], 0.5)] if truth["images"] and truth["categories"] else []
        empty = coco_metrics(truth, detections)
        assert all(math.isnan(value) for value in empty.summary().values())
        assert all(value is None for name, value in empty.to_json().items() if name != "per_class")
        json.dumps(empty.to_json(), allow_nan=False)


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    coco_metrics(scene([(1, 3, [0, 0, 40, 40])]), [found(1, 3, [0, 0, 40, 40], 0.9)])
    coco_metrics(scene([]), [])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("detection", "message"),
    [
        (found(9, 3, [0, 0, 1, 1], 0.5), "detection 0: expected the id of an image of the ground truth, got 9"),
        (found(1, 4, [0, 0, 1, 1], 0.5), r"detection 0: expected one of the categories \[7, 3\], got 4"),
        (found(1, 3, [0, 0, math.nan, 1], 0.5), "detection 0: expected finite numbers"),
        (found(1, 3, [0, 0, 1, 1], math.inf), "detection 0: expected finite numbers"),
        (found(1, 3, [0, 0, 1], 0.5), r"detection 0: expected a bbox of four numbers, got \[0, 0, 1\]"),
        (found(1, 3, [0, 0, 1, 1], "0.5"), "detection 0: expected finite numbers, got bbox .* score 0.5"),  # type: ignore[arg-type]
        ({"image_id": 1, "category_id": 3, "score": 0.5}, "detection 0: expected a bbox, got none"),
        ({"image_id": 1, "category_id": 3, "score": 0.5, "bbox": None}, "detection 0: expected a bbox, got none"),
        ({"image_id": 1, "category_id": 3, "bbox": [0, 0, 1, 1]}, "detection 0: expected a score, got none"),
    ],
)
@pytest.mark.parametrize("measure", [coco_metrics, voc_metrics, confusion_matrix])
def test_bad_detections_are_named(
    measure: Callable[[Any, Any], object], detection: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        measure(scene([]), [detection])


def test_bad_ground_truth_is_named() -> None:
    with pytest.raises(ValueError, match="annotation 0: expected the id of an image"):
        coco_metrics(scene([(5, 3, [0, 0, 1, 1])]), [])
    with pytest.raises(ValueError, match="distinct names, got 'a' twice"):
        coco_metrics(scene([], categories=[{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]), [])
    with pytest.raises(ValueError, match="annotation 0: expected a segmentation, got none"):
        coco_metrics(scene([(1, 3, [0, 0, 1, 1])]), [], "segm")


def test_an_annotation_may_have_nulls_and_a_mask_no_box() -> None:
    truth = scene([(1, 3, [0, 0, 40, 40])])
    (row,) = truth["annotations"]
    row |= {"area": None, "iscrowd": None}
    assert coco_metrics(truth, [found(1, 3, [0, 0, 40, 40], 0.9)]).ap == pytest.approx(1)
    mask = encode_mask(np.ones((10, 10), dtype=bool))
    row |= {"segmentation": mask, "bbox": None}
    detection = {"image_id": 1, "category_id": 3, "score": 0.5, "segmentation": mask}
    with pytest.raises(ValueError, match="annotation 0: expected an area or a bbox, got none"):
        coco_metrics(truth, [detection], "segm")
    row["area"] = 100
    assert coco_metrics(truth, [detection], "segm").ap == pytest.approx(1)


def test_detections_to_coco() -> None:
    boxes = torch.tensor([[1.0, 2.0, 4.5, 8.0], [0.1, 0.2, 0.3, 0.4]])
    detections = Detections(boxes, torch.tensor([2, 1]), torch.tensor([0.5, 0.25]))
    rows = detections_to_coco(detections, 42, [18, 90])
    assert rows[0] == {"image_id": 42, "category_id": 90, "bbox": [1.0, 2.0, 3.5, 6.0], "score": 0.5}
    assert rows[1]["category_id"] == 18
    x1, _, x2, _ = boxes[1].double().tolist()
    assert rows[1]["bbox"][2] == x2 - x1  # in float64: in float32 it is another number
    json.dumps(rows)
    assert torch.equal(boxes[0], torch.tensor([1.0, 2.0, 4.5, 8.0]))
    assert detections_to_coco(Detections(torch.empty(0, 4), torch.empty(0).long(), torch.empty(0)), 1, [1]) == []
    with pytest.raises(ValueError, match=r"labels: expected 1 .. 1, got 1 .. 2"):
        detections_to_coco(detections, 42, [18])
