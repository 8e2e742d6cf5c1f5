"""Trainings of several stages: what they leave, and how they go on."""

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from regio.checkpoints import read_card
from regio.config.systems import FasterRCNNOnFPN
from regio.progress import Progress, SilentProgress
from regio.proposals import ProposalFilter
from regio.recipes import Alternating, StagedRun
from regio.train import Interrupted
from regio.training_log import TrainingLog
from tests.recipes.runs import CONFIG, staged
from tests.test_train import StopAt

MODEL = FasterRCNNOnFPN(channels=16, hidden=32, short_side=64, long_side=96, regions_per_image=16)


def model() -> nn.Module:
    torch.manual_seed(0)
    return MODEL.build(6)


def halve(detector: nn.Module, place: Path) -> dict[str, float]:
    """A stage without gradients."""
    with torch.no_grad():
        detector.roi_heads[0].box_deltas.weight.mul_(0.5)  # type: ignore[index, union-attr]
    return {"factor": 0.5}


def recipe(run: StagedRun) -> nn.Module:
    detector = model()
    first = run.stage("1-first", detector)
    run.make("2-halved", detector, lambda place: halve(detector, place))
    second = run.stage("3-second", detector, config=replace(run.config, steps=2))
    evaluation = run.finish(detector)
    assert first.keys() == second.keys() == evaluation.numbers.keys()
    return detector


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing stopped."""
    folder = tmp_path_factory.mktemp("straight")
    recipe(staged(folder))
    return folder


def same(a: Path, b: Path) -> bool:
    first, second = (load_file(folder / "weights" / "last.safetensors") for folder in (a, b))
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.slow
def test_what_it_leaves(straight: Path) -> None:
    assert sorted(path.name for path in (straight / "stages").iterdir()) == [
        "1-first",
        "2-halved",
        "3-second",
        "run.json",
    ]
    (row,) = TrainingLog(straight / "metrics.csv", []).rows()
    assert row["step"] == 6
    stages = ("1-first", "2-halved", "3-second")
    times = [TrainingLog(straight / "stages" / name / "metrics.csv", []).seconds() for name in stages]
    assert min(times) > 0
    assert row["seconds"] == pytest.approx(sum(times), rel=1e-5)
    assert (straight / "weights" / "best.safetensors").is_file()
    assert (straight / "predictions.json").is_file()
    assert json.loads((straight / "stages" / "2-halved" / "done.json").read_text()) == {"factor": 0.5}


def test_only_the_whole_says_how_it_is_built(tmp_path: Path) -> None:
    """The checkpoint of a stage is of a part, which the settings of the run do not build."""
    run, detector = replace(staged(tmp_path), configuration={"name": "x"}), model()
    run.stage("1-first", detector)
    assert read_card(tmp_path / "stages" / "1-first" / "weights" / "last.safetensors").model == {}
    run.finish(detector)
    assert read_card(tmp_path / "weights" / "best.safetensors").model == {"name": "x"}


def test_stages_follow_each_other(straight: Path) -> None:
    """The second begins with the weights that the first left; in between they are halved."""
    key = "roi_heads.0.box_deltas.weight"
    first, halved = (
        load_file(straight / "stages" / name / "weights" / "last.safetensors")[key] for name in ("1-first", "2-halved")
    )
    assert torch.equal(halved, first * 0.5)
    assert not torch.equal(load_file(straight / "weights" / "last.safetensors")[key], halved)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1])
def test_it_goes_on_exactly_where_it_was_stopped(straight: Path, tmp_path: Path, stage: int) -> None:
    """In its first training, and in its second."""
    progress: list[Progress] = [SilentProgress(), SilentProgress()]
    progress[stage] = StopAt(1, signal.SIGTERM)
    remaining = iter(progress)
    with pytest.raises(Interrupted, match="stopped at step 1 of"):
        recipe(staged(tmp_path, progress=lambda: next(remaining)))
    lines: list[str] = []
    recipe(staged(tmp_path, resume=True, lines=lines))
    assert same(straight, tmp_path)
    assert lines == (
        ["1-first", "2-halved", "3-second"]
        if stage == 0
        else ["1-first: done before", "2-halved: done before", "3-second"]
    )


def begun(run: StagedRun, seed: int, change: Callable[[Path], None]) -> nn.Module:
    """A run of a model that is another one each time, of which a stage changes nothing."""
    torch.manual_seed(seed)
    detector = MODEL.build(6)
    run.begin(detector)
    run.make("1-nothing", detector, change)
    return detector


def test_a_run_is_resumed_by_the_recipe_that_began_it(tmp_path: Path) -> None:
    detector = model()
    staged(tmp_path).begin(detector, Alternating())
    resumed = staged(tmp_path, resume=True)
    resumed.begin(detector, Alternating())
    resumed.make("1-nothing", detector, lambda place: None)
    other = Alternating(test=ProposalFilter(pre_nms_top_n=100, post_nms_top_n=20))
    with pytest.raises(ValueError, match=r"recipe\.test\.\S+"):
        resumed.begin(detector, other)


def test_a_resumed_run_has_the_weights_that_it_began_with(tmp_path: Path) -> None:
    """Those of --weights and those drawn at random alike, however early it was stopped."""

    def fails(place: Path) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        begun(staged(tmp_path), 0, fails)
    resumed = begun(staged(tmp_path, resume=True), 1, lambda place: None)
    first = model().state_dict()
    assert all(torch.equal(value, first[key]) for key, value in resumed.state_dict().items())
    staged(tmp_path, resume=True).finish(resumed)
    assert sorted(path.name for path in (tmp_path / "stages").iterdir()) == ["1-nothing", "run.json"]


def test_stages_that_are_there_are_not_taken_for_those_of_another_run(tmp_path: Path) -> None:
    begun(staged(tmp_path), 0, lambda place: None)
    with pytest.raises(ValueError, match="expected a folder without stages for a run that is not resumed"):
        begun(staged(tmp_path), 0, lambda place: None)


def test_what_was_done_before_is_on_the_device_of_the_run(tmp_path: Path) -> None:
    class Placed(nn.Linear):
        places: ClassVar[list[object]] = []

        def to(self, *args: Any, **kwargs: Any) -> Self:
            Placed.places.append(args[0])
            return super().to(*args, **kwargs)

    staged(tmp_path).make("1-nothing", Placed(1, 1), lambda place: None)
    Placed.places.clear()
    staged(tmp_path, resume=True).make("1-nothing", Placed(1, 1), lambda place: None)
    assert Placed.places == [torch.device("cpu")]


def test_a_finished_run_trains_no_more(straight: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (straight / "stages").rglob("*") if path.is_file()}
    detector = recipe(staged(straight, resume=True))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    state = load_file(straight / "weights" / "last.safetensors")
    assert all(torch.equal(state[key], value) for key, value in detector.state_dict().items())


def test_another_run_is_not_resumed(straight: Path) -> None:
    with pytest.raises(ValueError, match=r"a run can only be resumed as it was: seed 3, got 4"):
        recipe(staged(straight, resume=True, config=replace(CONFIG, seed=4)))


@pytest.mark.slow
def test_a_stage_that_fails_is_made_again(straight: Path, tmp_path: Path) -> None:
    """What it left in its folder is there, its changes of the model are not."""
    run, detector = staged(tmp_path), model()
    run.stage("1-first", detector)

    def fails(place: Path) -> None:
        halve(detector, place)
        (place / "part").write_text("a")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run.make("2-halved", detector, fails)
    run, detector = staged(tmp_path, resume=True), model()
    run.stage("1-first", detector)
    seen: list[bool] = []

    def works(place: Path) -> dict[str, float]:
        seen.append((place / "part").exists())
        return halve(detector, place)

    run.make("2-halved", detector, works)
    assert seen == [True]
    key = "roi_heads.0.box_deltas.weight"
    expected = load_file(straight / "stages" / "2-halved" / "weights" / "last.safetensors")
    assert torch.equal(detector.state_dict()[key], expected[key])
