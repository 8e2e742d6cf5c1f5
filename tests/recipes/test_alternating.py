"""Four-step training of Faster R-CNN."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from regio.config import read_system
from regio.config.extractors import RoIPool
from regio.config.proposals import method_named
from regio.config.systems import RFCN, RPN, FasterRCNN, MaskRCNN, RPNOnFPN
from regio.data import Shapes, read_proposals
from regio.detector import TwoStageDetector
from regio.proposals import ProposalNetwork
from regio.recipes import Alternating, Joint
from regio.recipes.alternating import fixed
from tests.recipes.runs import staged

SYSTEM = FasterRCNN(
    channels=16, hidden=32, short_side=64, long_side=96, regions_per_image=16, frozen=0, norm="batch",
    extractor=RoIPool(), scheme="alternating",
)  # fmt: skip
SHARED = ("backbone.", "neck.")


def weights(folder: Path, stage: str) -> dict[str, Tensor]:
    return load_file(folder / "stages" / stage / "weights" / "last.safetensors")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TwoStageDetector, TwoStageDetector]:
    """The folder of a run, the detector before and after."""
    torch.manual_seed(0)
    detector = SYSTEM.build(6)
    before, folder = copy.deepcopy(detector), tmp_path_factory.mktemp("alternating")
    SYSTEM.recipe()(detector, staged(folder))
    return folder, before, detector


def changed(a: dict[str, Tensor], b: dict[str, Tensor], prefix: str | tuple[str, ...]) -> bool:
    keys = [key for key in a if key.startswith(prefix)]
    assert keys and all(key in b for key in keys)
    return any(not torch.equal(a[key], b[key]) for key in keys)


def test_systems_name_their_recipe() -> None:
    assert isinstance(SYSTEM.recipe(), Alternating)
    assert FasterRCNN().recipe() == Joint()


@pytest.mark.slow
def test_what_each_step_trains(run: tuple[Path, TwoStageDetector, TwoStageDetector]) -> None:
    folder, before, _ = run
    start = before.state_dict()
    first, second, third, fourth = (weights(folder, f"{i}-{n}") for i, n in enumerate(["proposals", "heads"] * 2, 1))
    assert changed(start, first, "proposals.") and changed(start, first, SHARED)
    assert not any(key.startswith("roi_heads.") for key in first)
    # the second begins at the pretrained backbone, not at the first step's
    assert changed(start, second, SHARED) and changed(first, second, SHARED)
    assert not any(key.startswith("proposals.") for key in second)
    # the third trains new proposals alone
    assert not changed(second, third, SHARED)
    assert changed(start, third, "proposals.") and changed(first, third, "proposals.")
    # the fourth goes on with the heads of the second
    assert not changed(second, fourth, SHARED)
    assert changed(second, fourth, "roi_heads.")


def test_the_result_is_put_together_from_the_last_two(run: tuple[Path, TwoStageDetector, TwoStageDetector]) -> None:
    folder, _, detector = run
    state = detector.state_dict()
    third, fourth = weights(folder, "3-proposals"), weights(folder, "4-heads")
    assert state.keys() == third.keys() | fourth.keys()
    assert all(torch.equal(state[key], value) for key, value in (third | fourth).items())
    saved = load_file(folder / "weights" / "best.safetensors")
    assert all(torch.equal(state[key], value) for key, value in saved.items())
    assert all(p.requires_grad for p in detector.neck.parameters())
    assert all(module.training for module in detector.neck.modules())


def test_both_read_the_same_maps_in_the_end(run: tuple[Path, TwoStageDetector, TwoStageDetector]) -> None:
    """What the fourth step measured, with proposals from files, is what the whole detector finds."""
    folder, _, _ = run
    found = [json.loads((place / "predictions.json").read_text()) for place in (folder / "stages" / "4-heads", folder)]
    assert len(found[0]) == len(found[1]) > 0
    for one, other in zip(*found, strict=True):
        assert one["category_id"] == other["category_id"] and one["score"] == pytest.approx(other["score"], abs=1e-4)
        assert one["bbox"] == pytest.approx(other["bbox"], abs=1e-2)


def test_proposals_of_both_sets_are_kept(run: tuple[Path, TwoStageDetector, TwoStageDetector]) -> None:
    folder, _, _ = run
    for stage in ("1-proposals", "3-proposals"):
        for name, images, most in (("training", 6, 2000), ("validation", 3, 300)):
            boxes = read_proposals(folder / "stages" / stage / f"{name}.safetensors")
            assert len(boxes) == images
            assert all(0 < len(each) <= most for each in boxes.values())


@pytest.mark.parametrize("stage", ["1-proposals", "3-proposals"])
def test_its_proposal_networks_propose_for_others(
    run: tuple[Path, TwoStageDetector, TwoStageDetector], stage: str
) -> None:
    """Their checkpoints are those of the system `rpn`; on the card of the heads' there is none."""
    folder, _, detector = run
    path = folder / "stages" / stage / "weights" / "last.safetensors"
    system, _ = read_system(path)
    assert isinstance(system, RPN) and (system.channels, system.norm) == (16, "batch")
    boxes, scores = method_named(str(path))(Shapes(1)[0].image)
    assert len(boxes) == len(scores) > 0
    if stage == "3-proposals":  # of this the whole detector has the weights
        network = ProposalNetwork(copy.deepcopy(detector).without_heads(), weights=path)
        expected = network(Shapes(1)[0].image)
        torch.testing.assert_close((boxes, scores), expected)
    with pytest.raises(ValueError, match=r"4-heads.*its card has no configuration"):
        method_named(str(folder / "stages" / "4-heads" / "weights" / "last.safetensors"))


@pytest.mark.parametrize(
    "system", [FasterRCNN(level=4, norm="group"), MaskRCNN(levels=(4, 5), anchor_sizes=(32, 64, 128))]
)
def test_proposal_networks_alone_are_parts_of_their_systems(system: FasterRCNN | MaskRCNN) -> None:
    alone = system.proposals_alone()
    assert type(alone) is (RPN if isinstance(system, FasterRCNN) else RPNOnFPN)
    whole, part = (each.build(6, pretrained=False) for each in (system, alone))
    shapes = {name: value.shape for name, value in whole.without_heads().state_dict().items()}
    assert shapes == {name: value.shape for name, value in part.state_dict().items()}
    assert part.preprocess == whole.preprocess
    assert part.proposals.anchors == whole.proposals.anchors  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize("level", [None, 4])
def test_r_fcn(level: int | None, tmp_path: Path) -> None:
    """Whose proposals may come from an earlier map than the head reads: the head's layers are those of the fourth step,
    all others of the third."""
    system = RFCN(
        channels=16, proposal_channels=16, short_side=64, long_side=96, frozen=0, proposal_level=level,
        scheme="alternating",
    )  # fmt: skip
    torch.manual_seed(0)
    detector = system.build(6)
    start = copy.deepcopy(detector.state_dict())
    system.recipe()(detector, staged(tmp_path))
    third, fourth = weights(tmp_path, "3-proposals"), weights(tmp_path, "4-heads")
    state = detector.state_dict()
    assert state.keys() == third.keys() | fourth.keys()
    assert all(torch.equal(state[key], value) for key, value in (third | fourth).items())
    assert changed(start, state, "proposals.") and changed(start, state, "roi_heads.")
    assert not changed(third, fourth, "backbone.")


@pytest.mark.slow
def test_a_killed_run_goes_on(run: tuple[Path, TwoStageDetector, TwoStageDetector], tmp_path: Path) -> None:
    """Killed after the second step, in the middle of writing proposals: the same weights in the end."""
    _, before, detector = run

    class Killed(Exception):
        pass

    def say(line: str) -> None:
        if line.startswith("3-proposals: proposals"):
            raise Killed

    again = copy.deepcopy(before)
    with pytest.raises(Killed):
        SYSTEM.recipe()(again, replace(staged(tmp_path), say=say))
    again = copy.deepcopy(before)
    SYSTEM.recipe()(again, staged(tmp_path, resume=True))
    state = detector.state_dict()
    assert all(torch.equal(state[key], value) for key, value in again.state_dict().items())


def test_fixed() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    module[0].weight.requires_grad_(False)
    with fixed(module):
        assert not any(p.requires_grad for p in module.parameters())
        before = module[1].running_mean.clone()
        module(torch.rand(2, 3, 4, 4))
        assert torch.equal(module[1].running_mean, before)
    assert [p.requires_grad for p in module.parameters()] == [False, True, True, True]
    assert module.training and module[1].training


def test_it_needs_proposals_and_heads(tmp_path: Path) -> None:
    detector = SYSTEM.build(6).without_heads()
    with pytest.raises(TypeError, match="model: expected a detector with a proposal network and heads"):
        Alternating()(detector, staged(tmp_path))
