"""`regio analyse` as a person types it, on real photos."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from regio.checkpoints import Card, save
from regio.config import EXTRACTORS, model_to_dict
from regio.config.systems import FasterRCNNOnFPN, RPNOnFPN
from regio.data import SHAPE_CLASSES
from regio.regions import DeformableRoIPool
from tests.test_cli import SMALL, regio

TINY = [*SMALL, "batch_size=2", "validation_images=2", "images=8", "embedding_channels=16", "key_channels=8"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory, and a terminal wide enough for one line an error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "250")
    return tmp_path


def train(data: Path | str, name: str, *words: str, extractor: str = "learned") -> int:
    own = [word for word in TINY if extractor == "learned" or "_channels" not in word]
    return regio("train", str(data), "--name", name, "--extractor", extractor, "--steps", "3", *own, *words)


@pytest.mark.slow
def test_runs_are_measured_and_drawn(here: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two trainings on photos of COCO, whose extractors are measured on the same objects."""
    photos = shared_data / "coco_s320"
    assert train(photos, "learned", "keep_every=2", "--classes", "person,bus") == 0
    assert train(photos, "deformable", "keep_every=3", "--classes", "person,bus", extractor="deformable-roi-pool") == 0
    capsys.readouterr()
    masks = str(photos / "annotations" / "masks_val.json")
    runs = ("runs/learned", "runs/deformable")
    assert regio("analyse", *runs, "--data", masks, "--images", "3", "--output", "out", "--dpi", "50") == 0
    printed = capsys.readouterr().out
    assert "learned: steps 0, 2, 3" in printed and "deformable: steps 0, 3" in printed
    assert "roi_heads.0.extractor" in printed and "no offsets of pooling" in printed and "Effective" not in printed
    pictures = {"weights-learned.png", "weights-deformable.png", "divergence.png", "offsets.png"}
    tables = {"divergence.csv", "offsets.csv", "without-offsets.csv"}
    assert {path.name for path in Path("out").iterdir()} == pictures | tables
    for name in pictures:
        with Image.open(Path("out") / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 10
    with Path("out/divergence.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    steps = {(row["run"], int(row["step"])) for row in rows}
    assert steps == {("learned", 0), ("learned", 2), ("learned", 3), ("deformable", 0), ("deformable", 3)}
    assert {row["measure"] for row in rows} == {"between_parts", "of_mask"}
    counts = {(row["measure"], row["size"]): row["objects"] for row in rows if row["run"] == "learned"}
    same = {(row["measure"], row["size"]): row["objects"] for row in rows if row["run"] == "deformable"}
    assert counts == same and sum(int(n) for (m, _), n in counts.items() if m == "between_parts") > 3
    assert all(0 <= float(row["mean"]) < 27.7 for row in rows)


def test_a_detector_without_extractor_and_deformable_layers_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A proposal network, as a checkpoint alone; from where there is no data set to measure it on, either."""
    model = RPNOnFPN(channels=8, short_side=64, long_side=96)
    card = Card(SHAPE_CLASSES, tuple(range(1, 7)), model_to_dict(model), step=3)
    save(here / "rpn.safetensors", model.build(6, pretrained=False), card)
    for words, message in (
        (("--data", "shapes"), "rpn.safetensors: expected deformable layers, or an extractor of up to 1024 parts, got"),
        ((), "--data: expected a data set, as rpn.safetensors is not in the folder of a run"),
    ):
        assert regio("analyse", "rpn.safetensors", *words, "--output", "out") == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert not Path("out").exists()


@pytest.mark.slow
def test_a_checkpoint_alone_is_measured(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On scenes; pooling that moves each part of a box by a tenth of its width, and new deformable layers of 5 x 5 and
    3 x 3 taps on the backbone's last map, without offsets."""
    model = FasterRCNNOnFPN(
        channels=8, hidden=16, short_side=64, long_side=96, extractor=EXTRACTORS["deformable-roi-pool"](),
        deformable_layers=2,
    )  # fmt: skip
    torch.manual_seed(0)
    made = model.build(6, pretrained=False)
    pool = next(each for each in made.modules() if isinstance(each, DeformableRoIPool))
    torch.nn.init.constant_(pool.offset.bias[:49], 1.0)
    card = Card(SHAPE_CLASSES, tuple(range(1, 7)), model_to_dict(model), step=3)
    save(here / "moved.safetensors", made, card)
    words = ("--data", "shapes", "--images", "2", "--dpi", "40", "--output", "out")
    assert regio("analyse", "moved.safetensors", *words) == 0
    printed = capsys.readouterr().out
    assert "moved: steps 3" in printed and "With and without offsets, on 2 photos with objects" in printed
    with Path("out/offsets.csv").open(newline="") as file:
        first, second, row = csv.DictReader(file)
    assert (row["run"], row["step"]) == ("moved", "3") and 0.05 < float(row["mean"]) < 5
    assert float(first["mean"]) == float(second["mean"]) == 0 and first["layer"] != second["layer"]
    with Path("out/dilation.csv").open(newline="") as file:
        dilations = list(csv.DictReader(file))
    assert {row["layer"] for row in dilations} == {first["layer"], second["layer"]}
    assert {float(row["mean"]) for row in dilations} == {1} and {row["step"] for row in dilations} == {"3"}
    assert "Effective dilation" in printed and "5.3 ± 3.3" in printed
    with Path("out/without-offsets.csv").open(newline="") as file:
        found = {(row["offsets"], row["measure"]) for row in csv.DictReader(file)}
    assert {row[0] for row in found} == {
        "as trained", "no offsets of convolutions", "no offsets of pooling", "no offsets"
    }  # fmt: skip
    assert {"ap", "voc_ap"} <= {row[1] for row in found}
    with Image.open("out/points-moved.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10


@pytest.mark.slow
def test_runs_of_other_classes_are_measured_on_those_that_they_share(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The photos have the classes of the first run. A run that knows none of them is named before any is measured."""
    first, *others = SHAPE_CLASSES
    for name, classes in {"all": SHAPE_CLASSES, "some": ("kite", first), "none": ("kite", "boat")}.items():
        model = FasterRCNNOnFPN(channels=8, hidden=16, short_side=64, long_side=96, deformable_layers=1)
        card = Card(classes, tuple(range(1, len(classes) + 1)), model_to_dict(model), step=3)
        save(here / f"{name}.safetensors", model.build(len(classes), pretrained=False), card)
    words = ("--data", "shapes", "--images", "1", "--dpi", "40", "--output", "out")
    assert regio("analyse", "all.safetensors", "none.safetensors", *words) == 2
    out, error = capsys.readouterr()
    known = "expected classes among kite, boat, got " + ", ".join(SHAPE_CLASSES)
    assert f"none.safetensors, which knows no class of the photos: {known}" in error and error.count("\n") == 1
    assert "steps" not in out and not Path("out").exists()
    assert regio("analyse", "all.safetensors", "some.safetensors", *words) == 0
    unknown = f"some: not measured, since the detector does not know them: {', '.join(others)}"
    assert unknown in capsys.readouterr().out
    with Path("out/without-offsets.csv").open(newline="") as file:
        assert {row["run"] for row in csv.DictReader(file)} == {"all", "some"}


@pytest.mark.slow
def test_mistakes_are_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("shapes", "none") == 0
    assert train("shapes", "kept", "keep_every=3") == 0
    capsys.readouterr()
    for words, message in [
        (("runs/none",), "runs/none/weights: no checkpoint of a step; train with keep_every=N"),
        (("runs/nowhere",), "runs/nowhere/weights: no checkpoint of a step"),
        (("runs/kept", "runs/kept"), "RUNS: expected folders of different names, got runs/kept, runs/kept"),
        (("runs/kept", "--parts", "1,two"), "--parts: expected whole numbers with commas between them, got '1,two'"),
        (("runs/kept", "--parts", "50"), "parts: expected 0 .. 48, got 49"),
        (("runs/kept", "--objects", "cat.jpg"), "objects: expected an image of the name cat.jpg"),
        (("runs/kept", "--split", "val"), "--split: expected --data, of which it is a part"),
    ]:
        assert regio("analyse", *words, "--output", "out") == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert not Path("out").exists()
    assert regio("analyse", "runs/kept", "--images", "1", "--dpi", "40") == 0  # the images that it was evaluated on
    assert (Path("runs") / "analyse" / "divergence.csv").is_file()
