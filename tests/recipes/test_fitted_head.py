"""R-CNN's training, from images to a detector, in stages."""

import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from regio.backbones import Backbone, Level
from regio.checkpoints import load_all_but_classes
from regio.data import DetectionDataset, Shapes
from regio.detector import TwoStageDetector
from regio.evaluate import BoxEvaluator
from regio.fitting.extraction import open_store, store_features
from regio.progress import SilentProgress
from regio.recipes import FittedHead, StagedRun
from regio.roi_heads import FullyConnected
from regio.systems import rcnn
from regio.train import Interrupted
from regio.types import Regions
from tests.recipes.runs import staged


class Stages(nn.Module):
    """Convolutions to stride 8."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(i, o, 3, 2, 1), nn.ReLU()) for i, o in ((3, 8), (8, 16), (16, 16)))
        )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [self.layers(x)]


def network() -> Backbone:
    return Backbone(Stages(), [Level(3, 16, 8)], levels=(3,), mean=(0.5,) * 3, std=(0.25,) * 3)


def detector(**changes: object) -> TwoStageDetector:
    torch.manual_seed(0)
    layers = FullyConnected(16, (3, 3), 24)
    return rcnn(7, network(), layers, **({"crop": 32, "context": 3} | changes))  # type: ignore[arg-type]


def with_boxes(images: int, seed: int = 0) -> DetectionDataset:
    """Scenes with boxes near the objects and elsewhere; none in the second image."""
    data, proposals = Shapes(images, seed=seed), {}
    for number, record in enumerate(data.records):
        generator = np.random.default_rng((seed, record.id))
        near = np.repeat(record.boxes, 4, 0) + generator.normal(scale=4, size=(4 * len(record), 4))
        corner = generator.uniform(0, 60, (12, 2))
        far = np.concatenate([corner, corner + generator.uniform(10, 60, (12, 2))], 1)
        boxes = np.concatenate([near, far]).astype(np.float32)
        proposals[record.id] = boxes[(boxes[:, 2:] > boxes[:, :2] + 4).all(1)] if number != 1 else boxes[:0]
    return data.with_proposals(proposals)


def run(folder: Path, **options: Any) -> StagedRun:
    return staged(folder, with_boxes(6), with_boxes(3, seed=1), **options)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run that nothing stopped, and what it said."""
    folder, lines = tmp_path_factory.mktemp("straight"), list[str]()
    FittedHead()(detector(), run(folder, lines=lines))
    return folder, lines


def test_what_it_leaves_and_says(straight: tuple[Path, list[str]]) -> None:
    folder, lines = straight
    names = ["1-fine-tuning", "2-features", "3-svms", "4-boxes", "run.json"]
    assert sorted(path.name for path in (folder / "stages").iterdir()) == names
    assert not (folder / "features").exists()
    said = [line for line in lines if "of features on disk (6 images, " in line]
    assert len(said) == 1
    assert "regions, fc7 24, pool5 144, float16)" in said[0]
    assert any(line.startswith("pass 1 over 6 images: ") for line in lines)
    state = load_file(folder / "weights" / "last.safetensors")
    assert state["roi_heads.0.class_logits.weight"].any()
    assert state["roi_heads.0.box_deltas.weight"].any()


def test_the_network_is_tuned_once_and_then_fixed(straight: tuple[Path, list[str]]) -> None:
    folder, _ = straight
    first, tuned, last = (
        {key: value for key, value in state.items() if ".trunk." in key}
        for state in (
            detector().state_dict(),
            load_file(folder / "stages" / "1-fine-tuning" / "weights" / "last.safetensors"),
            load_file(folder / "weights" / "last.safetensors"),
        )
    )
    assert first.keys() == tuned.keys() == last.keys()
    assert all(torch.equal(last[key], value) for key, value in tuned.items())
    assert not any(torch.equal(tuned[key], value) for key, value in first.items())


def test_a_resumed_run_that_is_done_makes_nothing(straight: tuple[Path, list[str]]) -> None:
    folder, _ = straight
    made, lines = detector(), list[str]()
    FittedHead()(made, run(folder, resume=True, lines=lines))
    assert lines == [f"{name}: done before" for name in ("1-fine-tuning", "2-features", "3-svms", "4-boxes")]
    state = load_file(folder / "weights" / "last.safetensors")
    assert all(torch.equal(value, state[key]) for key, value in made.state_dict().items())


@dataclass
class KillAt(SilentProgress):
    """Sends itself SIGTERM when so many images are done."""

    images: int

    def evaluating(self, done: int, images: int) -> None:
        if done == self.images:
            os.kill(os.getpid(), signal.SIGTERM)


def test_it_goes_on_with_the_image_where_it_was_stopped(straight: tuple[Path, list[str]], tmp_path: Path) -> None:
    progress = iter([SilentProgress(), KillAt(4)])
    with pytest.raises(Interrupted, match="stopped with the features of 4 of 6 images; they are kept"):
        FittedHead(keep_features=True)(detector(), run(tmp_path, progress=lambda: next(progress)))
    lines: list[str] = []
    FittedHead(keep_features=True)(detector(), run(tmp_path, resume=True, lines=lines))
    assert lines[0] == "1-fine-tuning: done before"
    assert len(list((tmp_path / "features").iterdir())) == 1
    first, second = (load_file(f / "weights" / "last.safetensors") for f in (straight[0], tmp_path))
    assert all(torch.equal(first[key], value) for key, value in second.items())


def test_features_are_those_of_the_head(tmp_path: Path) -> None:
    """Of the objects and the proposals of each image, one image after the other."""
    made, data = detector().eval(), with_boxes(3)
    store = open_store(tmp_path, made, data, "float32")
    assert store_features(store, made, data)
    sample = data[2]
    assert sample.proposals is not None
    boxes = torch.cat([sample.targets.boxes, sample.proposals])
    batch, maps = made.features([sample.image])
    head = made.roi_heads[0]
    expected = head.trunk.layers(head.extractor(maps, Regions.from_list(made.preprocess.boxes([boxes], batch))))  # type: ignore[operator, union-attr]
    for name in ("fc7", "pool5"):
        found = torch.from_numpy(store.layer(name).of_image(2))
        torch.testing.assert_close(found, expected[name].detach(), rtol=1e-4, atol=1e-4)


def test_features_are_of_these_weights_and_this_data(tmp_path: Path) -> None:
    made, data = detector(), with_boxes(2)
    first = open_store(tmp_path, made, data)
    assert open_store(tmp_path, made, data).folder == first.folder
    fewer = data.with_proposals({record.id: np.zeros((0, 4), np.float32) for record in data.records})
    others = [open_store(tmp_path, made, fewer).folder, open_store(tmp_path, detector(context=4), data).folder]
    with torch.no_grad():
        made.roi_heads[0].trunk.fully_connected.fc6.bias[0] += 1  # type: ignore[union-attr, operator]
    others.append(open_store(tmp_path, made, data).folder)
    assert len({first.folder, *others}) == 4


def test_without_fine_tuning_and_without_boxes(tmp_path: Path) -> None:
    made = detector(layer="fc6", box_layer=None)
    before = {key: value.clone() for key, value in made.roi_heads[0].trunk.state_dict().items()}  # type: ignore[union-attr]
    made.roi_heads[0].thresholds.fill_(5.0)  # type: ignore[union-attr, operator]
    evaluation = FittedHead(fine_tune=False, candidates=None)(made, run(tmp_path))
    assert sorted(path.name for path in (tmp_path / "stages").iterdir()) == ["2-features", "3-svms", "run.json"]
    after = made.roi_heads[0].trunk.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert np.isfinite(evaluation.numbers["ap"])
    assert (made.roi_heads[0].thresholds == -torch.inf).all()


def test_a_class_without_an_example_is_said_and_not_detected(tmp_path: Path) -> None:
    lines: list[str] = []
    (name, *_), box = Shapes(1).class_names, np.array([[1, 1, 30, 30]], np.float32)
    records = [record.select(np.zeros(0, int), record.labels[:0]) for record in Shapes(2).records]
    empty = DetectionDataset((name,), (1,), records, read=lambda record: Shapes(2).read_image(record.id - 1))
    empty = empty.with_proposals({record.id: box for record in records})
    evaluator = BoxEvaluator(with_boxes(2).keep_classes((name,)))
    here = replace(run(tmp_path, lines=lines), dataset=empty, evaluator=evaluator)
    torch.manual_seed(0)
    made = rcnn(2, network(), FullyConnected(16, (3, 3), 24), crop=32, context=3)
    found = FittedHead(fine_tune=False)(made, here)
    assert f"not detected, since there is no training example: {name}" in lines
    assert f"boxes stay as they are, since no region has an IoU above 0.6 with an object: {name}" in lines
    assert all(not records for records in found.records)


def test_a_detector_of_other_classes_begins_with_its_weights(tmp_path: Path) -> None:
    """All but the SVMs, the regressions and the thresholds."""
    many, few = detector(), rcnn(3, network(), FullyConnected(16, (3, 3), 24), crop=32, context=3)
    layers = load_all_but_classes(many.state_dict(), few, "w.safetensors")
    assert layers == [f"roi_heads.0.{name}" for name in ("class_logits", "box_deltas", "thresholds")]
    state, own = many.state_dict(), few.state_dict()
    same = {key for key, value in own.items() if value.shape == state[key].shape and torch.equal(value, state[key])}
    assert {key.split(".")[2] for key in own.keys() - same} == {"class_logits", "box_deltas", "thresholds"}


def test_another_model_raises(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="model: expected a detector with an SVMHead, got Linear"):
        FittedHead()(nn.Linear(1, 1), run(tmp_path))
