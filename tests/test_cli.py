"""The commands as a person types them."""

import json
import os
import shutil
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from regio.checkpoints import Card, read_card, save
from regio.cli import main
from regio.cli.demo import CONFIG
from regio.cli.main import COMMANDS
from regio.config import RunConfig, load_detector, model_to_dict, read_config
from regio.config.extractors import Learned
from regio.config.systems import RPN, FasterRCNN, FasterRCNNOnFPN
from regio.data import SHAPE_CLASSES, Shapes, open_dataset
from regio.inference import detect_files, find_images
from regio.ready import ReadyDetector
from regio.run_folders import locked, new_folder, new_run
from regio.settings import as_dict
from regio.yaml_text import as_yaml
from tests.data.small_datasets import coco_source, write_coco, write_png_header, write_yolo_folder

SMALL = [
    "channels=16",
    "hidden=32",
    "short_side=64",
    "long_side=96",
    "regions_per_image=16",
    "workers=0",
    "device=cpu",
]

FEW = ["images=8", "validation_images=4"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory, and a terminal wide enough for one line an error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "250")
    return tmp_path


def regio(*words: str) -> int:
    """The exit code of a command."""
    previous = sys.argv
    sys.argv = ["regio", *words]
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = previous
    return 0


@pytest.fixture
def weights(here: Path) -> Path:
    """A checkpoint of an untrained detector of shapes that reports everything."""
    torch.manual_seed(0)
    model = FasterRCNNOnFPN(channels=16, hidden=32, short_side=64, long_side=96, score_threshold=0.0)
    detector = model.build(len(SHAPE_CLASSES))
    path = here / "runs" / "tiny" / "weights" / "best.safetensors"
    save(path, detector, Card(SHAPE_CLASSES, tuple(range(1, 7)), model_to_dict(model)))
    return path


def photo(path: Path, size: tuple[int, int] = (80, 60)) -> Path:
    """A picture of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert regio("--version") == 0
    assert capsys.readouterr().out.strip().count(".") == 2
    assert regio("--help") == 0
    text = capsys.readouterr().out
    assert all(command in text for command in ("demo", "train", "val", "detect"))
    assert regio("train", "--help") == 0
    assert "--extractor" in capsys.readouterr().out


HEAVY = ("torch", "torchvision", "numba", "timm", "matplotlib", "PIL", "numpy")


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["doctor", "--help"],
        ["convert", "--help"],
        ["detect", "--help"],
        ["val", "--help"],
        ["explain", "--help"],
        ["analyse", "--help"],
        ["proposals", "--help"],
        ["train", "--help"],
        ["config"],
        ["nothing"],
    ],
)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    program = (
        "import sys\n"
        "from regio.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY} if name in sys.modules])\n"
    )
    run = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]", run.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_begins_as_it_is_listed(name: str) -> None:
    command = getattr(import_module(f"regio.cli.{name}"), name)
    assert command.__doc__.splitlines()[0] == COMMANDS[name]


def test_an_unknown_command_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert regio("trian") == 2
    assert "No such command 'trian'" in capsys.readouterr().err


def test_doctor(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_yolo_folder(here / "data", {"a": "0 0.5 0.5 0.5 0.5\n", "b": "0 0.5 0.5 0.01 0.5\n", "c": ""})
    file.write_text("train: images/train\nnames: [cat, dog]\n")
    assert regio("doctor", "data") == 0
    output = capsys.readouterr().out
    assert "box under 3 pixels, 1: see whether" in output
    assert "data/images/train/b.png: annotation 1 (cat): box" in output
    assert "sound: nothing must be mended" in output
    (here / "data" / "labels" / "train" / "a.txt").write_text("0 1 2\n")
    (here / "data" / "images" / "train" / "c.png").write_bytes(b"")
    assert regio("doctor", "data") == 1
    output = capsys.readouterr().out
    assert "cannot be read, 1: restore the file or write the line anew" in output
    assert "  train: data/labels/train/a.txt: line 1: expected a class and the numbers" in output
    assert "to be mended: 2" in output
    assert regio("doctor", "data", "--json") == 1
    result = json.loads(capsys.readouterr().out)
    assert [each["check"] for each in result["findings"] if each["fault"]] == ["cannot be read", "doubtful"]
    assert regio("doctor", "nowhere") == 2


def test_convert(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_yolo_folder(here / "data", {"a": "0 0.5 0.5 0.5 0.5\n", "b": "1 0.1 0.1 0.5 0.1 0.5 0.3\n9 1 1 1 1\n"})
    assert regio("convert", "data", "out", "--to", "voc", "--link") == 0
    output = capsys.readouterr().out
    assert "note: data/labels/train/b.txt: line 2: of unknown class 9" in output
    assert "lost: 2 segmentations" in output  # of train and of val, which are the same here
    assert "train: 2 images, 2 objects read" in output
    assert len(open_dataset("out", "train")) == 2
    assert regio("convert", "data", "out", "--to", "coco") == 2
    assert "out: expected a new or an empty folder" in capsys.readouterr().err
    assert regio("convert", "data", "new", "--to", "tfrecord") == 2
    assert "'tfrecord' is not one of 'yolo', 'coco', 'voc'" in capsys.readouterr().err


@pytest.mark.slow
def test_val_takes_the_path_of_a_yaml_file(here: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_yolo_folder(
        here / "repository" / "data", {"a": "0 0.5 0.5 0.5 0.5\n"}, f"names: [{', '.join(SHAPE_CLASSES)}]"
    )
    assert regio("val", "repository/data/data.yaml") == 0
    assert regio("val", "repository") == 0
    assert "the data set in it is repository/data (YOLO)" in capsys.readouterr().out


def test_val_on_data_without_images(here: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classes = [{"id": 1, "name": "circle"}]
    data = write_coco(here / "empty", {**coco_source(), "images": [], "annotations": [], "categories": classes})
    assert regio("val", str(data)) == 2
    assert f"{data}: no images to evaluate on in all" in capsys.readouterr().err
    assert not (here / "runs" / "val").exists()


@pytest.mark.slow
def test_train_val_and_resume(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "shapes", "--name", "a", "--steps", "2", "--batch-size", "2", "--classes", "circle, star", *SMALL]
    assert regio(*words) == 0
    run = here / "runs" / "a"
    tables = {"config.yaml", "metrics.csv", "predictions.json", "results.json"}
    names = {p.name for p in run.iterdir() if not p.name.startswith("events.")}
    assert names == tables | {"pictures.jpg", "plots", "report.html", "weights"}
    assert {p.name for p in (run / "plots").iterdir()} == {"training.png", "precision_recall.png", "confusion.png"}
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["classes"] == ["circle", "star"]
    assert config["model"]["channels"] == 16
    assert read_card(run / "weights" / "last.safetensors").class_names == ("circle", "star")
    with Image.open(run / "pictures.jpg") as picture:
        assert picture.width > 600
    capsys.readouterr()

    assert regio(*words) == 2
    assert "there is a run of this name; go on with --resume" in capsys.readouterr().err
    assert regio("train", "shapes", "--name", "a", "--resume", "--steps", "3") == 2
    assert "a run can only be resumed as it was" in capsys.readouterr().err
    assert regio("train", "shapes", "--name", "a", "--resume") == 0

    capsys.readouterr()
    assert regio("val", "shapes", "--json") == 0
    metrics = json.loads(capsys.readouterr().out)
    assert set(metrics["per_class"]) == {"circle", "star"}
    assert json.loads((here / "runs" / "val" / "results.json").read_text())["ap"] == metrics["ap"]


@pytest.mark.slow
def test_a_proposal_network_is_a_model_like_any_other(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = [word for word in SMALL if not word.startswith(("hidden", "regions"))]
    words = ["train", "shapes", "--model", "rpn-fpn", "--steps", "20", "--batch-size", "2", "--name", "a", *small]
    assert regio(*words) == 0
    run = here / "runs" / "a"
    assert {p.name for p in (run / "plots").iterdir()} == {"training.png", "recall.png"}
    recall = json.loads((run / "results.json").read_text())
    assert recall["recall50_1000"] > 0.2 and recall["recall50_100"] < recall["recall50_300"]
    capsys.readouterr()
    assert regio("val", "shapes", "--json", "--batch-size", "2", "--precision", "32-true") == 0
    again = json.loads(capsys.readouterr().out)  # equal but for rounding, which moves single ones of 500 objects
    assert again == pytest.approx(recall, abs=5e-3)
    assert regio("detect", str(photo(here / "a.png")), "--score", "0", "--output", "out") == 0
    found = json.loads((here / "out" / "detections.json").read_text())[0]["detections"]
    assert {each["name"] for each in found} == {"object"}
    assert regio("train", "shapes", "--model", "rpn", "--extractor", "roi-align") == 2
    assert "extractor: no such setting" in capsys.readouterr().err


def test_config_prints_what_a_file_holds(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "faster-rcnn", "--extractor", "learned", "support=box", "data=photos"]
    assert regio("config", *words) == 0
    shown = capsys.readouterr().out
    assert "model.extractor" in shown and "cells that a box may read" in shown and "one of box, 2x, image" in shown
    assert regio("config", *words, "--yaml") == 0
    (here / "a.yaml").write_text(capsys.readouterr().out)
    assert read_config(here / "a.yaml") == RunConfig("photos", model=FasterRCNN(extractor=Learned(support="box")))
    assert regio("config", "--config", "a.yaml", "--yaml") == 0
    assert capsys.readouterr().out == (here / "a.yaml").read_text()
    assert regio("train", "--config", "a.yaml", "chanels=3") == 2
    assert "chanels: no such setting" in capsys.readouterr().err
    assert regio("train", "--config", "a.yaml", "--seed", "1") == 2
    assert "photos: no such dataset" in capsys.readouterr().err
    assert regio("train", "--steps", "1") == 2
    assert "DATA: expected a data set" in capsys.readouterr().err


def trained(here: Path, name: str, seed: int) -> dict[str, Tensor]:
    """The weights that `regio train` leaves after one step at a learning rate of zero: the initial ones."""
    words = ["--name", name, "--seed", str(seed), "--steps", "1", "--batch-size", "2", "--lr", "0", *SMALL, *FEW]
    assert regio("train", "shapes", *words) == 0
    return load_file(here / "runs" / name / "weights" / "last.safetensors")


@pytest.mark.slow
def test_a_seed_decides_the_initial_weights(here: Path) -> None:
    first, again, other = trained(here, "a", 5), trained(here, "b", 5), trained(here, "c", 6)
    assert [name for name in first if not torch.equal(first[name], again[name])] == []
    random = {"neck.lateral.0.weight", "proposals.conv.weight", "roi_heads.0.trunk.fc6.weight"}
    assert random <= {name for name in first if not torch.equal(first[name], other[name])}


def test_detect(here: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo(here / "photos" / "a.png")
    photo(here / "photos" / "more" / "a.jpg")
    assert regio("detect", "photos", "--weights", str(weights), "--score", "0", "--output", "d") == 0
    found = json.loads((here / "d" / "detections.json").read_text())
    assert [one["file"] for one in found] == ["photos/a.png", "photos/more/a.jpg"]
    assert (found[0]["height"], found[0]["width"]) == (60, 80)
    one = found[0]["detections"][0]
    assert one["name"] == SHAPE_CLASSES[one["label"] - 1]
    x1, y1, x2, y2 = one["box"]
    assert 0 <= x1 < x2 <= 80
    assert 0 <= y1 < y2 <= 60
    pictures = here / "d" / "pictures"
    assert sorted(p.name for p in pictures.iterdir()) == ["a-2.jpg", "a.jpg"]
    output = capsys.readouterr().out
    assert "objects of score 0 and above in 2 images" in output
    assert "in d: pictures/, detections.json" in output


def test_detect_leaves_out_and_says_what_is_below_the_score(
    here: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo(here / "a.jpg")
    assert regio("detect", "a.jpg", "--output", "d") == 0
    assert json.loads((here / "d" / "detections.json").read_text())[0]["detections"] == []
    output = capsys.readouterr().out
    assert "0 objects of score 0.5 and above in 1 image," in output
    assert "--score 0.05 keeps weaker detections too" in output


def test_detect_goes_on_past_an_unreadable_image(here: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo(here / "a.jpg")
    whole = photo(here / "b.jpg").read_bytes()
    (here / "b.jpg").write_bytes(whole[: len(whole) // 2])
    (here / "c.png").write_text("no picture")
    photo(here / "d.jpg")
    assert regio("detect", "*.*", "--no-pictures") == 1
    output = capsys.readouterr().out
    assert "2 images could not be read" in output
    assert "b.jpg" in output.split("could not be read")[1]
    assert "c.png" in output.split("could not be read")[1]
    found = json.loads((here / "runs" / "detect" / "detections.json").read_text())
    assert [one["file"] for one in found] == ["a.jpg", "d.jpg"]


@pytest.mark.slow
def test_detect_prints_json_alone(here: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo(here / "a.jpg")
    assert regio("detect", "a.jpg", "--json", "--no-pictures") == 0
    assert json.loads(capsys.readouterr().out)[0]["file"] == "a.jpg"


def test_detect_files_is_what_the_command_calls(here: Path, weights: Path) -> None:
    files = [photo(here / "a.jpg"), here / "gone.jpg", photo(here / "x" / "a.jpg")]
    detector, card = load_detector(weights)
    done: list[int] = []
    ready = ReadyDetector(detector)
    result = detect_files(ready, files, card.class_names, here / "out", progress=done.append)
    assert [one["file"] for one in result.found] == [str(files[0]), str(files[2])]
    assert result.unreadable == [f"{files[1]}: no such image file"]
    assert sum(len(one["detections"]) for one in result.found) > 0
    assert done == [1, 2, 3]  # the missing one is known first
    assert json.loads((here / "out" / "detections.json").read_text()) == result.found
    assert sorted(path.name for path in (here / "out" / "pictures").iterdir()) == ["a-2.jpg", "a.jpg"]


@pytest.mark.slow
def test_images_of_one_size_go_together(here: Path, weights: Path) -> None:
    """Many of one size go in batches and others alone; the order of the files stays, and so does what is found."""
    files = [photo(here / f"{i:02}.jpg", size=(60, 90) if i % 5 else (90, 60)) for i in range(30)]
    (here / "12.jpg").write_bytes((here / "12.jpg").read_bytes()[:300])
    ready = ReadyDetector(load_detector(weights)[0], precision="32-true")
    names = read_card(weights).class_names
    sizes: list[int] = []
    ready.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    result = detect_files(ready, files, names, here / "out", batch_size=2, pictures=False)
    assert set(sizes) == {1, 2}
    assert sum(sizes) == len(files) - 1
    assert [one["file"] for one in result.found] == [str(file) for file in files if file.name != "12.jpg"]
    assert len(result.unreadable) == 1
    assert str(here / "12.jpg") in result.unreadable[0]
    alone = detect_files(ready, files, names, here / "alone", batch_size=1, pictures=False)
    for ours, theirs in zip(result.found, alone.found, strict=True):
        assert len(ours["detections"]) == len(theirs["detections"])
        for a, b in zip(ours["detections"], theirs["detections"], strict=True):
            assert a["score"] == pytest.approx(b["score"], abs=1e-3)


def test_detect_and_val_say_their_precision(here: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo(here / "a.jpg")
    assert regio("detect", "a.jpg", "--precision", "32-true") == 0
    assert " on cpu in 32-true, " in capsys.readouterr().out
    assert regio("detect", "a.jpg", "--precision", "half") == 2
    assert "precision: expected 32-true or bf16-mixed, got 'half'" in capsys.readouterr().err


def test_find_images(here: Path) -> None:
    for name in ("x/b.jpg", "x/a.PNG", "x/y/c.webp"):
        photo(here / name)
    (here / "x" / "notes.txt").write_text("")
    assert find_images(["x"]) == [Path("x/a.PNG"), Path("x/b.jpg"), Path("x/y/c.webp")]
    assert find_images(["x/*.jpg", "x"]) == [Path("x/b.jpg"), Path("x/a.PNG"), Path("x/y/c.webp")]
    with pytest.raises(ValueError, match="none: expected an image, a folder with images or a glob"):
        find_images(["none"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "nowhere"], "nowhere: no such dataset"),
        (["train", "shapes", "--classes", "circle,squid"], "unknown class 'squid'; did you mean square?"),
        (["train", "shapes", "--extractor", "roi"], "extractor: expected one of roi-pool, "),
        (
            ["train", "shapes", "--backbone", "resnet50"],
            "backbone: expected one of efficientnet_lite0, aligned_inception_resnet, torchvision, timm",
        ),
        (["train", "shapes", "--optimizer", "lion"], "optimizer: expected one of adamw, sgd, got 'lion'"),
        (["train", "shapes", "chanels=3"], "chanels: no such setting; did you mean channels"),
        (["train", "shapes", "--resume"], "--resume: expected --name, the run to go on with"),
        (["train", "shapes", "--resume", "--name", "x"], "config.yaml: no such file"),
        (["train", "shapes", "--device", "gpu"], "device: expected cpu, cuda, cuda:1, mps or auto, got 'gpu'"),
        (["train", "shapes", "--device", "cuda:99"], "device: cuda:99 cannot be used here: "),
        (["train", "shapes", "--weights", "none.safetensors"], "none.safetensors: no such checkpoint"),
        (["val", "shapes"], "no run in runs has a checkpoint"),
        (["detect", "nothing.jpg"], "nothing.jpg: expected an image, a folder with images or a glob"),
    ],
)
def test_bad_input_is_one_line(here: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert regio(*words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.strip().count("\n") == 0
    assert not list(here.rglob("*.safetensors"))


def test_a_device_that_is_not_there(here: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo(here / "a.jpg")
    assert regio("detect", "a.jpg", "--device", "cuda:99") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: device: cuda:99 cannot be used here: ") and error.count("\n") == 1


def test_a_training_that_ended_before_its_first_save_leaves_its_name_free(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = here / "runs" / "a"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(as_yaml(as_dict(RunConfig("shapes"))))
    (run / "metrics.csv").write_text("step,loss\n")
    with new_run(here / "runs", "a", "train") as folder:
        assert folder == run
    assert regio("train", "shapes", "--name", "a", "--resume") == 2
    assert "ended before its first save; start it again without --resume" in capsys.readouterr().err
    (run / "weights").mkdir()
    with pytest.raises(ValueError, match="there is a run of this name"), new_run(here / "runs", "a", "train"):
        pass


@pytest.fixture
def trained_as(monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """The settings of all trainings from now on, of which none takes place."""
    found: list[RunConfig] = []
    monkeypatch.setattr("regio.run.run", lambda config, *rest, **named: found.append(config))
    return found


def test_options_that_a_resumed_run_contradicts_are_named(
    here: Path, trained_as: list[RunConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    config = RunConfig("shapes", "other", ("circle", "star"))
    run = here / "runs" / "a"
    (run / "stages").mkdir(parents=True)
    (run / "stages" / "run.json").write_text("{}")
    (run / "config.yaml").write_text(as_yaml(as_dict(config)))
    words = ["train", "shapes", "--name", "a", "--resume"]
    assert regio(*words, "--classes", "circle, star", "--validation", "other") == 0
    assert regio(*words) == 0
    assert trained_as == [config, config]
    for option, value, expected in (
        ("--classes", "star", "circle, star"),
        ("--validation", "shapes", "other"),
        ("--weights", "w.safetensors", "none"),
    ):
        assert regio(*words, option, value) == 2
        error = f"error: {option}: expected {expected}, as in the run {Path('runs/a')}, got {value}\n"
        assert capsys.readouterr().err == error
    assert len(trained_as) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "faster-rcnn"], "name faster-rcnn-fpn, got faster-rcnn"),
        (["channels=32"], "channels 128, got 32"),
        (["--proposals", "grid"], "proposals None, got grid"),
    ],
)
def test_a_run_is_resumed_with_its_own_model(
    here: Path, trained_as: list[RunConfig], capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    run = here / "runs" / "a"
    (run / "weights").mkdir(parents=True)
    (run / "weights" / "resume.safetensors").write_text("")
    (run / "config.yaml").write_text(as_yaml(as_dict(RunConfig("shapes"))))
    assert regio("train", "--name", "a", "--resume", *words) == 2
    line = capsys.readouterr().err
    assert f"--resume: the run {Path('runs/a')} can only go on as it was: " in line and message in line
    assert regio("train", "--name", "a", "--resume", "workers=0") == 0 and len(trained_as) == 1


def test_a_folder_has_one_name_with_and_without_a_slash(here: Path, trained_as: list[RunConfig]) -> None:
    run = here / "runs" / "a"
    (run / "weights").mkdir(parents=True)
    (run / "weights" / "resume.safetensors").write_text("")
    (run / "config.yaml").write_text(as_yaml(as_dict(RunConfig("photos", "others"))))
    assert regio("train", "photos/", "--name", "a", "--resume", "--validation", f"{here / 'others'}/") == 0
    assert len(trained_as) == 1


def test_epochs_take_the_place_of_the_steps_of_a_file(
    here: Path, trained_as: list[RunConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "a.yaml").write_text("data: shapes\ntraining: {steps: 3}\n")
    for words in (["--epochs", "2"], ["epochs=2"], ["training.epochs=2"]):
        assert regio("train", "--config", "a.yaml", *words) == 0
        assert (trained_as[-1].training.steps, trained_as[-1].training.epochs) == (None, 2)
    assert regio("train", "--config", "a.yaml", "seed=1") == 0
    assert trained_as[-1].training.steps == 3
    for words in (["--epochs", "2", "--steps", "3"], ["epochs=2", "steps=3"], ["--epochs", "inf"]):
        assert regio("train", "shapes", *words) == 2
    assert capsys.readouterr().err.count("expected either epochs or steps, got both") == 2


def test_the_demo_replaces_nothing_but_a_demo(
    here: Path, trained_as: list[RunConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = here / "runs" / "demo"
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("")
    assert regio("demo") == 2
    assert "expected an earlier demo or no such folder, got something else" in capsys.readouterr().err
    (folder / "config.yaml").write_text(as_yaml(as_dict(RunConfig("shapes"))))  # a training of that name
    assert regio("demo") == 2
    assert (folder / "thesis.txt").is_file() and trained_as == []
    (folder / "config.yaml").write_text(as_yaml(as_dict(CONFIG)))
    assert regio("demo") == 0
    (folder / "config.yaml").unlink()
    (folder / "thesis.txt").unlink()
    assert regio("demo") == 0 and len(trained_as) == 2


def test_weights_choose_the_model_unless_one_is_named(here: Path, weights: Path, trained_as: list[RunConfig]) -> None:
    (here / "short.yaml").write_text("data: shapes\ntraining: {steps: 1}\n")
    (here / "own.yaml").write_text("data: shapes\nmodel: {name: rpn}\n")
    for file, kind in (("short", FasterRCNNOnFPN), ("own", RPN)):
        assert regio("train", "--config", f"{file}.yaml", "--weights", str(weights)) == 0
        assert isinstance(trained_as.pop().model, kind)
    words = ["train", "shapes", "--weights", str(weights)]
    assert regio(*words, "model.score_threshold=0.3") == 0
    assert regio(*words, "model=rpn") == 0
    assert regio(*words, "--model", "rpn") == 0
    tiny = FasterRCNNOnFPN(channels=16, hidden=32, short_side=64, long_side=96, score_threshold=0.3)
    assert [config.model for config in trained_as] == [tiny, RPN(), RPN()]
    assert {config.weights for config in trained_as} == {str(weights)}


def test_a_run_has_its_folder_alone_from_the_start(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing has been written yet when the second run begins."""
    runs = here / "runs"
    with new_run(runs, None, "train") as first, new_run(runs, None, "train") as second, new_run(runs, "a", "train"):
        assert (first, second) == (runs / "train", runs / "train-2")
        assert regio("train", "shapes", "--name", "a", *SMALL) == 2
        assert "a: another process has a run going on there" in capsys.readouterr().err
        with pytest.raises(ValueError, match="has a run going on there"), new_run(runs, "train", "train"):
            pass
        (second / "config.yaml").write_text("")
    assert [path.name for path in runs.iterdir()] == ["train-2"]  # those that stayed empty are gone
    with new_run(runs, "train-2", "train") as again:
        assert sorted(path.name for path in again.iterdir()) == [".lock", "config.yaml"]


def test_a_run_that_was_killed_leaves_its_folder_free(here: Path) -> None:
    """The lock ends with the process, not with the file."""
    script = "from regio.run_folders import *; from pathlib import Path; import os, signal\n"
    script += "with locked(Path('runs/a')) as f: (f / 'config.yaml').touch(); os.kill(os.getpid(), signal.SIGKILL)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    assert (here / "runs" / "a" / ".lock").exists()
    with new_run(here / "runs", "a", "train") as folder, pytest.raises(ValueError, match="going on"), locked(folder):
        pass


def test_results_get_a_folder_of_their_own(here: Path) -> None:
    names = [new_folder(here / "runs", "val").name for _ in range(3)]
    assert names == ["val", "val-2", "val-3"]


def test_a_damaged_photo_ends_a_training_with_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where another process reads the photos."""
    coco = Shapes(6).keep_classes(["circle"]).to_coco()
    for i, image in enumerate(coco["images"]):
        path = photo(here / image["file_name"], (image["width"], image["height"]))
        path.write_bytes(path.read_bytes()[:-100])
        image["id"] = i
    coco["annotations"] = []
    (here / "data.json").write_text(json.dumps(coco))
    assert regio("train", "data.json", "--batch-size", "2", "--steps", "2", *SMALL, "workers=1") == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "cannot be read as an image" in captured.err
    assert "note: 2 steps are few" in captured.out
    assert "2 steps of 2 images" in captured.out


@pytest.mark.slow
def test_a_photo_of_too_many_pixels_is_one_line(here: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the command; detection and examination go on with the next photo."""
    coco = Shapes(6).to_coco()
    for i, image in enumerate(coco["images"]):
        image["id"], image["file_name"] = i, f"{i}.png"
        photo(here / image["file_name"], (image["width"], image["height"]))
    huge = write_png_header(here / "0.png", 30_000, 30_000)
    coco["images"][0] |= {"width": 30_000, "height": 30_000}
    coco["annotations"] = []
    (here / "data.json").write_text(json.dumps(coco))
    line = f"{huge.name}: too large to be read: Image size (900000000 pixels) exceeds limit of 178956970 pixels"
    capsys.readouterr()
    assert regio("doctor", "data.json") == 1
    assert line in capsys.readouterr().out
    assert regio("detect", ".", "--weights", str(weights), "--device", "cpu") == 1
    assert capsys.readouterr().out.count(line) == 1
    assert len(json.loads((here / "runs" / "detect" / "detections.json").read_text())) == 5
    commands = [
        ["train", "data.json", "--validation", "data.json", "--batch-size", "4", "--steps", "2", *SMALL],
        ["val", "data.json", "--weights", str(weights), "--device", "cpu"],
    ]
    for words in commands:
        assert regio(*words) == 2
        assert capsys.readouterr().err.strip() == f"error: {line}"


@pytest.mark.slow
def test_masks_that_cannot_be_used_are_named_and_the_training_goes_on(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their objects train their boxes; so do the objects of an image without a mask."""
    scenes = Shapes(6)
    coco = scenes.to_coco()
    for i, image in enumerate(coco["images"]):
        photo(here / f"{i}.png", (image["width"], image["height"]))
        image["file_name"] = f"{i}.png"
    first, second, third, *_ = coco["annotations"]
    first["segmentation"], second["segmentation"] = "what", [[1, 2, 3, 4]]
    third["segmentation"] = [[0, 0, 1e12, 0, 0, 1e12]]
    last = coco["annotations"][-1]["image_id"]
    for annotation in coco["annotations"]:
        if annotation["image_id"] == last:
            del annotation["segmentation"]
    (here / "data.json").write_text(json.dumps(coco))
    shutil.copy("data.json", "val.json")
    small = [*SMALL, "mask_channels=8", "mask_layers=1", "optimizer.lr=0"]
    words = ["--model", "mask-rcnn", "--batch-size", "3", "--steps", "2", "--name", "a", *small]
    assert regio("train", "data.json", "--validation", "val.json", *words) == 0
    said = capsys.readouterr().out
    assert "6 training and 6 validation images" in said
    image = first["image_id"]
    assert f"annotation 1 of image {image}: segmentation: expected polygons or a run-length encoding, got what" in said
    assert said.count("its mask is left out, its box is used") == 5
    assert "note: and 1 more like these; regio doctor lists all" in said
    assert regio("val", "val.json", "--weights", "runs/a/weights/last.safetensors", "--device", "cpu") == 0
    said = capsys.readouterr().out
    assert f"annotation 3 of image {third['image_id']}: the mask in (0, 0, 1e+12, 1e+12) leaves its image of" in said
    with_all_masks = {a["image_id"] for a in coco["annotations"]} - {last, first["image_id"], third["image_id"]}
    assert f"masks, on {len(with_all_masks)} images" in said


@pytest.mark.slow
def test_a_training_from_a_checkpoint_of_other_classes(
    here: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--classes", "circle,star", "--weights", str(weights), "--steps", "1", "--lr", "0", "--name", "a", *SMALL]
    assert regio("train", "shapes", *words, *FEW) == 0
    said = "of 6 classes, these are 2 others; roi_heads.0.class_logits, roi_heads.0.box_deltas start anew"
    assert said in capsys.readouterr().out
    before, after = load_file(weights), load_file(here / "runs" / "a" / "weights" / "last.safetensors")
    new = {
        name for name in after if before[name].shape != after[name].shape or not torch.equal(before[name], after[name])
    }
    assert {name.rpartition(".")[0] for name in new} == {"roi_heads.0.class_logits", "roi_heads.0.box_deltas"}
    wrong = ["train", "shapes", "--classes", "circle", "--weights", str(weights), "channels=8", "hidden=32"]
    assert regio(*wrong) == 2
    assert "does not fit this detector" in capsys.readouterr().err


@pytest.mark.slow
def test_a_checkpoint_evaluated_on_data_without_its_classes(
    here: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco = Shapes(3).keep_classes(["circle"]).to_coco()
    for i, image in enumerate(coco["images"]):
        photo(here / image["file_name"], (image["width"], image["height"]))
        image["id"] = i
    coco["annotations"] = []
    coco["categories"][0]["name"] = "blob"
    (here / "data.json").write_text(json.dumps(coco))
    assert regio("val", "data.json") == 2
    path = weights.relative_to(here)
    expected = f"error: data.json, of which {path} knows no class: expected classes among circle, ring, "
    error = capsys.readouterr().err
    assert error.startswith(expected) and error.strip().endswith("got blob")


def test_json_that_is_not_coco(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "a.json").write_text('{"hello": 1}')
    assert regio("train", "a.json") == 2
    assert "a.json" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch has another OpenMP library there")
@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")],
)
@pytest.mark.slow
def test_waiting_threads_soon_sleep(environment: dict[str, str], expected: str) -> None:
    """As libgomp shows the settings that it has read; those of the user come first."""
    given = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")} | environment
    command = [sys.executable, "-c", "from regio.cli import main; import torch"]
    shown = subprocess.run(
        command, env=given | {"OMP_DISPLAY_ENV": "VERBOSE"}, capture_output=True, text=True, check=True
    )
    assert f"GOMP_SPINCOUNT = '{expected}'" in shown.stderr
