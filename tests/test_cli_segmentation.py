"""Semantic segmentation by the commands."""

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from regio.checkpoints import Card, save
from regio.config import RunConfig, load_detector, load_model, model_to_dict
from regio.config.systems import DeepLab, FasterRCNN
from regio.data import SHAPE_CLASSES, Shapes
from regio.evaluate import MeanIoU
from regio.run import open_data, open_splits
from regio.run_report import SegmentationResults
from regio.segmentation import SegmentationNetwork
from regio.types import ClassMap
from regio.weights import load_trained
from tests.test_cli import here, photo, regio

__all__ = ["here"]

TINY = DeepLab(channels=8, short_side=64, long_side=96)
SMALL = ["channels=8", "short_side=64", "long_side=96", "workers=0", "device=cpu", "images=6", "validation_images=4"]


@pytest.fixture
def weights(here: Path) -> str:
    """A checkpoint of an untrained network of shapes."""
    torch.manual_seed(0)
    model = TINY.build(len(SHAPE_CLASSES))
    torch.nn.init.normal_(model.classifier.weight)
    with torch.no_grad():  # each class as high as the others in the mean, so that several are highest somewhere
        model.classifier.bias.sub_(model.eval().scores([Shapes(1)[0].image])[1].data.mean((0, 2, 3)))
    path = here / "runs" / "tiny" / "weights" / "best.safetensors"
    save(path, model, Card(SHAPE_CLASSES, tuple(range(1, 7)), model_to_dict(TINY)))
    return str(path)


def test_a_checkpoint_is_a_model_and_no_detector(weights: str) -> None:
    model, card = load_model(weights)
    assert isinstance(model, SegmentationNetwork) and card.class_names == SHAPE_CLASSES
    with pytest.raises(ValueError, match=r"safetensors: expected a detector, got a SegmentationNetwork \(deeplab"):
        load_detector(weights)
    with pytest.raises(ValueError, match="weights: expected a detector, got a SegmentationNetwork"):
        _ = load_trained(weights).detector
    with pytest.raises(ValueError, match="score: every pixel has a class, and none is left out by its score"):
        load_trained(weights, score_threshold=0.3)


def test_classes_of_a_data_set_in_another_order(weights: str) -> None:
    """A class that the data do not have is background."""
    trained, image = load_trained(weights), Shapes(1)[0].image
    with torch.no_grad():
        (own,) = trained.model([image])
        *_, first, second = own.labels.unique().tolist()
        names = SHAPE_CLASSES[second - 1], "circle"
        (found,) = trained.predict(names)([image])
    assert first > 1
    expected = torch.zeros_like(own.labels)
    for new, name in enumerate(names, 1):
        expected[own.labels == SHAPE_CLASSES.index(name) + 1] = new
    assert isinstance(found, ClassMap) and torch.equal(found.labels, expected)
    assert {0, 1} <= {*found.labels.unique().tolist()} <= {0, 1, 2}


@pytest.mark.slow
def test_detect_writes_class_maps_and_pictures(here: Path, weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    photo(here / "photos" / "a.png")
    photo(here / "photos" / "more" / "a.jpg", (50, 70))
    assert regio("detect", "photos", "--precision", "32-true", "--output", "out") == 0
    assert "beside the background in 2 images" in (shown := capsys.readouterr().out)
    assert "in out: class_maps/, pictures/, segmentation.json" in shown
    entries = json.loads(Path("out/segmentation.json").read_text())
    assert [entry["file"] for entry in entries] == ["photos/a.png", "photos/more/a.jpg"]
    model, names = load_trained(weights).model, ("background", *SHAPE_CLASSES)
    for entry, name in zip(entries, ("a", "a-2"), strict=True):
        assert entry["class_map"] == f"class_maps/{name}.png"
        with Image.open(Path("out") / entry["class_map"]) as image:
            assert image.mode == "P"
            labels = np.asarray(image)
        assert labels.shape == (entry["height"], entry["width"])
        shares = {names[label]: (labels == label).mean() for label in np.unique(labels)}
        assert entry["classes"] == pytest.approx(shares, abs=1e-5)
        assert list(entry["classes"].values()) == sorted(entry["classes"].values(), reverse=True)
        pixels = torch.from_numpy(np.asarray(Image.open(entry["file"]).convert("RGB")).copy()).permute(2, 0, 1)
        with torch.no_grad():
            (direct,) = model([pixels])
        assert (direct.labels.numpy() == labels).mean() > 0.99
        assert entry["picture"] == f"pictures/{name}.jpg"
        factor = -(-640 // max(labels.shape))  # small photos are enlarged
        with Image.open(Path("out") / entry["picture"]) as picture:
            assert picture.width == factor * entry["width"]
            assert picture.height > factor * entry["height"]  # a legend below
    assert regio("detect", "photos", "--no-pictures", "--json", "--output", "plain") == 0
    assert {path.name for path in Path("plain").iterdir()} == {"class_maps", "segmentation.json"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["detect", "a.png", "--score", "0.3"], "score: every pixel has a class"),
        (["explain", "a.png", "--box", "1,2,30,40", "--weights", "runs/tiny/weights/best.safetensors"], "got a Segm"),
        (
            ["compare", "shapes", "--systems", "deeplab,faster-rcnn"],
            "systems: expected all to give the same, got class maps (deeplab), detections (faster-rcnn)",
        ),
        (["train", "boxes.json", "--model", "deeplab", "--steps", "1"], "boxes.json: class maps: expected segmentat"),
        (["train", "shapes", "--model", "deeplab", "--extractor", "roi-align"], "extractor: no such setting"),
        (
            ["train", "shapes", "--model", "deeplab", "keep_maps=true", *SMALL, "frozen=0"],
            "keep_maps: expected a backbone that is fixed up to a level",
        ),
    ],
)
def test_what_cannot_be_is_one_line(
    words: list[str], message: str, here: Path, weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.png", "b.png"):
        photo(here / name)
    images = [{"id": i, "file_name": name, "width": 80, "height": 60} for i, name in enumerate(("a.png", "b.png"))]
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [1, 2, 30, 20]} for i in range(2)]
    page = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cat"}]}
    (here / "boxes.json").write_text(json.dumps(page))
    assert regio(*words) == 2
    line = capsys.readouterr().err
    assert message in line and line.count("\n") == 1


def test_results_are_those_of_the_evaluator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table, the numbers and the page, of predictions that are the truth but for one class."""
    scenes = Shapes(5, size=(64, 96)).with_class_maps()
    evaluator = MeanIoU(scenes)
    records = []
    for i in range(len(scenes)):
        truth = scenes[i].targets.class_map
        assert truth is not None
        wrong = truth.clone()
        wrong[truth == 2] = 0
        records.append(evaluator.record(scenes[i], ClassMap(wrong, torch.ones(truth.shape))))
    results = SegmentationResults(evaluator, records)
    numbers = evaluator.measure(records)
    ring = results.to_json()["iou"]["ring"]
    assert ring == 0 and results.to_json()["mean_iou"] == numbers["mean_iou"] < 1
    results.write(tmp_path, {"data": "shapes"})
    assert json.loads((tmp_path / "results.json").read_text()) == results.to_json()
    page = (tmp_path / "report.html").read_text()
    for text in ("mean IoU", "pixel accuracy", "background", "triangle", "photo, annotated, and predicted"):
        assert text in page
    assert len(list((tmp_path / "predictions").iterdir())) == 5
    with Image.open(tmp_path / "pictures.jpg") as sheet:
        assert sheet.height > 5 * 200


@pytest.mark.slow
def test_a_run_from_training_to_evaluation(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "shapes", "--model", "deeplab", "--steps", "4", "--batch-size", "2", "--name", "a", *SMALL]
    assert regio(*words) == 0
    run = here / "runs" / "a"
    results = json.loads((run / "results.json").read_text())
    assert {path.name for path in (run / "plots").iterdir()} == {"training.png", "confusion.png"}
    assert "mean IoU" in capsys.readouterr().out
    weights = str(run / "weights" / "last.safetensors")
    assert regio("val", "shapes", "--weights", weights, "--json", "--precision", "32-true") == 0
    again = json.loads(capsys.readouterr().out)
    assert set(again) == set(results) and 0 <= again["pixel_accuracy"] <= 1
    assert len(list((here / "runs" / "val" / "predictions").iterdir())) == 100
    others = ["train", "shapes", "--classes", "circle,star", "--weights", weights, "--model", "deeplab", "--steps", "1"]
    assert regio(*others, "--batch-size", "2", *SMALL) == 0
    assert "classifier start anew" in capsys.readouterr().out


def test_photos_without_class_maps_are_left_out_before_others_are(here: Path) -> None:
    """They take no place among the photos that --images asks for, and a comparison does not count them."""
    images = [{"id": i, "file_name": f"{i}.png", "width": 80, "height": 60} for i in range(8)]
    for image in images:
        photo(here / str(image["file_name"]))
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [1, 2, 30, 20]} for i in range(8)]
    for each in boxes[::2]:
        each["segmentation"] = [[1, 2, 31, 2, 31, 22, 1, 22]]
    page = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cat"}]}
    for name in ("some.json", "others.json"):
        (here / name).write_text(json.dumps(page))
    said = StringIO()
    config = RunConfig(data="some.json", validation="others.json", validation_images=3, model=DeepLab())
    dataset, validation = open_data(config, Console(file=said, width=200))
    assert [record.id for record in dataset.records] == [0, 2, 4, 6] and len(validation) == 3
    assert "4 of 8 images have an object without a segmentation and are left out" in said.getvalue()
    assert "3 of 4 images are used" in said.getvalue()
    assert [len(each) for each in open_splits(config, Console(quiet=True))] == [4, 3]
    boxes_alone = open_data(replace(config, model=FasterRCNN()), Console(quiet=True))
    assert [len(each) for each in boxes_alone] == [8, 3]


@pytest.mark.slow
def test_networks_are_compared_by_their_class_maps(here: Path) -> None:
    words = ["--systems", "sixteen=deeplab,eight=deeplab:output_stride=8", "--steps", "2", "batch_size=2"]
    small = [word for word in SMALL if "images" not in word]
    assert regio("compare", "shapes", *words, "--images", "6", "--validation-images", "4", *small) == 0
    folder = here / "runs" / "compare"
    results = json.loads((folder / "results.json").read_text())
    for label in ("sixteen", "eight"):
        (run,) = (each for each in results["runs"] if each["label"] == label)
        own = json.loads((folder / label / "seed-0" / "results.json").read_text())
        assert run["mean_iou"] == own["mean_iou"] == results["arms"][label]["mean_iou"]["mean"]
        assert run["ap"] is None and run["seconds_an_image"] > 0
    page = (folder / "report.html").read_text()
    assert "mean IoU" in page and "the class of every pixel" in page and "VOC mAP" not in page
    assert (folder / "pictures.jpg").is_file()
