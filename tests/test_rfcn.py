"""R-FCN and Light-Head R-CNN: the vote, the parts that move, hard examples, and the systems."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regio.backbones import efficientnet_lite0
from regio.boxes import iou
from regio.checkpoints import Card, load_all_but_classes, save
from regio.config import load_detector, model_to_dict
from regio.config.extractors import DeformableRoIPool, RFCNAveragePool, RoIAlignMax
from regio.config.systems import RFCN, LightHeadRCNN
from regio.data import Shapes
from regio.detector import TwoStageDetector
from regio.kept_maps import KeptMaps, MappedDetector
from regio.losses import HardExamples, MeanLoss
from regio.matching import BalancedSampler, Matcher, RegionSampler, TakeAll
from regio.optimisation import rate_groups
from regio.regions import DeformablePositionSensitive, Levels, OneLevel, PositionSensitive, RegionExtractor, score_maps
from regio.regions import RFCNAveragePool as RFCNBins
from regio.regions import RoIAlign as Align
from regio.roi_heads import BoxOutput, RFCNHead
from regio.systems import light_head_rcnn, rfcn
from regio.types import Detections, FeatureMap, Regions, Targets
from tests.regions.test_position_sensitive import rfcn_bin
from tests.test_cli import regio
from tests.test_cli_weights import data

BOXES = [[5.3, 4.1, 30.9, 29.9], [0.0, 0.0, 44.0, 36.0], [-13.7, 17.2, 12.9, 51.3], [20.6, 14.9, 20.6, 14.9]]
CLASSES = 3  # with the background


def maps(dtype: torch.dtype = torch.float64, channels: int = 5) -> list[FeatureMap]:
    data = torch.randn(2, channels, 9, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return [FeatureMap(data.to(dtype), 4)]


def regions(dtype: torch.dtype = torch.float64) -> Regions:
    return Regions(torch.tensor(BOXES, dtype=dtype), torch.tensor([0, 1, 0, 1]))


def plain(channels: int) -> RegionExtractor:
    return score_maps(5, channels, PositionSensitive(RFCNBins((2, 3))))


def aligned(channels: int) -> RegionExtractor:
    return score_maps(5, channels, PositionSensitive(Align((2, 3))))


def deformable(channels: int) -> RegionExtractor:
    pool = PositionSensitive(Align((2, 3)))
    return DeformablePositionSensitive(pool, 5, channels, classes=CLASSES if channels == CLASSES else 1)


def shared_offsets(channels: int) -> RegionExtractor:
    return DeformablePositionSensitive(PositionSensitive(Align((2, 3))), 5, channels)


FORMS = [plain, aligned, deformable, shared_offsets]


def head(make: Callable[[int], RegionExtractor], boxes: int = 4, std: float = 0.5) -> RFCNHead:
    torch.manual_seed(0)
    made = RFCNHead(
        Levels(make(CLASSES)),
        Levels(make(boxes)),
        sampler=RegionSampler(Matcher(0.5, 0.5), TakeAll()),
        reduction=HardExamples(3),
    )
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=std)
    return made.double()


@pytest.mark.parametrize("agnostic", [True, False])
def test_the_head_is_its_loops(agnostic: bool) -> None:
    """For each box, class and part: the mean of the score map of this class and part over the cells of the bin; then
    the mean over the parts."""
    own = head(plain, 4 if agnostic else 4 * CLASSES)
    (x,), r = maps(), regions()
    output = own.predict([x], r)
    assert output.logits.shape == (4, CLASSES) and output.deltas.shape == (4, 1 if agnostic else CLASSES, 4)
    for found, extractor in ((output.logits, own.extractor), (output.deltas.flatten(1), own.box_extractor)):
        weight, bias = (each.detach() for each in extractor.extractors[0].layer.parameters())  # type: ignore
        for n, (x1, y1, x2, y2) in enumerate(BOXES):
            for c in range(found.shape[1]):
                parts = []
                for i in range(2):
                    for j in range(3):
                        map_of = c * 6 + i * 3 + j
                        values = [
                            float(weight[map_of, :, 0, 0] @ x.data[r.image[n], :, v, u] + bias[map_of])
                            for v in rfcn_bin(y1, y2, 4, 9, i, 2)
                            for u in rfcn_bin(x1, x2, 4, 11, j, 3)
                        ]
                        parts.append(sum(values) / len(values) if values else 0.0)
                assert float(found[n, c].detach()) == pytest.approx(sum(parts) / 6, abs=1e-12)


def test_a_vote_by_hand() -> None:
    """Score maps that are the channels themselves. In its own quarter of the map, class 0 has the scores 1, 2, 3, 6 and
    class 1 has 8, 0, -4, 0; elsewhere they are 100. The votes are 3 and 1."""
    x = torch.full((1, 2, 4, 4, 4), 100.0)  # class, part
    for part, (top, left) in enumerate(((0, 0), (0, 2), (2, 0), (2, 2))):
        x[0, 0, part, top : top + 2, left : left + 2] = (1.0, 2.0, 3.0, 6.0)[part]
        x[0, 1, part, top : top + 2, left : left + 2] = (8.0, 0.0, -4.0, 0.0)[part]
    scores, boxes = (score_maps(8, n, PositionSensitive(RFCNBins(2))) for n in (2, 4))
    with torch.no_grad():
        scores.layer.weight.copy_(torch.eye(8)[:, :, None, None])  # type: ignore
        boxes.layer.weight.zero_()  # type: ignore
        boxes.layer.bias.copy_(torch.arange(4.0).repeat_interleave(4))  # type: ignore
    own = RFCNHead(Levels(scores), Levels(boxes))
    whole = Regions(torch.tensor([[0.0, 0, 31, 31]]), torch.tensor([0]))  # R-FCN counts the pixel of the last corner
    output = own.predict([FeatureMap(x.flatten(1, 2), 8)], whole)
    torch.testing.assert_close(output.logits, torch.tensor([[3.0, 1.0]]))
    torch.testing.assert_close(output.deltas, torch.tensor([[[0.0, 1, 2, 3]]]))


@pytest.mark.parametrize("make", FORMS)
def test_gradients_are_those_of_differences(make: Callable[[int], RegionExtractor]) -> None:
    own, (x,), r = head(make), maps(), regions()
    names = [name for name, _ in own.named_parameters()]

    class Predicting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = own

        def forward(self, cells: Tensor) -> tuple[Tensor, Tensor]:
            return tuple(self.head.predict([FeatureMap(cells, 4)], r))  # type: ignore[return-value]

    def run(cells: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        values = {f"head.{name}": each for name, each in zip(names, parameters, strict=True)}
        return torch.func.functional_call(Predicting(), values, (cells,))  # type: ignore[no-any-return]

    inputs = [each.detach().clone().requires_grad_() for each in (x.data, *own.parameters())]
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True, atol=1e-5)


def targets(boxes: list[Tensor]) -> list[Targets]:
    return [Targets(each, torch.ones(len(each), dtype=torch.int64)) for each in boxes]


@pytest.mark.parametrize("make", [deformable, shared_offsets])
def test_zero_offsets_are_the_plain_head_and_they_are_learned(make: Callable[[int], RegionExtractor]) -> None:
    moved, still = head(make), head(aligned)
    for ours, theirs in ((moved.extractor, still.extractor), (moved.box_extractor, still.box_extractor)):
        own, other = ours.extractors[0], theirs.extractors[0]
        nn.init.zeros_(own.offset.weight)  # type: ignore
        nn.init.zeros_(own.offset.bias)  # type: ignore
        other.layer.load_state_dict(own.scores.state_dict())  # type: ignore
    output, expected = (each.predict(maps(), regions()) for each in (moved, still))
    torch.testing.assert_close(output.logits, expected.logits, rtol=0, atol=1e-12)
    torch.testing.assert_close(output.deltas, expected.deltas, rtol=0, atol=1e-12)
    objects = [torch.tensor([BOXES[0]], dtype=torch.float64) + 1, torch.tensor([BOXES[1]], dtype=torch.float64) + 1]
    _, losses = moved.losses(maps(), [r[None] for r in regions().boxes[:2]], targets(objects))
    (losses["class"] + losses["box"]).backward()
    for levels in (moved.extractor, moved.box_extractor):
        for parameter in levels.extractors[0].offset.parameters():  # type: ignore
            assert parameter.grad is not None and bool((parameter.grad != 0).any())
            if levels is moved.extractor and make is deformable:  # each class has offsets of its own
                each = parameter.grad.flatten(1).sum(1) if parameter.ndim > 1 else parameter.grad
                assert bool((each.view(CLASSES, -1) != 0).any(1).all())


def test_the_hardest_128_of_each_image_are_learnt_from() -> None:
    """Of 300 regions of one image exactly 128 have a gradient, those with the largest sum of both losses; of 90 regions
    of another all have."""
    torch.manual_seed(0)
    own = RFCNHead(
        Levels(plain(CLASSES)),
        Levels(plain(4)),
        sampler=RegionSampler(Matcher(0.5, 0.5), TakeAll()),
        reduction=HardExamples(128),
    )
    boxes = torch.rand(390, 4) * 20
    boxes[:, 2:] += boxes[:, :2] + 5
    r = Regions(boxes, torch.tensor([0] * 300 + [1] * 90))
    labels = torch.randint(0, CLASSES, (390,))
    logits, deltas = (torch.randn(390, *shape, requires_grad=True) for shape in ((CLASSES,), (1, 4)))
    objects = boxes + torch.rand(390, 4)
    losses = own.compare(BoxOutput(logits, deltas), r, labels, objects)
    (losses["class"] + losses["box"]).backward()

    wanted = own.coder.encode(objects, boxes, labels)
    of_box = F.smooth_l1_loss(deltas[:, 0], wanted, reduction="none").sum(1) * (labels > 0)
    each = (F.cross_entropy(logits, labels, reduction="none") + of_box).detach()
    hardest = {*each[:300].topk(128).indices.tolist(), *range(300, 390)}
    assert logits.grad is not None and deltas.grad is not None
    assert set(logits.grad.abs().sum(1).nonzero()[:, 0].tolist()) == hardest
    positive = {i for i in hardest if labels[i] > 0}
    assert set(deltas.grad.abs().sum((1, 2)).nonzero()[:, 0].tolist()) == positive
    assert float((losses["class"] + losses["box"]).detach()) == pytest.approx(float(each[sorted(hardest)].sum() / 218))


def test_all_proposals_are_looked_at() -> None:
    """The sample of a head with hard examples is every proposal and every object, in two images."""
    own = head(aligned)
    found = [torch.rand(40, 4, dtype=torch.float64) * 20, torch.rand(7, 4, dtype=torch.float64) * 20]
    for each in found:
        each[:, 2:] += each[:, :2] + 1
    sampled, losses = own.losses(maps(), found, targets([regions().boxes[:1], regions().boxes[:0]]))
    assert [len(each) for each in sampled] == [41, 7]
    assert float(losses["class"].detach()) > 0


@pytest.mark.parametrize("make", FORMS)
def test_no_regions(make: Callable[[int], RegionExtractor]) -> None:
    own = head(make)
    none = torch.zeros(0, 4, dtype=torch.float64)
    empty = Detections(none, torch.zeros(0, dtype=torch.int64), none[:, 0])
    assert [len(each) for each in own(maps(), [empty, empty])] == [0, 0]
    sampled, losses = own.losses(maps(), [none, none], targets([none, none]))
    assert [len(each) for each in sampled] == [0, 0] and all(loss.item() == 0 for loss in losses.values())
    sum(losses.values()).backward()  # type: ignore[union-attr]


@pytest.mark.parametrize("make", FORMS)
def test_a_batch_is_its_images(make: Callable[[int], RegionExtractor]) -> None:
    """Images of other sizes in one batch, whose rest is padded, and one without a proposal, change nothing."""
    own, (x,) = head(make), maps()
    wide = F.pad(x.data, (0, 6, 0, 5))  # the images are 36 x 44 of 56 x 68 pixels
    batch = FeatureMap(torch.cat([wide, torch.randn_like(wide[:1])]), 4, ((36, 44), (36, 44), (56, 68)))
    boxes = regions().boxes[:2] - 4
    together = own.predict([batch], Regions(boxes.repeat(2, 1), torch.tensor([1, 1, 2, 2])))
    alone = own.predict([FeatureMap(x.data[1:], 4)], Regions(boxes.clamp(max=30), torch.tensor([0, 0])))
    inside = own.predict([batch], Regions(boxes.clamp(max=30), torch.tensor([1, 1])))
    torch.testing.assert_close(inside.logits, alone.logits, rtol=0, atol=1e-12)
    torch.testing.assert_close(inside.deltas, alone.deltas, rtol=0, atol=1e-12)
    last = own.predict([FeatureMap(batch.data[2:], 4)], Regions(boxes, torch.tensor([0, 0])))
    torch.testing.assert_close(together.logits[2:], last.logits, rtol=0, atol=1e-12)
    assert not torch.allclose(together.logits[:2], together.logits[2:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", FORMS)
def test_half_precision(make: Callable[[int], RegionExtractor], dtype: torch.dtype) -> None:
    """Scores and boxes are float32, and near those of float32, also where logits are large: the parts are averaged in
    float32, so that the mean is nearer than the rounding of a number of its size."""
    own = head(make, std=0.02 if make in (deformable, shared_offsets) else 0.5).float()
    for levels in (own.extractor, own.box_extractor):
        layer = levels.extractors[0]
        scores = layer.scores if isinstance(layer, DeformablePositionSensitive) else layer.layer  # type: ignore
        nn.init.normal_(scores.weight, std=10.0)  # type: ignore
    expected = own.predict(maps(torch.float32), regions(torch.float32))
    largest = float(expected.logits.detach().abs().max())
    assert largest > 5
    with torch.autocast("cpu", dtype):
        output = own.predict(maps(torch.float32), regions(torch.float32))
    assert output.logits.dtype == output.deltas.dtype == torch.float32
    error = 30 * torch.finfo(dtype).eps  # of values up to a few tens, each rounded once or twice
    torch.testing.assert_close(output.logits, expected.logits, rtol=0, atol=error)
    torch.testing.assert_close(output.deltas, expected.deltas, rtol=0, atol=error)


def built(make: Callable[..., TwoStageDetector], levels: tuple[int, ...], *more: RegionExtractor) -> TwoStageDetector:
    torch.manual_seed(0)
    return make(21, efficientnet_lite0(levels, output_stride=16, pretrained=False), *more)


@pytest.mark.parametrize("levels", [(5,), (4, 5)])
def test_the_numbers_of_the_papers(levels: tuple[int, ...]) -> None:
    detector = built(rfcn, levels)
    own, rpn = detector.roi_heads[0], detector.proposals
    assert own.extractor.extractors[0].layer.weight.shape == (49 * 21, 1024, 1, 1)
    assert own.box_extractor.extractors[0].layer.weight.shape == (49 * 4, 1024, 1, 1)
    assert rpn.conv.weight.shape == (512, 112 if len(levels) == 2 else 1024, 3, 3)  # type: ignore
    assert own.reduction == HardExamples(128) and own.sampler.sampler == TakeAll()
    assert rpn.train_filter.post_nms_top_n == rpn.test_filter.post_nms_top_n == 300  # type: ignore
    assert detector.preprocess.divisor == 16
    light = built(light_head_rcnn, levels)
    own = light.roi_heads[0]
    assert own.extractor.extractors[0].layer.column_row[1].weight.shape == (490, 256, 1, 15)
    assert own.trunk.fc.weight.shape == (2048, 490) and own.class_logits.weight.shape == (21, 2048)
    filters = light.proposals.train_filter, light.proposals.test_filter  # type: ignore
    assert [(each.pre_nms_top_n, each.post_nms_top_n) for each in filters] == [(12000, 2000), (6000, 1000)]
    assert light.proposals.conv.weight.shape[1] == (112 if len(levels) == 2 else 320)  # type: ignore


@pytest.mark.slow
@pytest.mark.parametrize("make", [rfcn, light_head_rcnn])
def test_proposals_read_c4_and_the_head_reads_c5(make: Callable[..., TwoStageDetector]) -> None:
    """What is found elsewhere on the one map changes nothing in what the other is read for."""
    detector = built(make, (4, 5)).eval()
    image = torch.rand(3, 64, 96)
    _, (c4, c5) = detector.features([image])
    assert (c4.stride, c5.stride) == (16, 16) and c4.data.shape[1] == 112
    boxes = torch.tensor([[3.0, 4, 60, 80], [30, 20, 90, 60]])
    other4, other5 = (replace(x, data=torch.rand_like(x.data)) for x in (c4, c5))

    def found(*maps: FeatureMap) -> tuple[Tensor, Tensor]:
        r = Regions(boxes, torch.zeros(2, dtype=torch.int64))
        return detector.proposals(maps)[0].scores, detector.roi_heads[0].predict(maps, r).logits  # type: ignore

    with torch.no_grad():
        scores, logits = found(c4, c5)
        assert torch.equal(found(c4, other5)[0], scores) and not torch.equal(found(c4, other5)[1], logits)
        assert not torch.equal(found(other4, c5)[0], scores) and torch.equal(found(other4, c5)[1], logits)


def test_one_level_of_several_has_all_the_weights() -> None:
    (x,) = maps()
    wide = FeatureMap(torch.randn(2, 7, 5, 6, dtype=torch.float64), 8)
    r, levels = regions(), OneLevel(Align((2, 3)))
    assert torch.equal(levels([wide, x], r), Align((2, 3))(x, r))
    none, all_ = levels.weights([wide, x], r)
    assert none.shape == (4, 1, 6, 5, 6) and not none.any() and torch.equal(all_, Align((2, 3)).weights(x, r))
    assert levels.assign([wide, x], r).tolist() == [1] * 4
    assert OneLevel(Align((2, 3)), 0).assign([x, wide], r).tolist() == [0] * 4
    assert torch.equal(OneLevel(Align((2, 3)), 0)([x, wide], r), levels([wide, x], r))
    for call in (OneLevel(Align((2, 3)), 2), OneLevel(Align((2, 3)), 2).weights, OneLevel(Align((2, 3)), -3).assign):
        with pytest.raises(ValueError, match=r"maps: expected one at (2|-3), got 2 maps"):
            call([x, wide], r)


@pytest.mark.slow
def test_light_head_by_hand() -> None:
    """Thin maps, position-sensitive RoIAlign, one layer with a ReLU, two linear ones."""
    detector = built(light_head_rcnn, (5,)).double()
    own = detector.roi_heads[0]
    _, (x,) = detector.features([torch.rand(3, 64, 96, dtype=torch.float64)])
    r = Regions(torch.tensor([[30.0, 20, 900, 600]], dtype=torch.float64), torch.tensor([0]))
    thin = FeatureMap(own.extractor.extractors[0].layer(x.data), x.stride)
    y = F.relu(own.trunk.fc(PositionSensitive(Align(7, samples=2))(thin, r).flatten(1)))
    output = own.predict([x], r)
    torch.testing.assert_close(output.logits, own.class_logits(y))
    torch.testing.assert_close(output.deltas, own.box_deltas(y).unflatten(1, (21, 4)))


SIZES = {"short_side": 64, "long_side": 96, "proposal_channels": 16, "anchor_sizes": (16.0, 32.0)}
SYSTEMS = {
    "rfcn": RFCN(channels=16, **SIZES),  # type: ignore[arg-type]
    "deformable": RFCN(channels=16, extractor=DeformableRoIPool(), **SIZES),  # type: ignore[arg-type]
    "c4": RFCN(channels=16, proposal_level=4, extractor=RFCNAveragePool(), **SIZES),  # type: ignore[arg-type]
    "light": LightHeadRCNN(hidden=16, separable_channels=4, proposal_level=4, **SIZES),  # type: ignore[arg-type]
}


def test_settings_reach_the_detector() -> None:
    own = SYSTEMS["deformable"].build(3, pretrained=False).roi_heads[0]
    scores, boxes = own.extractor.extractors[0], own.box_extractor.extractors[0]
    assert scores.offset.out_channels == 2 * 49 * 4 and boxes.offset.out_channels == 2 * 49
    assert isinstance(scores, DeformablePositionSensitive) and scores.gamma == 0.1 and not scores.offset.weight.any()
    changed = replace(SYSTEMS["deformable"], class_offsets=False, class_agnostic=False, hard_examples=None)
    own = changed.build(3, pretrained=False).roi_heads[0]
    assert own.extractor.extractors[0].offset.out_channels == 2 * 49
    assert own.box_extractor.extractors[0].scores.out_channels == 49 * 16
    assert own.reduction == MeanLoss() and own.sampler.sampler == BalancedSampler(128, 0.25)
    assert SYSTEMS["light"].build(3, pretrained=False).roi_heads[0].reduction == HardExamples(128)
    with pytest.raises(ValueError, match="proposal_level: expected one under level 4, got 4"):
        RFCN(level=4, proposal_level=4).build(2)
    with pytest.raises(ValueError, match="extractor: expected one whose parts can read .*, got SampleMax"):
        RFCN(extractor=RoIAlignMax()).build(2)
    with pytest.raises(ValueError, match="extractor: expected one whose parts can read .*, got DeformableRoIPool"):
        LightHeadRCNN(extractor=DeformableRoIPool()).build(2)


def test_the_neck_has_a_rate_of_its_own() -> None:
    detector = replace(SYSTEMS["rfcn"], neck_rate=3.0).build(3, pretrained=False)
    groups = {group["lr"]: group["params"] for group in rate_groups(detector, 1.0)}
    assert set(groups) == {1.0, 3.0}
    assert {id(p) for p in groups[3.0]} == {id(p) for p in detector.neck.parameters()}
    assert len(rate_groups(SYSTEMS["rfcn"].build(3, pretrained=False), 1.0)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", SYSTEMS)
def test_a_checkpoint_comes_back_and_serves_other_classes(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    system = replace(SYSTEMS[name], score_threshold=0.0)
    detector = system.build(2, pretrained=False).eval()
    save(tmp_path / "a.safetensors", detector, Card(("cat", "dog"), model=model_to_dict(system)))
    again, _ = load_detector(tmp_path / "a.safetensors")
    image = torch.rand(3, 64, 80)
    with torch.no_grad():
        (a,), (b,) = detector([image]), again.eval()([image])
    assert len(a) > 10 and torch.equal(a.boxes, b.boxes) and torch.equal(a.scores, b.scores)
    other = system.build(5, pretrained=False)
    kept = load_all_but_classes(detector.state_dict(), other, "a")
    assert kept and all(layer.startswith("roi_heads.0.") for layer in kept)
    assert torch.equal(other.proposals.conv.weight, detector.proposals.conv.weight)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["rfcn", "c4", "light"])
def test_kept_maps_stand_for_the_photos(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    detector = replace(SYSTEMS[name], frozen=5).build(6).eval()
    made = KeptMaps(tmp_path, detector, Shapes(2))
    made.make()
    mapped, own = MappedDetector.of(detector), made.in_place_of_images()
    samples = [own[i] for i in range(2)]
    losses = []
    for each, images in (
        (mapped, [s.image for s in samples]),
        (detector, [Shapes(2)[i].image for i in range(2)]),
    ):
        torch.manual_seed(1)
        losses.append(each.losses(images, [s.targets for s in samples]))
    for key, loss in losses[0].items():
        torch.testing.assert_close(loss, losses[1][key], rtol=2e-2, atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("extractor", ["roi-align", "deformable-roi-pool"])
@pytest.mark.parametrize("model", ["rfcn", "light-head-rcnn"])
def test_from_training_to_pictures(
    model: str, extractor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    source = str(data(tmp_path, ("cat", "dog")))
    words = ["--model", model, "--extractor", extractor, "short_side=64", "long_side=96", "proposal_channels=8"]
    words += ["channels=8"] if model == "rfcn" else ["hidden=8", "separable_channels=4"]
    quick = ["--batch-size", "2", "--steps", "2", "workers=0", "device=cpu", "--name", "a"]
    if (model, extractor) == ("light-head-rcnn", "deformable-roi-pool"):
        assert regio("train", source, "--validation", source, *words, *quick) == 2
        assert "extractor: expected one whose parts" in capsys.readouterr().err
        return
    assert regio("train", source, "--validation", source, *words, *quick) == 0
    assert regio("train", source, "--name", "a", "--resume") == 0
    assert regio("val", source, "--output", "out") == 0
    assert "ap" in json.loads((tmp_path / "out" / "results.json").read_text())
    assert regio("detect", "0.png", "--score", "0", "--output", "found") == 0
    assert json.loads((tmp_path / "found" / "detections.json").read_text())[0]["detections"]
    assert regio("explain", "0.png", "--box", "4,4,30,40", "--weights", "runs/a/weights/last.safetensors") == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rfcn", "deformable", "light"])
def test_it_learns(name: str) -> None:
    """Given boxes about the objects of two generated scenes, and others: in a few steps the losses fall to under half,
    and each object has its own class."""
    torch.manual_seed(0)
    system = replace(SYSTEMS[name], short_side=96, long_side=128, level=4, proposal_level=None, output_stride=8)
    detector, scenes = system.build(6), Shapes(2)
    samples = [scenes[i] for i in range(2)]
    images, targets = [s.image for s in samples], [s.targets for s in samples]
    around = [t.boxes.repeat(8, 1) + torch.randn(8 * len(t), 4) * 3 for t in targets]
    given = [torch.cat([b, torch.tensor([[0.0, 0, 20, 20], [0, 0, 96, 96]])]).clamp(min=0) for b in around]
    optimizer = torch.optim.AdamW(rate_groups(detector, 3e-3), lr=3e-3)
    seen = []
    for _ in range(40):
        losses = detector.losses(images, targets, given)
        optimizer.zero_grad()
        sum(losses.values()).backward()  # type: ignore[union-attr]
        optimizer.step()
        seen.append(float((losses["class"] + losses["box"]).detach()))
    assert sum(seen[-5:]) < 0.5 * sum(seen[:5])
    with torch.no_grad():
        found = detector.eval()(images, [t.boxes for t in targets])
    for each, target in zip(found, targets, strict=True):
        overlap = iou(target.boxes, each.boxes) * (target.labels[:, None] == each.labels)
        assert bool((overlap.amax(1) > 0.5).all())
