"""Mean IoU, against loops over pixels and scikit-learn."""

import math
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix, jaccard_score

from regio.data import DetectionDataset, Sample, Shapes
from regio.evaluate import MeanIoU, Segmented, class_iou, pixel_confusion
from regio.types import IGNORED, ClassMap, Targets

SCENES = Shapes(4, seed=9, size=(64, 64))
CLASSES = len(SCENES.class_names) + 1


def sample(labels: np.ndarray) -> Sample:
    targets = Targets(torch.zeros((0, 4)), torch.zeros(0, dtype=torch.int64), class_map=torch.from_numpy(labels))
    return Sample(torch.zeros((3, *labels.shape), dtype=torch.uint8), targets, 1, "a.png")


def class_map(labels: np.ndarray) -> ClassMap:
    return ClassMap(torch.from_numpy(labels), torch.ones(labels.shape))


def pairs(classes: int = CLASSES, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Truth and prediction of four images of various sizes; class 2 is only predicted, class 3 nowhere."""
    generator, made = np.random.default_rng(seed), []
    for size in ((5, 7), (1, 1), (12, 9), (8, 8)):
        truth, predicted = generator.choice([0, 1, 4, 5, 6, IGNORED], size), generator.choice([0, 1, 2, 4, 5, 6], size)
        predicted = np.where(generator.random(size) < 0.6, np.where(truth == IGNORED, 0, truth), predicted)
        made.append((truth.astype(np.uint8), predicted.astype(np.uint8)))
    return made


def records(evaluator: MeanIoU, images: list[tuple[np.ndarray, np.ndarray]]) -> list[Segmented]:
    return [evaluator.record(sample(truth), class_map(predicted)) for truth, predicted in images]


def test_the_numbers_are_those_of_loops_and_of_scikit_learn() -> None:
    evaluator, images = MeanIoU(SCENES), pairs()
    made = records(evaluator, images)
    known = [
        (int(t), int(p))
        for truth, predicted in images
        for t, p in zip(truth.ravel(), predicted.ravel(), strict=True)
        if t != IGNORED
    ]
    overlaps, recalls = [], []
    for c in range(CLASSES):
        both = sum(t == p == c for t, p in known)
        either = sum(c in (t, p) for t, p in known)
        own = sum(t == c for t, p in known)
        if own:
            overlaps.append(both / either)
            recalls.append(both / own)
    assert len(overlaps) == 5  # classes 2 and 3 have no pixel
    numbers = evaluator.measure(made)
    assert numbers["mean_iou"] == pytest.approx(sum(overlaps) / 5, rel=1e-12)
    assert numbers["mean_accuracy"] == pytest.approx(sum(recalls) / 5, rel=1e-12)
    assert numbers["pixel_accuracy"] == pytest.approx(sum(t == p for t, p in known) / len(known), rel=1e-12)
    truth, predicted = zip(*known, strict=True)
    assert np.array_equal(evaluator.confusion(made), confusion_matrix(truth, predicted, labels=range(CLASSES)))
    theirs = jaccard_score(truth, predicted, labels=[0, 1, 2, 4, 5, 6], average=None)
    found = class_iou(evaluator.confusion(made))
    np.testing.assert_allclose(found[[0, 1, 2, 4, 5, 6]], theirs, rtol=1e-12)
    assert found[2] == 0 and math.isnan(found[3])
    assert numbers["mean_iou"] == pytest.approx(
        jaccard_score(truth, predicted, labels=[0, 1, 4, 5, 6], average="macro"), rel=1e-12
    )


def test_records_are_counts_that_can_be_shared_out() -> None:
    """In any order and after pickling; the number of images that they come from makes no difference."""
    evaluator, images = MeanIoU(SCENES), pairs()
    made = records(evaluator, images)
    again: list[Segmented] = pickle.loads(pickle.dumps(made[::-1]))
    assert evaluator.measure(again) == evaluator.measure(made)
    flat = tuple(np.concatenate([each[i].ravel() for each in images])[None] for i in (0, 1))
    assert evaluator.measure(records(evaluator, [(flat[0], flat[1])])) == evaluator.measure(made)


def test_a_right_prediction_has_one_and_nothing_known_has_nan() -> None:
    evaluator, images = MeanIoU(SCENES), pairs()
    right = [(truth, np.where(truth == IGNORED, 2, truth).astype(np.uint8)) for truth, _ in images]
    assert evaluator.measure(records(evaluator, right)) == dict.fromkeys(evaluator.names, 1.0)
    unknown = [(np.full_like(truth, IGNORED), predicted) for truth, predicted in images]
    for made in (records(evaluator, unknown), []):
        assert all(math.isnan(number) for number in evaluator.measure(made).values())


def test_bad_input_is_named() -> None:
    evaluator = MeanIoU(SCENES)
    zeros = np.zeros((3, 4), dtype=np.uint8)
    for truth, predicted, message in (
        (zeros, zeros.T.copy(), r"predicted: expected the size \[3, 4\] of the truth, got \[4, 3\]"),
        (zeros, zeros + 7, r"predicted: expected labels of 0 \.\. 6, got 7"),
        (zeros + 9, zeros, r"truth: expected labels of 0 \.\. 6, got 9"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluator.record(sample(truth), class_map(predicted))
    bare = sample(zeros)
    bare = replace(bare, targets=replace(bare.targets, class_map=None))
    with pytest.raises(ValueError, match="dataset: expected one with class maps"):
        evaluator.record(bare, class_map(zeros))
    assert pixel_confusion(torch.from_numpy(zeros), torch.from_numpy(zeros), 1).tolist() == [[12]]


def test_predictions_are_saved_as_palette_images(tmp_path: Path) -> None:
    renamed = [replace(record, name="x/a.png") for record in SCENES.records[:2]]
    two = DetectionDataset(SCENES.class_names, SCENES.category_ids, renamed)
    evaluator, images = MeanIoU(two), pairs()[:2]
    evaluator.save(records(evaluator, images), tmp_path)
    for name, (_, predicted) in zip(("a.png", "a-2.png"), images, strict=True):
        with Image.open(tmp_path / "predictions" / name) as image:
            assert image.mode == "P"
            assert np.array_equal(np.asarray(image), predicted)
