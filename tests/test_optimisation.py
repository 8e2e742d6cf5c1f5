"""Learning-rate schedules by hand."""

import pytest

from regio.optimisation import SGD, AdamW, Cosine, Schedule, Step


@pytest.mark.parametrize("schedule", [Cosine(warmup=4), Step(warmup=4)])
def test_warm_up_is_a_line_that_begins_above_zero(schedule: Schedule) -> None:
    factors = [schedule(step, 10**6) for step in range(5)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_cosine_ends_at_its_floor() -> None:
    schedule = Cosine(warmup=0, final=0.1)
    assert schedule(0, 100) == pytest.approx(1.0)
    assert schedule(50, 100) == pytest.approx(0.55)
    assert schedule(100, 100) == pytest.approx(0.1)
    assert all(schedule(s, 100) > schedule(s + 1, 100) for s in range(100))


def test_step_drops_after_two_thirds_and_eight_ninths() -> None:
    schedule = Step(warmup=0)
    factors = [schedule(step, 90) for step in (0, 59, 60, 79, 80, 89)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_optimizers_carry_their_numbers() -> None:
    import torch

    parameter = [torch.nn.Parameter(torch.zeros(2))]
    sgd = SGD(0.02, 0.8, 1e-3).build(parameter).param_groups[0]
    assert (sgd["lr"], sgd["momentum"], sgd["weight_decay"]) == (0.02, 0.8, 1e-3)
    adam = AdamW(1e-3, 0.05).build(parameter).param_groups[0]
    assert (adam["lr"], adam["weight_decay"]) == (1e-3, 0.05)
