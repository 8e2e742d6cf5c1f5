"""`regio explain` as a person types it."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from regio.checkpoints import Card, save
from regio.cli import main
from regio.cli.explain import parse_box, parse_place
from regio.config import EXTRACTORS, model_to_dict
from regio.config.systems import FasterRCNNOnFPN, FastRCNNOnFPN
from regio.data import SHAPE_CLASSES, Shapes
from regio.regions import LearnedRegionFeatures, RegionExtractor, RoIAlign, WarpedCrop
from regio.regions.deformable import DeformableRoIPool
from regio.types import FeatureMap
from regio.visualize.explain import ReadBox, pictures


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A scene of 96 x 128 pixels in an empty current directory, and a terminal wide enough for one line an error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "250")
    scene = Image.fromarray(Shapes(1, seed=3)[0].image.permute(1, 2, 0).numpy())
    scene.resize((128, 96)).save("scene.png")
    return "scene.png"


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


def checkpoint(extractor: str, deformable_layers: int = 0) -> str:
    """An untrained detector of shapes with small maps."""
    torch.manual_seed(0)
    model = FasterRCNNOnFPN(
        channels=16, hidden=32, short_side=64, long_side=96, extractor=EXTRACTORS[extractor](),
        deformable_layers=deformable_layers,
    )  # fmt: skip
    path = Path(f"{extractor}.safetensors")
    save(path, model.build(len(SHAPE_CLASSES)), Card(SHAPE_CLASSES, tuple(range(1, 7)), model_to_dict(model)))
    return str(path)


def written(folder: str) -> set[str]:
    """Names of the pictures, each of which must show something."""
    for path in Path(folder).iterdir():
        with Image.open(path) as picture:
            assert np.asarray(picture.convert("L")).std() > 10
    return {path.name for path in Path(folder).iterdir()}


def test_a_new_extractor_reads_imagenet_features(photo: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("explain", photo, "--box", "20,10,70,80", "--extractor", "roi-align", "--output", "out", "--dpi", "50")
    assert regio(*words) == 0
    assert written("out") == {"weights.png", "rounding.png"}
    assert "weights.png, rounding.png in out" in capsys.readouterr().out


@pytest.mark.slow
def test_learned_features_have_their_terms_drawn(photo: str) -> None:
    weights = checkpoint("learned")
    assert regio("explain", photo, "--box", "20,10,70,80", "--weights", weights, "--dpi", "50") == 0
    assert regio("explain", photo, "--box", "20,10,70,80", "--weights", weights, "--dpi", "50") == 0
    pictures = {"weights.png", "rounding.png", "terms.png", "bins.png"}
    assert written("runs/explain") == written("runs/explain-2") == pictures


@pytest.mark.slow
def test_deformable_layers_have_their_points_drawn(photo: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With places or what is found, with a box or without."""
    weights = checkpoint("roi-align", deformable_layers=2)
    assert regio("explain", photo, "--weights", weights, "--output", "found", "--dpi", "40") == 0
    places = ("--at", "10,20", "--at", "100.5,60")
    box = ("--box", "20,10,70,80")
    assert regio("explain", photo, "--weights", weights, *places, *box, "--output", "given", "--dpi", "40") == 0
    assert written("found") == {"sampling-points.png"}
    assert written("given") == {"sampling-points.png", "weights.png", "rounding.png"}
    assert "sampling-points.png in found" in capsys.readouterr().out


@pytest.mark.slow
def test_a_box_without_places_has_the_points_of_its_centre(photo: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Also of a detector that finds nothing, or is given boxes, of which without a box a place is asked for."""
    model = FastRCNNOnFPN(channels=16, hidden=32, short_side=64, long_side=96, deformable_layers=1)
    card = Card(SHAPE_CLASSES, tuple(range(1, 7)), model_to_dict(model))
    save(Path("given.safetensors"), model.build(len(SHAPE_CLASSES), pretrained=False), card)
    words = ("explain", photo, "--weights", "given.safetensors", "--dpi", "40", "--output", "out")
    assert regio(*words, "--box", "20,10,70,80") == 0
    assert written("out") == {"sampling-points.png", "weights.png", "rounding.png"}
    capsys.readouterr()
    assert regio(*words) == 2
    assert "--at: expected places x,y, since given.safetensors finds no boxes by itself" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ("1,2,3", "--box: expected four numbers x1,y1,x2,y2, got '1,2,3'"),
        ("1,2,3,tall", "--box: expected four numbers x1,y1,x2,y2, got '1,2,3,tall'"),
        ("1,2,3,nan", "--box: expected x1 < x2 and y1 < y2, got '1,2,3,nan'"),
        ("9,2,3,8", "--box: expected x1 < x2 and y1 < y2, got '9,2,3,8'"),
        ("9,2,129,8", "--box: expected a box in the image, 0,0,128,96, got '9,2,129,8'"),
        ("9,-1,20,8", "--box: expected a box in the image, 0,0,128,96, got '9,-1,20,8'"),
    ],
)
def test_boxes_that_are_refused(photo: str, capsys: pytest.CaptureFixture[str], box: str, message: str) -> None:
    assert regio("explain", photo, f"--box={box}", "--extractor", "roi-align") == 2
    assert message in capsys.readouterr().err
    assert not Path("runs").exists()


def test_boxes_are_read_as_typed() -> None:
    assert parse_box("0, 1.5,128,96", (96, 128)) == (0, 1.5, 128, 96)


def test_places_are_read_as_typed() -> None:
    assert parse_place("0, 95.5", (96, 128)) == (0, 95.5)
    for text, message in (
        ("1", "--at: expected two numbers x,y, got '1'"),
        ("1,up", "--at: expected two numbers x,y, got '1,up'"),
        ("128,2", "--at: expected a place in the image, 0,0 to 128,96, got '128,2'"),
        ("nan,2", "--at: expected a place in the image, 0,0 to 128,96, got 'nan,2'"),
    ):
        with pytest.raises(ValueError) as error:
            parse_place(text, (96, 128))
        assert str(error.value) == message


def test_other_mistakes_are_named(photo: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("text.jpg").write_text("no image")
    Path("text.safetensors").write_text("no weights")
    weights = checkpoint("roi-align")
    box = ("--box", "20,10,70,80")
    for words, message in [
        ((photo, *box), "extractor: expected one of roi-pool, "),
        ((photo, *box, "--extractor", "roi-bool"), "extractor: expected one of roi-pool, "),
        ((photo, *box, "--weights", weights, "--extractor", "roi-bool"), "extractor: expected one of roi-pool, "),
        (
            (photo, *box, "--weights", weights, "--extractor", "learned"),
            "roi-align.safetensors: its extractor is roi-align, not learned",
        ),
        ((photo, "--extractor", "roi-align"), "--box: expected x1,y1,x2,y2, or a checkpoint with deformable layers"),
        ((photo, "--weights", weights), "--box: expected x1,y1,x2,y2, since roi-align.safetensors has no deformable"),
        ((photo, *box, "--extractor", "roi-align", "--at", "3,4"), "--at: expected a checkpoint with deformable"),
        ((photo, *box, "--weights", weights, "--at", "3,4"), "roi-align.safetensors has none"),
        ((photo, *box, "--weights", weights, "--at", "300,4"), "--at: expected a place in the image, 0,0 to 128,96"),
        (("text.jpg", *box, "--extractor", "roi-align"), "text.jpg: cannot be read as an image"),
        (("none.jpg", *box, "--extractor", "roi-align"), "none.jpg: no such image file"),
        ((photo, *box, "--weights", "none.safetensors"), "none.safetensors"),
        ((photo, *box, "--weights", "text.safetensors"), "text.safetensors"),
    ]:
        assert regio("explain", *words) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("extractor", "expected"),
    [
        (RoIAlign(1), {"weights.png", "rounding.png"}),
        (DeformableRoIPool(RoIAlign((3, 2)), 4), {"weights.png", "rounding.png", "offsets.png", "bins.png"}),
        (LearnedRegionFeatures(4, 2, 16, 8, appearance=False), {"weights.png", "rounding.png"}),
        (LearnedRegionFeatures(4, 2, 16, 8), {"weights.png", "rounding.png", "terms.png"}),
    ],
    ids=["one part", "deformable", "one term", "both terms"],
)
def test_an_extractor_has_the_pictures_that_fit_it(extractor: RegionExtractor, expected: set[str]) -> None:
    image = torch.zeros(3, 60, 80, dtype=torch.uint8)
    x = FeatureMap(torch.rand(1, 4, 8, 10, generator=torch.Generator().manual_seed(0)), stride=8)
    found = pictures(ReadBox(image, (10.0, 10.0, 50.0, 40.0), x, extractor, "name", "a source"))
    assert set(found) == expected


def test_terms_are_drawn_without_changing_the_extractor() -> None:
    """Alone, each term gives another map than both do; afterwards the extractor still has both."""
    torch.manual_seed(0)
    extractor = LearnedRegionFeatures(4, 2, 16, 8)
    for parameter in extractor.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = FeatureMap(torch.rand(1, 4, 8, 10), stride=8)
    image = torch.zeros(3, 64, 80, dtype=torch.uint8)
    reading = ReadBox(image, (10.0, 10.0, 50.0, 40.0), x, extractor, "name", "a source")
    before = extractor.weights(x, reading.regions)
    maps = [np.asarray(axes.images[1].get_array()) for axes in pictures(reading)["terms.png"].axes[:3]]
    both = before.detach()[0, 0].amax(0).double().numpy()
    np.testing.assert_allclose(maps[2], both / both.max(), rtol=1e-6)
    assert np.abs(maps[0] - maps[2]).max() > 0.1 and np.abs(maps[1] - maps[2]).max() > 0.1
    assert torch.equal(extractor.weights(x, reading.regions), before)


def test_the_crop_of_r_cnn_is_not_drawn() -> None:
    """Its 51,529 parts have a weight for each pixel of the image, gigabytes of them."""
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    x = FeatureMap(torch.zeros(1, 3, 64, 64), 1)
    read = ReadBox(image, (4.0, 4.0, 20.0, 20.0), x, WarpedCrop(), "WarpedCrop", "a.safetensors")
    with pytest.raises(ValueError, match="a.safetensors: expected an extractor of up to 1024 parts, got WarpedCrop of"):
        pictures(read)
