"""Several scales, mirror images, iterative boxes and box voting at test time."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regio.augmented import AugmentedDetector, BoxVoting, IterativeBoxes, _Candidates, vote_boxes
from regio.boxes import clip, iou
from regio.config.extractors import RoIAlign
from regio.config.systems import RCNN, ClassAwareRPN, FasterRCNN, FastRCNN, MaskRCNN, SPPNet
from regio.config.systems import RPN as ProposalsAlone
from regio.detector import TwoStageDetector
from regio.export import export_torch
from regio.postprocess import Postprocess
from regio.preprocess import ShrinkingPreprocess
from regio.proposals import ClassAwareRPN as Network
from regio.ready import ReadyDetector
from regio.roi_heads import BoxHead, SVMHead
from regio.types import Detections, Regions
from tests.test_cli import photo, regio

SMALL: dict[str, Any] = {"short_side": 64, "long_side": 96, "channels": 16}
FASTER = FasterRCNN(**SMALL, anchor_sizes=(16.0, 32.0), hidden=32)
FAST = FastRCNN(**SMALL, hidden=32, extractor=RoIAlign())  # RoI pooling gives boxes of the same cells equal scores
ONE_STAGE = ClassAwareRPN(**SMALL, anchor_sizes=(16.0, 32.0))


@torch.no_grad()
def built(system: Any, threshold: float = 0.25) -> TwoStageDetector:
    """With weights large enough for scores and boxes of all kinds, of three classes."""
    torch.manual_seed(0)
    detector: TwoStageDetector = system.build(3).eval()
    rule = Postprocess(threshold, nms_threshold=0.4, detections_per_image=50)
    network: Any = detector.roi_heads[0] if len(detector.roi_heads) else detector.proposals
    network.postprocess = rule
    _, maps = detector.features(images())
    if isinstance(network, BoxHead):
        logits, deltas = network.predict(maps, Regions.from_list(boxes()))
        layers: list[Any] = [network.class_logits, network.box_deltas]
    else:
        logits, deltas = (torch.cat(each, 1).flatten(0, 1) for each in network.predict(maps))
        layers = [network.class_logits, network.deltas]
    scale = 2 / logits.std(0).mean()
    layers[0].weight.data.mul_(scale)
    layers[0].bias.data.copy_((-scale * logits.mean(0)).repeat(len(layers[0].bias) // logits.shape[1]))
    layers[1].weight.data.mul_(0.3 / deltas.std())
    return detector


def images() -> list[Tensor]:
    """One at the scale of the detector, and one that is scaled."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand((2, 3, 8, 8), generator=generator)
    return [torch.nn.functional.interpolate(coarse[i : i + 1], size)[0] for i, size in enumerate(((64, 90), (100, 80)))]


def boxes() -> list[Tensor]:
    corner = torch.rand((2, 30, 2), generator=torch.Generator().manual_seed(2)) * 40
    side = torch.rand((2, 30, 2), generator=torch.Generator().manual_seed(3)) * 30 + 8
    return [*torch.cat([corner, corner + side], 2)]


def given(system: Any) -> list[Any]:
    return [boxes()] if system is FAST else []


def assert_same(ours: list[Detections], theirs: list[Detections], tolerance: float = 1e-3) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert len(a) == len(b) > 3
        torch.testing.assert_close(a.boxes, b.boxes, rtol=0, atol=tolerance)
        torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=1e-4)
        assert torch.equal(a.labels, b.labels)


SYSTEMS = pytest.mark.parametrize("system", [FASTER, FAST, ONE_STAGE], ids=["faster", "fast", "one stage"])


@SYSTEMS
@torch.no_grad()
def test_at_its_own_scale_it_is_the_detector(system: Any) -> None:
    detector = built(system)
    expected = detector(images(), *given(system))
    assert_same(AugmentedDetector.of(detector)(images(), *given(system)), expected)
    assert_same(AugmentedDetector.of(detector, scales=(64,))(images(), *given(system)), expected)
    assert len({label for each in expected for label in each.labels.tolist()}) > 1


@SYSTEMS
@torch.no_grad()
def test_the_mirror_image_has_the_mirrored_boxes(system: Any) -> None:
    detector = AugmentedDetector.of(built(system), scales=(64, 48), flip=True)
    found = detector(images(), *given(system))
    proposals = [[mirrored(b, x.shape[2]) for b, x in zip(boxes(), images(), strict=True)]] if system is FAST else []
    again = detector([x.flip(-1) for x in images()], *proposals)
    widths = [x.shape[2] for x in images()]
    assert_same([replace(each, boxes=mirrored(each.boxes, w)) for each, w in zip(again, widths, strict=True)], found)
    without = AugmentedDetector.of(built(system), scales=(64, 48))(images(), *given(system))
    assert any(len(a) != len(b) or not torch.equal(a.scores, b.scores) for a, b in zip(found, without, strict=True))


@torch.no_grad()
def test_scales_above_the_photo_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a detector that reads crops of the photo itself, which is never enlarged."""
    torch.manual_seed(0)
    detector = RCNN(crop=32, context=2, hidden=16, short_side=64, long_side=96).build(4, pretrained=False).eval()
    head: Any = detector.roi_heads[0]
    nn.init.zeros_(head.class_logits.bias)  # as if fitted
    photo, proposals = torch.rand(3, 60, 80), boxes()[:1]
    looked: list[tuple[int, int]] = []
    prepare = ShrinkingPreprocess.prepare

    def counted(self: ShrinkingPreprocess, image: Tensor) -> Tensor:
        looked.append((self.short_side, image.shape[2]))
        return prepare(self, image)

    monkeypatch.setattr(ShrinkingPreprocess, "prepare", counted)
    found = AugmentedDetector.of(detector, scales=(64, 96, 300))([photo], proposals)
    assert len(looked) == 1
    once = AugmentedDetector.of(detector, scales=(96,))([photo], proposals)
    assert_same(found, once, 0)
    AugmentedDetector.of(detector, scales=(64, 96, 30))([photo], proposals)
    assert len(looked) == 4


@torch.no_grad()
def test_a_vote_does_not_depend_on_the_other_photos_of_a_batch() -> None:
    """A larger one has more pixels at a scale at which this one has the same."""
    torch.manual_seed(0)
    detector = RCNN(crop=32, context=2, hidden=16, short_side=64, long_side=96).build(4, pretrained=False).eval()
    head: Any = detector.roi_heads[0]
    nn.init.zeros_(head.class_logits.bias)
    photos = [torch.rand(3, 60, 80), torch.rand(3, 90, 120)]
    several = AugmentedDetector.of(detector, scales=(64, 80, 96), merge=BoxVoting.of(detector))
    alone, among = several(photos[:1], boxes()[:1]), several(photos, boxes()[:1] * 2)
    assert len(alone[0])
    assert_same(among[:1], alone, 1e-4)


def mirrored(some: Tensor, width: int) -> Tensor:
    return torch.stack([width - some[:, 2], some[:, 1], width - some[:, 0], some[:, 3]], 1)


@pytest.mark.slow
@SYSTEMS
@torch.no_grad()
def test_boxes_of_all_scales_are_suppressed_together(system: Any) -> None:
    detector = built(system)
    rule = Postprocess(0.25, nms_threshold=0.4, detections_per_image=50)
    every: list[list[Detections]] = [[], []]
    for short, long in ((64, 96), (40, 60), (80, 120)):
        one = built(system)
        one.preprocess = replace(one.preprocess, short_side=short, long_side=long)
        network: Any = one.roi_heads[0] if len(one.roi_heads) else one.proposals
        network.postprocess = replace(rule, nms_threshold=1.0, detections_per_image=10**6)
        for all_of_image, each in zip(every, one(images(), *given(system)), strict=True):
            all_of_image.append(each)
    joined = [
        Detections(*(torch.cat([getattr(x, name) for x in each]) for name in ("boxes", "labels", "scores")))
        for each in every
    ]
    found = AugmentedDetector.of(detector, scales=(40, 80, 64))(images(), *given(system))
    assert_same(found, [rule.suppress(each) for each in joined])
    assert any(len(set(each.scores.tolist()) & set(part.scores.tolist())) for each in found for part in every[0])


@pytest.mark.parametrize("system", [FASTER, FAST], ids=["faster", "fast"])
@torch.no_grad()
def test_iterative_boxes_are_those_of_loops(system: Any) -> None:
    detector = built(system)
    head = detector.roi_heads[0]
    assert isinstance(head, BoxHead)
    rule = head.postprocess
    head.postprocess = _Candidates(**asdict(rule))  # unsorted: which of two equal scores stays depends on the order
    batch, maps = detector.features(images())
    given_boxes = detector.preprocess.boxes(boxes(), batch)
    unscored = [Detections(b, torch.ones(len(b), dtype=torch.int64), torch.ones(len(b))) for b in given_boxes]
    first = head(maps, unscored if detector.proposals is None else detector.proposals(maps))
    expected = []
    for i, each in enumerate(first):
        rows = [[*each.boxes], [*each.labels], [*each.scores]]
        latest = rows
        for _ in range(2):
            latest_next: list[list[Tensor]] = [[], [], []]
            for box, label in zip(latest[0], latest[1], strict=True):
                output = head.predict(maps, Regions(box[None], torch.tensor([i])))
                score = head.scores(output.logits)[0, label - 1]
                moved = head.coder.decode(
                    output.deltas[:, label if output.deltas.shape[1] > 1 else 0], box[None], label[None]
                )
                moved = clip(moved, batch.sizes[i])[0]
                if score > 0.25 and (moved[2:] - moved[:2]).min() >= rule.min_size:
                    for column, value in zip(latest_next, (moved, label, score), strict=True):
                        column.append(value)
            rows = [a + b for a, b in zip(rows, latest_next, strict=True)]
            latest = latest_next
        assert len(rows[0]) > len(each) + 5
        expected.append(rule.suppress(Detections(*(torch.stack(column) for column in rows))))
    head.postprocess = rule
    found = AugmentedDetector.of(detector, rounds=3)(images(), *given(system))
    in_batch = [
        replace(each, boxes=each.boxes * torch.tensor([new[1] / old[1], new[0] / old[0]] * 2))
        for each, old, new in zip(found, batch.original, batch.sizes, strict=True)
    ]
    assert_same(in_batch, expected, 1e-2)


def detections(*rows: tuple[float, ...]) -> Detections:
    """From x1, y1, x2, y2, label, score."""
    table = torch.tensor(rows).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4].long(), table[:, 5])


def test_a_vote_worked_by_hand() -> None:
    every = detections(
        (0, 0, 10, 10, 1, 0.6),
        (2, 0, 12, 10, 1, 0.2),  # IoU with the first 80 / 120
        (0, 4, 10, 14, 1, 0.9),  # 60 / 140, too little for the first; and the best of all
        (0, 0, 10, 10, 2, 0.5),  # another class
        (50, 50, 60, 60, 1, 0.3),
    )
    voted = vote_boxes(every[torch.tensor([0])], every)
    torch.testing.assert_close(voted.boxes, torch.tensor([[0.5, 0, 10.5, 10]]))
    assert voted.scores.tolist() == pytest.approx([0.6]) and voted.labels.tolist() == [1]
    # The best suppresses the first at IoU 0.43, and the second has 48 / 152 of it, so it goes too.
    found = BoxVoting()(every)
    torch.testing.assert_close(found.boxes, torch.tensor([[0.0, 4, 10, 14], [0, 0, 10, 10], [50, 50, 60, 60]]))
    assert found.labels.tolist() == [1, 2, 1]
    wide = BoxVoting(iou_threshold=0.4)(every)
    torch.testing.assert_close(wide.boxes[0], torch.tensor([0.0, 2.4, 10, 12.4]))  # 0.9 of 4 and 0.6 of 0
    assert len(BoxVoting(Postprocess(nms_threshold=0.3, detections_per_image=1))(every)) == 1


@pytest.mark.parametrize("offset", [0.0, 4000.0])
def test_a_vote_is_a_mean_weighted_by_scores(offset: float) -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.rand((200, 4), generator=generator) * 20
    every = Detections(
        torch.cat([table[:, :2], table[:, :2] + 20 + table[:, 2:]], 1) + offset,
        torch.randint(1, 4, (200,), generator=generator),
        torch.rand(200, generator=generator),
    )
    voted = vote_boxes(every, every)
    for i in range(200):
        near = (iou(every.boxes[i : i + 1], every.boxes)[0] > 0.5) & (every.labels == every.labels[i])
        some, weight = every.boxes[near].double(), every.scores[near].double()
        torch.testing.assert_close(
            voted.boxes[i].double(), (weight[:, None] * some).sum(0) / weight.sum(), rtol=0, atol=1e-5 + offset * 1e-6
        )
        assert bool((voted.boxes[i] >= every.boxes[near].amin(0) - 1e-3).all())
        assert bool((voted.boxes[i] <= every.boxes[near].amax(0) + 1e-3).all())
    first = torch.zeros(50, dtype=torch.int64)
    assert torch.equal(vote_boxes(every[first[:1]], every[first]).boxes, every.boxes[:1])


def test_scores_of_zero_or_less_have_no_vote() -> None:
    every = detections((0, 0, 10, 10, 1, -0.5), (1, 0, 11, 10, 1, -0.2), (2, 0, 12, 10, 2, 0.5), (3, 0, 13, 10, 2, -9))
    assert torch.equal(vote_boxes(every, every).boxes[:3], every.boxes[:3])
    assert vote_boxes(every, every).boxes[3].tolist() == [2, 0, 12, 10]


@SYSTEMS
@torch.no_grad()
def test_images_in_which_nothing_is_found(system: Any) -> None:
    detector = built(system, threshold=1.0)
    rounds = 1 if system is ONE_STAGE else 3
    for merge in (None, BoxVoting()):
        made = AugmentedDetector.of(detector, scales=(64, 40), flip=True, rounds=rounds, merge=merge)
        assert [len(each) for each in made(images(), *given(system))] == [0, 0]
    if system is FAST:
        made = AugmentedDetector.of(built(system), flip=True, rounds=2, merge=BoxVoting())
        found = made(images(), [boxes()[0], torch.zeros(0, 4)])
        assert len(found[0]) > 3 and len(found[1]) == 0


@torch.no_grad()
def test_ready_it_finds_the_same() -> None:
    detector = AugmentedDetector.of(built(FAST), scales=(64, 48), flip=True, rounds=2, merge=BoxVoting())
    ready = ReadyDetector(detector, "cpu", "32-true")
    assert isinstance(ready.detector, AugmentedDetector) and ready.padded_size((100, 80)) == (80, 64)
    assert_same(ready(images(), boxes()), detector(images(), boxes()), 1e-2)


@torch.no_grad()
def test_long_sides_keep_their_proportion_and_the_detector_is_as_it_was() -> None:
    detector = built(FASTER)
    rule = detector.roi_heads[0].postprocess
    made = AugmentedDetector.of(detector, scales=(480, 1400))
    assert [(each.short_side, each.long_side) for each in made.scaled] == [(1400, 2100), (480, 720)]
    AugmentedDetector.of(detector, flip=True)(images())
    assert detector.roi_heads[0].postprocess is rule and detector.preprocess.short_side == 64
    assert made.state_dict().keys() == detector.state_dict().keys()


@torch.no_grad()
def test_boxes_looked_at_again_are_candidates_by_the_thresholds_of_their_class() -> None:
    """An SVM head has a threshold of its own for each class, and no lowest score for all."""
    detector = SPPNet(backbone_weights="none", sides=(64,), long_side=96, hidden=16, pyramid=(2, 1)).build(2)
    (head,) = detector.eval().roi_heads
    assert isinstance(head, SVMHead)
    torch.manual_seed(0)
    nn.init.normal_(head.class_logits.weight)
    nn.init.zeros_(head.class_logits.bias)
    regions = [torch.tensor([[x, y, x + 30.0, y + 26.0] for x in range(0, 60, 12) for y in range(0, 30, 10)])]
    image = [torch.rand(3, 64, 96)]
    everything = detector(image, regions)[0].scores
    head.thresholds[:] = everything.median()
    for rounds in (1, 2):
        found = AugmentedDetector.of(detector, rounds=rounds)(image, regions)[0]
        assert len(found) > 0 and found.scores.min() >= head.thresholds[0]


def test_voting_keeps_the_limits_of_the_detector() -> None:
    detector = built(FASTER)
    head = detector.roi_heads[0]
    assert isinstance(head, BoxHead)
    head.postprocess = replace(head.postprocess, detections_per_image=7, min_kept_size=3.0)
    assert BoxVoting.of(detector).rule == replace(head.postprocess, nms_threshold=0.3)


def test_it_is_for_inference_as_it_is(tmp_path: Path) -> None:
    made = AugmentedDetector.of(built(FASTER), flip=True)
    for call in (made.without_heads, made.without_proposals, lambda: made.losses(images(), [])):
        with pytest.raises(TypeError, match="an augmented detector .* the detector that it was made from"):
            call()
    with pytest.raises(ValueError, match="detector: expected one, .* got AugmentedDetector"):
        export_torch(made, tmp_path / "a.pt2")
    pyramid = FastRCNN(backbone_weights="none", sides=(64, 80), hidden=16, channels=16).build(2)
    with pytest.raises(ValueError, match=r"scales: expected none for a detector with scales of its own, got \[480\]"):
        AugmentedDetector.of(pyramid, scales=(480,))


def test_what_does_not_fit_is_refused() -> None:
    detector = built(FASTER)
    with pytest.raises(ValueError, match=r"scales: expected different numbers of pixels, got \[64, 64\]"):
        AugmentedDetector.of(detector, scales=(64, 64))
    with pytest.raises(ValueError, match=r"scales: expected different numbers of pixels, got \[0\]"):
        AugmentedDetector.of(detector, scales=(0,))
    with pytest.raises(ValueError, match="rounds: expected 1 or more, got 0"):
        AugmentedDetector.of(detector, rounds=0)
    head = detector.roi_heads[0]
    assert isinstance(head, BoxHead)
    with pytest.raises(ValueError, match="rounds: expected 1 or more, got 0"):
        IterativeBoxes(head, 0)
    masks = MaskRCNN(short_side=64, long_side=96, channels=16, hidden=32).build(3, pretrained=False)
    with pytest.raises(ValueError, match="expected one box head or a class-aware RPN, .* got FastRCNNHead, MaskHead"):
        AugmentedDetector.of(masks)
    alone = ProposalsAlone(**SMALL).build(3, pretrained=False)
    with pytest.raises(ValueError, match="expected one box head or a class-aware RPN, .* got RPN"):
        AugmentedDetector.of(alone)
    one_stage = built(ONE_STAGE)
    assert isinstance(one_stage.proposals, Network)
    with pytest.raises(ValueError, match="rounds: expected 1 for a detector without a head"):
        AugmentedDetector.of(one_stage, rounds=2)


@pytest.mark.slow
def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = ["short_side=64", "long_side=96", "channels=16", "hidden=32", "images=4", "validation_images=2"]
    quick = ["--batch-size", "2", "--steps", "2", "workers=0", "device=cpu", "--name", "a"]
    assert regio("train", "shapes", "--model", "faster-rcnn", *sizes, *quick) == 0
    words = ["--scales", "64,48", "--flip", "--rounds", "2", "--box-voting"]
    file = str(photo(tmp_path / "a.png"))
    assert regio("detect", file, "--score", "0", "--output", "found", *words) == 0
    assert json.loads((tmp_path / "found" / "detections.json").read_text())[0]["detections"]
    assert regio("detect", file, "--scales", "64,a") == 2
    assert "--scales: expected numbers of pixels such as 480,576, got '64,a'" in capsys.readouterr().err
    assert regio("detect", file, "--scales", "64,64") == 2
    assert "scales: expected different numbers of pixels" in capsys.readouterr().err
