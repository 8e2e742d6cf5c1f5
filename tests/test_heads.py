"""The box head and what is made of its output."""

import math

import pytest
import torch
from torchvision.ops import batched_nms

from regio.boxes import BoxCoder
from regio.heads import BoxHead, HeadOutput
from regio.matching import RegionSample
from regio.postprocess import Postprocess
from regio.preprocess import Batch
from regio.types import Regions


def test_shapes_and_start() -> None:
    head = BoxHead(256, (7, 7), num_classes=21)
    output = head(torch.randn(5, 256, 7, 7))
    assert output.logits.shape == (5, 21) and output.deltas.shape == (5, 21, 4)
    assert head.fc6.out_features == head.fc7.out_features == 1024
    assert abs(float(head.class_logits.weight.detach().std()) - 0.01) < 0.001
    assert abs(float(head.box_deltas.weight.detach().std()) - 0.001) < 0.0001


def test_only_the_box_of_the_true_class_is_trained() -> None:
    head = BoxHead(4, (2, 2), num_classes=3)
    deltas = torch.zeros(3, 3, 4, requires_grad=True)
    regions = Regions(torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64))
    labels, wanted = torch.tensor([2, 0, 1]), torch.ones(3, 4)
    sample = RegionSample(regions, labels, wanted, torch.tensor([0, -1, 0]))
    losses = head.losses(HeadOutput(torch.zeros(3, 3), deltas), sample)
    torch.testing.assert_close(losses["class"], torch.tensor(math.log(3)))
    torch.testing.assert_close(losses["box"], torch.tensor(2 * 4 * 0.5 / 3))
    losses["box"].backward()
    assert deltas.grad is not None
    touched = deltas.grad.abs().sum(2) > 0
    assert touched.tolist() == [[False, False, True], [False, False, False], [False, True, False]]


def test_no_regions() -> None:
    head = BoxHead(4, (2, 2), num_classes=3)
    output = head(torch.zeros(0, 4, 2, 2))
    none = Regions(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    sample = RegionSample(none, none.image, none.boxes, none.image)
    assert all(loss.item() == 0 for loss in head.losses(output, sample).values())


def test_a_class_is_needed() -> None:
    with pytest.raises(ValueError, match="at least one class, got 1"):
        BoxHead(4, (2, 2), num_classes=1)


def batch(*sizes: tuple[int, int], scale: int = 1) -> Batch:
    return Batch(torch.zeros(0), list(sizes), [(h // scale, w // scale) for h, w in sizes])


def scores(*rows: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(rows).clamp(min=1e-6).log()


def test_postprocess_by_hand() -> None:
    boxes = torch.tensor([[0.0, 0, 20, 20], [0, 0, 20, 18], [40, 40, 80, 60]])
    logits = scores((0.0, 0.9, 0.1), (0.2, 0.8, 0.0), (0.3, 0.04, 0.66))
    deltas = torch.zeros(3, 3, 4)
    deltas[2, 2, 0] = 10.0  # a whole width to the right, and out of the image
    post = Postprocess(BoxCoder((10.0, 10.0, 5.0, 5.0)))
    (found,) = post(HeadOutput(logits, deltas), [boxes], batch((60, 100), scale=2))
    # The second is suppressed by the first in class 1; the first is a candidate of class 2 as well.
    assert found.labels.tolist() == [1, 2, 2]
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.66, 0.1]), rtol=1e-3, atol=1e-4)
    assert found.boxes.tolist() == [[0, 0, 10, 10], [40, 20, 50, 30], [0, 0, 10, 10]]


def test_postprocess_thresholds_and_limits() -> None:
    boxes = torch.tensor([[0.0, 0, 9, 9], [20, 20, 29, 29], [50, 50, 50, 59]])
    output = HeadOutput(scores((0.95, 0.05), (0.4, 0.6), (0.1, 0.9)), torch.zeros(3, 2, 4))
    (found,) = Postprocess(BoxCoder(), score_threshold=0.06)(output, [boxes], batch((60, 60)))
    assert found.boxes.tolist() == [[20, 20, 29, 29]]  # the third is no wider than a hundredth
    (found,) = Postprocess(BoxCoder(), score_threshold=0.0, max_detections=1)(output, [boxes], batch((60, 60)))
    assert found.boxes.tolist() == [[20, 20, 29, 29]]
    (found,) = Postprocess(BoxCoder(), score_threshold=0.99)(output, [boxes], batch((60, 60)))
    assert len(found) == 0 and found.boxes.shape == (0, 4)


def test_postprocess_keeps_images_apart_and_takes_empty_ones() -> None:
    torch.manual_seed(0)
    boxes = torch.rand(30, 4) * 40
    boxes[:, 2:] += boxes[:, :2] + 1
    output = HeadOutput(torch.randn(30, 4) * 2, torch.randn(30, 4, 4) * 0.1)
    post, sizes = Postprocess(BoxCoder()), ((90, 90), (50, 60), (70, 40))
    together = post(output, [boxes[:10], boxes[:0], boxes[10:]], batch(*sizes))
    assert len(together[1]) == 0
    for i, rows in ((0, slice(0, 10)), (2, slice(10, 30))):
        (alone,) = post(HeadOutput(output.logits[rows], output.deltas[rows]), [boxes[rows]], batch(sizes[i]))
        assert torch.equal(alone.boxes, together[i].boxes) and torch.equal(alone.labels, together[i].labels)
        kept = batched_nms(alone.boxes, alone.scores, alone.labels, 0.5)
        assert kept.tolist() == list(range(len(alone)))  # apart, and best first
