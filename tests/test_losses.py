"""Losses on numbers worked by hand."""

import math

import torch

from regio.losses import box_loss, class_loss


def test_box_loss_is_smooth_l1_over_the_mini_batch() -> None:
    deltas, wanted = torch.tensor([[0.5, 2.0, 0.0, -3.0]]), torch.zeros(1, 4)
    # beta 1: 0.5**2 / 2, 2 - 0.5, 0, 3 - 0.5
    torch.testing.assert_close(box_loss(deltas, wanted, beta=1.0, count=4), torch.tensor((0.125 + 1.5 + 2.5) / 4))
    torch.testing.assert_close(box_loss(deltas, wanted, beta=0.0, count=1), torch.tensor(5.5))


def test_class_loss_is_the_mean_over_boxes() -> None:
    loss = class_loss(torch.zeros(3, 5), torch.tensor([0, 1, 4]))
    torch.testing.assert_close(loss, torch.tensor(math.log(5)))


def test_losses_of_nothing_are_zero_and_have_a_gradient() -> None:
    logits, deltas = torch.zeros(0, 5, requires_grad=True), torch.zeros(0, 4, requires_grad=True)
    total = class_loss(logits, torch.zeros(0, dtype=torch.int64)) + box_loss(deltas, torch.zeros(0, 4), 1.0, 0)
    total.backward()
    assert total.item() == 0
