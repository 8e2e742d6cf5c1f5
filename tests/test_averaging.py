"""Moving averages of weights, by hand."""

import pytest
import torch
from torch import nn

from regio.averaging import average_decay, moving_average


class Numbers(nn.Module):
    """A weight, a float buffer and a count."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("count", torch.tensor(0))

    def put(self, value: float) -> None:
        """Every number is `value`."""
        with torch.no_grad():
            for each in (self.weight, self.mean, self.count):
                each.fill_(value)


def test_the_decay_rises_to_its_value() -> None:
    assert [average_decay(0.999, n) for n in (0, 1, 8)] == [1 / 10, 2 / 11, 1 / 2]
    assert average_decay(0.999, 10_000) == 0.999
    assert average_decay(0.5, 8) == average_decay(0.5, 100) == 0.5


def test_weights_and_buffers_are_averaged_and_counts_copied() -> None:
    model = Numbers()
    average = moving_average(model, 0.999)
    expected = 0.0
    for n, value in enumerate([4.0, 8.0, 16.0]):
        model.put(value)
        average.update_parameters(model)
        expected = value if n == 0 else expected + (value - expected) * (1 - (1 + n) / (10 + n))
        assert average.module.weight.tolist() == pytest.approx([expected] * 2)
        assert average.module.mean.tolist() == pytest.approx([expected] * 2)
        assert int(average.module.count) == value


@pytest.mark.parametrize("steps", [10, 100, 1000])
def test_short_runs_forget_their_first_weights(steps: int) -> None:
    """A constant decay of 0.999 keeps 0.999 ** steps of them: 99, 91 and 37 %."""
    model = Numbers()
    average = moving_average(model, 0.999)
    for step in range(steps):
        model.put(1.0 if step == 0 else 0.0)
        average.update_parameters(model)
    assert float(average.module.weight.detach()[0]) < 2e-4
    assert float(average.module.mean[0]) < 2e-4


def test_a_resumed_average_goes_on_exactly() -> None:
    model = Numbers()
    straight = moving_average(model, 0.9)
    for value in (1.0, 2.0, 3.0):
        model.put(value)
        straight.update_parameters(model)
    resumed = moving_average(Numbers(), 0.9)
    resumed.load_state_dict(straight.state_dict())
    model.put(7.0)
    for each in (straight, resumed):
        each.update_parameters(model)
    assert all(
        torch.equal(a, b) for a, b in zip(straight.state_dict().values(), resumed.state_dict().values(), strict=True)
    )
