"""Joint training, with and without gradients through the coordinates of boxes."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from regio.config.extractors import DeformableRoIPool, RoIAlign, RoIPool, RoIWarp
from regio.config.systems import FasterRCNN, FasterRCNNOnFPN, MaskRCNN, System
from regio.detector import TwoStageDetector
from regio.types import Targets

SMALL = {"channels": 16, "hidden": 32, "short_side": 64, "long_side": 96, "regions_per_image": 16}


def gradient(detector: TwoStageDetector, losses: tuple[str, ...]) -> Tensor:
    """Of these losses, for the refinements of the proposal network."""
    torch.manual_seed(1)
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    target = Targets(torch.tensor([[10.0, 12.0, 50.0, 44.0], [40.0, 4.0, 90.0, 60.0]]), torch.tensor([1, 3]))
    found = detector.losses([image], [target])
    weight = detector.proposals.deltas.weight  # type: ignore[union-attr]
    (grad,) = torch.autograd.grad(sum(found[name] for name in losses), [weight], allow_unused=True)  # type: ignore[arg-type]
    return torch.zeros_like(weight) if grad is None else grad


@pytest.mark.parametrize("system", [FasterRCNN(**SMALL), FasterRCNNOnFPN(**SMALL)], ids=["one map", "pyramid"])  # type: ignore[arg-type]
def test_heads_train_proposals_through_their_boxes(system: FasterRCNN) -> None:
    torch.manual_seed(0)
    approximate = system.build(4)
    joint = replace(system, scheme="joint").build(4)
    joint.load_state_dict(approximate.state_dict())
    assert float(gradient(approximate, ("class", "box")).abs().sum()) == 0
    assert float(gradient(joint, ("class", "box")).abs().sum()) > 0
    # the losses themselves, and their gradient for the proposals' own, are the same
    own = ("rpn_objectness", "rpn_box")
    assert torch.equal(gradient(approximate, own), gradient(joint, own))


@pytest.mark.slow
def test_the_gradient_is_that_of_finite_differences() -> None:
    """Of the box loss in the bias of one delta: moved a little, proposals move, and what is read from the map with
    them. Which boxes are kept and sampled stays the same."""
    torch.manual_seed(0)
    detector = FasterRCNN(**SMALL, scheme="joint", extractor=RoIAlign()).build(4).double()  # type: ignore[arg-type]
    rpn = detector.proposals
    rpn.train_filter = replace(rpn.train_filter, nms_threshold=1.0)  # type: ignore[union-attr, arg-type]
    image = torch.rand(3, 64, 96, dtype=torch.float64)
    target = Targets(torch.tensor([[10.0, 12.0, 50.0, 44.0], [40.0, 4.0, 90.0, 60.0]]).double(), torch.tensor([1, 3]))
    torch.nn.init.normal_(detector.roi_heads[0].box_deltas.weight, std=0.1)  # type: ignore[union-attr, arg-type]
    bias = rpn.deltas.bias  # type: ignore[union-attr]

    def loss() -> Tensor:
        torch.manual_seed(1)
        found = detector.losses([image], [target])
        return found["box"] + found["class"]

    (grad,) = torch.autograd.grad(loss(), [bias])
    for i in range(8):
        values = []
        for step in (1e-7, -1e-7):
            with torch.no_grad():
                bias[i] += step
                values.append(float(loss()))
                bias[i] -= step
        expected = (values[0] - values[1]) / 2e-7
        assert float(grad[i]) == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert float(grad.abs().max()) > 0.1


@pytest.mark.parametrize(
    "extractor", [RoIAlign(), RoIWarp(rounded=False), DeformableRoIPool()], ids=lambda e: type(e).__name__
)
def test_which_extractors_can(extractor: object) -> None:
    assert FasterRCNN(**SMALL, scheme="joint", extractor=extractor).build(3).proposals.box_gradients  # type: ignore[arg-type, union-attr]


@pytest.mark.parametrize(
    "system",
    [
        FasterRCNN(**SMALL, scheme="joint", extractor=RoIPool()),  # type: ignore[arg-type]
        MaskRCNN(**SMALL, scheme="joint", mask_extractor=RoIPool((14, 14))),  # type: ignore[arg-type]
    ],
    ids=["boxes", "masks"],
)
def test_an_extractor_without_gradients_for_boxes_is_refused(system: System) -> None:
    with pytest.raises(ValueError, match="expected one with gradients for boxes, such as RoIAlign.*RoIPool has none"):
        system.build(3)


def test_the_weight_of_the_proposals_box_loss() -> None:
    torch.manual_seed(0)
    detector = FasterRCNN(**SMALL).build(4)  # type: ignore[arg-type]
    plain = gradient(detector, ("rpn_box",))
    detector.proposals.box_weight = 0.25  # type: ignore[union-attr, assignment]
    torch.testing.assert_close(gradient(detector, ("rpn_box",)), plain * 0.25)
    assert FasterRCNN(**SMALL, rpn_box_weight=10.0).build(4).proposals.box_weight == 10  # type: ignore[arg-type, union-attr]
