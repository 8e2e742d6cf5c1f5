"""Box heads, what their outputs mean, and the order of the stages."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision.ops import batched_nms

from regio.backbones import efficientnet_lite0
from regio.boxes import BoxCoder
from regio.detector import TwoStageDetector
from regio.losses import HardExamples
from regio.matching import Matcher, RegionSampler, TakeAll
from regio.postprocess import Postprocess
from regio.proposals import Anchors
from regio.regions import Levels, RoIAlign
from regio.roi_heads import BoxHead, BoxOutput, FastRCNNHead, FullyConnected, Margins, Scores, Sigmoid, Softmax
from regio.systems import faster_rcnn_fpn
from regio.types import Detections, FeatureMap, Regions, Targets
from regio.weights.detectron2 import EMPTY_LAST


def small_head(num_classes: int = 3, channels: int = 4, **options: object) -> FastRCNNHead:
    torch.manual_seed(0)
    trunk = FullyConnected(channels, (2, 2), 8)
    return FastRCNNHead(Levels(RoIAlign(2, samples=2)), trunk, 8, num_classes, **options)  # type: ignore[arg-type]


def test_shapes_and_start() -> None:
    head = FastRCNNHead(Levels(RoIAlign(7, samples=2)), FullyConnected(64, (7, 7)), 1024, num_classes=21)
    r = Regions(torch.tensor([[0.0, 0, 8, 8]] * 5), torch.zeros(5, dtype=torch.int64))
    output = head.predict([FeatureMap(torch.randn(1, 64, 8, 8), 4)], r)
    assert output.logits.shape == (5, 21) and output.deltas.shape == (5, 21, 4)
    assert head.trunk.fc6.out_features == head.trunk.fc7.out_features == 1024
    assert abs(float(head.class_logits.weight.detach().std()) - 0.01) < 0.001
    assert abs(float(head.box_deltas.weight.detach().std()) - 0.001) < 0.0001


def test_a_class_is_needed() -> None:
    with pytest.raises(ValueError, match="at least one class, got 1"):
        small_head(num_classes=1)


def test_only_the_box_of_the_true_class_is_trained() -> None:
    head = small_head()
    deltas = torch.zeros(3, 3, 4, requires_grad=True)
    r = Regions(torch.tensor([[0.0, 0, 10, 10]] * 3), torch.zeros(3, dtype=torch.int64))
    objects = torch.tensor([[1.0, 1, 11, 11], [0, 0, 0, 0], [1, 1, 11, 11]])  # a tenth of a side away: 1 in deltas
    losses = head.compare(BoxOutput(torch.zeros(3, 3), deltas), r, torch.tensor([2, 0, 1]), objects)
    torch.testing.assert_close(losses["class"], torch.tensor(math.log(3)))
    torch.testing.assert_close(losses["box"], torch.tensor(2 * 2 * 0.5 / 3))
    losses["box"].backward()
    assert deltas.grad is not None
    touched = deltas.grad.abs().sum(2) > 0
    assert touched.tolist() == [[False, False, True], [False, False, False], [False, True, False]]


def test_a_class_agnostic_box_serves_every_class() -> None:
    head = small_head(class_agnostic=True)
    assert head.box_deltas.out_features == 4
    deltas = torch.zeros(2, 1, 4, requires_grad=True)
    r = Regions(torch.tensor([[0.0, 0, 10, 10]] * 2), torch.zeros(2, dtype=torch.int64))
    head.compare(BoxOutput(torch.zeros(2, 3), deltas), r, torch.tensor([2, 1]), r.boxes + 1)["box"].backward()
    assert deltas.grad is not None and bool((deltas.grad[:, 0, :2] != 0).all())


def test_no_regions() -> None:
    head = small_head()
    none = Regions(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    output = head.predict([FeatureMap(torch.randn(1, 4, 8, 8), 4)], none)
    losses = head.compare(output, none, none.image, none.boxes)
    assert all(loss.item() == 0 for loss in losses.values())
    sum(losses.values()).backward()  # type: ignore[union-attr]


@pytest.mark.parametrize(("scores", "outputs"), [(Softmax(), 4), (Sigmoid(), 3), (Margins(), 3)])
def test_scores_have_one_column_a_class(scores: Scores, outputs: int) -> None:
    assert scores.outputs(4) == outputs
    logits = torch.randn(5, outputs)
    assert scores(logits).shape == (5, 3)
    assert scores.losses(logits, torch.tensor([0, 1, 2, 3, 0])).shape == (5,)
    assert scores.losses(logits[:0], torch.zeros(0, dtype=torch.int64)).shape == (0,)


def test_scores_and_their_losses_by_hand() -> None:
    logits, labels = torch.tensor([[2.0, -0.5], [0.5, 3.0], [-2.0, -3.0]]), torch.tensor([1, 1, 0])
    assert Margins()(logits) is logits
    # max(0, 1 - 2) + max(0, 1 - 0.5); (1 - 0.5) + (1 + 3); 0 + 0
    assert Margins().losses(logits, labels).tolist() == [0.5, 4.5, 0.0]
    assert Margins(positive_weight=2).losses(logits, labels).tolist() == [0.5, 5.0, 0.0]
    expected = math.log1p(math.exp(-2)) + math.log1p(math.exp(-0.5))
    assert math.isclose(float(Sigmoid().losses(logits, labels)[0]), expected, rel_tol=1e-6)
    assert math.isclose(float(Sigmoid()(logits)[0, 0]), 1 / (1 + math.exp(-2)), rel_tol=1e-6)
    three = torch.tensor([[1.0, 1, 1]])
    torch.testing.assert_close(Softmax()(three), torch.full((1, 2), 1 / 3))
    assert math.isclose(float(Softmax().losses(three, torch.tensor([0]))), math.log(3), rel_tol=1e-6)


@pytest.mark.parametrize("scores", [Softmax(), Sigmoid(), Margins()])
@pytest.mark.parametrize("class_agnostic", [False, True])
def test_every_meaning_of_scores_trains_and_detects(scores: Scores, class_agnostic: bool) -> None:
    head = small_head(scores=scores, class_agnostic=class_agnostic, postprocess=Postprocess(score_threshold=-10))
    maps = [FeatureMap(torch.randn(1, 4, 16, 16), 4)]
    target = Targets(torch.tensor([[5.0, 5, 40, 40]]), torch.tensor([2]))
    boxes, losses = head.losses(maps, [torch.tensor([[30.0, 30, 60, 60], [6, 5, 41, 40]])], [target])
    assert boxes[0].shape == (3, 4)  # and the object itself
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in head.parameters())
    (found,) = head(maps, [proposals([[5.0, 5, 40, 40], [30, 30, 60, 60]])])
    assert set(found.labels.tolist()) == {1, 2} and len(found) == 4


def test_hard_examples_take_part_in_a_head() -> None:
    """With as many hard examples as regions, the losses are those of the mean over all."""
    maps = [FeatureMap(torch.randn(2, 4, 16, 16), 4)]
    boxes = [torch.tensor([[6.0, 5, 41, 40], [30, 30, 60, 60], [0, 30, 30, 60]]), torch.tensor([[1.0, 1, 20, 20]])]
    targets = [Targets(torch.tensor([[5.0, 5, 40, 40]]), torch.tensor([2]))] * 2
    everything = RegionSampler(Matcher(0.5, 0.5), TakeAll())
    heads = [small_head(sampler=everything, reduction=HardExamples(n)) for n in (100, 1)]
    mean = small_head(sampler=everything).losses(maps, boxes, targets)[1]
    many, few = (head.losses(maps, boxes, targets)[1] for head in heads)
    torch.testing.assert_close(many, mean)
    assert float(few["class"].detach() + few["box"].detach()) > float(mean["class"].detach() + mean["box"].detach())


@pytest.mark.parametrize(("box_weight", "learnt"), [(0.0, 1), (1.0, 0)])
def test_the_hardest_are_so_by_the_weighted_losses(box_weight: float, learnt: int) -> None:
    """Of two objects the first has a bad box, the second a wrong class: without a box loss the second is harder."""
    head = small_head(reduction=HardExamples(1), box_weight=box_weight)
    output = BoxOutput(torch.tensor([[0.0, 3, 0], [0.0, 0, 3]], requires_grad=True), torch.zeros(2, 3, 4))
    r = Regions(torch.tensor([[0.0, 0, 10, 10], [0, 0, 40, 40]]), torch.zeros(2, dtype=torch.int64))
    losses = head.compare(output, r, torch.tensor([1, 1]), torch.tensor([[8.0, 8, 40, 40], [0, 0, 40, 40]]))
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert output.logits.grad is not None
    assert output.logits.grad.abs().sum(1).nonzero()[:, 0].tolist() == [learnt]
    assert (float(losses["box"].detach()) == 0) == (box_weight == 0)


@pytest.mark.parametrize("class_agnostic", [True, False])
def test_boxes_of_no_class_are_kept_for_other_classes(class_agnostic: bool) -> None:
    layers = ("class_logits", "coder") if class_agnostic else ("class_logits", "box_deltas", "coder")
    assert small_head(class_agnostic=class_agnostic).class_layers == layers


class SideBySide(BoxHead):
    """A head put together by hand: it finds each region to be class 1 with certainty, and a whole width beside it."""

    def __init__(self) -> None:
        super().__init__(coder=BoxCoder(), postprocess=Postprocess(detections_per_image=10))
        self.seen: list[int] = []
        self.gain = nn.Parameter(torch.ones(()))

    def predict(self, maps: Sequence[FeatureMap], r: Regions) -> BoxOutput:
        self.seen.append(len(r))
        deltas = torch.zeros(len(r), 1, 4)
        deltas[:, 0, 0] = 1
        return BoxOutput(torch.tensor([[-9.0, 9.0]]).repeat(len(r), 1) * self.gain, deltas * self.gain)


def two_stages(heads: Sequence[nn.Module]) -> TwoStageDetector:
    torch.manual_seed(0)
    detector = faster_rcnn_fpn(
        2, efficientnet_lite0((3, 4, 5)), channels=16, hidden=16, short_side=96, long_side=192,
        anchors=Anchors(((16,), (32,), (64,), (128,))),
    )  # fmt: skip
    detector.roi_heads = nn.ModuleList(heads)
    return detector


def proposals(boxes: list[list[float]]) -> Detections:
    return Detections(torch.tensor(boxes), torch.ones(len(boxes), dtype=torch.int64), torch.ones(len(boxes)))


def test_heads_follow_each_other_and_boxes_come_from_outside() -> None:
    image = torch.zeros(3, 48, 96, dtype=torch.uint8)  # scaled by two
    boxes = [torch.tensor([[0.0, 0, 10, 20], [30, 10, 40, 20]])]
    with torch.no_grad():
        for heads in range(3):  # also: a detector can be put together where no gradients are recorded
            detector = two_stages([SideBySide() for _ in range(heads)])
            (found,) = detector([image], boxes)
            order = found.boxes[:, 1].argsort()
            expected = boxes[0] + torch.tensor([10.0, 0, 10, 0]) * heads
            torch.testing.assert_close(found.boxes[order], expected)


def test_losses_of_two_heads_have_names_of_their_own() -> None:
    heads = [SideBySide(), SideBySide()]
    target = Targets(torch.tensor([[10.0, 0, 20, 20]]), torch.tensor([1]))
    image = torch.zeros(3, 48, 96, dtype=torch.uint8)
    losses = two_stages(heads).losses([image], [target], [torch.tensor([[40.0, 10, 60, 30]])])
    assert set(losses) == {"class", "box", "class_2", "box_2"}
    assert heads[0].seen == [2] and heads[1].seen == [3]  # the objects are appended by both
    assert set(two_stages(heads).losses([image], [target])) == {"rpn_objectness", "rpn_box", *losses}


def test_a_detector_without_heads_proposes() -> None:
    detector = two_stages([])
    image = torch.randint(0, 256, (3, 96, 120), dtype=torch.uint8)
    with torch.no_grad():
        (found,) = detector([image])
    assert len(found) > 10 and bool((found.labels == 1).all())
    assert bool((found.scores[:-1] >= found.scores[1:]).all())
    target = Targets(torch.tensor([[10.0, 0, 20, 20]]), torch.tensor([1]))
    assert set(detector.losses([image], [target])) == {"rpn_objectness", "rpn_box"}


def test_a_detector_without_proposals_asks_for_boxes() -> None:
    detector = two_stages([SideBySide()])
    detector.proposals = None
    image = torch.zeros(3, 96, 96, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"proposals: expected boxes \[P, 4\] of each image: this detector has no"):
        detector([image])
    with pytest.raises(ValueError, match="proposals: expected 1, one an image, got 2"):
        detector([image], [torch.zeros(1, 4), torch.zeros(1, 4)])
    with torch.no_grad():
        assert len(detector([image], [torch.zeros(0, 4)])[0]) == 0


CODER = BoxCoder((10.0, 10.0, 5.0, 5.0))


def test_postprocess_by_hand() -> None:
    boxes = torch.tensor([[0.0, 0, 20, 20], [0, 0, 20, 18], [40, 40, 80, 60]])
    scores = torch.tensor([[0.9, 0.1], [0.8, 0.0], [0.04, 0.66]])
    deltas = torch.zeros(3, 3, 4)
    deltas[2, 2, 0] = 10.0  # a whole width to the right, and out of the image
    found = Postprocess()(scores, deltas, boxes, CODER, (60, 100))
    # The second is suppressed by the first in class 1; the first is a candidate of class 2 as well.
    assert found.labels.tolist() == [1, 2, 2]
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.66, 0.1]))
    assert found.boxes.tolist() == [[0, 0, 20, 20], [80, 40, 100, 60], [0, 0, 20, 20]]


def test_postprocess_thresholds_and_limits() -> None:
    boxes = torch.tensor([[0.0, 0, 9, 9], [20, 20, 29, 29], [50, 50, 50, 59]])
    scores, deltas = torch.tensor([[0.05], [0.6], [0.9]]), torch.zeros(3, 2, 4)
    found = Postprocess(score_threshold=0.06)(scores, deltas, boxes, CODER, (60, 60))
    assert found.boxes.tolist() == [[20, 20, 29, 29]]  # the third is no wider than a hundredth
    found = Postprocess(score_threshold=0.0, detections_per_image=1)(scores, deltas, boxes, CODER, (60, 60))
    assert found.boxes.tolist() == [[20, 20, 29, 29]]
    found = Postprocess(score_threshold=0.99)(scores, deltas, boxes, CODER, (60, 60))
    assert len(found) == 0 and found.boxes.shape == (0, 4)


def test_what_is_dropped_last_is_not_replaced() -> None:
    """The empty box is the best of two; of detectron2's rule the other is left, of the usual one two."""
    boxes = torch.tensor([[0.0, 0, 9, 9], [20, 20, 29, 29], [50, 50, 50, 59]])
    scores, deltas = torch.tensor([[0.5], [0.6], [0.9]]), torch.zeros(3, 2, 4)
    usual = Postprocess(detections_per_image=2)
    assert usual(scores, deltas, boxes, CODER, (60, 60)).boxes[:, 0].tolist() == [20, 0]
    last = replace(EMPTY_LAST, detections_per_image=2)
    assert last(scores, deltas, boxes, CODER, (60, 60)).boxes[:, 0].tolist() == [20]
    assert replace(last, min_kept_size=0.0)(scores, deltas, boxes, CODER, (60, 60)).boxes[:, 0].tolist() == [50, 20]


def test_postprocess_keeps_classes_apart_and_best_first() -> None:
    torch.manual_seed(0)
    boxes = torch.rand(30, 4) * 40
    boxes[:, 2:] += boxes[:, :2] + 1
    scores, deltas = torch.rand(30, 3), torch.randn(30, 4, 4) * 0.1
    found = Postprocess()(scores, deltas, boxes, CODER, (90, 90))
    assert 3 < len(found) < 90 and set(found.labels.tolist()) == {1, 2, 3}
    kept = batched_nms(found.boxes, found.scores, found.labels, 0.5)
    assert kept.tolist() == list(range(len(found)))
    nothing = Postprocess()(scores[:0], deltas[:0], boxes[:0], CODER, (90, 90))
    assert len(nothing) == 0 and nothing.boxes.shape == (0, 4)


@torch.no_grad()
def test_a_head_keeps_images_apart() -> None:
    head = replace_threshold(small_head(), 0.0)
    maps = [FeatureMap(torch.randn(3, 4, 16, 16), 4, sizes=((64, 64), (30, 40), (50, 20)))]
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    regions = [proposals([[5.0, 5, 40, 40], [0, 0, 60, 60]]), nothing, proposals([[1.0, 1, 9, 9]])]
    together = head(maps, regions)
    assert len(together[1]) == 0
    for i in (0, 2):
        one = [FeatureMap(maps[0].data[i : i + 1], 4, sizes=maps[0].image_sizes[i : i + 1])]
        (alone,) = head(one, [regions[i]])
        torch.testing.assert_close(alone.boxes, together[i].boxes)
        assert len(alone) > 0 and torch.equal(alone.labels, together[i].labels)
        height, width = maps[0].image_sizes[i]
        assert float(alone.boxes[:, 2].max()) <= width and float(alone.boxes[:, 3].max()) <= height


def replace_threshold(head: FastRCNNHead, threshold: float) -> FastRCNNHead:
    head.postprocess = replace(head.postprocess, score_threshold=threshold)
    return head
