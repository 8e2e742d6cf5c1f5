"""Arms in words."""

import pytest

from regio.compare import make_arm, split_arms
from regio.config import SYSTEMS, RunConfig
from regio.config.extractors import RoIPool
from regio.config.systems import FasterRCNN, FasterRCNNOnFPN

SHARED = RunConfig("shapes", images=10)


def test_arms_lie_between_commas_outside_of_brackets() -> None:
    assert split_arms("a, b:sizes=[1,2]:x=3,c") == ["a", "b:sizes=[1,2]:x=3", "c"]
    with pytest.raises(ValueError, match=r"systems: expected names with commas between them, got 'a,,b'"):
        split_arms("a,,b")


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_name_is_that_of_the_table(name: str) -> None:
    if SYSTEMS[name]().labels(("a", "b")) != ("a", "b"):
        with pytest.raises(ValueError, match=f"{name}: finds objects of no class"):
            make_arm(name, SHARED)
        return
    arm = make_arm(name, SHARED)
    assert type(arm.config.model) is SYSTEMS[name]
    assert (arm.label, arm.folder, arm.config.images) == (name, name, 10)


def test_an_arm_has_settings_and_a_label() -> None:
    arm = make_arm("faster-rcnn:extractor=roi-pool:hidden=64:backbone=torchvision:resnet18", SHARED)
    assert arm.label == "faster-rcnn extractor=roi-pool hidden=64 backbone=torchvision:resnet18"
    assert arm.folder == "faster-rcnn-extractor=roi-pool-hidden=64-backbone=torchvision-resnet18"
    assert isinstance(arm.config.model, FasterRCNN) and isinstance(arm.config.model.extractor, RoIPool)
    assert (arm.config.model.hidden, arm.config.model.backbone) == (64, "torchvision:resnet18")
    assert make_arm("two words=faster-rcnn:hidden=64", SHARED).label == "two words"


def test_what_is_set_nearer_wins() -> None:
    arm = make_arm("faster-rcnn:hidden=3", SHARED, ["hidden=1", "channels=1"], ["hidden=2", "channels=2", "lr=0.5"])
    model = arm.config.model
    assert isinstance(model, FasterRCNN)
    assert (model.hidden, model.channels, arm.config.training.optimizer.lr) == (3, 2, 0.5)  # type: ignore[attr-defined]
    assert arm.left_out == ()


def test_settings_for_all_are_left_out_where_there_is_no_such_setting() -> None:
    settings = ["output_stride=8", "extractor=learned", "terms=geometry", "channels=32"]
    arm = make_arm("faster-rcnn-fpn:extractor=roi-pool", SHARED, ["straddle_threshold=0"], settings)
    assert isinstance(arm.config.model, FasterRCNNOnFPN) and isinstance(arm.config.model.extractor, RoIPool)
    assert arm.config.model.channels == 32
    assert arm.left_out == ("output_stride=8", "terms=geometry")  # of the defaults nobody asks


def test_boxes_are_given_to_systems_that_need_them() -> None:
    for name in SYSTEMS:
        if SYSTEMS[name]().labels(("a",)) != ("a",):
            continue
        arm = make_arm(name, SHARED, [], ["proposals=grid", "proposals_per_image=7"])
        expected = ("grid", 7) if arm.config.model.needs_proposals else (None, 2000)
        assert (arm.config.proposals, arm.config.proposals_per_image) == expected
        assert bool(arm.left_out) != arm.config.model.needs_proposals


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fastest-rcnn", "expected one of .*faster-rcnn.*, got 'fastest-rcnn'"),
        ("faster-rcnn:hiden=3", "faster-rcnn hiden=3: hiden: no such setting; did you mean hidden"),
        ("faster-rcnn:hidden=many", "hidden: expected a whole number >= 1, got 'many'"),
        ("faster-rcnn:hidden", r"expected SYSTEM:key=value, got 'hidden' after the colon"),
        ("a=faster-rcnn:data=other", "a: data: expected the same for all that is compared"),
        ("faster-rcnn:images=3", "images: expected the same for all"),
        ("faster-rcnn:epochs=3", "epochs: the budget decides how long is trained"),
        ("faster-rcnn:seed=3", "seed: expected --seeds, how many there are"),
        ("faster-rcnn:devices=2", "devices: expected 1, got 2"),
    ],
)
def test_what_is_no_arm_is_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_arm(text, SHARED)
