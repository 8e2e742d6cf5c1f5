"""Choice by name and number."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from regio.checkpoints import Card, save
from regio.config import (
    EXTRACTORS,
    SYSTEMS,
    RunConfig,
    TrainConfig,
    load_detector,
    model_from_dict,
    model_to_dict,
    read_config,
)
from regio.config.extractors import DeformableRoIPool, Learned, RoIAlign, RoIPool
from regio.config.systems import RPN, FasterRCNN, FasterRCNNOnFPN
from regio.optimisation import SGD, AdamW, Step
from regio.regions import BoxSupport, DeformablePrior, GridPrior, LearnedRegionFeatures, RoIAlignPrior, Sampled
from regio.settings import UnknownSetting, as_dict, from_dict, override, settings_of
from regio.yaml_text import as_yaml

RUN = RunConfig("photos", training=TrainConfig(optimizer=SGD(0.02), schedule=Step(7)), classes=("cat",))
SMALL = {"channels": 32, "short_side": 64, "long_side": 96}


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_yaml_and_json_round_trip(system: str, extractor: str) -> None:
    run = replace(RUN, model=SYSTEMS[system]())
    if hasattr(run.model, "extractor"):
        run = override(run, [f"extractor={extractor}"])
        assert type(run.model.extractor) is EXTRACTORS[extractor]
    assert from_dict(RunConfig, yaml.safe_load(as_yaml(as_dict(run)))) == run
    assert from_dict(RunConfig, json.loads(json.dumps(as_dict(run)))) == run
    assert model_from_dict(model_to_dict(run.model)) == run.model


def test_a_file_may_hold_some_settings(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("model: {name: faster-rcnn, extractor: roi-pool, channels: 64}\ntraining: {optimizer: sgd}\n")
    run = read_config(file)
    assert run == RunConfig(model=FasterRCNN(extractor=RoIPool(), channels=64), training=TrainConfig(optimizer=SGD()))
    file.write_text("training: {optimizer: {name: adamw, lr: 6e-4, weight_decay: 2E-2}}")
    assert read_config(file).training.optimizer == AdamW(6e-4, 0.02)
    for text, message in {
        "model: {name: faster-rcnn, chanels: 3}": "model.chanels: no such setting; did you mean channels?",
        "model: {extractor: roi-pool}": "model: expected one of faster-rcnn-fpn, .*, got ",
        "model: faster": "model: expected one of faster-rcnn-fpn, .*, got 'faster'",
        "training: 3": "training: expected settings by name, got 3",
        "training: {steps: 1.5}": "training.steps: expected a whole number or null >= 1, got 1.5",
        "training: {steps: 0}": "training.steps: expected a whole number or null >= 1, got 0",
        "training: {clip_norm: -1}": "training.clip_norm: expected a number or null > 0, got -1",
        "classes: [cat, 3]": "classes: expected a list .word, ...., got .'cat', 3.",
        "model: {name: rpn, anchor_sizes: [a]}": "model.anchor_sizes: expected a list .number, ...., got .'a'.",
        "flip: .nan": "flip: expected a number >= 0 and <= 1, got nan",
        "model: {name: rpn, anchor_sizes: [.nan]}": "model.anchor_sizes: expected a list .number, ...., got .nan.",
        "training: {optimizer: {name: adamw, lr: .inf}}": "training.optimizer.lr: expected a number >= 0, got inf",
        "training: {optimizer: {name: adamw, lr: 6e}}": "training.optimizer.lr: expected a number >= 0, got '6e'",
        "jitter: 1": "jitter: expected true or false, got 1",
        "- a": "RunConfig: expected settings by name",
        "a: [": "a.yaml: ",
    }.items():
        file.write_text(text)
        with pytest.raises(ValueError, match=rf"a\.yaml: .*{message}" if message != "a.yaml: " else message):
            read_config(file)
    with pytest.raises(ValueError, match=r"none\.yaml: no such file of settings"):
        read_config(tmp_path / "none.yaml")


def test_a_class_whose_name_looks_like_a_number_is_written_as_a_word(tmp_path: Path) -> None:
    run = RunConfig(classes=("6e4", "1.5e-3", "12", "yes"), data=".5E2")
    (tmp_path / "a.yaml").write_text(as_yaml(as_dict(run)))
    assert read_config(tmp_path / "a.yaml") == run


def test_overrides_reach_nested_settings() -> None:
    run = override(RUN, ["channels=64", "training.seed=3", "optimizer.lr=6e-4", "classes=[cat, dog]", "steps=10"])
    assert run.model.channels == 64
    assert run.training.seed == 3
    assert run.training.optimizer == SGD(6e-4)
    assert run.classes == ("cat", "dog")
    assert run.training.steps == 10
    assert override(RUN, ["clip_norm=null"]).training.clip_norm is None
    assert override(RUN, ["classes=dog"]).classes == ("dog",)
    assert override(RUN, ["backbone_weights=no"]).model.backbone_weights == "no"  # a word, whatever YAML makes of it
    assert override(RUN, ["backbone_weights=null"]).model.backbone_weights is None
    assert override(RUN, ["norm=group"]).model.norm == "group"


def test_choices_come_first_and_begin_at_their_defaults() -> None:
    words = ["extractor.support=box", "lr=1e-3", "terms=geometry", "optimizer=adamw", "extractor=learned", "hidden=8"]
    run = override(RUN, [*words, "model=faster-rcnn"])
    assert run.model == FasterRCNN(extractor=Learned(support="box", terms="geometry"), hidden=8)
    assert run.training.optimizer == AdamW(1e-3)
    assert override(run, ["extractor=learned", "model=faster-rcnn"]) == run  # what is there is not chosen anew
    assert override(run, ["extractor=roi-align"]).model.extractor == RoIAlign()
    assert override(run, ["model=rpn"]).model == RPN()


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["channels"], "channels: expected key=value"),
        (["chanels=3"], "chanels: no such setting; did you mean channels"),
        (["channels=many"], "channels: expected a whole number >= 1, got 'many'"),
        (["channels=0"], "channels: expected a whole number >= 1, got 0"),
        (["channels=1.5"], "channels: expected a whole number >= 1, got 1.5"),
        (["channels=true"], "channels: expected a whole number >= 1, got True"),
        (["channels=null"], "channels: expected a whole number >= 1, got None"),
        (["clip_norm=x"], "clip_norm: expected a number or null > 0, got 'x'"),
        (["straddle_threshold=x", "model=rpn"], "straddle_threshold: expected a number or null, got 'x'"),
        (["flip=yes"], "flip: expected a number >= 0 and <= 1, got True"),
        (["extractor.bins=[7]"], "extractor.bins: expected a list .whole number, whole number., got .7."),
        (["anchor_sizes=[32, x]"], "anchor_sizes: expected a list .number, ...., got .32, 'x'."),
        (["extractor=roi"], "extractor: expected one of roi-pool, .*, got 'roi'"),
        (["model=yolo"], "model: expected one of faster-rcnn-fpn, .*, got 'yolo'"),
        (["norm=layer"], "norm: expected one of none, batch, group, got 'layer'"),
        (["model=rpn", "extractor=learned"], "extractor: no such setting"),
        (["extractor.terms=both"], "extractor.terms: no such setting"),
        (["precision=16"], "precision: expected one of 32-true, .*, got '16'"),
    ],
)
def test_wrong_overrides(assignments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        override(RUN, assignments)


@dataclass(frozen=True)
class Part:
    rate: float = 1.0


@dataclass(frozen=True)
class Two:
    a: Part = Part()
    b: Part = Part()


def test_an_ambiguous_key_is_named() -> None:
    with pytest.raises(ValueError, match=r"rate: expected one of a\.rate, b\.rate, which it may mean"):
        override(Two(), ["rate=2"])
    assert override(Two(), ["b.rate=2"]) == Two(b=Part(2.0))


def test_every_setting_has_a_meaning_and_its_default_is_allowed() -> None:
    configs = [RunConfig(), *(kind() for kind in SYSTEMS.values()), *(kind() for kind in EXTRACTORS.values())]
    for config in [*configs, SGD(), Step()]:
        for each in settings_of(config):
            assert each.meaning and each.kind, each
        assert from_dict(type(config), json.loads(json.dumps(as_dict(config)))) == config


LINE = st.text(st.characters(blacklist_categories=("C", "Z")), max_size=20)


@given(LINE, LINE)
def test_any_word_is_taken_or_refused_in_one_line(key: str, text: str) -> None:
    try:
        override(RUN, [f"{key}={text}"])
    except ValueError as error:
        assert error.args[0].startswith(key.partition("=")[0]) and len(error.args[0].splitlines()) == 1


def test_settings_that_do_not_fit_each_other() -> None:
    with pytest.raises(ValueError, match="anchor_sizes: expected 4, one for each of levels and one more, got .32.0."):
        FasterRCNNOnFPN(anchor_sizes=(32.0,)).build(2)
    with pytest.raises(ValueError, match="backbone: expected one of efficientnet_lite0, .*, got 'resnet'"):
        RPN(backbone="resnet:50").build(2)
    for name in ("timm", "timm:", "torchvision"):
        with pytest.raises(ValueError, match=r"^backbone: expected (timm|torchvision):NAME, .*, got "):
            RPN(backbone=name).build(2)
    with pytest.raises(ValueError, match="^backbone: expected efficientnet_lite0 alone, got efficientnet_lite0:b1"):
        RPN(backbone="efficientnet_lite0:b1").build(2)


def test_missing_weights_name_the_setting() -> None:
    with pytest.raises(FileNotFoundError, match=r"^backbone_weights: .*none\.pth"):
        FasterRCNNOnFPN(backbone_weights="none.pth").build(2)


def test_fields_reach_the_extractor() -> None:
    words = ["extractor=learned", "support=2x", "terms=appearance", "mode=sampled", "inside=49", "outside=100"]
    run = override(RunConfig(), [*words, "prior=none", "extractor.bins=[3, 5]", "scale=1"])
    made = run.model.extractor.build(16)
    assert isinstance(made, LearnedRegionFeatures)
    assert (made.bins, made.support, made.mode) == ((3, 5), BoxSupport(2.0), Sampled(49, 100))
    assert (made.prior, made.geometry, made.scale) == (None, False, 1.0)
    moved = Learned(bins=(3, 5)).build(16).prior
    assert isinstance(moved, DeformablePrior) and (moved.bins, moved.prior) == ((3, 5), RoIAlignPrior())
    assert moved.offset.in_features == 9 * 16 and not moved.offset.weight.any()
    assert Learned(prior="roi-align").build(16).prior == RoIAlignPrior()
    assert Learned(prior="grid").build(16).prior == GridPrior()
    assert not Learned().build(16).geometry and Learned(terms="both", prior="none").build(16).geometry
    assert Learned(prior="none", support="box").build(16).prior is None
    with pytest.raises(ValueError, match="the appearance alone over the whole image, which is the same for every box"):
        Learned(prior="none").build(16)
    pool = DeformableRoIPool(bins=(3, 3), samples=4, offsets=(1, 1), gamma=0.5).build(16)
    assert (pool.bins, pool.extractor.samples, pool.offset_size, pool.gamma) == ((3, 3), 4, (1, 1), 0.5)
    assert repr(RoIAlign((2, 3), 1, False).build(8)) == "RoIAlign(bins=(2, 3), samples=1, aligned=False)"


@torch.no_grad()
@pytest.mark.parametrize("extractor", EXTRACTORS)
@pytest.mark.parametrize("system", [FasterRCNN, FasterRCNNOnFPN])
@pytest.mark.slow
def test_every_extractor_by_name_detects(extractor: str, system: type[FasterRCNN]) -> None:
    torch.manual_seed(0)
    detector = system(extractor=EXTRACTORS[extractor](), hidden=32, score_threshold=0.0, **SMALL).build(3).eval()
    (found,) = detector([torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8)])
    assert len(found) == 100
    assert set(found.labels.tolist()) <= {1, 2, 3}
    assert found.scores.diff().le(0).all() and (found.scores > 0).all()
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
    assert found.boxes.min() >= 0 and (found.boxes.amax(0)[2:] <= torch.tensor([90, 70])).all()


@torch.no_grad()
@pytest.mark.parametrize("norm", ["none", "batch", "group"])
@pytest.mark.parametrize("name", ["rpn", "rpn-fpn"])
@pytest.mark.slow
def test_a_proposal_network_by_name_proposes(name: str, norm: Any) -> None:
    torch.manual_seed(0)
    detector = SYSTEMS[name](norm=norm, **SMALL).build(3).eval()
    (found,) = detector([torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8)])
    assert len(detector.roi_heads) == 0 and len(found) > 10
    assert found.labels.eq(1).all()


def test_help_and_settings_do_not_import_torch() -> None:
    script = "import sys, regio.config, regio.cli.train, regio.cli.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], env=os.environ, check=False).returncode == 0


def test_types_are_those_of_the_fields() -> None:
    """A default that is not of the declared type would come back from a file as another."""
    for kind in [RunConfig, TrainConfig, *SYSTEMS.values(), *EXTRACTORS.values()]:
        hints = get_type_hints(kind)
        for field in fields(kind):
            if hints[field.name] is float:
                assert isinstance(field.default, float), (kind, field.name)
            assert is_dataclass(field.default) or field.default is not None or "None" in str(hints[field.name])


@pytest.mark.slow
def test_a_detector_comes_back_from_its_checkpoint(tmp_path: Path) -> None:
    config = FasterRCNNOnFPN(
        extractor=Learned(support="box", terms="geometry"), hidden=32, score_threshold=0.0, **{**SMALL, "channels": 16}
    )
    detector = config.build(2).eval()
    save(tmp_path / "a.safetensors", detector, Card(("cat", "dog"), model=model_to_dict(config)))
    again, card = load_detector(tmp_path / "a.safetensors")
    assert card.class_names == ("cat", "dog")
    assert repr(again.roi_heads[0].extractor) == repr(detector.roi_heads[0].extractor)
    image = torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8)
    with torch.no_grad():
        (a,), (b,) = detector([image]), again.eval()([image])
    assert len(a) > 0
    assert torch.equal(a.boxes, b.boxes)
    assert torch.equal(a.scores, b.scores)
    again, _ = load_detector(tmp_path / "a.safetensors", score_threshold=0.9)
    assert again.roi_heads[0].postprocess.score_threshold == 0.9
    save(tmp_path / "b.safetensors", detector, Card(("cat", "dog")))
    with pytest.raises(ValueError, match="its card has no configuration"):
        load_detector(tmp_path / "b.safetensors")
    save(tmp_path / "c.safetensors", detector, Card(("cat", "dog"), model={"name": "faster-rcnn-fpn", "colour": 3}))
    with pytest.raises(ValueError, match=r"c\.safetensors: model\.colour: no such setting"):
        load_detector(tmp_path / "c.safetensors")


def test_an_unknown_setting_is_an_error_of_its_own() -> None:
    with pytest.raises(UnknownSetting, match="chanels: no such setting; did you mean channels") as failed:
        override(RunConfig(), ["seed=1", "chanels=64"])
    assert failed.value.key == "chanels"
    with pytest.raises(ValueError, match="seed") as other:
        override(RunConfig(), ["seed=-1"])
    for word in ("seed=9223372036854775808", "evaluate_every=.inf"):
        with pytest.raises(ValueError, match=f"{word.split('=')[0]}: expected"):
            override(RunConfig(), [word])
    assert not isinstance(other.value, UnknownSetting)
