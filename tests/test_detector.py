"""The two-stage detector as a whole, on a small backbone."""

import copy
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from regio.backbones import Backbone, Level, efficientnet_lite0
from regio.boxes import iou
from regio.detector import TwoStageDetector
from regio.proposals import Anchors
from regio.regions import LearnedRegionFeatures, RoIAlign
from regio.regions.learned import Exact, Mode, Sampled
from regio.systems import faster_rcnn, faster_rcnn_fpn
from regio.types import Regions, Targets
from tests.photos import voc_photo

LOSSES = {"rpn_objectness", "rpn_box", "class", "box"}


def small_fpn(num_classes: int = 4, side: int = 96) -> TwoStageDetector:
    torch.manual_seed(0)
    return faster_rcnn_fpn(
        num_classes,
        efficientnet_lite0((3, 4, 5)),
        channels=32,
        hidden=64,
        short_side=side,
        long_side=2 * side,
        anchors=Anchors(((16,), (32,), (64,), (128,))),
        regions_per_image=32,
    )


def small_single(num_classes: int = 4, side: int = 96) -> TwoStageDetector:
    torch.manual_seed(0)
    return faster_rcnn(
        num_classes,
        efficientnet_lite0((5,), output_stride=16),
        RoIAlign(7, samples=2),
        channels=32,
        hidden=64,
        short_side=side,
        long_side=2 * side,
        anchors=Anchors(((16, 32, 64),)),
        straddle_threshold=None,
        regions_per_image=32,
    )


def report_everything(detector: TwoStageDetector) -> None:
    head = detector.roi_heads[0]
    head.postprocess = replace(head.postprocess, score_threshold=0.0)


def images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in ((90, 120), (128, 96))
    ]


def targets() -> list[Targets]:
    first = Targets(torch.tensor([[10.0, 10, 50, 60], [60, 20, 110, 80]]), torch.tensor([1, 3]))
    return [first, Targets(torch.tensor([[5.0, 5, 90, 120]]), torch.tensor([2]))]


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


@pytest.mark.parametrize("make", [small_fpn, small_single])
def test_losses_train_every_part(make) -> None:  # type: ignore[no-untyped-def]
    detector = make()
    losses = detector.losses(images(), targets())
    assert set(losses) == LOSSES
    assert all(loss.shape == () and bool(torch.isfinite(loss)) for loss in losses.values())
    total(losses).backward()
    for name, parameter in detector.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or bool(torch.isfinite(parameter.grad).all()), name


@pytest.mark.parametrize("make", [small_fpn, small_single])
def test_detections_are_in_pixels_of_the_images(make) -> None:  # type: ignore[no-untyped-def]
    detector = make()
    report_everything(detector)
    with torch.no_grad():
        found = detector(images())
    for detections, image in zip(found, images(), strict=True):
        assert len(detections) == 100
        assert bool((detections.scores[:-1] >= detections.scores[1:]).all())
        assert detections.labels.min() >= 1 and detections.labels.max() <= 3
        assert detections.boxes.min() >= 0
        assert detections.boxes[:, 2].max() <= image.shape[2] + 1e-3
        assert detections.boxes[:, 3].max() <= image.shape[1] + 1e-3
        assert detections.boxes[:, 3].max() > image.shape[1] / 2


def test_train_mode_changes_nothing() -> None:
    detector = small_fpn()
    report_everything(detector)
    results = []
    for training in (True, False):
        detector.train(training)
        torch.manual_seed(5)
        with torch.no_grad():
            losses, found = detector.losses(images(), targets()), detector(images())
        results.append([*losses.values(), *(tensor for d in found for tensor in (d.boxes, d.labels, d.scores))])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_the_seed_decides() -> None:
    detector = small_fpn()
    values = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        detector.zero_grad()
        losses = detector.losses(images(), targets())
        total(losses).backward()
        grad = detector.roi_heads[0].trunk.fc6.weight.grad
        values.append((total(losses).item(), grad.clone()))
    assert values[0][0] == values[1][0] and torch.equal(values[0][1], values[1][1])
    assert values[0][0] != values[2][0]


def test_images_of_a_batch_do_not_touch_each_other() -> None:
    detector = small_fpn()
    report_everything(detector)
    pair = [images()[0], images()[0].flip(2)]  # of one size, so that padding is the same
    with torch.no_grad():
        together = detector(pair)
        for image, expected in zip(pair, together, strict=True):
            (alone,) = detector([image])
            torch.testing.assert_close(alone.scores, expected.scores, rtol=1e-4, atol=1e-5)


class Patches(nn.Module):
    """Maps at strides 8, 16 and 32 by layers that see no neighbours and have no biases: the padding stays zero."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv2d(i, o, s, s, bias=False) for i, o, s in ((3, 12, 8), (12, 16, 2), (16, 20, 2))
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for layer in self.layers:
            x = layer(x)
            maps.append(x)
        return maps


@pytest.mark.parametrize("mode", [Exact(), Sampled(inside=9, outside=9)])
def test_detections_do_not_depend_on_the_padding(mode: Mode) -> None:
    """With learned region features, which read the whole image: exactly, where the maps do not depend on it."""
    torch.manual_seed(0)
    backbone = Backbone(
        Patches(), [Level(3, 12, 8), Level(4, 16, 16), Level(5, 20, 32)], levels=(3, 4, 5), frozen_norm=False
    )
    extractor = LearnedRegionFeatures(16, 3, 32, 16, mode=mode)
    with torch.no_grad():
        for parameter in extractor.parameters():
            parameter.mul_(10)
    detector = faster_rcnn_fpn(4, backbone, extractor, channels=16, hidden=32, short_side=64, long_side=160).eval()
    report_everything(detector)
    generator = torch.Generator().manual_seed(0)
    pair = [torch.rand(3, *size, generator=generator) for size in ((64, 96), (160, 64))]  # padded to 160 x 96
    boxes = torch.tensor([[4.0, 5, 60, 61], [0, 0, 64, 64], [30, 20, 50, 58]])
    with torch.no_grad():
        _, together = detector.features(pair)
        read = detector.roi_heads[0].extractor
        features = read(together, Regions.from_list([boxes, boxes]))
        for i, image in enumerate(pair):
            _, own = detector.features([image])
            alone = read(own, Regions.from_list([boxes]))
            torch.testing.assert_close(alone, features[3 * i : 3 * i + 3], rtol=1e-4, atol=1e-5)
        # Proposals of the RPN do depend on the padding: its 3 x 3 convolution has a bias.
        for image, expected in zip(pair, detector(pair, [boxes] * 2), strict=True):
            (alone,) = detector([image], [boxes])
            assert torch.equal(alone.labels, expected.labels)
            torch.testing.assert_close(alone.scores, expected.scores, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(alone.boxes, expected.boxes, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("make", [small_fpn, small_single])
def test_images_without_objects(make) -> None:  # type: ignore[no-untyped-def]
    detector = make()
    nothing = Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    losses = detector.losses(images(), [nothing, nothing])
    assert losses["box"].item() == losses["rpn_box"].item() == 0
    total(losses).backward()
    gradients = [p.grad for p in detector.parameters() if p.grad is not None]
    assert gradients and all(bool(torch.isfinite(g).all()) for g in gradients)


def test_crowd_regions_are_not_learnt() -> None:
    detector = small_fpn()
    crowd = Targets(torch.tensor([[0.0, 0, 120, 90]]), torch.tensor([1]), crowd=torch.tensor([True]))
    losses = detector.losses(images()[:1], [crowd])
    assert losses["box"].item() == losses["rpn_box"].item() == 0
    assert losses["class"].item() == 0  # every proposal lies in the crowd: none is background


def test_no_proposals_at_all() -> None:
    detector = small_fpn()
    none = replace(detector.proposals.test_filter, min_size=1e6)  # type: ignore[attr-defined]
    detector.proposals.test_filter = detector.proposals.train_filter = none  # type: ignore[attr-defined]
    with torch.no_grad():
        assert [len(found) for found in detector(images())] == [0, 0]
    losses = detector.losses(images(), [targets()[0], Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))])
    total(losses).backward()  # the objects themselves are what the head is trained on
    assert bool(torch.isfinite(total(losses)))


def test_copies_and_pickles_detect_the_same() -> None:
    detector = small_fpn()
    report_everything(detector)
    with torch.no_grad():
        expected = detector(images())[0]
        for twin in (copy.deepcopy(detector), pickle.loads(pickle.dumps(detector))):
            assert torch.equal(twin(images())[0].boxes, expected.boxes)


def test_bfloat16_autocast() -> None:
    detector = small_fpn()
    report_everything(detector)
    with torch.autocast("cpu", torch.bfloat16):
        losses = detector.losses(images(), targets())
        with torch.no_grad():
            found = detector(images())
    assert all(bool(torch.isfinite(loss)) for loss in losses.values())
    assert found[0].boxes.dtype == found[0].scores.dtype == torch.float32
    total(losses).backward()


def test_number_of_targets_is_checked() -> None:
    with pytest.raises(ValueError, match="targets: expected 2, one an image, got 1"):
        small_fpn().losses(images(), targets()[:1])


@pytest.mark.slow
@pytest.mark.parametrize("make", [small_fpn, small_single])
def test_learns_two_photos_by_heart(make, shared_data: Path) -> None:  # type: ignore[no-untyped-def]
    folder, names = shared_data / "voc2012_100", ["chair", "dog", "tvmonitor"]
    photos, annotated = zip(*[voc_photo(folder, stem, names) for stem in ("2007_000063", "2007_000121")], strict=True)
    detector = make(side=160)
    optimizer = torch.optim.AdamW([p for p in detector.parameters() if p.requires_grad], lr=1e-3)
    history = []
    for _ in range(80):
        losses = detector.losses(photos, annotated)
        optimizer.zero_grad()
        total(losses).backward()
        optimizer.step()
        history.append(losses["rpn_objectness"].item() + losses["class"].item())
    assert sum(history[-5:]) < 0.3 * sum(history[:5])
    with torch.no_grad():
        found = detector(photos)
    for detections, target in zip(found, annotated, strict=True):
        sure = detections.scores > 0.5
        overlap = iou(target.boxes, detections.boxes[sure]) * (target.labels[:, None] == detections.labels[None, sure])
        assert bool((overlap.amax(1) > 0.5).all())
