"""`regio val` and `regio train` with weights of other libraries, and with checkpoints of other classes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn
from torchvision.models import get_model

from regio.checkpoints import Card, read_card, save
from regio.config import model_to_dict
from regio.config.systems import RPN, FasterRCNNOnFPN, MaskRCNN, Torchvision
from regio.data import open_dataset
from regio.types import Detections
from regio.weights import Trained, load_trained, system_of
from tests.test_cli import photo, regio

MOBILE = "fasterrcnn_mobilenet_v3_large_320_fpn"
TINY: dict[str, Any] = {"channels": 16, "hidden": 32, "short_side": 64, "long_side": 96}
QUICK = ["--steps", "1", "--batch-size", "2", "workers=0", "device=cpu"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "250")
    return tmp_path


def data(folder: Path, names: tuple[str, ...], masks: bool = False, images: int = 4) -> Path:
    """A COCO file with photos of noise, each with an object of every class."""
    box = [10.0, 10.0, 30.0, 20.0]
    outline = [[10.0, 10.0, 40.0, 10.0, 40.0, 30.0, 10.0, 30.0]]
    annotations: list[dict[str, Any]] = []
    for image in range(images):
        photo(folder / f"{image}.png")
        for category in range(len(names)):
            one = {"id": len(annotations) + 1, "image_id": image, "category_id": category + 5, "bbox": box}
            annotations.append({**one, "area": 600.0, "iscrowd": 0, **({"segmentation": outline} if masks else {})})
    coco = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 60, "width": 80} for i in range(images)],
        "annotations": annotations,
        "categories": [{"id": i + 5, "name": name} for i, name in enumerate(names)],
    }
    (folder / "data.json").write_text(json.dumps(coco))
    return folder / "data.json"


def checkpoint(path: Path, system: Any, names: tuple[str, ...]) -> Path:
    torch.manual_seed(0)
    save(path, system.build(len(names), pretrained=False), Card(names, model=model_to_dict(system)))
    return path


def mobile(here: Path) -> str:
    """Random weights of a small detector of torchvision's, as a user names them."""
    torch.manual_seed(0)
    model = get_model(MOBILE, weights=None, weights_backbone=None)
    model.roi_heads.box_predictor.cls_score.weight.data.mul_(30)
    torch.save(model.state_dict(), here / "mobile.pth")
    return f"torchvision:{MOBILE}={here / 'mobile.pth'}"


class Fixed(nn.Module):
    """Finds the same in every image."""

    def __init__(self, labels: list[int]) -> None:
        super().__init__()
        count = len(labels)
        self.found = Detections(torch.rand(count, 4), torch.tensor(labels), torch.linspace(1, 0.5, count))

    def forward(self, images: list[torch.Tensor]) -> list[Detections]:
        return [self.found for _ in images]


def test_classes_are_matched_by_name(here: Path) -> None:
    dataset = open_dataset(str(data(here, ("unicorn", "dog", "cat"))), "all")
    trained = Trained(Fixed([1, 2, 3, 4, 2]), FasterRCNNOnFPN(), ("cat", "horse", "dog", "cow"))  # type: ignore[arg-type]
    kept = trained.shared(dataset)
    assert kept.class_names == ("cat", "dog") and kept.category_ids == (7, 6)
    assert kept.notes[-1] == "not measured, since the detector does not know them: unicorn"
    (found,) = trained.predict(kept.class_names)([torch.zeros(3, 4, 4)])
    assert found.labels.tolist() == [1, 2]  # its cat and its dog
    assert torch.equal(found.boxes, trained.model.found.boxes[[0, 2]])  # type: ignore[union-attr, index]
    assert trained.predict(trained.class_names) is trained.model
    only = Trained(Fixed([1]), FasterRCNNOnFPN(), ("horse", "cow"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected classes among horse, cow, got unicorn, dog, cat"):
        only.shared(dataset)
    proposals = Trained(Fixed([1, 1]), RPN(), ("horse", "dog"))  # type: ignore[arg-type]
    assert proposals.labels == ("object",) and proposals.predict(("dog",)) is proposals.model


@pytest.mark.slow
def test_val_of_masks_on_boxes_and_of_boxes_on_masks(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("cat", "dog")
    boxes, masks = data(here / "boxes", names), data(here / "masks", names, masks=True)
    one = checkpoint(
        here / "m.safetensors", MaskRCNN(mask_channels=8, mask_layers=0, score_threshold=0.0, **TINY), names
    )
    two = checkpoint(here / "b.safetensors", FasterRCNNOnFPN(score_threshold=0.0, **TINY), names)
    results = {}
    for weights, source in ((one, boxes), (one, masks), (two, masks)):
        assert regio("val", str(source), "--weights", str(weights), "--json", "--output", "out") == 0
        shown = capsys.readouterr()
        results[weights.stem, source.parent.name] = json.loads(shown.out)
        noted = "no object has a segmentation: boxes are measured, masks are not" in shown.err
        assert noted == (weights == one and source == boxes)
    assert "masks" in results["m", "masks"]
    assert "masks" not in results["m", "boxes"] and "masks" not in results["b", "masks"]
    assert results["m", "boxes"]["ap"] == results["m", "masks"]["ap"]


@pytest.mark.slow
def test_val_with_weights_of_torchvision(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, weights = data(here, ("unicorn", "dog", "person"), images=2), mobile(here)
    assert regio("val", str(source), "--weights", weights, "--json", "--output", "out") == 0
    shown = capsys.readouterr()
    assert set(json.loads(shown.out)["per_class"]) == {"person", "dog"}
    assert "not measured, since the detector does not know them: unicorn" in shown.err
    rows = json.loads((here / "out" / "predictions.json").read_text())
    assert {row["category_id"] for row in rows} <= {6, 7}
    detector = load_trained(weights)
    dataset = open_dataset(str(source), "all")
    wanted = {detector.labels.index(name) + 1 for name in ("person", "dog")}
    with torch.no_grad():
        found = detector.detector([dataset[0].image])[0]
    assert sum(label in wanted for label in found.labels.tolist()) == sum(row["image_id"] == 0 for row in rows)
    other = data(here / "other", ("unicorn",), images=1)
    assert regio("val", str(other), "--weights", weights) == 2
    error = capsys.readouterr().err
    assert "knows no class: expected classes among person, bicycle, " in error and len(error.splitlines()) == 1


@pytest.mark.slow
def test_train_from_weights_of_torchvision(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --model it is that detector, whose checkpoint is one like any other."""
    source, weights = str(data(here, ("cat", "unicorn"))), mobile(here)
    sizes = ["short_side=64", "long_side=96"]
    words = ["train", source, "--validation", source, "--weights", weights, "--name", "a", "--lr", "0", *QUICK, *sizes]
    assert regio(*words) == 0
    shown = capsys.readouterr().out
    assert "of 90 classes, these are 2 others; roi_heads.0.class_logits, roi_heads.0.box_deltas start anew" in shown
    assert f"torchvision, {MOBILE}: " in shown
    path = here / "runs" / "a" / "weights" / "last.safetensors"
    after, before = load_file(path), load_trained(weights).detector.state_dict()
    kept = {name for name in after if not name.startswith(("roi_heads.0.class_logits", "roi_heads.0.box_deltas"))}
    assert len(after) - len(kept) == 4 and all(torch.equal(after[name], before[name]) for name in kept)
    assert yaml.safe_load((here / "runs" / "a" / "config.yaml").read_text())["model"]["detector"] == MOBILE
    assert read_card(path).class_names == ("cat", "unicorn")
    again = load_trained(path, score_threshold=0.2)
    assert again.system == Torchvision(MOBILE, 64, 96, 0.2)
    assert (again.detector.preprocess.short_side, again.detector.preprocess.long_side) == (64, 96)
    assert regio("train", source, "--name", "a", "--resume") == 0
    assert regio("val", source, "--weights", str(path), "--output", "out") == 0
    assert regio("detect", "0.png", "--weights", str(path), "--output", "found") == 0
    # the checkpoint of that training is one to begin with, too
    words = ["train", source, "--validation", source, "--weights", str(path), "--name", "b", *QUICK, "--classes", "cat"]
    assert regio(*words) == 0
    assert system_of(here / "runs" / "b" / "weights" / "last.safetensors") == Torchvision(MOBILE, 64, 96)


def test_train_from_weights_that_do_not_fit(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(data(here, ("cat", "dog")))
    own = str(checkpoint(here / "a.safetensors", FasterRCNNOnFPN(**TINY), ("horse",)))
    base = ["train", source, "--validation", source, "backbone_weights=none", *QUICK]
    for words, expected in (
        (["--weights", own, "channels=24"], "a.safetensors: does not fit this detector: channels 16, got 24"),
        (
            ["--weights", own, "--model", "faster-rcnn"],
            "does not fit this detector: name faster-rcnn-fpn, got faster-rcnn; ",
        ),
        (["--weights", "torchvision:yolo"], "torchvision: expected one of fasterrcnn_resnet50_fpn, "),
        (["--weights", "detectron2:yolo"], "detectron2: expected one of faster_rcnn_R_50_C4_1x, "),
        (["--weights", f"torchvision:{MOBILE}", "--model", "mask-rcnn"], "leave --model out, got mask-rcnn"),
        (["--weights", "none.safetensors"], "none.safetensors: no such checkpoint"),
    ):
        given = base if "mask-rcnn" in words or words[1] == own else [w for w in base if "backbone" not in w]
        if "mask-rcnn" in words:
            given = [str(data(here / "m", ("cat",), masks=True)) if w == source else w for w in given]
        assert regio(*given, *words) == 2
        error = capsys.readouterr().err
        assert expected in error and len(error.splitlines()) == 1, error


@pytest.mark.slow
def test_a_checkpoint_brings_its_model(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(data(here, ("cat", "dog")))
    own = str(checkpoint(here / "a.safetensors", FasterRCNNOnFPN(**TINY), ("horse",)))
    words = ["train", source, "--validation", source, "--weights", own, "--name", "a", "flip=0", *QUICK]
    assert regio(*words, "nms_threshold=0.4") == 0
    system = system_of(here / "runs" / "a" / "weights" / "last.safetensors")
    assert system == FasterRCNNOnFPN(nms_threshold=0.4, **TINY)
    assert "of 1 classes, these are 2 others; roi_heads.0.class_logits" in capsys.readouterr().out
