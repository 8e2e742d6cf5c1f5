"""Seconds into steps."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from torch import nn

from regio.compare.pace import WARM_UP, measured_pace, seconds_a_step
from regio.config import RunConfig
from regio.config.systems import FasterRCNN
from regio.data import Shapes
from regio.evaluate import Evaluation
from regio.recipes import Recipe, StagedRun
from regio.settings import override


def test_the_first_steps_do_not_count() -> None:
    clock = [9.0]  # after the first step
    for seconds in (5.0, 1.0, 2.0, 1.0, 30.0, 1.0):
        clock.append(clock[-1] + seconds)
    assert WARM_UP == 2
    assert seconds_a_step(clock) == 1.0  # of 1, 2, 1, 30, 1


@dataclass(frozen=True)
class _Stages:
    """Half of the steps, a stage without gradients, all of the steps."""

    def __call__(self, model: nn.Module, run: StagedRun) -> Evaluation:
        def never(place: Path) -> Mapping[str, float]:
            raise AssertionError("takes longer than the budget")

        run.stage("1-half", model, config=replace(run.config, steps=(run.config.steps or 0) // 2))
        run.make("2-made", model, never)
        run.stage("3-whole", model)
        return run.finish(model)


@dataclass(frozen=True)
class _Made:
    def __call__(self, model: nn.Module, run: StagedRun) -> Evaluation:
        run.make("1-made", model, lambda place: None)
        return run.finish(model)


@dataclass(frozen=True)
class _Staged(FasterRCNN):
    chosen: Recipe = _Stages()

    def recipe(self) -> Recipe:
        return self.chosen


TINY = ["channels=16", "hidden=32", "short_side=64", "long_side=96", "regions_per_image=16", "workers=0", "device=cpu"]


def _config(model: FasterRCNN) -> RunConfig:
    config = override(RunConfig("shapes", model=FasterRCNN()), [*TINY, "batch_size=2"])
    own = {name: getattr(config.model, name) for name in ("channels", "hidden", "short_side", "long_side")}
    return replace(config, model=replace(model, **own, regions_per_image=16))


@pytest.mark.slow
def test_stages_share_a_budget_as_the_recipe_divides_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([0.5, 0.25])
    monkeypatch.setattr("regio.compare.pace.seconds_a_step", lambda clock: next(seconds))
    pace = measured_pace(_config(_Staged()), Shapes(8, 0, (64, 64)), Shapes(2, 1, (64, 64)), 10.0)
    assert (pace.steps, pace.seconds) == (20, 0.5)  # 10 s of 10 steps of 0.5 s and 20 of 0.25 s


def test_a_recipe_without_steps_has_the_least() -> None:
    pace = measured_pace(_config(_Staged(chosen=_Made())), Shapes(8, 0, (64, 64)), Shapes(2, 1, (64, 64)), 10.0)
    assert (pace.steps, pace.seconds) == (1, 0.0)


@pytest.mark.slow
def test_measured_steps_fill_the_budget() -> None:
    """Ten times the budget, ten times the steps, up to what else the machine does meanwhile."""
    config = _config(FasterRCNN())
    pace = measured_pace(config, Shapes(8, 0, (64, 64)), Shapes(2, 1, (64, 64)), 100.0)
    assert pace.seconds is not None and 1e-3 < pace.seconds < 30
    assert pace.steps == max(1, round(100.0 / pace.seconds))
