"""Plans: written, read, and compared with what is there."""

from dataclasses import replace
from pathlib import Path

import pytest

from regio.compare import Pace, Plan, make_arm
from regio.config import RunConfig

SHARED = RunConfig("shapes")


def arms(*texts: str, settings: tuple[str, ...] = ()) -> tuple:  # type: ignore[type-arg]
    return tuple(make_arm(text, SHARED, (), settings) for text in texts)


PLAN = Plan(
    arms("faster-rcnn", "pool=faster-rcnn-fpn:extractor=roi-pool", settings=("output_stride=8",)),
    2,
    60.0,
    {"data.images": "7"},
    {"pool": Pace(12, 0.5)},
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    PLAN.write(tmp_path)
    assert Plan.read(tmp_path) == PLAN
    assert [arm.left_out for arm in PLAN.arms] == [(), ("output_stride=8",)]
    with pytest.raises(ValueError, match=r"elsewhere/plan.json: no such file: there is no comparison to go on with"):
        Plan.read(tmp_path / "elsewhere")


def test_runs_come_seed_by_seed(tmp_path: Path) -> None:
    rounds = [[(run.arm.label, run.seed, str(run.folder)) for run in runs] for runs in PLAN.runs(Path("c"))]
    assert rounds == [
        [("faster-rcnn", 0, "c/faster-rcnn/seed-0"), ("pool", 0, "c/pool/seed-0")],
        [("faster-rcnn", 1, "c/faster-rcnn/seed-1"), ("pool", 1, "c/pool/seed-1")],
    ]
    _, (_, last) = PLAN.runs(Path("c"))
    config = last.config(12)
    assert (config.training.seed, config.training.steps) == (1, 12)
    assert replace(config, training=last.arm.config.training) == last.arm.config


def test_the_same_plan_has_the_paces_that_were_decided(tmp_path: Path) -> None:
    assert PLAN.agreed(tmp_path) == PLAN  # nothing there
    PLAN.write(tmp_path)
    assert replace(PLAN, paces={}).agreed(tmp_path) == PLAN


def test_a_plan_may_grow(tmp_path: Path) -> None:
    PLAN.write(tmp_path)
    larger = replace(PLAN, arms=(*arms("faster-rcnn:hidden=9"), *PLAN.arms), seeds=3, paces={})
    assert larger.agreed(tmp_path) == replace(larger, paces=PLAN.paces)


def test_the_machine_is_no_part_of_a_plan(tmp_path: Path) -> None:
    PLAN.write(tmp_path)
    words = ("output_stride=8", "workers=0", "device=cpu", "log_every=3", "save_every=3", "keep_every=3")
    again = replace(PLAN, arms=arms("faster-rcnn", "pool=faster-rcnn-fpn:extractor=roi-pool", settings=words))
    assert again.agreed(tmp_path).arms == again.arms


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (replace(PLAN, budget=61.0), "budget 60, got 61"),
        (replace(PLAN, seeds=1), "seeds 2, got 1"),
        (replace(PLAN, arms=PLAN.arms[:1]), "without pool"),
        (replace(PLAN, data={"data.images": "8"}), "data.images 7, got 8"),
        (
            replace(PLAN, arms=(*arms("faster-rcnn:lr=0.1:hidden=9"), PLAN.arms[1])),
            "without faster-rcnn",  # another label
        ),
        (
            replace(PLAN, arms=(*arms("faster-rcnn=faster-rcnn:lr=0.1:hidden=9"), PLAN.arms[1])),
            "faster-rcnn: .*model.hidden 512, got 9; training.optimizer.lr 0.0004, got 0.1",
        ),
    ],
)
def test_another_plan_is_refused_and_the_difference_named(tmp_path: Path, other: Plan, message: str) -> None:
    PLAN.write(tmp_path)
    with pytest.raises(ValueError, match=f"holds another comparison: {message}.*another --name"):
        other.agreed(tmp_path)


def test_labels_are_of_one_arm_each() -> None:
    with pytest.raises(ValueError, match="a label of its own for each, got 'faster-rcnn' and 'faster-rcnn'"):
        Plan(arms("faster-rcnn", "faster-rcnn"), 1, 1.0)
    with pytest.raises(ValueError, match="a label of its own for each, got 'a b' and 'A-b'"):  # one folder
        Plan(arms("a b=faster-rcnn", "A-b=faster-rcnn"), 1, 1.0)
    with pytest.raises(ValueError, match="expected at least one"):
        Plan((), 1, 1.0)
