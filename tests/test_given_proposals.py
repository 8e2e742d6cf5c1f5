"""Detectors whose boxes come from outside: found, kept and given to them in training, evaluation and detection."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from regio.checkpoints import Card, read_card, save
from regio.config import RunConfig, model_to_dict
from regio.config.proposals import method_of_settings
from regio.config.systems import FastRCNN
from regio.data import SHAPE_CLASSES, Shapes, open_dataset, write_proposals
from regio.data.proposals import read_scored_proposals
from regio.evaluate import ProposalRecall
from regio.given_proposals import ProposalSource, source_for, source_named
from regio.proposals import Grid, ProposalNetwork, SelectiveSearch, method_settings
from regio.run import open_splits
from tests.data.small_datasets import coco_source, write_coco, write_yolo_folder
from tests.test_cli import photo, regio

SMALL = ["hidden=16", "short_side=64", "long_side=96", "regions_per_image=8", "workers=0", "device=cpu"]


@pytest.fixture(autouse=True)
def given_boxes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "250")


def quiet() -> Console:
    return Console(file=io.StringIO(), width=250)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def yolo(folder: Path, images: int = 3) -> Path:
    """Photos of noise, in which selective search finds something or not; a box in each."""
    return write_yolo_folder(folder, {f"image-{i}": "0 0.5 0.5 0.6 0.6" for i in range(images)})


CONFIG = RunConfig(model=FastRCNN(), proposals="grid", proposals_per_image=50)


def test_both_splits_have_boxes_which_are_found_once(tmp_path: Path) -> None:
    config = replace(CONFIG, data=str(yolo(tmp_path / "d")))
    first, again = quiet(), quiet()
    train, val = open_splits(config, first, tmp_path / "runs")
    kept = sorted((tmp_path / "runs" / "proposals").glob("*.safetensors"))
    assert [path.name.rsplit("-", 1)[0] for path in kept] == ["data-train", "data-val"]
    assert printed(first).count("proposals: Grid in 3 images, ") == 2 and str(kept[0]) in printed(first)
    for dataset in (train, val):
        boxes = dataset[0].proposals
        wanted = Grid()(dataset[0].image)[0]
        assert boxes is not None and torch.equal(boxes, wanted[:50]) and len(wanted) > 50
    source = {"method": method_settings(Grid()), "per_image": 50}
    assert train.proposal_source == val.proposal_source == source
    open_splits(config, again, tmp_path / "runs")
    assert printed(again).count("proposals: Grid of 3 images, found before; in ") == 2


def test_selective_search_is_what_finds_them_unless_another_is_named() -> None:
    assert source_named(None, 7) == ProposalSource(SelectiveSearch.fast(), 7)
    assert source_named("selective-search:quality", 7).origin == SelectiveSearch.quality()
    with pytest.raises(ValueError, match="proposals: expected selective-search, .*, grid, or a file, got 'edges'"):
        source_named("edges", 7)


def test_a_system_that_finds_its_own_boxes_is_given_none(tmp_path: Path) -> None:
    config = RunConfig(data=str(yolo(tmp_path / "d")))
    assert open_splits(config, quiet())[0][0].proposals is None
    assert not (tmp_path / "runs").exists()
    with pytest.raises(ValueError, match="proposals: expected null for a model that finds its own boxes, got grid"):
        open_splits(replace(config, proposals="grid"), quiet())


def test_boxes_from_files(tmp_path: Path) -> None:
    config = replace(CONFIG, data=str(yolo(tmp_path / "d")))
    boxes, scores = np.array([[1, 2, 30, 40], [0, 0, 9, 9]], np.float32), np.array([0.1, 0.9], np.float32)
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
    write_proposals(tmp_path / "p.safetensors", {1: (boxes, scores), 2: none, 3: (boxes, scores)})
    train, val = open_splits(replace(config, proposals="p.safetensors"), quiet())
    found = [train[i].proposals for i in range(3)]
    assert [each.tolist() for each in found if each is not None] == [boxes[::-1].tolist(), [], boxes[::-1].tolist()]
    assert train.proposal_source == {"method": {}, "per_image": 50}
    rows = [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]
    (tmp_path / "p.json").write_text(json.dumps(rows))
    console = quiet()
    train, val = open_splits(replace(config, proposals="p.safetensors", validation_proposals="p.json"), console)
    assert train[0].proposals is not None and len(train[0].proposals) == 2
    assert val[0].proposals is not None and val[0].proposals.tolist() == [[1, 2, 4, 6]]
    assert val[1].proposals is not None and len(val[1].proposals) == 0
    assert "p.json: no boxes of 2 of 3 images" in printed(console)
    write_proposals(tmp_path / "q.safetensors", {1: (boxes, scores), 2: none})
    with pytest.raises(ValueError, match=r"^q\.safetensors: has no boxes of 1 of 3 images, the first is image-2\.png$"):
        open_splits(replace(config, proposals="q.safetensors"), quiet())
    (tmp_path / "p.json").write_text(json.dumps([rows[0] | {"image_id": 9}]))
    with pytest.raises(ValueError, match=r"^p\.json: boxes of another data set: it has none of the 3 images$"):
        open_splits(replace(config, proposals="p.json"), quiet())


@pytest.mark.parametrize("name", ["p.json", "p.safetensors"])
def test_one_list_of_boxes_is_not_taken_for_two_images_of_one_id(tmp_path: Path, name: str) -> None:
    """Both splits number their images from 1, and the list knows no more of them."""
    page = yolo(tmp_path / "d")
    for kind in ("images", "labels"):
        shutil.copytree(tmp_path / "d" / kind / "train", tmp_path / "d" / kind / "val")
    page.write_text(page.read_text().replace("val: images/train", "val: images/val"))
    config = replace(CONFIG, data=str(page), proposals=name)
    rows = [{"image_id": i, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5} for i in (1, 2, 3)]
    (tmp_path / "p.json").write_text(json.dumps(rows))
    one = np.array([[1, 2, 4, 6]], np.float32), np.array([0.5], np.float32)
    write_proposals(tmp_path / "p.safetensors", {1: one, 2: one, 3: one})
    with pytest.raises(ValueError, match=rf"^{name}: image id 1 is that of .*train.* and of .*val.*; name the boxes"):
        open_splits(config, quiet())
    train, val = open_splits(replace(config, validation_proposals=name), quiet())
    assert train[0].proposals is not None and val[0].proposals is not None
    file = write_coco(tmp_path, coco_source())  # the same photos twice
    copy = file.with_name("copy.json")
    copy.write_bytes(file.read_bytes())
    (tmp_path / "p.json").write_text(json.dumps([rows[0] | {"image_id": 11}]))
    same = replace(config, data=str(file), validation=str(copy), proposals="p.json")
    assert all(each[0].proposals is not None and len(each[0].proposals) == 1 for each in open_splits(same, quiet()))


@pytest.mark.slow
def test_the_command_finds_measures_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(yolo(tmp_path / "d"))
    assert regio("proposals", source, "--out", "new/ss.safetensors", "--processes", "2") == 0
    shown = capsys.readouterr().out
    assert "proposals: SelectiveSearch in 3 images, " in shown and "average best overlap" in shown
    with Image.open("new/ss.png") as picture:
        assert picture.size[0] > 1000
    before = Path("new/ss.safetensors").stat().st_mtime_ns
    words = ["--method", "grid", "--compare", "new/ss.safetensors", "--plot", "both.png", "--json"]
    assert regio("proposals", source, *words) == 0
    shown = capsys.readouterr()
    numbers = json.loads(shown.out)
    assert set(numbers) == {"grid", "new/ss.safetensors"} and Path("both.png").is_file()
    recall = ProposalRecall(open_dataset(source, "val"), (100, 300, 1000, 2000))
    records = recall.records_of(read_scored_proposals("new/ss.safetensors"))
    assert numbers["new/ss.safetensors"] == recall.measure(records)
    assert numbers["grid"]["recall50_2000"] == 1.0  # boxes of 0.6 of a side in the middle
    assert [path.name.rpartition("-")[0] for path in Path("runs/proposals").glob("*.safetensors")] == ["data-val"]
    assert regio("proposals", source, "--method", "grid") == 0
    assert [path.name for path in Path("runs/proposals").glob("*.png")] == ["recall-data-val.png"]
    capsys.readouterr()
    assert regio("proposals", source, "--out", "new/ss.safetensors") == 0
    assert "of 3 images, found before" in capsys.readouterr().out
    assert Path("new/ss.safetensors").stat().st_mtime_ns == before
    assert regio("proposals", source, "--out", "new/ss.safetensors", "--mode", "quality") == 2
    error = capsys.readouterr().err
    assert "new/ss.safetensors: found by other settings: colours ['hsv', 'lab'], got ['hsv', 'lab', 'rgi'," in error
    assert regio("proposals", source, "--method", "edges") == 2
    assert "proposals: expected selective-search, " in capsys.readouterr().err
    assert regio("proposals", source, "--method", "grid", "--method", "selective-search", "--out", "p.safetensors") == 2
    assert "--out: expected one --method, whose boxes it gets, got 2" in capsys.readouterr().err
    assert regio("proposals", source, "--out", "p.json") == 2
    assert "--out: expected a file NAME.safetensors, got p.json" in capsys.readouterr().err
    empty = str(write_yolo_folder(tmp_path / "e", {"photo": ""}))
    assert regio("proposals", empty, "--method", "grid") == 0
    assert "no object is annotated, so recall is not measured" in capsys.readouterr().out
    assert regio("proposals", empty, "--compare", "new/ss.safetensors") == 2
    assert "new/ss.safetensors: boxes of another data set: image 1 is image-0.png, got photo" in capsys.readouterr().err


def test_recall_of_no_object_is_null(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = coco_source()
    source["annotations"][0]["iscrowd"] = 1
    file = write_coco(tmp_path / "d", source)
    words = ["--method", "grid", "--out", "p.safetensors", "--processes", "1", "--json"]
    assert regio("proposals", str(file), *words) == 0
    (numbers,) = json.loads(capsys.readouterr().out, parse_constant=pytest.fail).values()
    assert "ar_100" in numbers and set(numbers.values()) == {None}


def test_ctrl_c_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(yolo(tmp_path / "d"))
    calls = []

    def interrupted(self: Grid, image: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(image)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return torch.zeros(0, 4), torch.zeros(0)

    monkeypatch.setattr(Grid, "__call__", interrupted)
    words = ["proposals", source, "--method", "grid", "--out", "p.safetensors", "--processes", "1"]
    assert regio(*words) == 130
    error = capsys.readouterr().err
    assert "interrupted: p.safetensors: not all images are searched; the same command goes on with the rest" in error
    assert regio(*words) == 0 and len(calls) == 4
    assert "proposals: Grid in 1 images, " in capsys.readouterr().out


@pytest.mark.slow
def test_training_evaluation_and_detection_with_given_boxes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same method finds boxes afterwards, by the card; its file is read again."""
    source = str(yolo(tmp_path / "d"))
    words = ["--model", "fast-rcnn", "--proposals", "grid", "proposals_per_image=40", "score_threshold=0.0"]
    assert regio("train", source, *words, "--steps", "2", "--batch-size", "2", *SMALL, "backbone_weights=none") == 0
    shown = capsys.readouterr().out
    assert shown.count("proposals: Grid in 3 images, ") == 2
    best = Path("runs/train/weights/best.safetensors")
    assert read_card(best).proposals == {"method": method_settings(Grid()), "per_image": 40}
    assert regio("val", source, "--output", "out") == 0
    assert "proposals: Grid of 3 images, found before; in " in capsys.readouterr().out
    rows = json.loads(Path("out/predictions.json").read_text())
    assert len(rows) > 0 and len({row["image_id"] for row in rows}) == 3
    assert regio("detect", "d/images/train", "--score", "0", "--output", "found") == 0
    found = json.loads(Path("found/detections.json").read_text())
    counts = [len(one["detections"]) for one in found]
    assert counts == [sum(row["image_id"] == i + 1 for row in rows) for i in range(3)]
    # of no image, other boxes than the best 40 of the grid were looked at: two classes, at most 40 boxes of each
    assert max(counts) <= 80
    assert regio("val", source, "--proposals", "selective-search", "--output", "other") == 0
    assert "proposals: SelectiveSearch in 3 images, " in capsys.readouterr().out


def checkpoint(path: Path, proposals: dict[str, object]) -> str:
    model = FastRCNN(hidden=16, short_side=64, long_side=96, score_threshold=0.0)
    torch.manual_seed(0)
    detector = model.build(len(SHAPE_CLASSES))
    save(path, detector, Card(SHAPE_CLASSES, tuple(range(1, 7)), model_to_dict(model), proposals=proposals))
    return str(path)


@pytest.mark.slow
def test_what_found_the_boxes_may_be_unknown_or_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo(tmp_path / "a.png")
    unknown = checkpoint(tmp_path / "w.safetensors", {})
    assert regio("detect", "a.png", "--weights", unknown) == 2
    wanted = "its boxes were found by what is not known; name what finds boxes with --proposals"
    assert wanted in capsys.readouterr().err
    gone = checkpoint(tmp_path / "w.safetensors", {"method": {"name": "ProposalNetwork", "weights": "rpn.safetensors"}})
    assert regio("detect", "a.png", "--weights", gone) == 2
    assert "the proposal network rpn.safetensors, which is not there; name" in capsys.readouterr().err
    assert regio("detect", "a.png", "--weights", gone, "--proposals", "grid", "--output", "o") == 0
    capsys.readouterr()
    write_proposals(tmp_path / "p.safetensors", {})
    assert regio("detect", "a.png", "--weights", gone, "--proposals", "p.safetensors") == 2
    assert "expected what finds boxes in any photo, got the file p.safetensors" in capsys.readouterr().err


def test_no_box_at_all_is_no_detection(tmp_path: Path) -> None:
    """And no loss that is not a number, with objects or without."""
    torch.manual_seed(0)
    detector = FastRCNN(hidden=16, short_side=64, long_side=96).build(6).train()
    sample = Shapes(1)[0]
    none = torch.zeros(0, 4)
    for targets in (sample.targets, replace(sample.targets, **_rows(sample.targets, 0))):
        losses = detector.losses([sample.image], [targets], [none])
        assert losses and all(bool(torch.isfinite(loss)) for loss in losses.values())
    assert len(detector.eval()([sample.image], [none])[0]) == 0


def _rows(targets: object, count: int) -> dict[str, Tensor]:
    return {name: getattr(targets, name)[:count] for name in ("boxes", "labels", "crowd", "difficult")}


@pytest.mark.slow
def test_a_proposal_network_finds_boxes_for_another(tmp_path: Path) -> None:
    """The detector without its heads; found again by the card as long as its weights are the same."""
    from regio.config.systems import FasterRCNN

    model = FasterRCNN(channels=8, hidden=16, short_side=64, long_side=96)
    detector = model.build(len(SHAPE_CLASSES), pretrained=False)
    path = tmp_path / "faster.safetensors"
    save(path, detector, Card(SHAPE_CLASSES, tuple(range(1, 7)), model_to_dict(model)))
    source = source_named(str(path), 10)
    assert isinstance(source.origin, ProposalNetwork)
    image = Shapes(1)[0].image
    boxes, scores = source.origin(image)
    assert boxes.dtype == scores.dtype == torch.float32 and len(boxes) > 10
    assert bool((scores[1:] <= scores[:-1]).all()) and torch.equal(source.boxes(image), boxes[:10])
    batch, maps = detector.eval().features([image])
    (wanted,) = detector.preprocess.restore(detector.proposals(maps), batch)  # type: ignore[misc]
    torch.testing.assert_close(boxes[: len(wanted)], wanted.boxes.detach())
    assert len(ProposalNetwork(detector, number=12)(image)[0]) == 12
    assert detector.proposals.test_filter.post_nms_top_n == 300  # type: ignore[union-attr]  # its own is as it was
    card = {"method": method_settings(source.origin), "per_image": 10}
    assert torch.equal(source_for("w", card).boxes(image), boxes[:10])
    few = replace(source.origin, number=7)
    assert len(method_of_settings(method_settings(few))(image)[0]) == 7
    with torch.no_grad():
        detector.proposals.objectness.bias.add_(1.0)  # type: ignore[union-attr, operator]
    save(path, detector, Card(SHAPE_CLASSES, tuple(range(1, 7)), model_to_dict(model)))
    with pytest.raises(ValueError, match=r"faster\.safetensors, which is another one now; name what finds"):
        source_for("w", card)
    with pytest.raises(ValueError, match="expected a detector with a proposal network, got one whose boxes are given"):
        source_named(checkpoint(tmp_path / "given.safetensors", {}), 10)
