"""SPPnet: its detector, and the training of its layers for classification."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F

from regio.data import DetectionDataset, Shapes, object_crops, read_class_folders
from regio.data.records import Annotation, Record
from regio.detector import TwoStageDetector
from regio.evaluate import ClassAccuracy
from regio.image_pyramid import ImagePyramid
from regio.optimisation import AdamW
from regio.recipes import ClassifierFirst, FittedHead
from regio.regions import NearestScale, SPPNetReleasedCorners
from regio.roi_heads import FullyConnected
from regio.spatial_pyramid_classifier import SpatialPyramidClassifier
from regio.systems import rcnn, sppnet
from regio.train import train
from regio.types import FeatureMap, Regions, Targets
from tests.recipes.runs import CONFIG
from tests.recipes.test_fitted_head import network, run


def small(sides: tuple[int, ...] = (64, 96), **changes: object) -> TwoStageDetector:
    torch.manual_seed(0)
    return sppnet(7, network(), levels=(2, 1), sides=sides, long_side=200, hidden=24, **changes)  # type: ignore[arg-type]


def classifier(**changes: object) -> SpatialPyramidClassifier:
    torch.manual_seed(0)
    options = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "levels": (2, 1), "sides": (48,)} | changes
    return SpatialPyramidClassifier(network(), FullyConnected(16, (5, 1), 24), 6, **options)  # type: ignore[arg-type]


def test_boxes_are_read_at_the_scale_that_fits_them() -> None:
    """With sides 64 and 96 of images of 48, a box of 224 / 4 pixels in the batch at the larger is read from the
    larger, one of 336 pixels from the smaller."""
    made = small().eval()
    assert isinstance(made.backbone, ImagePyramid)
    _, maps = made.features([torch.randint(0, 256, (3, 48, 60), dtype=torch.uint8)])
    assert [x.stride for x in maps] == [8, 12]
    boxes = torch.tensor([[0, 0, 224.0, 224], [0, 0, 336, 336]])
    levels = made.roi_heads[0].extractor
    assert levels.assign(maps, Regions(boxes, torch.zeros(2, dtype=torch.int64))).tolist() == [0, 1]  # type: ignore[operator, union-attr]
    other = small(rule=NearestScale(208, 8), corners=SPPNetReleasedCorners(stride=8))
    assert other.roi_heads[0].extractor.rule == NearestScale(208, 8)  # type: ignore[union-attr]


def test_one_side_is_a_plain_network() -> None:
    made = small((64,)).eval()
    image, boxes = torch.randint(0, 256, (3, 48, 60), dtype=torch.uint8), torch.tensor([[3.0, 4, 40, 40]])
    head = made.roi_heads[0]
    head.class_logits.bias.data.fill_(0.5)  # type: ignore[operator, union-attr]
    (found,) = made([image], [boxes])
    assert len(found) == 6
    torch.testing.assert_close(found.boxes, boxes.expand(6, 4))


def test_layers_for_another_pyramid_raise() -> None:
    with pytest.raises(ValueError, match=r"fully_connected: expected layers for 16 channels and \(50, 1\) bins"):
        sppnet(7, network(), FullyConnected(16, (5, 1), 24))


def test_the_paper_has_fifty_bins() -> None:
    made = sppnet(7, network(), hidden=8)
    assert made.roi_heads[0].trunk.widths == {"pool5": 800, "fc6": 8, "fc7": 8}  # type: ignore[union-attr]


def test_it_is_trained_in_stages_with_its_convolutions_fixed(tmp_path: Path) -> None:
    made = small(box_layer=None)
    before = {key: value.clone() for key, value in made.state_dict().items()}
    FittedHead(background_low=0.1)(made, run(tmp_path))
    changed = {key for key, value in made.state_dict().items() if not torch.equal(value, before[key])}
    assert {key.split(".")[0] for key in changed} == {"roi_heads"}
    assert "roi_heads.0.trunk.fc6.weight" in changed
    assert all(p.requires_grad for p in made.backbone.parameters())
    assert made.backbone.training


def test_classification_comes_first(tmp_path: Path) -> None:
    """With two sides; what it has learnt is what the next stage begins with."""
    made = small(box_layer=None)
    before = {key: value.clone() for key, value in made.state_dict().items()}
    lines: list[str] = []
    ClassifierFirst((40, 32), FittedHead(fine_tune=False))(made, run(tmp_path, lines=lines))
    assert [line for line in lines if line[:2] in ("0-", "2-", "3-")] == ["0-classification", "2-features", "3-svms"]
    changed = {key for key, value in made.state_dict().items() if not torch.equal(value, before[key])}
    assert any(key.startswith("backbone.backbone.") for key in changed)
    assert "roi_heads.0.trunk.fc6.weight" in changed
    again: list[str] = []
    other = small(box_layer=None)
    ClassifierFirst((40, 32), FittedHead(fine_tune=False))(other, run(tmp_path, resume=True, lines=again))
    assert again == [f"{name}: done before" for name in ("0-classification", "2-features", "3-svms")]
    for key, value in made.state_dict().items():
        assert torch.equal(value, other.state_dict()[key])


def test_only_sppnets_are_classifiers_first(tmp_path: Path) -> None:
    layers = FullyConnected(16, (3, 3), 24)
    with pytest.raises(TypeError, match="model: expected an SPPnet, got a detector that reads regions by WarpedCrop"):
        ClassifierFirst((40,), FittedHead())(rcnn(7, network(), layers, crop=32, context=3), run(tmp_path))
    with pytest.raises(TypeError, match="model: expected an SPPnet, got Linear"):
        ClassifierFirst((40,), FittedHead())(torch.nn.Linear(1, 1), run(tmp_path))


def test_pooling_of_the_whole_map_is_max_pooling_by_windows() -> None:
    """SPPnet, section 2.3: windows of ceil(a / n) every floor(a / n); 13 cells in 6 bins: 3 every 2."""
    made = classifier(levels=(6, 3, 2, 1))
    x = torch.randn(2, 4, 13, 13)
    y = made.pool(FeatureMap(x, 8), Regions(torch.tensor([[0, 0, 104.0, 104]] * 2), torch.arange(2)))[..., 0]
    expected = [F.max_pool2d(x, math.ceil(13 / n), 13 // n)[:, :, :n, :n].flatten(2) for n in (6, 3, 2, 1)]
    assert torch.equal(y, torch.cat(expected, 2))


def test_sizes_alternate_by_epoch_and_share_all_weights() -> None:
    made = classifier(sides=(48, 40), switch_every=4)
    images = [torch.randint(0, 256, (3, 30, 50), dtype=torch.uint8)] * 2
    targets = [Targets(torch.tensor([[0.0, 0, 50, 30]]), torch.tensor([label])) for label in (3, 6)]
    sides = []
    for _ in range(6):
        sides.append(made.side)
        made.losses(images, targets)["class"].backward()
    assert sides == [48, 48, 40, 40, 48, 48]
    assert int(made.seen) == 12
    assert not torch.allclose(made.logits(images, 48), made.logits(images, 40))
    expected = F.cross_entropy(made.logits(images, 48), torch.tensor([2, 5]))
    made.seen.zero_()
    torch.testing.assert_close(made.losses(images, targets)["class"], expected)
    assert [scores.shape for scores in made(images)] == [(6,)] * 2
    assert float(made(images)[0].detach().sum()) == pytest.approx(1)


def test_sizes_alternate_by_the_images_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    made = classifier(sides=(48, 40), switch_every=4)
    sides = []
    for _ in range(4):
        sides.append(made.side)
        made.losses([torch.zeros(3, 30, 50, dtype=torch.uint8)], [Targets(torch.ones(1, 4), torch.tensor([1]))])
    assert sides == [48, 48, 40, 40]


@pytest.mark.parametrize("sides", [(), (0,), (224, -1)])
def test_bad_sides_raise(sides: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="sides: expected positive numbers of pixels"):
        classifier(sides=sides)


def coloured(record: Record) -> torch.Tensor:
    """A red image for the first class, a blue one for the second."""
    image = torch.full((3, *record.size), 30, dtype=torch.uint8)
    image[0 if record.labels[0] == 1 else 2] = 220
    return image


def test_a_classifier_is_trained_like_a_detector(tmp_path: Path) -> None:
    """It learns to name the objects that it sees, in both sizes; how many it has seen is saved."""
    whole = (0.0, 0.0, 40.0, 40.0)
    records = [
        Record.of(i, Path(f"{i}.png"), f"{i}.png", (40, 40), [Annotation(i, whole, 1 + i % 2, 1600.0)])
        for i in range(1, 9)
    ]
    crops = object_crops(DetectionDataset(("red", "blue"), (1, 2), records, read=coloured))
    torch.manual_seed(0)
    made = SpatialPyramidClassifier(
        network(), FullyConnected(16, (5, 1), 24), 2, mean=(0.5,) * 3, std=(0.25,) * 3, levels=(2, 1),
        sides=(48, 40), switch_every=len(crops),
    )  # fmt: skip
    config = replace(CONFIG, steps=20, batch_size=8, optimizer=AdamW(1e-2))
    assert train(made, crops, ClassAccuracy(crops), config, tmp_path).numbers == {"accuracy": 1, "class_accuracy": 1}
    assert int(load_file(tmp_path / "weights" / "resume.safetensors")["model.seen"]) == 20 * 8


def test_crops_of_objects() -> None:
    data = Shapes(3)
    crops = object_crops(data)
    expected = [(r, row) for r in data.records for row in range(len(r)) if min(sides(r, row)) >= 16]
    assert len(crops) == len(expected)
    index = len(crops) - 1
    record, row = expected[-1]
    sample = crops[index]
    x1, y1, x2, y2 = record.boxes[row]
    left, top, right, bottom = math.floor(x1), math.floor(y1), math.ceil(x2), math.ceil(y2)
    assert torch.equal(sample.image, data[len(data) - 1].image[:, top:bottom, left:right])
    assert sample.targets.labels.tolist() == [record.labels[row]]
    assert sample.targets.boxes.tolist() == [[0, 0, right - left, bottom - top]]
    assert crops.class_names == data.class_names


def sides(record: Record, row: int) -> tuple[float, float]:
    x1, y1, x2, y2 = record.boxes[row].tolist()
    return x2 - x1, y2 - y1


def test_small_objects_and_groups_are_not_cropped() -> None:
    objects = [
        Annotation(1, (0.0, 0.0, 10.0, 50.0), 1, 500.0),
        Annotation(2, (0.0, 0.0, 60.0, 60.0), 1, 3600.0, crowd=True),
        Annotation(3, (10.5, 10.5, 63.9, 64.0), 1, 2800.0),
    ]
    record = Record.of(5, Path("a.jpg"), "a.jpg", (64, 64), objects)
    data = DetectionDataset(("cat",), (1,), [record], read=lambda r: torch.arange(3 * 64 * 64).reshape(3, 64, 64))
    crops = object_crops(data)
    assert [(each.name, each.size) for each in crops.records] == [("a.jpg#3", (54, 54))]
    assert crops.notes == ("1 objects with a side under 16 pixels are not cropped",)
    assert int(crops[0].image[0, 0, 0]) == 10 * 64 + 10
    with pytest.raises(ValueError, match="dataset: expected objects of 100 pixels a side or more, got none"):
        object_crops(data, min_side=100)


def test_folders_of_classes(tmp_path: Path) -> None:
    for name in ("dog/b.png", "dog/a.png", "cat/c.png", "cat/notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if path.suffix == ".txt":
            path.write_text("no image")
        else:
            Image.fromarray(np.full((8, 12, 3), len(name), np.uint8)).save(path)
    (tmp_path / "empty").mkdir()
    data = read_class_folders(tmp_path)
    assert data.class_names == ("cat", "dog")
    assert [record.name for record in data.records] == ["cat/c.png", "dog/a.png", "dog/b.png"]
    sample = data[2]
    assert sample.image.shape == (3, 8, 12)
    assert sample.targets.labels.tolist() == [2]
    assert sample.targets.boxes.tolist() == [[0, 0, 12, 8]]
    with pytest.raises(ValueError, match="expected folders of classes with images in them, got none"):
        read_class_folders(tmp_path / "empty")


def test_accuracy_by_class() -> None:
    evaluator = ClassAccuracy(Shapes(1))
    records = [(1, True), (1, True), (1, False), (2, False)]
    numbers = evaluator.measure(records)
    assert numbers["accuracy"] == 0.5
    assert numbers["class_accuracy"] == pytest.approx(1 / 3)
    assert math.isnan(evaluator.measure([])["accuracy"])
