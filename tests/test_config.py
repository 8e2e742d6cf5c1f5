"""Configuration by name and number."""

import json

import pytest
import torch
import yaml

from regio.checkpoints import Card, save
from regio.config import (
    EXTRACTORS,
    ModelConfig,
    RunConfig,
    build_detector,
    from_dict,
    load_detector,
    override,
    to_dict,
)
from regio.optimisation import SGD, Step
from regio.train import TrainConfig

RUN = RunConfig("photos", training=TrainConfig(optimizer=SGD(0.02), schedule=Step(7)), classes=("cat",))


def test_yaml_and_json_round_trip() -> None:
    assert from_dict(RunConfig, yaml.safe_load(yaml.safe_dump(to_dict(RUN)))) == RUN
    assert from_dict(RunConfig, json.loads(json.dumps(to_dict(RUN)))) == RUN


def test_overrides_reach_nested_settings() -> None:
    run = override(RUN, ["channels=64", "training.seed=3", "optimizer.lr=6e-4", "classes=[cat, dog]", "steps=10"])
    assert run.model.channels == 64
    assert run.training.seed == 3
    assert run.training.optimizer == SGD(6e-4)
    assert run.classes == ("cat", "dog")
    assert run.training.steps == 10
    assert override(RUN, ["clip_norm=null"]).training.clip_norm is None


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("channels", "channels: expected key=value"),
        ("chanels=3", "chanels: no such setting; did you mean channels"),
        ("channels=many", "channels: expected a value like 128, got 'many'"),
        ("flip=yes", "flip: expected a value like 0.5, got True"),
    ],
)
def test_wrong_overrides(assignment: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        override(RUN, [assignment])


def test_unknown_keys_and_names() -> None:
    with pytest.raises(ValueError, match=r"ModelConfig: expected settings among .*got \['colour'\]"):
        from_dict(ModelConfig, {"colour": 1})
    with pytest.raises(ValueError, match="extractor: expected one of roi-pool, roi-average-pool, .*, got 'roi'"):
        build_detector(ModelConfig(extractor="roi"), 2)
    with pytest.raises(ValueError, match="neck: expected one of single, fpn, got 'pyramid'"):
        build_detector(ModelConfig(neck="pyramid"), 2)


def test_missing_weights_name_the_setting() -> None:
    with pytest.raises(FileNotFoundError, match=r"^backbone_weights: .*none\.pth"):
        build_detector(ModelConfig(backbone_weights="none.pth"), 2)


@pytest.mark.parametrize("neck", ["single", "fpn"])
@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_every_name_builds_a_detector_that_detects(extractor: str, neck: str) -> None:
    config = ModelConfig(extractor=extractor, neck=neck, channels=16, hidden=32, short_side=64, long_side=96)
    torch.manual_seed(0)
    detector = build_detector(config, 3)
    with torch.no_grad():
        (found,) = detector([torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8)])
    assert found.boxes.shape == (len(found), 4)
    assert found.labels.tolist() == [label for label in found.labels.tolist() if 1 <= label <= 3]


def test_a_detector_comes_back_from_its_checkpoint(tmp_path) -> None:  # type: ignore[no-untyped-def]
    config = ModelConfig(channels=16, hidden=32, short_side=64, long_side=96, score_threshold=0.0)
    detector = build_detector(config, 2)
    save(tmp_path / "a.safetensors", detector, Card(("cat", "dog"), model=to_dict(config)))
    again, card = load_detector(tmp_path / "a.safetensors")
    assert card.class_names == ("cat", "dog")
    image = torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8)
    with torch.no_grad():
        (a,), (b,) = detector([image]), again([image])
    assert len(a) > 0
    assert torch.equal(a.boxes, b.boxes)
    assert torch.equal(a.scores, b.scores)
    again, _ = load_detector(tmp_path / "a.safetensors", score_threshold=0.9)
    assert again.roi_heads[0].postprocess.score_threshold == 0.9
    save(tmp_path / "b.safetensors", detector, Card(("cat", "dog")))
    with pytest.raises(ValueError, match="its card has no configuration"):
        load_detector(tmp_path / "b.safetensors")
