"""Linear SVMs by hard negative mining."""

import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.svm import LinearSVC

from regio.fitting import HardNegativeMining, LabelledRegions
from regio.fitting.linear_svm import BYTES_PER_VALUE, _Machine
from tests.fitting.features import CLASSES, made


def plain(
    values: np.ndarray, labelled: list[LabelledRegions], label: int, scale: float, mining: HardNegativeMining
) -> np.ndarray:
    """Scores [rows] of scikit-learn's SVM fitted to all examples of a class at once."""
    overlap = np.concatenate([each.overlap.numpy()[:, label] for each in labelled])
    positive = np.concatenate(
        [np.pad(each.labels.numpy() == label + 1, (0, len(each.boxes) - len(each.labels))) for each in labelled]
    )
    used = positive | (overlap < 0.3)
    machine = LinearSVC(
        loss="hinge", dual=True, C=mining.c, class_weight={1: 2.0}, intercept_scaling=10, tol=1e-5, max_iter=10**6,
        random_state=1,
    )  # fmt: skip
    machine.fit(values[used] * scale, np.where(positive[used], 1, -1))
    scores: np.ndarray = machine.decision_function(values * scale)
    return scores


@pytest.mark.parametrize("c", [0.001, 0.1])
def test_mining_equals_a_fit_to_everything(tmp_path: Path, c: float) -> None:
    """To 1e-2 in the scores of all regions, positives, negatives and those between."""
    store, labelled, values = made(tmp_path)
    mining = HardNegativeMining(c=c, refit=20, tolerance=1e-5, iterations=10**6)
    lines: list[str] = []
    found = mining(store.layer("fc7"), labelled.__getitem__, CLASSES, lines.append)
    scale = 20 / np.linalg.norm(values, axis=1).mean()
    for label in range(3):
        expected = plain(values, labelled, label, scale, mining)
        scores = values @ found.weight[label].numpy() + float(found.bias[label])
        assert np.abs(scores - expected).max() < 1e-2
        assert expected.max() - expected.min() > 0.3
    assert found.notes == ()
    assert lines[-1].startswith(f"pass {len(lines)} over 12 images: 0 new hard negatives")
    assert len(lines) < mining.passes


def test_a_set_larger_than_its_memory(tmp_path: Path) -> None:
    """It converges to the fit of all examples, while a fit never holds more of them than the bound allows."""
    store, labelled, values = made(tmp_path, images=40, regions=300, width=32, seed=1)
    bound = 600_000
    mining = HardNegativeMining(c=0.1, refit=100, memory=bound, tolerance=1e-5, iterations=10**6)
    everything = (len(values)) * 33 * BYTES_PER_VALUE
    assert everything > 15 * bound
    regions, layer = labelled.__getitem__, store.layer("fc7")
    mining(layer, regions, CLASSES)  # so that nothing is imported or compiled while memory is measured
    tracemalloc.start()
    found = mining(layer, regions, CLASSES)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    one_image = 300 * 32 * 4
    assert peak < bound + 6 * one_image
    assert found.notes == ()
    scale = 20 / layer.mean_norm()
    for label in range(3):
        scores = values @ found.weight[label].numpy() + float(found.bias[label])
        assert np.abs(scores - plain(values, labelled, label, scale, mining)).max() < 1e-2


def test_more_hard_negatives_than_memory(tmp_path: Path) -> None:
    """Those with the highest scores are kept, and it is said."""
    store, labelled, values = made(tmp_path, images=20, regions=60, width=8)
    bound = 30 * 9 * BYTES_PER_VALUE
    found = HardNegativeMining(refit=20, memory=bound)(store.layer("fc7"), labelled.__getitem__, CLASSES)
    assert any("hard negatives did not fit in 0 MB; those with the highest scores were kept" in n for n in found.notes)
    for label in range(3):
        positive = np.concatenate(
            [np.pad(each.labels.numpy() == label + 1, (0, len(each.boxes) - 2)) for each in labelled]
        )
        negative = np.concatenate([each.overlap.numpy()[:, label] < 0.3 for each in labelled])
        scores = values @ found.weight[label].numpy() + float(found.bias[label])
        assert np.median(scores[positive]) > np.quantile(scores[negative], 0.95)


def test_as_many_hard_negatives_as_there_is_memory_are_all_kept() -> None:
    """None is dropped where those that are left over turn out to be easy."""
    values = np.zeros((31, 2), np.float32)
    values[0, 0] = 2  # the positive; the next ten are all on the margin, the others far behind it
    values[1:11, 1] = np.arange(10) / 1000
    values[11:, 0] = -10
    layer: Any = SimpleNamespace(width=2, values=values)
    machine = _Machine(HardNegativeMining(c=10.0), layer, 1.0, np.array([0]), "circle")
    machine.room = 10
    assert machine.add(values[1:], np.arange(1, 31)) == 10
    assert machine.dropped == 0 and machine.notes == []
    assert machine.scores(values[11:]).max() < -1


def test_memory_that_does_not_hold_the_positives_raises(tmp_path: Path) -> None:
    store, labelled, _ = made(tmp_path)
    with pytest.raises(ValueError, match="memory: expected at least 0 MB, for the 8 examples of first with 8 features"):
        HardNegativeMining(memory=1000)(store.layer("fc7"), labelled.__getitem__, CLASSES)


def test_a_class_without_an_example_is_not_detected(tmp_path: Path) -> None:
    store, labelled, _ = made(tmp_path)
    labelled = [
        each._replace(overlap=torch.cat([each.overlap, torch.zeros(40, 1)], 1), crowd=torch.zeros(40, 4).bool())
        for each in labelled
    ]
    found = HardNegativeMining()(store.layer("fc7"), labelled.__getitem__, (*CLASSES, "fourth"))
    assert found.notes == ("not detected, since there is no training example: fourth",)
    assert found.bias[3] == -torch.inf
    assert not found.weight[3].any()
    assert torch.isfinite(found.bias[:3]).all()


def test_a_class_without_negatives_is_not_detected(tmp_path: Path) -> None:
    store, labelled, _ = made(tmp_path)
    labelled = [each._replace(crowd=torch.ones(40, 3, dtype=torch.bool)) for each in labelled]
    found = HardNegativeMining()(store.layer("fc7"), labelled.__getitem__, CLASSES)
    assert found.notes == ("not detected, since there is no negative example: first, second, third",)
    assert (found.bias == -torch.inf).all()


def test_the_regions_of_groups_are_no_negatives(tmp_path: Path) -> None:
    """What lies in a group of the class changes nothing, whatever its features."""
    store, labelled, _ = made(tmp_path)
    before = HardNegativeMining(mean_norm=1)(store.layer("fc7"), labelled.__getitem__, CLASSES)
    crowd = torch.zeros(40, 3, dtype=torch.bool)
    crowd[30:, 0] = True
    fewer = [each._replace(crowd=crowd) for each in labelled]
    after = HardNegativeMining(mean_norm=1)(store.layer("fc7"), fewer.__getitem__, CLASSES)
    assert not torch.allclose(before.weight[0], after.weight[0])
    torch.testing.assert_close(before.weight[1:], after.weight[1:], rtol=0, atol=0)


def test_a_fit_that_did_not_converge_is_noted(tmp_path: Path) -> None:
    store, labelled, _ = made(tmp_path)
    found = HardNegativeMining(c=10, iterations=1)(store.layer("fc7"), labelled.__getitem__, CLASSES)
    assert "first: the last fit did not converge in 1 iterations" in found.notes
