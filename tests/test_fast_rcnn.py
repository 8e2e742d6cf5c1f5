"""Fast R-CNN: a detector for boxes that are given."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from regio.backbones import efficientnet_lite0
from regio.box_targets import ClassBoxCoder
from regio.boxes import iou
from regio.checkpoints import Card, read_card, save
from regio.classifiers import split_classifier
from regio.config import load_detector, model_from_dict
from regio.config.systems import FastRCNN
from regio.data import Shapes
from regio.detector import TwoStageDetector
from regio.matching import BalancedSampler, Matcher, RegionSampler
from regio.optimisation import SGD
from regio.ready import ReadyDetector
from regio.regions import RoIAlign
from regio.roi_heads import FastRCNNHead, FullyConnected, SVMHead
from regio.systems import fast_rcnn, fast_rcnn_svms
from regio.types import FeatureMap, Regions, Targets
from tests.data.small_datasets import write_yolo_folder
from tests.test_cli import here, regio

__all__ = ["here"]
SMALL = ["hidden=32", "channels=8", "short_side=64", "long_side=96", "workers=0", "device=cpu"]


def small(num_classes: int = 3, **options: Any) -> TwoStageDetector:
    torch.manual_seed(0)
    backbone = efficientnet_lite0((5,), output_stride=16)
    return fast_rcnn(num_classes, backbone, **{"hidden": 32, "short_side": 96, "long_side": 160, **options})


def head_of(detector: TwoStageDetector) -> FastRCNNHead:
    head = detector.roi_heads[0]
    assert isinstance(head, FastRCNNHead)
    return head


def report_everything(detector: TwoStageDetector) -> TwoStageDetector:
    head = head_of(detector)
    head.postprocess = replace(head.postprocess, score_threshold=0.0)
    return detector.eval()


def photos() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (3, h, w), dtype=torch.uint8, generator=generator) for h, w in ((60, 80), (100, 70))]


def boxes(counts: Sequence[int] = (40, 30)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    made = []
    for count in counts:
        corner, sides = torch.rand(2, count, 2, generator=generator) * 45
        made.append(torch.cat([corner, corner + sides + 4], 1))
    return made


def targets() -> list[Targets]:
    return [
        Targets(torch.tensor([[5.0, 5, 40, 50], [30, 10, 70, 55]]), torch.tensor([1, 2])),
        Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)),
    ]


def test_boxes_must_be_given() -> None:
    detector = small()
    with pytest.raises(ValueError, match="proposals: expected boxes .* this detector has no proposal network"):
        detector(photos())
    assert detector.proposals is None
    found = report_everything(detector)(photos(), boxes())
    assert [len(each) for each in found] == [100, 60] or all(len(each) > 0 for each in found)
    assert all(bool((each.boxes[:, 2] <= image.shape[2]).all()) for each, image in zip(found, photos(), strict=True))
    nothing = detector(photos(), [torch.zeros(0, 4)] * 2)
    assert [len(each) for each in nothing] == [0, 0]


def test_a_step_trains_the_head_and_the_backbone() -> None:
    detector = small()
    losses = detector.losses(photos(), targets(), boxes())
    assert set(losses) == {"class", "box"} and all(bool(loss > 0) for loss in losses.values())
    sum(losses.values(), torch.zeros(())).backward()
    head = head_of(detector)
    trained = [head.trunk.fc6.weight, head.class_logits.weight, head.box_deltas.weight]  # type: ignore[union-attr]
    trained += [p for p in detector.backbone.parameters() if p.requires_grad][:1]
    assert all(isinstance(p, Tensor) and p.grad is not None and bool(p.grad.abs().sum() > 0) for p in trained)


def test_the_mini_batch_is_that_of_the_paper() -> None:
    """64 boxes of an image: 16 at most with an IoU of 0.5 or more, the others of 0.1 to 0.5, which none below takes the
    place of."""
    generator = torch.Generator().manual_seed(3)
    target = Targets(torch.tensor([[100.0, 100, 200, 200]]), torch.tensor([2]))
    shift = torch.randn(400, 1, generator=generator) * 60
    candidates = target.boxes + shift * torch.tensor([1.0, 0.3, 1.0, 0.3])
    far = torch.tensor([[300.0, 300, 400, 400]]).repeat(500, 1)
    sample = head_of(small()).sampler([torch.cat([candidates, far])], [target])
    overlap = iou(target.boxes, sample.regions.boxes)[0]
    assert len(overlap) == 64 and int((sample.labels == 2).sum()) == 16
    assert bool((overlap[sample.labels == 2] >= 0.5).all())
    assert bool(((overlap >= 0.1) & (overlap < 0.5))[sample.labels == 0].all())
    few = head_of(small()).sampler([torch.cat([candidates[:3], far])], [target])
    assert len(few.labels) <= 4  # and the object itself; far ones are ignored
    faster = head_of(small(background_low=0.0)).sampler([torch.cat([candidates[:3], far])], [target])
    assert len(faster.labels) == 64


@pytest.mark.parametrize("weight", [0.0, 2.5])
def test_the_weight_of_the_box_loss(weight: float) -> None:
    losses = []
    for detector in (small(), small(box_weight=weight)):
        torch.manual_seed(1)
        losses.append(detector.losses(photos(), targets(), boxes()))
    torch.testing.assert_close(losses[1]["box"], weight * losses[0]["box"])
    torch.testing.assert_close(losses[1]["class"], losses[0]["class"])
    sum(losses[1].values(), torch.zeros(())).backward()
    grad = head_of(detector).box_deltas.weight.grad
    assert grad is not None and bool((grad != 0).any()) == (weight > 0)


def test_stage_wise_training() -> None:
    """A classifier first, then the layer of the boxes alone: classes stay as they are to the bit."""
    detector = small(box_weight=0.0)
    head = head_of(detector)
    detector.requires_grad_(False)
    head.box_deltas.requires_grad_(True)
    head.box_weight = 1.0
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    optimizer = SGD(lr=0.1).build(detector)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2
    losses = []
    for _ in range(8):
        torch.manual_seed(0)
        own = detector.losses(photos(), targets(), boxes())
        torch.stack([*own.values()]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(own)
    changed = {name for name, tensor in detector.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"roi_heads.0.box_deltas.weight", "roi_heads.0.box_deltas.bias"}
    assert torch.equal(losses[0]["class"], losses[-1]["class"]) and bool(losses[-1]["box"] < 0.95 * losses[0]["box"])


def test_a_negative_weight() -> None:
    with pytest.raises(ValueError, match="box_weight: expected a factor of 0 or more, got -1"):
        small(box_weight=-1.0)


@pytest.mark.slow
def test_a_classifier_with_a_second_input() -> None:
    """AlexNet: the layers fc6 and fc7 are the classifier's own, and the extractor has their 6 x 6 bins."""
    torch.manual_seed(0)
    backbone, trunk = split_classifier("alexnet", pretrained=False)
    detector = fast_rcnn(3, backbone, trunk=trunk, short_side=128, long_side=200)
    head = head_of(detector)
    assert head.trunk is trunk and head.extractor.bins == (6, 6) and head.class_logits.in_features == 4096
    assert detector.losses(photos(), targets(), boxes())["class"] > 0
    with pytest.raises(
        ValueError, match=r"trunk: expected one for 256 channels and \(7, 7\) bins, .* 256 and \(6, 6\)"
    ):
        fast_rcnn(3, backbone, RoIAlign(7), trunk=trunk)
    with pytest.raises(ValueError, match="trunk: expected one for 64 channels"):
        fast_rcnn(3, backbone, trunk=trunk, channels=64)


def test_several_scales() -> None:
    """Each box is read at the scale at which it has about 224 x 224 pixels; training is at one."""
    detector = report_everything(small(sides=(48, 96, 64)))
    assert detector.preprocess.short_side == 96
    _, maps = detector.features(photos())
    assert [x.stride for x in maps] == pytest.approx([16, 24, 32])
    assert all(x.sizes == maps[0].sizes for x in maps)
    level = head_of(detector).extractor.assign(
        maps, Regions(torch.tensor([[0.0, 0, 60, 60], [0, 0, 300, 300], [0, 0, 900, 900]]), torch.zeros(3).long())
    )
    assert level.tolist() == [0, 1, 2]
    found = detector(photos(), boxes())
    assert all(len(each) > 20 for each in found)
    detector.train()
    seen = {round(detector.features(photos())[1][0].stride) for _ in range(20)}
    assert seen == {16, 24, 32}
    assert detector.losses(photos(), targets(), boxes())["class"] > 0


@pytest.mark.parametrize("options", [{}, {"sides": (48, 96), "channels": 8}])
def test_ready_for_inference(options: dict[str, Any]) -> None:
    detector = report_everything(small(**options))
    expected = detector(photos(), boxes())
    for each, found in zip(expected, ReadyDetector(detector, precision="32-true")(photos(), boxes()), strict=True):
        torch.testing.assert_close(found.scores, each.scores, atol=1e-4, rtol=0)
        torch.testing.assert_close(found.boxes[:10], each.boxes[:10], atol=0.05, rtol=0)
    assert len(ReadyDetector(detector, precision="bf16-mixed")(photos(), boxes())) == 2


@pytest.mark.parametrize("normalised", [False, True])
@torch.no_grad()
def test_support_vector_machines_take_the_place_of_the_softmax(tmp_path: Path, normalised: bool) -> None:
    """Of a trained detector the network is shared and the boxes are as before; margins are linear in fc7."""
    coder = ClassBoxCoder(3)
    coder.std += torch.rand(3, 4, generator=torch.Generator().manual_seed(2))
    coder.mean += 0.05
    detector = report_everything(small(**({"coder": coder} if normalised else {})))
    first = head_of(detector)
    nn.init.normal_(first.box_deltas.weight, std=0.1)
    nn.init.normal_(first.box_deltas.bias, std=0.1)
    machines = fast_rcnn_svms(detector).eval()
    head = machines.roi_heads[0]
    assert isinstance(head, SVMHead) and head.trunk is first.trunk and head.extractor is first.extractor
    assert machines.backbone is detector.backbone
    assert [len(each) for each in machines(photos(), boxes())] == [0, 0]
    _, maps = detector.features(photos())
    r = Regions.from_list(boxes())
    nn.init.normal_(head.class_logits.weight)
    nn.init.normal_(head.class_logits.bias)
    old, new = first.predict(maps, r), head.predict(maps, r)
    assert isinstance(first.trunk, FullyConnected)
    features = first.trunk.layers(first.extractor(maps, r))["fc7"]
    torch.testing.assert_close(new.logits, head.class_logits(features))
    for label in (1, 2):
        labels = torch.full((len(r),), label)
        before = first.coder.decode(old.deltas[:, label], r.boxes, labels)
        torch.testing.assert_close(head.coder.decode(new.deltas[:, label], r.boxes, labels), before, atol=1e-2, rtol=0)
    assert all(len(each) > 10 for each in machines(photos(), boxes()))
    both = nn.ModuleList([detector, machines])
    save(tmp_path / "both.safetensors", both, Card(("a", "b")))
    save(tmp_path / "one.safetensors", detector, Card(("a", "b")))
    grown = (tmp_path / "both.safetensors").stat().st_size - (tmp_path / "one.safetensors").stat().st_size
    assert grown < 100_000 < (tmp_path / "one.safetensors").stat().st_size / 50
    with pytest.raises(TypeError, match="expected one with fully connected layers and a softmax, got SVMHead"):
        fast_rcnn_svms(machines)


def grid_proposals(dataset: Any) -> Any:
    """Objects moved a little, and a grid."""
    rng, found = np.random.default_rng(0), {}
    for record in dataset.records:
        height, width = record.size
        grid = [[x, y, x + 40, y + 40] for x in range(0, width - 39, 20) for y in range(0, height - 39, 20)]
        moved = [record.boxes + rng.normal(0, 3, record.boxes.shape) for _ in range(5)]
        found[record.id] = np.concatenate([*moved, np.array(grid, float)]).astype(np.float32)
        found[record.id][:, 2:] = np.maximum(found[record.id][:, 2:], found[record.id][:, :2] + 2)
    return dataset.with_proposals(found)


def test_prepare_takes_the_statistics_of_the_training_data() -> None:
    settings = FastRCNN(targets="class", hidden=16, short_side=64, long_side=96)
    dataset = grid_proposals(Shapes(12))
    detector = settings.build(len(dataset.class_names))
    before = torch.tensor([0.1, 0.1, 0.2, 0.2])
    coder = head_of(detector).coder
    assert isinstance(coder, ClassBoxCoder) and torch.equal(coder.std[1], before)
    notes = settings.prepare(detector, dataset)
    assert notes == [] and not torch.equal(coder.std[1], before)
    missing = grid_proposals(Shapes(12).keep_classes([*Shapes(1).class_names][:2]))
    records = [r for r in missing.records if not (r.labels == 2).any()]
    one = missing.subset([missing.records.index(r) for r in records])
    model = settings.build(2)
    (note,) = settings.prepare(model, one)
    name = one.class_names[1]
    assert note == f"too few proposals to normalise box targets by: {name} (fixed numbers instead)"
    assert FastRCNN().prepare(detector, dataset) == []


@pytest.mark.slow
@pytest.mark.parametrize("words", [[], ["targets=class", "sides=[48,64]", "box_weight=0.5", "background_low=0"]])
def test_from_the_command_line(here: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    boxes = ("0 0.5 0.5 0.6 0.6", "0 0.45 0.4 0.5 0.7", "0 0.6 0.55 0.7 0.5", "0 0.4 0.5 0.6 0.8")
    write_yolo_folder(here / "data", {f"image-{i}": f"{box}\n1 0.3 0.4 0.2 0.5" for i, box in enumerate(boxes)})
    settings = [*SMALL, "regions_per_image=16", *words]
    common = ["--model", "fast-rcnn", "--steps", "2", "--batch-size", "2", "--proposals", "grid"]
    assert regio("train", "data", *settings, *common) == 0
    card = read_card("runs/train/weights/last.safetensors")
    system = model_from_dict(card.model)
    assert isinstance(system, FastRCNN) and system.hidden == 32
    detector, _ = load_detector("runs/train/weights/last.safetensors")
    coder: Any = head_of(detector).coder
    if words:
        assert not torch.equal(coder.std[1], torch.tensor([0.1, 0.1, 0.2, 0.2]))
    assert regio("val", "data", "--weights", "runs/train/weights/last.safetensors") == 0
    assert regio("convert", "runs/train/weights/last.safetensors", "small.safetensors", "--svd", "fc6=8") == 0
    assert regio("val", "data", "--weights", "small.safetensors") == 0


def test_layers_of_the_backbone_by_name(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="fc: expected a backbone torchvision:alexnet or .* got efficientnet_lite0"):
        FastRCNN(fc="backbone").build(2)
    with pytest.raises(ValueError, match="name: expected alexnet or a VGG, .* got resnet18"):
        FastRCNN("torchvision:resnet18", "none", fc="backbone").build(2)
    with pytest.raises(FileNotFoundError, match="backbone_weights: .*none here"):
        FastRCNN("torchvision:alexnet", "none here", fc="backbone", frozen=0).build(2)
    built = FastRCNN("torchvision:alexnet", "none", fc="backbone", short_side=64, long_side=96).build
    with pytest.raises(ValueError, match=r"trunk: expected one for 256 channels and \(7, 7\) bins"):
        built(2)


@torch.no_grad()
def test_matches_a_head_written_out_with_torchvisions_operators() -> None:
    """RoI pooling at 1 / 16, two layers, softmax, boxes divided by 0.1, 0.1, 0.2, 0.2, suppression per class at 0.3."""
    detector = report_everything(small())
    head, given = head_of(detector), boxes((60, 50))
    batch, (x,) = detector.features(photos())
    scaled = detector.preprocess.boxes(given, batch)
    pooled = torchvision.ops.roi_pool(x.data, scaled, (7, 7), 1 / 16).flatten(1)
    trunk = head.trunk
    assert isinstance(trunk, FullyConnected)
    y = torch.relu(trunk.fc7(torch.relu(trunk.fc6(pooled))))
    scores = head.class_logits(y).softmax(1)
    deltas = head.box_deltas(y).view(-1, 3, 4)
    start = 0
    for i, found in enumerate(detector(photos(), given)):
        rows, kept = slice(start, start + len(given[i])), []
        start += len(given[i])
        x1, y1, x2, y2 = scaled[i].unbind(1)
        for label in (1, 2):
            dx, dy, dw, dh = (deltas[rows, label] * torch.tensor([0.1, 0.1, 0.2, 0.2])).unbind(1)
            cx, cy = (x1 + x2) / 2 + dx * (x2 - x1), (y1 + y2) / 2 + dy * (y2 - y1)
            w, h = (x2 - x1) * dw.exp(), (y2 - y1) * dh.exp()
            refined = torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], 1)
            refined = torchvision.ops.clip_boxes_to_image(refined, batch.sizes[i])
            best = torchvision.ops.nms(refined, scores[rows, label], 0.3)
            kept += [(float(scores[rows][j, label]), label, refined[j]) for j in best.tolist()]
        kept.sort(key=lambda each: -each[0])
        kept = kept[:100]
        assert found.labels.tolist() == [label for _, label, _ in kept]
        torch.testing.assert_close(found.scores, torch.tensor([score for score, _, _ in kept]), atol=1e-6, rtol=0)
        expected = torch.stack([box for _, _, box in kept]) * (photos()[i].shape[1] / batch.sizes[i][0])
        torch.testing.assert_close(found.boxes, expected, atol=0.5, rtol=0)


def test_a_sampler_of_another_kind_still_fits() -> None:
    """The parts are objects: another sampler, another reading, on the same function."""
    detector = small(extractor=RoIAlign(7), channels=8)
    head_of(detector).sampler = RegionSampler(Matcher(0.6, 0.4), BalancedSampler(8, 0.5))
    assert detector.losses(photos(), targets(), boxes())["class"] > 0
    assert isinstance(detector.features(photos())[1][0], FeatureMap)


@torch.no_grad()
def test_regions_on_the_same_cells_are_computed_once() -> None:
    head = head_of(report_everything(small()))
    rows: list[int] = []
    head.trunk.register_forward_pre_hook(lambda module, given: rows.append(len(given[0])))
    _, maps = small().eval().features(photos())
    one = torch.tensor([[10.0, 10, 60, 60]])
    r = Regions(torch.cat([one, one + 1, one + 40, one + 2, one]), torch.tensor([0, 0, 0, 0, 1]))
    output = head.predict(maps, r)
    with torch.enable_grad():
        plain = head.predict(maps, r)
    assert rows == [3, 5]
    torch.testing.assert_close(output.logits, plain.logits)
    torch.testing.assert_close(output.deltas, plain.deltas)
    assert not torch.equal(output.logits[0], output.logits[4])
    empty = Regions(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert head.predict(maps, empty).logits.shape == (0, 3)
