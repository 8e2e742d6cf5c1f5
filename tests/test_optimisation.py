"""Learning-rate schedules by hand."""

import pytest
import torch
from torch import nn

from regio.optimisation import SGD, AdamW, Cosine, Schedule, Step
from regio.regions import DeformablePrior, DeformableRoIPool, Enlarged, LearnedRegionFeatures, RoIAlign, RoIAlignPrior
from regio.types import FeatureMap, Regions


@pytest.mark.parametrize("schedule", [Cosine(warmup=4), Step(warmup=4)])
def test_warm_up_is_a_line_that_begins_above_zero(schedule: Schedule) -> None:
    factors = [schedule(step, 10**6) for step in range(5)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize("schedule", [Cosine(warmup=100), Step(warmup=100)])
def test_warm_up_is_a_fifth_of_a_short_run_at_most(schedule: Schedule) -> None:
    factors = [schedule(step, 40) for step in range(40)]
    assert factors[:9] == pytest.approx([(s + 1) / 9 for s in range(9)])
    assert factors[9] <= 1
    assert factors[-1] < 0.05


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
    model = nn.Linear(2, 2)
    sgd = SGD(0.02, 0.8, 1e-3).build(model).param_groups[0]
    assert (sgd["lr"], sgd["momentum"], sgd["weight_decay"]) == (0.02, 0.8, 1e-3)
    adam = AdamW(1e-3, 0.05).build(model).param_groups[0]
    assert (adam["lr"], adam["weight_decay"]) == (1e-3, 0.05)


def test_in_one_pass_the_steps_are_the_same() -> None:
    """Also of a weight that has its first gradient later."""
    ends = []
    for fused in (True, False):
        torch.manual_seed(0)
        model = nn.ModuleList([nn.Linear(7, 3), nn.Linear(7, 3)])
        optimizer = AdamW(1e-2).build(model, fused=fused)
        assert bool(optimizer.param_groups[0]["fused"]) == fused
        for step in range(20):
            optimizer.zero_grad()
            x = torch.full((2, 7), 1.0 + step)
            sum((layer(x) - 3).square().mean() for layer in model[: 1 if step < 5 else 2]).backward()
            optimizer.step()
        ends.append(torch.cat([each.detach().flatten() for each in model.parameters()]))
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-6)


def test_weights_may_have_their_first_gradient_later() -> None:
    model = nn.ModuleList([nn.Linear(7, 3), nn.Linear(7, 3)])
    optimizer = SGD(0.1).build(model)
    for layers in (model[:1], model):
        optimizer.zero_grad()
        sum(layer(torch.ones(2, 7)).square().mean() for layer in layers).backward()
        was = [each.detach().clone() for each in model.parameters()]
        optimizer.step()
    assert not any(torch.equal(each, before) for each, before in zip(model.parameters(), was, strict=True))


def test_a_module_may_name_parts_that_learn_at_other_rates() -> None:
    model = nn.Sequential(nn.Linear(3, 2), DeformableRoIPool(RoIAlign(7), 4))
    model[0].bias.requires_grad_(False)
    groups = SGD(0.5).build(model).param_groups
    assert [group["lr"] for group in groups] == [0.5, 0.005]
    assert [p for group in groups for p in group["params"]] == [model[0].weight, *model[1].offset_parameters()]


def test_learned_region_features_may_learn_at_a_rate_of_their_own() -> None:
    """At zero they stay, to the bit, and what reads them learns."""
    slow = LearnedRegionFeatures(4, 3, 8, 8, prior=RoIAlignPrior(), rate=0.3)
    model = nn.ModuleList([Enlarged(slow), nn.Linear(36, 2)])
    groups = AdamW(0.1).build(model).param_groups
    assert [group["lr"] for group in groups] == pytest.approx([0.1, 0.03])
    assert [id(p) for p in groups[1]["params"]] == [id(p) for p in slow.parameters()]
    moved = LearnedRegionFeatures(4, 3, 8, 8, prior=DeformablePrior(4, 3), rate=0.3)
    groups = AdamW(0.1).build(moved).param_groups
    assert {len(group["params"]): group["lr"] for group in groups} == pytest.approx({4: 0.03, 2: 0.005})
    torch.manual_seed(0)
    x = FeatureMap(torch.randn(1, 4, 6, 8), 16)
    r = Regions(torch.tensor([[3.0, 5.0, 70.0, 60.0], [20.0, 1.0, 120.0, 90.0]]), torch.zeros(2, dtype=torch.int64))
    for rate, stays in ((0, True), (1e-3, False)):
        still, head = LearnedRegionFeatures(4, 3, 8, 8, prior=RoIAlignPrior(), rate=rate), nn.Linear(36, 2)
        model = nn.ModuleList([still, head])
        before = [p.detach().clone() for p in model.parameters()]
        optimizer = AdamW(0.1).build(model)
        for _ in range(3):
            optimizer.zero_grad()
            head(still(x, r).flatten(1)).square().sum().backward()
            optimizer.step()
        moved = [not torch.equal(p, was) for p, was in zip(model.parameters(), before, strict=True)]
        assert moved == [not stays] * 4 + [True] * 2
