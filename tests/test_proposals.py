"""Anchors and the region proposal network."""

import math

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from regio.boxes import area, iou, sides
from regio.proposals import RPN, Anchors, ProposalFilter
from regio.types import FeatureMap, Targets


def maps(
    *sizes: tuple[int, int], stride: int = 8, channels: int = 4, images: tuple[tuple[int, int], ...] | None = None
) -> list[FeatureMap]:
    return [FeatureMap(torch.randn(2, channels, *size), stride * 2**i, images) for i, size in enumerate(sizes)]


def test_anchor_has_its_area_ratio_and_centre() -> None:
    (boxes,) = Anchors(((32.0, 64.0),), ratios=(0.5, 1.0, 2.0))(maps((2, 3), stride=16))
    assert boxes.shape == (2 * 3 * 6, 4)
    torch.testing.assert_close(area(boxes).sqrt(), torch.tensor([32.0, 64.0] * 18))
    width, height = sides(boxes)
    torch.testing.assert_close(height / width, torch.tensor([0.5, 0.5, 1, 1, 2, 2] * 6))
    centre = (boxes[6, :2] + boxes[6, 2:]) / 2  # the second cell of the first row
    assert centre.tolist() == [24.0, 8.0]


def test_rounded_corner_anchors_are_torchvisions() -> None:
    levels = maps((8, 6), (4, 3))
    theirs = AnchorGenerator(((32,), (100,)), ((0.5, 1.0, 2.0),) * 2)
    images = ImageList(torch.zeros(2, 3, 64, 48), [(64, 48)] * 2)
    expected = theirs(images, [x.data for x in levels])[0]
    ours = Anchors(((32.0,), (100.0,)), offset=0.0, rounded=True)(levels)
    torch.testing.assert_close(torch.cat(ours), expected)


def test_the_papers_nine_anchors_at_the_origin() -> None:
    boxes = Anchors(((128.0, 256.0, 512.0),)).at_origin((128.0, 256.0, 512.0))
    assert len(boxes) == 9
    # 128 x 128 at 1:1; ratio is height / width, so 1:2 is wide: 181 x 90.5.
    assert boxes[3].tolist() == [-64.0, -64.0, 64.0, 64.0]
    torch.testing.assert_close(boxes[0], torch.tensor([-90.5097, -45.2548, 90.5097, 45.2548]))


def test_bad_anchors_are_refused() -> None:
    with pytest.raises(ValueError, match="same number of sizes"):
        Anchors(((32.0,), (64.0, 128.0)))
    with pytest.raises(ValueError, match="positive"):
        Anchors(((32.0,),), ratios=(0.0,))
    for number in (math.nan, math.inf):
        with pytest.raises(ValueError, match="positive"):
            Anchors(((number, 32.0),))
    with pytest.raises(ValueError, match="maps: expected 1"):
        Anchors(((32.0,),))(maps((2, 2), (1, 1)))


def network(levels: int = 1, **options: object) -> RPN:
    torch.manual_seed(0)
    sizes = tuple((16.0 * 2**i,) for i in range(levels))
    few = ProposalFilter(pre_nms_top_n=50, post_nms_top_n=20)
    return RPN(4, Anchors(sizes), test=few, train=ProposalFilter(80, 40), **options)  # type: ignore[arg-type]


def test_predictions_and_anchors_are_in_one_order() -> None:
    rpn = network()
    with torch.no_grad():
        rpn.objectness.weight.zero_()
        rpn.objectness.bias.copy_(torch.tensor([0.0, 1.0, 2.0]))  # by anchor of the cell
        rpn.deltas.weight.zero_()
        rpn.deltas.bias.zero_()
        rpn.deltas.bias[8] = 0.5  # dx of the third
    x = maps((3, 5))
    objectness, deltas = rpn.predict(x)
    assert objectness[0].shape == (2, 45) and deltas[0].shape == (2, 45, 4)
    assert objectness[0][1].tolist() == [0.0, 1.0, 2.0] * 15
    assert deltas[0][1, 2].tolist() == [0.5, 0, 0, 0]


def test_proposals_lie_inside_and_apart_and_are_few() -> None:
    rpn = network(2)
    sizes = ((60, 40), (33, 48))
    for found, (height, width) in zip(rpn(maps((8, 6), (4, 3), images=sizes)), sizes, strict=True):
        boxes = found.boxes
        assert 0 < len(boxes) <= 20
        assert bool((found.labels == 1).all()) and bool((found.scores[:-1] >= found.scores[1:]).all())
        assert boxes.min() >= 0 and boxes[:, 2].max() <= width and boxes[:, 3].max() <= height
        assert not boxes.requires_grad
    (found, _) = network(1)(maps((8, 6), images=sizes))
    alone = found.boxes
    assert (iou(alone, alone) - torch.eye(len(alone))).max() <= 0.7


def test_training_and_detection_have_their_own_filters() -> None:
    rpn = network()
    x = maps((16, 16))
    target = [Targets(torch.tensor([[10.0, 10, 30, 30]]), torch.tensor([1]))] * 2
    for training in (True, False):
        rpn.train(training)
        assert max(len(boxes) for boxes in rpn(x)) <= 20
        assert max(len(boxes) for boxes in rpn.losses(x, target)[0]) > 20


def test_the_extra_level_is_every_second_cell() -> None:
    x = maps((5, 7))
    levels = network(2, extra_level=True).levels(x)
    assert [level.stride for level in levels] == [8, 16]
    assert levels[1].size == (3, 4)
    assert torch.equal(levels[1].data, x[0].data[:, :, [0, 2, 4]][:, :, :, [0, 2, 4, 6]])


def test_one_of_several_maps_is_looked_at() -> None:
    """The others may have any channels; the extra level is that of the map."""
    x = [*maps((5, 7)), FeatureMap(torch.randn(1, 9, 3, 3), 16)]
    levels = network(2, extra_level=True, level=0).levels(x)
    assert levels[0] is x[0] and [level.stride for level in levels] == [8, 16]
    own, alone = network(level=0), network()
    assert torch.equal(own(x)[0].boxes, alone(x[:1])[0].boxes)
    assert own.levels(x) == [x[0]] and network(level=-1).levels(x) == [x[1]]


def test_loss_pushes_objectness_up_on_the_object_only() -> None:
    rpn = network()
    x, target = maps((8, 8)), Targets(torch.tensor([[16.0, 16, 32, 32]]), torch.tensor([1]))
    objectness, deltas = (part[0].detach().requires_grad_() for part in rpn.predict(x))
    losses = rpn._compare(objectness, deltas, rpn.anchors(x)[0], [(64, 64)] * 2, [target, target])
    sum(losses.values()).backward()  # type: ignore[union-attr]
    overlap = iou(rpn.anchors(x)[0], target.boxes)[:, 0]
    wanted = (overlap >= 0.7) | (overlap == overlap.max())
    assert objectness.grad is not None and deltas.grad is not None
    assert bool((objectness.grad[0, wanted] < 0).all())
    assert bool((objectness.grad[0, overlap < 0.3] >= 0).all())
    assert bool((deltas.grad[0, wanted] != 0).any()) and not bool(deltas.grad[0, ~wanted].any())


def test_straddling_leaves_out_anchors_and_seeks_the_best_of_the_rest() -> None:
    strict, loose = network(straddle_threshold=0.0), network(straddle_threshold=None)
    anchors = strict.anchors(maps((8, 8)))[0]
    # The best anchor of an object in the corner crosses the border of the image.
    target = Targets(torch.tensor([[0.0, 0.0, 12, 12]]), torch.tensor([1]))
    inside = (anchors >= 0).all(1) & (anchors[:, 2] <= 64) & (anchors[:, 3] <= 64)
    best = iou(anchors, target.boxes)[:, 0]
    assert not bool(inside[best.argmax()])
    match = strict.match(anchors, (64, 64), target)
    assert bool((match[~inside] == -2).all())
    assert match[best.masked_fill(~inside, -1).argmax()] == 0
    assert loose.match(anchors, (64, 64), target)[best.argmax()] == 0


def test_images_without_objects_and_with_crowds_only() -> None:
    rpn = network(2)
    nothing = Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    crowd = Targets(torch.tensor([[0.0, 0, 64, 48]]), torch.tensor([1]), crowd=torch.tensor([True]))
    _, losses = rpn.losses(maps((8, 6), (4, 3)), [nothing, crowd])
    assert float(losses["rpn_box"].detach()) == 0
    assert 0.5 < float(losses["rpn_objectness"].detach()) < 0.9  # log 2: an untrained network knows nothing
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in rpn.parameters())


def test_layers_start_as_in_the_paper() -> None:
    rpn = RPN(64, Anchors(((32.0,),)), test=ProposalFilter(1, 1), train=ProposalFilter(1, 1))
    assert abs(float(rpn.conv.weight.detach().std()) - 0.01) < 0.001
    assert rpn.conv.bias is not None and float(rpn.conv.bias.detach().abs().max()) == 0
