"""A detector made ready for inference finds what it found before."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from regio import ready
from regio.backbones import efficientnet_lite0, torchvision_backbone
from regio.boxes import iou
from regio.detector import TwoStageDetector
from regio.fused import FusedConv
from regio.necks import FPN
from regio.ready import ReadyDetector, inference_precision
from regio.regions import (
    DeformablePositionSensitive,
    DeformableRoIPool,
    GridPrior,
    LearnedRegionFeatures,
    PositionSensitive,
    RegionExtractor,
    RoIAlign,
    RoIPool,
)
from regio.roi_heads import RFCNHead
from regio.systems import faster_rcnn, faster_rcnn_fpn, light_head_rcnn, mask_rcnn_fpn, rfcn, rpn_fpn
from regio.types import Detections, Targets

SIZES = {"short_side": 96, "long_side": 160, "channels": 32}


def realistic(detector: TwoStageDetector) -> TwoStageDetector:
    """Random weights with scores of all sizes."""
    for head in detector.roi_heads:
        if isinstance(head, RFCNHead):
            for levels, std in ((head.extractor, 0.3), (head.box_extractor, 0.02)):
                for name, parameter in levels.named_parameters():
                    nn.init.normal_(parameter, std=0.02 if "offset" in name else std)
        elif hasattr(head, "class_logits"):
            nn.init.normal_(head.class_logits.weight, std=0.3)
            nn.init.normal_(head.box_deltas.weight, std=0.02)
        if hasattr(head, "mask_logits"):
            nn.init.normal_(head.mask_logits.weight, std=0.1)
    return detector.eval()


def lite0() -> nn.Module:
    return efficientnet_lite0((3, 4, 5), pretrained=True)


DETECTORS: dict[str, Callable[[], TwoStageDetector]] = {
    "faster": lambda: faster_rcnn_fpn(5, lite0(), hidden=64, **SIZES),
    "norms in the pyramid": lambda: faster_rcnn_fpn(5, lite0(), hidden=64, norm=nn.BatchNorm2d, **SIZES),
    "one map, RoIPool": lambda: faster_rcnn(
        5, efficientnet_lite0((5,), output_stride=16), RoIPool(7), hidden=64, **SIZES
    ),
    "masks": lambda: mask_rcnn_fpn(5, lite0(), hidden=64, mask_channels=16, mask_layers=1, **SIZES),
    "learned": lambda: faster_rcnn_fpn(5, lite0(), LearnedRegionFeatures(32, prior=GridPrior()), hidden=64, **SIZES),
    "deformable": lambda: faster_rcnn_fpn(5, lite0(), DeformableRoIPool(RoIAlign(7), 32), hidden=64, **SIZES),
    "R-FCN": lambda: rfcn(5, efficientnet_lite0((4, 5), output_stride=16), **SIZES),
    "deformable R-FCN": lambda: rfcn(
        5,
        efficientnet_lite0((5,), output_stride=16),
        DeformablePositionSensitive(PositionSensitive(RoIAlign(7)), 32, 5, classes=5),
        DeformablePositionSensitive(PositionSensitive(RoIAlign(7)), 32, 4),
        **SIZES,
    ),
    "light head": lambda: light_head_rcnn(
        5, efficientnet_lite0((4, 5), output_stride=16), hidden=64, separable_channels=8, short_side=96, long_side=160
    ),
    "proposals": lambda: rpn_fpn(lite0(), **SIZES),
    "resnet18": lambda: faster_rcnn_fpn(
        5, torchvision_backbone("resnet18", (3, 4, 5), pretrained=False), hidden=64, **SIZES
    ),
}


def images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    small = torch.randint(0, 256, (3, 9, 12), dtype=torch.uint8, generator=generator).float()
    photo = nn.functional.interpolate(small[None], (120, 161), mode="bilinear")[0].to(torch.uint8)
    return [photo, photo[:, :90].float() / 255]


def assert_same(ours: list[Detections], theirs: list[Detections], box: float, score: float) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert len(a) == len(b) > 0
        torch.testing.assert_close(a.boxes, b.boxes, rtol=0, atol=box)
        torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=score)
        assert torch.equal(a.labels, b.labels)
        assert (a.masks is None) == (b.masks is None)
        if a.masks is not None and b.masks is not None:
            torch.testing.assert_close(a.masks.values, b.masks.values, rtol=0, atol=score)


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_what_it_finds_in_float32(name: str) -> None:
    torch.manual_seed(0)
    detector = realistic(DETECTORS[name]())
    before = copy.deepcopy(detector.state_dict())
    made = ReadyDetector(detector, precision="32-true")
    with torch.no_grad():
        assert_same(made(images()), detector(images()), 1e-2, 1e-4)
        boxes = [torch.tensor([[3.0, 4, 60, 80]]), torch.tensor([[0.0, 0, 100, 50], [20, 20, 60, 60]])]
        if detector.roi_heads:
            found = made(images(), boxes)
            assert [len(each) for each in found] == [len(each) for each in detector(images(), boxes)]
    assert all(torch.equal(before[key], tensor) for key, tensor in detector.state_dict().items())
    assert any(isinstance(module, FusedConv) for module in made.modules())
    assert not [each for each in made.detector.neck.modules() if type(each) is nn.Conv2d]
    own = [f"{n}.{m}" for n, e in made.named_modules() if isinstance(e, RegionExtractor) for m in e.map_layers]
    assert not [n for n in own for each in made.get_submodule(n).modules() if type(each) is nn.Conv2d]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["faster", "masks", "learned"])
def test_bfloat16_moves_boxes_and_scores_a_little(name: str) -> None:
    torch.manual_seed(0)
    detector = realistic(DETECTORS[name]())
    given = [torch.tensor([[3.0, 4, 60, 80], [30, 20, 150, 100]]), torch.tensor([[0.0, 0, 100, 50]])]
    head = detector.roi_heads[0]
    head.postprocess = head.postprocess.__class__(score_threshold=0.0, nms_threshold=1.0)
    made = ReadyDetector(detector, precision="bf16-mixed")
    with torch.no_grad():
        ours, theirs = made(images(), given), detector(images(), given)
    for a, b in zip(ours, theirs, strict=True):
        assert a.boxes.dtype == a.scores.dtype == torch.float32
        overlap = iou(a.boxes, b.boxes) * (a.labels[:, None] == b.labels)
        best, which = overlap.max(1)
        assert best.min() > 0.8
        assert (a.scores - b.scores[which]).abs().max() < 0.05


def test_proposals_in_bfloat16_are_told_apart() -> None:
    """Their scores are float32: in bfloat16 a third of them would be equal."""
    torch.manual_seed(0)
    network = DETECTORS["faster"]().without_heads()
    nn.init.normal_(network.proposals.objectness.weight, std=1.0)
    found = ReadyDetector(network, precision="bf16-mixed")(images())
    for each in found:
        assert each.scores.dtype == torch.float32
        assert len(each.scores.unique()) > 0.95 * len(each.scores) > 10


def test_it_records_nothing_and_the_detector_still_trains() -> None:
    detector = DETECTORS["faster"]()
    made = ReadyDetector(detector)
    assert not list(made.parameters())
    assert not made(images())[0].boxes.requires_grad
    target = Targets(torch.tensor([[10.0, 10, 80, 90]]), torch.tensor([1]))
    sum(detector.losses(images()[:1], [target]).values()).backward()
    assert detector.neck.lateral[0].weight.grad is not None


def test_an_image_alone_is_padded_to_its_own_size() -> None:
    made = ReadyDetector(DETECTORS["faster"]())
    for image in images():
        height, width = image.shape[1:]
        assert made.padded_size((height, width)) == tuple(made.detector.features([image])[0].data.shape[2:])


def test_a_pyramid_of_another_kind_is_left_as_it_is() -> None:
    class Doubled(FPN):
        def merge(self, lateral: nn.Module, fine: Tensor, coarser: Tensor) -> Tensor:
            return 2 * super().merge(lateral, fine, coarser)

    detector = realistic(DETECTORS["faster"]())
    detector.neck = Doubled(detector.backbone.channels, 32)
    with torch.no_grad():
        assert_same(ReadyDetector(detector, precision="32-true")(images()), detector(images()), 1e-2, 1e-4)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"amx_bf16": True}, "bf16-mixed"),
        ({"avx512_bf16": True}, "bf16-mixed"),
        ({"avx2": True}, "32-true"),
        ({}, "32-true"),
    ],
)
def test_precision_is_what_the_processor_is_fast_in(
    capabilities: dict[str, bool], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ready.torch.cpu, "get_capabilities", lambda: capabilities)
    assert inference_precision(torch.device("cpu")) == expected
    assert inference_precision(torch.device("mps")) == "32-true"
    assert inference_precision(torch.device("cpu"), "32-true") == "32-true"


def test_an_unknown_precision() -> None:
    with pytest.raises(ValueError, match="precision: expected 32-true or bf16-mixed, got 'half'"):
        inference_precision(torch.device("cpu"), "half")


@pytest.mark.parametrize("name", ["faster", "one map, RoIPool"])
@torch.no_grad()
def test_a_copy_of_one_that_was_used_finds_the_same(name: str) -> None:
    """Its layouts are made anew, and its activations are still what they were."""
    torch.manual_seed(0)
    made = ReadyDetector(realistic(DETECTORS[name]()), precision="32-true")
    images = [torch.randint(0, 256, (3, 90, 120), dtype=torch.uint8)]
    (found,) = made(images)
    (again,) = copy.deepcopy(made)(images)
    assert len(found) > 3
    for column in ("boxes", "scores", "labels"):
        assert torch.equal(getattr(found, column), getattr(again, column))
