"""Losses on numbers worked by hand."""

import pytest
import torch

from regio.losses import HardExamples, MeanLoss, smooth_l1


def test_smooth_l1_by_hand() -> None:
    deltas, wanted = torch.tensor([[0.5, 2.0, 0.0, -3.0], [0.0, 0, 0, 1]]), torch.zeros(2, 4)
    # beta 1: 0.5**2 / 2, 2 - 0.5, 0, 3 - 0.5; and 1 - 0.5
    assert smooth_l1(deltas, wanted, beta=1.0).tolist() == [0.125 + 1.5 + 2.5, 0.5]
    assert smooth_l1(deltas, wanted, beta=0.0).tolist() == [5.5, 1.0]


def test_the_mean_counts_background_in_the_box_loss_too() -> None:
    of_class, of_box = torch.tensor([1.0, 2, 3, 6]), torch.tensor([4.0, 0, 0, 0])
    means = MeanLoss()(of_class, of_box, torch.zeros(4, dtype=torch.int64))
    assert [float(mean) for mean in means] == [3.0, 1.0]


@pytest.mark.parametrize("reduction", [MeanLoss(), HardExamples(2)])
def test_nothing_has_a_loss_of_zero_and_a_gradient(reduction: MeanLoss | HardExamples) -> None:
    of_class = torch.zeros(0, requires_grad=True)
    of_box = torch.zeros(0, requires_grad=True)
    total = sum(reduction(of_class, of_box, torch.zeros(0, dtype=torch.int64)))
    total.backward()  # type: ignore[union-attr]
    assert float(total.detach()) == 0 and of_class.grad is not None


def test_hard_examples_by_hand() -> None:
    """Of image 0 the two largest sums of losses (rows 1 and 3), of image 1 both there are."""
    of_class = torch.tensor([0.1, 2.0, 0.3, 0.2, 1.0, 0.5], requires_grad=True)
    of_box = torch.tensor([0.0, 0.0, 0.0, 4.0, 0.0, 0.0], requires_grad=True)
    image = torch.tensor([0, 0, 0, 0, 1, 1])
    a, b = HardExamples(2)(of_class, of_box, image)
    torch.testing.assert_close(a, torch.tensor((2.0 + 0.2 + 1.0 + 0.5) / 4))
    torch.testing.assert_close(b, torch.tensor(1.0))
    (a + b).backward()
    assert of_class.grad is not None
    assert of_class.grad.tolist() == [0, 0.25, 0, 0.25, 0.25, 0.25]
    everything = HardExamples(10)(of_class, of_box, image)
    torch.testing.assert_close(everything, MeanLoss()(of_class, of_box, image))


def test_hard_examples_need_one() -> None:
    with pytest.raises(ValueError, match="per_image: expected a positive number"):
        HardExamples(0)
