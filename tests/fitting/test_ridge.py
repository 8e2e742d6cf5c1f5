"""Box regression by ridge regression."""

from pathlib import Path

import numpy as np
import pytest
import torch

from regio.boxes import BoxCoder
from regio.fitting import BoxRegression, LabelledRegions, Layer
from regio.fitting.ridge import ridge
from tests.fitting.features import CLASSES, layer_of


@pytest.mark.parametrize(("rows", "width"), [(30, 5), (5, 30), (7, 6), (6, 6)])
def test_it_is_the_closed_form(rows: int, width: int) -> None:
    """(X'X + penalty)^-1 X'Y with the column of ones, for more rows than columns and for fewer, in blocks."""
    generator = np.random.default_rng(rows)
    x, y = generator.normal(size=(rows, width)), generator.normal(size=(rows, 4))
    ones = np.concatenate([x, np.ones((rows, 1))], 1)
    expected = np.linalg.inv(ones.T @ ones + 3.7 * np.eye(width + 1)) @ ones.T @ y
    found = ridge(lambda: iter([x[:2], x[2:4], x[4:]]), width, y, 3.7)
    np.testing.assert_allclose(found, expected, atol=1e-10)


def examples(images: int = 10, width: int = 6, seed: int = 0) -> tuple[Layer, list[LabelledRegions]]:
    """Images with an object of class 1 or 2 and regions around it, whose features say how they lie."""
    generator = np.random.default_rng(seed)
    mixing, values, labelled = generator.normal(size=(4, width)), [], []
    for image in range(images):
        target = np.array([20.0, 30.0, 60.0, 80.0]) + generator.uniform(-5, 5)
        boxes = target + generator.normal(scale=3, size=(30, 4))
        boxes[0] = target
        boxes[25:] += 100  # far away
        boxes = boxes.astype(np.float32)
        deltas = BoxCoder().encode(torch.from_numpy(boxes[:1]).expand(30, 4), torch.from_numpy(boxes))
        values.append((deltas.numpy() @ mixing + 0.01 * generator.normal(size=(30, width))).astype(np.float32))
        empty = torch.zeros(30, 3)
        labelled.append(LabelledRegions(torch.from_numpy(boxes), torch.tensor([image % 2 + 1]), empty, empty.bool()))
    return layer_of(np.concatenate(values), images), labelled


def closed_form(layer: Layer, labelled: list[LabelledRegions], label: int, penalty: float) -> tuple[np.ndarray, ...]:
    """R-CNN's regression of a class, written out in float64."""
    rows, targets = [], []
    for image, each in enumerate(labelled):
        best, index = each.best_object()
        for row in (best > 0.6).nonzero()[:, 0].tolist():
            if int(each.labels[index[row]]) == label:
                rows.append(30 * image + row)
                boxes = each.boxes.double()
                targets.append(BoxCoder().encode(boxes[index[row]][None], boxes[row][None]).numpy()[0])
    x = layer.values[rows].astype(np.float64) * 20 / layer.mean_norm()
    x = np.concatenate([x, np.ones((len(x), 1))], 1)
    y = np.array(targets)
    mean = y.mean(0)
    d, v = np.linalg.eigh((y - mean).T @ (y - mean) / len(y))
    t, inverse = v @ np.diag(1 / np.sqrt(d + 0.001)) @ v.T, v @ np.diag(np.sqrt(d + 0.001)) @ v.T
    beta = np.linalg.inv(x.T @ x + penalty * np.eye(x.shape[1])) @ x.T @ ((y - mean) @ t)
    return x, y, x @ beta @ inverse + mean, np.array(rows)


@pytest.mark.parametrize("penalty", [1000.0, 1.0])
def test_it_is_the_regression_of_r_cnn(penalty: float) -> None:
    layer, labelled = examples()
    found = BoxRegression(penalty)(layer, labelled.__getitem__, CLASSES)
    for label in (1, 2):
        _, _, expected, rows = closed_form(layer, labelled, label, penalty)
        weight, bias = found.weight[label - 1].double().numpy(), found.bias[label - 1].double().numpy()
        predicted = layer.values[rows] @ weight.T + bias
        np.testing.assert_allclose(predicted, expected, atol=2e-5)
    assert found.notes == ("boxes stay as they are, since no region has an IoU above 0.6 with an object: third",)
    assert not found.weight[2].any()
    assert not found.bias[2].any()


@pytest.mark.parametrize("penalty", [0.0, -1.0, float("nan"), float("inf")])
def test_a_penalty_without_which_a_fit_may_have_no_solution(penalty: float) -> None:
    with pytest.raises(ValueError, match="penalty: expected a number > 0, got"):
        BoxRegression(penalty)


def test_it_makes_boxes_better() -> None:
    layer, labelled = examples()
    found = BoxRegression(1.0)(layer, labelled.__getitem__, CLASSES)
    _, wanted, _, rows = closed_form(layer, labelled, 1, 1.0)
    predicted = layer.values[rows] @ found.weight[0].numpy().T + found.bias[0].numpy()
    assert np.abs(predicted - wanted).mean() < 0.2 * np.abs(wanted).mean()


def test_examples_that_do_not_fit_are_left_out() -> None:
    layer, labelled = examples(width=40)
    found = BoxRegression(1.0, memory=16 * 20**2)(layer, labelled.__getitem__, CLASSES)
    assert found.notes[0].startswith("first: 20 of ")
    assert found.notes[0].endswith("examples fit in 0 MB; the others are left out")
    assert found.weight[0].any()


def test_more_features_than_examples_on_disk(tmp_path: Path) -> None:
    """The smaller of the two systems has the same solution."""
    layer, labelled = examples(images=2, width=60)
    found = BoxRegression(10.0)(layer, labelled.__getitem__, CLASSES)
    _, _, expected, rows = closed_form(layer, labelled, 1, 10.0)
    assert len(rows) < 60
    predicted = layer.values[rows] @ found.weight[0].double().numpy().T + found.bias[0].double().numpy()
    np.testing.assert_allclose(predicted, expected, atol=2e-5)
