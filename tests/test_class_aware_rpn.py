"""The class-aware RPN: held to loops, to the reading of centres, and to the RPN of one class."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from regio.boxes import BoxCoder, clip, iou
from regio.checkpoints import Card, load_all_but_classes, save
from regio.config import load_detector, model_to_dict
from regio.config.systems import ClassAwareRPN as System
from regio.config.systems import ClassAwareRPNOnFPN
from regio.data import Shapes
from regio.detector import TwoStageDetector
from regio.evaluate import BoxEvaluator
from regio.export import DetectorGraph, export_onnx
from regio.kept_maps import KeptMaps, MappedDetector
from regio.kernels.nms import nms_reference
from regio.losses import HardExamples, smooth_l1
from regio.matching import BalancedSampler, TakeAll
from regio.postprocess import Postprocess
from regio.proposals import RPN, Anchors, ClassAwareRPN, ProposalFilter
from regio.ready import ReadyDetector
from regio.regions import CentreFeature
from regio.roi_heads import Sigmoid, Softmax
from regio.types import Detections, FeatureMap, Regions, Targets
from tests.test_cli import photo, regio

ANCHORS = Anchors(((12.0, 20.0),), ratios=(0.5, 1.0))  # four a cell
LOW = Postprocess(score_threshold=0.25, nms_threshold=0.5, detections_per_image=1000)
SMALL: dict[str, Any] = {"short_side": 64, "long_side": 96, "channels": 16, "anchor_sizes": (16.0, 32.0)}


def network(
    num_classes: int = 4, *, anchors: Anchors = ANCHORS, dtype: torch.dtype = torch.float32, **options: Any
) -> ClassAwareRPN:
    """With weights large enough for scores and boxes of all kinds."""
    torch.manual_seed(0)
    made = ClassAwareRPN(4, anchors, num_classes, **{"hidden": 6, "postprocess": LOW, **options})
    for name, parameter in made.named_parameters():
        torch.nn.init.normal_(parameter, std=0.2 if "deltas" in name else 0.3)
    torch.nn.init.ones_(made.conv.bias)  # so that no cell is without any output, all with the same scores
    return made.to(dtype)


def maps(*sizes: tuple[int, int], images: Any = None, dtype: torch.dtype = torch.float32) -> list[FeatureMap]:
    generator = torch.Generator().manual_seed(1)
    data = [torch.randn(2, 4, *size, generator=generator).to(dtype) for size in sizes]
    return [FeatureMap(x, 8 * 2**i, images) for i, x in enumerate(data)]


def targets(classes: int = 3) -> list[Targets]:
    boxes = torch.tensor([[2.0, 3, 20, 15], [20, 20, 40, 44], [30, 2, 44, 16]])
    labels = torch.tensor([1, 3, 2]).clamp(max=classes)
    return [Targets(boxes, labels), Targets(boxes[1:2] - 4, labels[2:])]


def assert_same(ours: list[Detections], theirs: list[Detections], tolerance: float = 1e-4) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert len(a) == len(b) > 3
        torch.testing.assert_close(a.boxes, b.boxes, rtol=0, atol=tolerance)
        torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=tolerance)
        assert torch.equal(a.labels, b.labels)


@pytest.mark.parametrize("class_agnostic", [True, False])
def test_class_outputs_and_boxes_are_those_read_at_the_centre_of_each_anchor(class_agnostic: bool) -> None:
    rpn, x = network(class_agnostic=class_agnostic), maps((5, 6))[0]
    anchors = rpn.anchors([x])[0]
    (logits,), (deltas,) = rpn.predict([x])
    hidden = replace(x, data=rpn.conv(x.data))
    read = CentreFeature()(hidden, Regions.from_list([anchors, anchors]))[:, :, 0, 0].unflatten(0, (2, -1, 4))
    for kind in range(4):  # the weights of each shape of anchor
        for layer, ours in ((rpn.class_logits, logits), (rpn.deltas, deltas.flatten(2))):
            weight = layer.weight.flatten(1).unflatten(0, (4, -1))[kind]
            assert layer.bias is not None
            expected = F.linear(read[:, :, kind], weight, layer.bias.unflatten(0, (4, -1))[kind])
            torch.testing.assert_close(ours.unflatten(1, (-1, 4))[:, :, kind], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scores", [Softmax(), Sigmoid()], ids=["softmax", "sigmoid"])
@pytest.mark.parametrize("class_agnostic", [True, False])
@torch.no_grad()
def test_detections_are_those_of_loops(scores: Softmax | Sigmoid, class_agnostic: bool) -> None:
    rpn = network(scores=scores, class_agnostic=class_agnostic)
    x = maps((5, 6), images=((38, 47), (40, 30)))
    anchors = rpn.anchors(x)[0]
    (logits,), (deltas,) = rpn.predict(x)
    found = rpn(x)
    for image, size in enumerate(((38, 47), (40, 30))):
        boxes, label, score = [], [], []
        for anchor, logit, delta in zip(anchors, logits[image], deltas[image], strict=True):
            p = scores(logit[None])[0]
            for c in (1, 2, 3):
                box = clip(BoxCoder().decode(delta[None, 0 if class_agnostic else c], anchor[None]), size)[0]
                if p[c - 1] > 0.25 and min(box[2] - box[0], box[3] - box[1]) >= 1e-2:
                    boxes.append(box)
                    label.append(c)
                    score.append(p[c - 1])
        among = Detections(torch.stack(boxes), torch.tensor(label), torch.stack(score))
        kept = []
        for c in (1, 2, 3):
            rows = (among.labels == c).nonzero()[:, 0]
            kept.append(rows[nms_reference(among.boxes[rows], among.scores[rows], 0.5)])
        rows = torch.cat(kept)
        assert_same([found[image]], [among[rows[among.scores[rows].argsort(descending=True)]]])
        assert set(found[image].labels.tolist()) == {1, 2, 3}


@pytest.mark.parametrize("scores", [Softmax(), Sigmoid()], ids=["softmax", "sigmoid"])
@pytest.mark.parametrize("class_agnostic", [True, False])
def test_losses_are_those_of_loops(scores: Softmax | Sigmoid, class_agnostic: bool) -> None:
    rpn = network(scores=scores, class_agnostic=class_agnostic, sampler=TakeAll(), box_weight=0.7)
    x = maps((5, 6))
    anchors = rpn.anchors(x)[0]
    with torch.no_grad():
        (logits,), (deltas,) = rpn.predict(x)
    of_class, of_box, count = 0.0, 0.0, 0
    for image, target in enumerate(targets()):
        overlap = iou(anchors, target.boxes)
        for i, anchor in enumerate(anchors):
            best = int(overlap[i].argmax())
            highest = any(0 < overlap[i, j] == overlap[:, j].max() for j in range(len(target)))
            positive = bool(overlap[i, best] >= 0.7) or highest
            if not positive and overlap[i, best] >= 0.3:
                continue
            label = int(target.labels[best]) if positive else 0
            count += 1
            if isinstance(scores, Softmax):
                of_class += float(-logits[image, i].log_softmax(0)[label])
            else:
                own = F.one_hot(torch.tensor(label), 4)[1:].float()
                of_class += float(F.binary_cross_entropy_with_logits(logits[image, i], own, reduction="sum"))
            if positive:
                wanted = BoxCoder().encode(target.boxes[best : best + 1], anchor[None])
                of_box += float(smooth_l1(deltas[image, i, 0 if class_agnostic else label][None], wanted, 1 / 9).sum())
    boxes, losses = rpn.losses(x, targets())
    losses = {name: loss.detach() for name, loss in losses.items()}
    assert set(losses) == {"rpn_class", "rpn_box"} and of_box > 0
    assert float(losses["rpn_class"]) == pytest.approx(of_class / count, rel=1e-5)
    assert float(losses["rpn_box"]) == pytest.approx(0.7 * of_box / count, rel=1e-5)
    assert sum(map(len, boxes)) == count and not any(each.requires_grad for each in boxes)


def of_one_class(softmax: bool, scale: float) -> tuple[ClassAwareRPN, RPN]:
    """The same network twice: a sigmoid of the difference of two outputs is their softmax."""
    ours = network(2, scores=Softmax() if softmax else Sigmoid(), pre_nms_top_n=60)
    rule = ProposalFilter(pre_nms_top_n=60, post_nms_top_n=1000, nms_threshold=0.5, min_size=1e-2, score_threshold=0.25)
    theirs = RPN(4, ANCHORS, hidden=6, test=rule, train=rule)
    state = dict(ours.state_dict())
    for name in ("weight", "bias"):
        rows = state.pop(f"class_logits.{name}").mul_(scale).unflatten(0, (4, -1))  # in place: those of `ours`
        state[f"objectness.{name}"] = rows[:, 1] - rows[:, 0] if softmax else rows[:, 0]
    theirs.load_state_dict(state)
    return ours, theirs


@pytest.mark.parametrize("softmax", [True, False], ids=["softmax", "sigmoid"])
def test_of_one_class_it_is_the_rpn(softmax: bool) -> None:
    x = maps((7, 6))
    ours, theirs = of_one_class(softmax, 1.0)
    assert_same(ours(x), theirs(x))
    for scale in (1.0, 60.0):
        ours, theirs = of_one_class(softmax, scale)
        losses = []
        for each in (ours, theirs):
            torch.manual_seed(3)
            losses.append(each.losses(x, targets(1))[1])
        assert [*losses[0]] == ["rpn_class", "rpn_box"] and [*losses[1]] == ["rpn_objectness", "rpn_box"]
        for a, b in zip(losses[0].values(), losses[1].values(), strict=True):
            torch.testing.assert_close(a, b)
    assert float(losses[0]["rpn_class"].detach()) > 3  # logits were large


@pytest.mark.slow
@pytest.mark.parametrize("class_agnostic", [True, False])
def test_gradients_are_those_of_finite_differences(class_agnostic: bool) -> None:
    few = Anchors(((14.0,),), ratios=(0.5, 1.0))
    rpn = network(3, anchors=few, hidden=3, class_agnostic=class_agnostic, dtype=torch.float64, sampler=TakeAll())
    data = maps((3, 2), dtype=torch.float64)[0].data.requires_grad_()
    parameters = dict(rpn.named_parameters())

    def losses(x: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        given = (FeatureMap(x, 8),), targets(2)
        call = torch.func.functional_call(
            _Losses(rpn), dict(zip(map("rpn.{}".format, parameters), values, strict=True)), given
        )
        return tuple(call)

    assert torch.autograd.gradcheck(losses, (data, *parameters.values()), atol=1e-5)


class _Losses(torch.nn.Module):
    def __init__(self, rpn: ClassAwareRPN) -> None:
        super().__init__()
        self.rpn = rpn

    def forward(self, x: Any, wanted: list[Targets]) -> list[Tensor]:
        return [*self.rpn.losses(x, wanted)[1].values()]


@pytest.mark.parametrize("size", [12, 40, 100_000])
def test_the_mini_batch_has_at_most_half_objects_and_is_filled_with_background(size: int) -> None:
    rpn = network(sampler=BalancedSampler(size, 0.5))
    x = maps((6, 6))
    (anchors,) = rpn.anchors(x)
    boxes = anchors[::3] + 0.5  # many objects
    target = [Targets(boxes, torch.ones(len(boxes), dtype=torch.int64)), Targets(boxes[:0], torch.ones(0).long())]
    for image in (0, 1):
        match = rpn.match(anchors, (48, 48), target[image])
        rows, labels, objects = rpn._sample(anchors, (48, 48), target[image])
        positive, background = int((match >= 0).sum()), int((match == -1).sum())
        assert int((labels > 0).sum()) == min(positive, size // 2)
        assert len(rows) == min(positive, size // 2) + min(background, size - min(positive, size // 2))
        assert len(set(rows.tolist())) == len(rows)
        assert bool((match[rows[labels > 0]] >= 0).all()) and bool((match[rows[labels == 0]] == -1).all())
        torch.testing.assert_close(objects[labels > 0], target[image].boxes[match[rows[labels > 0]]])
    given, _ = rpn.losses(x, target)
    assert [len(each) for each in given] == [len(rpn._sample(anchors, (48, 48), each)[0]) for each in target]


def test_256_anchors_by_default() -> None:
    rpn = ClassAwareRPN(4, Anchors(((8.0, 9.0, 10.0),)), 4)
    assert [len(each) for each in rpn.losses(maps((16, 16)), targets())[0]] == [256, 256]


def test_the_hardest_anchors_are_taken_where_that_is_asked_for() -> None:
    rpn = network(sampler=TakeAll(), reduction=HardExamples(5))
    every = network(sampler=TakeAll())
    x = maps((5, 6))
    hardest, mean = (each.losses(x, targets())[1]["rpn_class"].detach() for each in (rpn, every))
    assert float(hardest) > 1.5 * float(mean)


def test_hard_anchors_are_chosen_by_what_their_boxes_weigh() -> None:
    """With boxes that weigh a thousand, the hardest are those with the worst boxes, whatever their classes."""
    heavy = network(sampler=TakeAll(), reduction=HardExamples(1), box_weight=1000.0)
    light = network(sampler=TakeAll(), reduction=HardExamples(1), box_weight=0.0)
    x = maps((5, 6))
    of_heavy, of_light = (each.losses(x, targets())[1] for each in (heavy, light))
    assert float(of_heavy["rpn_box"].detach()) > 0
    assert float(of_light["rpn_class"].detach()) > float(of_heavy["rpn_class"].detach())


@torch.no_grad()
def test_of_each_map_the_best_anchors_are_decoded() -> None:
    levels = Anchors(((12.0,), (24.0,)), ratios=(0.5, 1.0))
    few, many = network(anchors=levels, pre_nms_top_n=7), network(anchors=levels)
    x = maps((4, 5), (2, 3))
    scores, deltas, boxes = few.best(x)
    assert scores.shape == (2, 14, 3) and deltas.shape == (2, 14, 1, 4) and boxes.shape == (2, 14, 4)
    all_scores, _, all_boxes = many.best(x)
    assert all_scores.shape == (2, 52, 3)
    for image in range(2):
        for level, (rows, area) in enumerate(((slice(0, 7), 144.0), (slice(7, 14), 576.0))):
            width, height = (all_boxes[image, :, 2:] - all_boxes[image, :, :2]).T
            own = (width * height - area).abs() < 1
            best = all_scores[image, own].amax(1).sort(descending=True).values[:7]
            torch.testing.assert_close(scores[image, rows].amax(1), best)
            assert level in (0, 1)


@torch.no_grad()
def test_an_image_of_a_padded_batch_has_its_own_detections() -> None:
    """Where nothing is seen in zeros, padding finds nothing: the detections are those of the image alone."""
    rpn = network()
    for layer in (rpn.conv, rpn.class_logits):
        assert layer.bias is not None
        layer.bias.zero_()
    rpn.class_logits.bias[::4] = 1.0  # that of the background, so that 0.25 is not reached
    (whole,) = maps((4, 5), images=((32, 40),) * 2)
    data = torch.zeros(2, 4, 7, 8)
    data[:, :, :4, :5] = whole.data
    padded = FeatureMap(data, 8, ((32, 40),) * 2)
    # Cells beside the image see its border; their anchors are not among the best.
    rpn.pre_nms_top_n = 10**6
    alone, together = rpn([whole]), rpn([padded])
    for one, other in zip(alone, together, strict=True):
        assert len(one) > 3 and other.boxes[:, 2].max() <= 40 and other.boxes[:, 3].max() <= 32
        inside = iou(one.boxes, other.boxes).amax(1)
        assert float((inside > 0.5).float().mean()) > 0.9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_scores_and_boxes_of_half_precision_are_in_single(dtype: torch.dtype) -> None:
    half, x = network(dtype=dtype), maps((5, 6), dtype=dtype)
    single = network()
    single.load_state_dict({name: each.float() for name, each in half.state_dict().items()})
    (logits,), (deltas,) = half.predict(x)
    assert logits.dtype == deltas.dtype == torch.float32
    expected = single.predict([replace(x[0], data=x[0].data.float())])
    torch.testing.assert_close(logits, expected[0][0], rtol=0.03, atol=0.1)
    torch.testing.assert_close(deltas, expected[1][0], rtol=0.03, atol=0.1)
    assert all(each.boxes.dtype == each.scores.dtype == torch.float32 for each in half(x))
    losses = half.losses(x, targets())[1]
    assert all(each.dtype == torch.float32 and math.isfinite(each) for each in losses.values())


def test_images_without_objects() -> None:
    rpn = network()
    nothing = Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    boxes, losses = rpn.losses(maps((5, 6)), [nothing, nothing])
    assert float(losses["rpn_box"].detach()) == 0 < float(losses["rpn_class"].detach())
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in rpn.parameters())
    assert all(len(each) > 0 for each in boxes)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="num_classes: expected the background and at least one class, got 1"):
        ClassAwareRPN(4, ANCHORS, 1)
    with pytest.raises(ValueError, match="box_weight: expected a factor of 0 or more, got -1"):
        ClassAwareRPN(4, ANCHORS, 2, box_weight=-1)
    with pytest.raises(ValueError, match="pre_nms_top_n: expected a positive number of anchors, got 0"):
        ClassAwareRPN(4, ANCHORS, 2, pre_nms_top_n=0)


def built(
    system: type[System] | type[ClassAwareRPNOnFPN] = System, classes: int = 6, **settings: Any
) -> TwoStageDetector:
    torch.manual_seed(0)
    sizes = (16.0, 32.0, 48.0, 64.0) if system is ClassAwareRPNOnFPN else SMALL["anchor_sizes"]
    return system(**{**SMALL, "anchor_sizes": sizes, **settings}).build(classes, pretrained=False).eval()


@pytest.mark.parametrize("system", [System, ClassAwareRPNOnFPN])
@torch.no_grad()
def test_by_name_it_detects_classes(system: type[System]) -> None:
    detector = built(system, score_threshold=0.0, detections_per_image=30)
    found = detector([torch.rand(3, 40, 60), torch.rand(3, 70, 50)])
    assert [len(each) for each in found] == [30, 30] and len(detector.roi_heads) == 0
    assert {label for each in found for label in each.labels.tolist()} <= set(range(1, 7))
    assert bool((found[1].boxes[:, 2] <= 50).all()) and bool((found[1].boxes[:, 3] <= 70).all())


def test_settings_reach_the_network() -> None:
    detector = built(scores="sigmoid", class_agnostic=False, score_threshold=0.1, nms_threshold=0.4, rpn_box_weight=2.0)
    rpn = detector.proposals
    assert isinstance(rpn, ClassAwareRPN)
    assert rpn.scores == Sigmoid() and rpn.box_weight == 2.0 and rpn.postprocess == Postprocess(0.1, 0.4, 100)
    assert rpn.class_logits.out_channels == 6 * 6 and rpn.deltas.out_channels == 6 * 7 * 4
    assert isinstance(System().evaluator(Shapes(2)), BoxEvaluator)
    assert System().with_score_threshold(0.3).score_threshold == 0.3


@pytest.mark.parametrize("class_agnostic", [True, False])
def test_weights_of_other_classes_are_taken_but_for_the_layers_of_classes(class_agnostic: bool) -> None:
    six, two = (built(classes=classes, class_agnostic=class_agnostic) for classes in (6, 2))
    own = load_all_but_classes(six.state_dict(), two, "six")
    assert own == ["proposals.class_logits"] + ["proposals.deltas"] * (not class_agnostic)
    assert torch.equal(two.state_dict()["proposals.conv.weight"], six.state_dict()["proposals.conv.weight"])


def test_it_comes_back_from_its_checkpoint(tmp_path: Path) -> None:
    config = System(**SMALL, scores="sigmoid")
    detector = config.build(2, pretrained=False)
    save(tmp_path / "a.safetensors", detector, Card(("cat", "dog"), model=model_to_dict(config)))
    again, card = load_detector(tmp_path / "a.safetensors")
    assert card.class_names == ("cat", "dog")
    for name, tensor in detector.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


@pytest.mark.parametrize("system", [System, ClassAwareRPNOnFPN])
@torch.no_grad()
def test_ready_and_exported_it_finds_the_same(system: type[System]) -> None:
    detector = built(system, scores="sigmoid", score_threshold=0.5, detections_per_image=20)
    rpn = detector.proposals
    assert isinstance(rpn, ClassAwareRPN)
    torch.nn.init.normal_(rpn.class_logits.weight, std=1.0)
    images = [torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8) for _ in range(2)]
    found = detector(images)
    assert_same(ReadyDetector(detector, "cpu", "32-true")(images), found, 2e-3)
    assert ReadyDetector(detector, "cpu", "bf16-mixed")(images)[0].scores.dtype == torch.float32
    boxes, labels, scores, image = DetectorGraph(detector)(torch.stack(images), torch.tensor([[64, 96]] * 2))
    assert_same([Detections(boxes[image == i], labels[image == i], scores[image == i]) for i in range(2)], found, 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("system", [System, ClassAwareRPNOnFPN])
@torch.no_grad()
def test_in_onnx_runtime_it_finds_the_same(system: type[System], tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="exported files are run by onnxruntime")
    detector = built(system, score_threshold=0.25, detections_per_image=20, class_agnostic=False)
    rpn = detector.proposals
    assert isinstance(rpn, ClassAwareRPN)
    torch.nn.init.normal_(rpn.class_logits.weight, std=1.0)
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in ((64, 96), (70, 50))]
    found = detector(images)
    export_onnx(detector, tmp_path / "a.onnx", tuple("abcdef"))
    batch = torch.zeros(2, 3, 70, 96, dtype=torch.uint8)
    for row, image in zip(batch, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    sizes = torch.tensor([[64, 96], [70, 50]])
    outputs = session.run(None, {"images": batch.numpy(), "sizes": sizes.numpy()})
    boxes, labels, scores, image = map(torch.from_numpy, outputs)
    assert_same([Detections(boxes[image == i], labels[image == i], scores[image == i]) for i in range(2)], found, 1e-2)


@torch.no_grad()
def test_it_reads_kept_maps(tmp_path: Path) -> None:
    detector, data = built(frozen=5, scores="sigmoid", score_threshold=0.4), Shapes(2)
    kept = KeptMaps(tmp_path, detector, data)
    kept.make()
    mapped, dataset = MappedDetector.of(detector), kept.in_place_of_images()
    torch.manual_seed(1)
    ours = mapped.losses([dataset[0].image], [data[0].targets])
    torch.manual_seed(1)
    theirs = detector.losses([data[0].image], [data[0].targets])
    for name, loss in theirs.items():
        torch.testing.assert_close(ours[name], loss, rtol=1e-2, atol=1e-3)


@pytest.mark.slow
def test_from_training_to_pictures_and_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = ["short_side=64", "long_side=96", "channels=16", "images=8", "validation_images=4"]
    quick = ["--batch-size", "2", "--steps", "2", "workers=0", "device=cpu", "--name", "a"]
    assert regio("train", "shapes", "--model", "class-aware-rpn", *sizes, *quick) == 0
    assert regio("train", "shapes", "--name", "a", "--resume") == 0
    results = json.loads((tmp_path / "runs" / "a" / "results.json").read_text())
    assert "ap50" in results and "star" in results["per_class"]
    assert regio("detect", str(photo(tmp_path / "a.png")), "--score", "0", "--output", "found") == 0
    found = json.loads((tmp_path / "found" / "detections.json").read_text())[0]["detections"]
    assert len({each["name"] for each in found}) > 1
    assert regio("export", "runs/a/weights/last.safetensors", "--output", "model.onnx") == 0
    assert (tmp_path / "model.onnx").stat().st_size > 1e6
