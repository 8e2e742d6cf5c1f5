"""Which detections are shown: from a probability on, or from a margin on where scores are those of SVMs."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from regio.checkpoints import Card, save
from regio.config import SYSTEMS, model_to_dict
from regio.config.systems import RCNN, RPN, FasterRCNN, System
from regio.data import Shapes
from regio.evaluate import BoxEvaluator
from regio.proposals import Grid, method_settings
from regio.weights import load_trained
from tests.test_cli import photo, regio

MARGINS = {"rcnn", "sppnet"}
TINY = RCNN(hidden=8, nms_threshold=1.0, crop=32, context=3, short_side=64, long_side=96)
SMALL = {"channels": 16, "short_side": 64, "long_side": 96}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "250")
    return tmp_path


def checkpoint(path: Path, system: System, biases: Sequence[float] = ()) -> str:
    """Of a detector of cats and dogs, untrained; biases: the margins of all boxes, of SVMs."""
    torch.manual_seed(0)
    detector: Any = system.build(2, pretrained=False)
    if biases:
        detector.roi_heads[0].class_logits.bias.data = torch.tensor(biases)
    given = {"method": method_settings(Grid()), "per_image": 6} if system.needs_proposals else {}
    save(path, detector, Card(("cat", "dog"), model=model_to_dict(system), proposals=given))
    return str(path)


def detected(*words: str) -> list[dict[str, Any]]:
    assert regio("detect", *words, "--output", "out", "--device", "cpu") == 0
    found: list[dict[str, Any]] = json.loads(Path("out/detections.json").read_text())[0]["detections"]
    return found


@pytest.mark.parametrize("name", [name for name, kind in SYSTEMS.items() if kind.shown_score is not None])
def test_a_threshold_is_a_score_of_the_system(name: str) -> None:
    system: Any = SYSTEMS[name]()
    assert system.weak_score < system.shown_score
    for score in (system.shown_score, system.weak_score):
        assert system.with_score_threshold(score) == replace(system, score_threshold=score)
    never = (float("nan"), float("inf"), -float("inf")) if name in MARGINS else (-0.01, 1.01, float("nan"))
    for score in never:
        with pytest.raises(ValueError, match=rf"^score_threshold: expected a number.*, got {score}"):
            system.with_score_threshold(score)


@pytest.mark.slow
def test_margins_are_shown_from_below_zero_on(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of two SVMs, one gives all boxes the margin -0.7 and one -0.3: by default the second is shown, and drawn."""
    weights, image = checkpoint(here / "a.safetensors", TINY, (-0.7, -0.3)), str(photo(here / "a.png"))
    given = (image, "--weights", weights)
    found = detected(*given)
    assert len(found) > 0 and {(each["name"], each["score"]) for each in found} == {("dog", -0.3)}
    assert f"{len(found)} objects of score -0.5 and above in 1 image" in capsys.readouterr().out
    drawn = np.asarray(Image.open("out/pictures/a.jpg")).astype(int)
    assert detected(*given, "--score", "0") == []
    assert "Nothing has that score; --score -1.1 keeps weaker detections too" in capsys.readouterr().out
    plain = np.asarray(Image.open("out/pictures/a.jpg")).astype(int)
    assert np.abs(drawn - plain).max() > 100
    assert {each["name"] for each in detected(*given, "--score", "-0.8")} == {"cat", "dog"}


def test_probabilities_are_shown_from_a_half_on(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, image = checkpoint(here / "a.safetensors", FasterRCNN(**SMALL)), str(photo(here / "a.png"))
    assert detected(image, "--weights", weights) == []
    shown = capsys.readouterr().out
    assert "0 objects of score 0.5 and above" in shown and "--score 0.05 keeps weaker detections too" in shown
    for command in (["detect", image, "--weights", weights], ["export", weights]):
        assert regio(*command, "--score", "2") == 2
        error = capsys.readouterr().err
        assert "score_threshold: expected a number >= 0 and <= 1, got 2.0" in error and len(error.splitlines()) == 1


def test_proposals_have_a_threshold_too(here: Path) -> None:
    weights = checkpoint(here / "a.safetensors", RPN(**SMALL))
    image = Shapes(1)[0].image
    with torch.no_grad():
        scores = load_trained(weights).detector([image])[0].scores
        middle = float(scores.median())
        some = load_trained(weights, score_threshold=middle).detector([image])[0].scores
    assert 0 < len(some) < len(scores)
    assert bool((some >= middle).all())


@pytest.mark.slow
def test_reports_show_what_is_detected(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object found with the margin -0.4 is in the confusion matrix and in the pictures of an SVM's report, and not
    in those of probabilities, where 0.4 would not be."""
    data = Shapes(1)
    record = data.records[0]
    x1, y1, x2, y2 = (float(v) for v in record.boxes[0])
    row = {"image_id": record.id, "category_id": data.category_ids[int(record.labels[0]) - 1]}
    row |= {"bbox": [x1, y1, x2 - x1, y2 - y1]}
    seen: list[int] = []

    def counted(matrix: NDArray[np.int64], class_names: Sequence[str]) -> Any:
        seen.append(int(matrix[1:, 1:].sum()))
        return original(matrix, class_names)

    from regio.run_report import confusion_figure as original

    monkeypatch.setattr("regio.run_report.confusion_figure", counted)
    for system, score, expected in ((TINY, -0.4, "score -0.5"), (FasterRCNN(), 0.4, "score 0.5")):
        results = system.results(BoxEvaluator(data), [[{**row, "score": score}]])
        results.write(here / system.__class__.__name__, {})
        assert (
            f"Confusion matrix at {expected} and IoU 0.5"
            in (here / system.__class__.__name__ / "report.html").read_text()
        )
    assert seen == [1, 0]
    margins, probabilities = (
        np.asarray(Image.open(here / name / "pictures.jpg")).astype(int) for name in ("RCNN", "FasterRCNN")
    )
    assert margins.shape == probabilities.shape
    half = margins.shape[1] // 2
    assert np.abs(margins - probabilities)[100:400, half:].max() > 100  # the object is drawn in one of them


@pytest.mark.slow
def test_a_trained_rcnn_shows_the_objects_it_was_trained_on(here: Path) -> None:
    """SVMs on features of ImageNet: their margins for most objects are from -0.5 to 0.5, and for few other boxes."""
    words = ["images=12", "validation_images=2", "proposals_per_image=60", "crop=48", "context=4", "bins=2"]
    words += ["layer=pool5", "fine_tune=false", "short_side=96", "long_side=128", "workers=0", "device=cpu"]
    assert regio("train", "shapes", "--model", "rcnn", "--proposals", "grid", *words) == 0
    trained, scenes = load_trained("runs/train/weights/last.safetensors"), Shapes(400)
    scores, objects = [], 0
    for i in range(0, 132, 33):  # those that it was trained on
        sample = scenes[i]
        boxes = torch.cat([sample.targets.boxes, Grid()(sample.image)[0][:60]])
        with torch.no_grad():
            scores.append(trained.detector([sample.image], [boxes])[0].scores)
        objects += len(sample.targets.boxes)
    every = torch.cat(scores)
    shown = int((every >= trained.system.shown_score).sum())
    assert objects / 2 < shown <= objects
    assert int((every >= 0.5).sum()) < objects / 4
    assert int((every >= trained.system.weak_score).sum()) > 2 * objects
