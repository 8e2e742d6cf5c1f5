"""Box targets of zero mean and unit variance, of each class."""

from pathlib import Path

import numpy as np
import pytest
import torch

from regio.box_targets import ClassBoxCoder, TargetStatistics, target_statistics
from regio.boxes import BoxCoder
from regio.checkpoints import Card, load_all_but_classes, load_weights, read_weights, save
from regio.data import DetectionDataset, Shapes
from regio.data.records import Annotation, Record
from regio.regions import Levels, RoIAlign
from regio.roi_heads import BoxOutput, FastRCNNHead, FullyConnected
from regio.types import Regions


def jittered(dataset: DetectionDataset) -> DetectionDataset:
    """Objects moved and scaled, some beyond an IoU of 0.5, and boxes anywhere."""
    rng = np.random.default_rng(0)
    proposals = {}
    for record in dataset.records:
        sides = np.tile(record.boxes[:, 2:] - record.boxes[:, :2], 2)
        moved = [record.boxes + rng.normal(0, 0.15, record.boxes.shape) * sides for _ in range(6)]
        corner = rng.uniform(0, 100, (10, 2))
        boxes = np.concatenate([*moved, np.concatenate([corner, corner + rng.uniform(5, 60, (10, 2))], 1)])
        proposals[record.id] = boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)].astype(np.float32)
    return dataset.with_proposals(proposals)


def random_boxes(count: int, dtype: torch.dtype) -> torch.Tensor:
    corner, sides = torch.rand(count, 2, dtype=dtype) * 100, torch.rand(count, 2, dtype=dtype) * 80 + 2
    return torch.cat([corner, corner + sides], 1)


def filled(classes: int) -> ClassBoxCoder:
    coder = ClassBoxCoder(classes)
    generator = torch.Generator().manual_seed(1)
    mean, std = torch.randn(classes, 4, generator=generator), torch.rand(classes, 4, generator=generator) + 0.05
    coder.set(TargetStatistics(mean * 0.1, std, torch.ones(classes, dtype=torch.int64)))
    return coder


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-3)])
def test_decode_is_the_inverse_of_encode(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    coder, a, b, labels = filled(4), random_boxes(50, dtype), random_boxes(50, dtype), torch.randint(1, 4, (50,))
    deltas = coder.encode(b, a, labels)
    assert deltas.dtype == dtype
    torch.testing.assert_close(coder.decode(deltas, a, labels), b, atol=tolerance, rtol=0)
    other = coder.decode(deltas, a, labels % 3 + 1)
    assert (other - b).abs().amax(1).min() > 0.1  # the class matters


def test_without_statistics_it_is_the_usual_coder() -> None:
    a, b, labels = random_boxes(20, torch.float32), random_boxes(20, torch.float32), torch.ones(20, dtype=torch.int64)
    coder, usual = ClassBoxCoder(3), BoxCoder((10.0, 10.0, 5.0, 5.0))
    torch.testing.assert_close(coder.encode(b, a, labels), usual.encode(b, a))


def test_statistics_by_the_definition() -> None:
    dataset = jittered(Shapes(30))
    found = target_statistics(dataset)
    targets: dict[int, list[list[float]]] = {}
    for i, record in enumerate(dataset.records):
        proposals = dataset.proposals_of(i)
        assert proposals is not None
        for x1, y1, x2, y2 in [*proposals.tolist(), *record.boxes.tolist()]:
            best, which = 0.0, -1
            for j, (u1, v1, u2, v2) in enumerate(record.boxes.tolist()):
                inner = max(0.0, min(x2, u2) - max(x1, u1)) * max(0.0, min(y2, v2) - max(y1, v1))
                overlap = inner / ((x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - inner)
                if overlap > best:
                    best, which = overlap, j
            if best < 0.5:
                continue
            u1, v1, u2, v2 = record.boxes[which].tolist()
            w, h = x2 - x1, y2 - y1
            shift = [(u1 + u2 - x1 - x2) / 2 / w, (v1 + v2 - y1 - y2) / 2 / h]
            targets.setdefault(int(record.labels[which]), []).append(
                [*shift, float(np.log((u2 - u1) / w)), float(np.log((v2 - v1) / h))]
            )
    assert len(targets) == len(dataset.class_names) > 3
    for label, rows in targets.items():
        assert found.count[label] == len(rows)
        np.testing.assert_allclose(found.mean[label], np.mean(rows, 0), atol=1e-9)
        np.testing.assert_allclose(found.std[label], np.std(rows, 0), atol=1e-9)
    assert found.count[0] == 0 and not found.std[0].any()


def test_normalised_targets_have_zero_mean_and_unit_variance() -> None:
    coder, classes = ClassBoxCoder(2), Shapes(30).class_names[:1]
    dataset = jittered(Shapes(30).keep_classes(classes))
    coder.set(target_statistics(dataset, positive=0.6))
    total = []
    for i, record in enumerate(dataset.records):
        objects, boxes = torch.tensor(record.boxes), torch.tensor(dataset.proposals_of(i), dtype=torch.float64)
        boxes = torch.cat([boxes, objects])
        for box in boxes:
            from regio.boxes import iou

            overlap = iou(objects, box[None])[:, 0] if len(objects) else torch.zeros(1)
            if overlap.max() >= 0.6:
                total.append(coder.encode(objects[overlap.argmax()][None], box[None], torch.ones(1, dtype=torch.int64)))
    normalised = torch.cat(total)
    assert len(normalised) > 50
    torch.testing.assert_close(normalised.mean(0), torch.zeros(4, dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalised.std(0, correction=0), torch.ones(4, dtype=torch.float64), atol=1e-5, rtol=0)


def of_annotations(annotations: list[Annotation]) -> DetectionDataset:
    return DetectionDataset(("cat", "dog"), (1, 2), [Record.of(1, Path("a"), "a", (100, 100), annotations)])


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.3])
def test_crowds_and_classes_without_a_proposal(fraction: float) -> None:
    box = (10 + fraction, 10 + fraction, 50 + fraction, 50 + fraction)  # a proposal in float32 is not quite there
    crowd = of_annotations([Annotation(1, box, 1, 1600), Annotation(2, (0, 0, 90, 90), 2, 8100, crowd=True)])
    boxes = np.array([[12 + fraction, *box[1:]], [0, 0, 90, 90]], dtype=np.float32)
    found = target_statistics(crowd.with_proposals({1: boxes}))
    assert found.count.tolist() == [0, 2, 0]  # the proposal and the object itself
    assert found.known.tolist() == [False, False, False]
    coder = ClassBoxCoder(3)
    coder.set(found)
    torch.testing.assert_close(coder.std[2], torch.tensor([0.1, 0.1, 0.2, 0.2]))
    # dy and the height do not vary: dividing by their deviation would make numbers of nothing
    torch.testing.assert_close(coder.std[1], torch.tensor([0.1, 0.1, 0.2, 0.2]))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="dataset: expected one with proposals"):
        target_statistics(Shapes(2))
    with pytest.raises(ValueError, match="statistics: expected 3 classes with the background, got 4"):
        ClassBoxCoder(3).set(TargetStatistics(torch.zeros(4, 4), torch.ones(4, 4), torch.ones(4, dtype=torch.int64)))
    with pytest.raises(ValueError, match="num_classes: expected the background and at least one class, got 1"):
        ClassBoxCoder(1)


def head(coder: ClassBoxCoder) -> FastRCNNHead:
    torch.manual_seed(0)
    classes = len(coder.mean)
    return FastRCNNHead(Levels(RoIAlign(2)), FullyConnected(4, (2, 2), 8), 8, classes, coder=coder)


def test_a_head_is_trained_on_normalised_targets() -> None:
    coder = filled(3)
    boxes, objects, labels = random_boxes(6, torch.float32), random_boxes(6, torch.float32), torch.tensor([0, 1, 2] * 2)
    wanted = torch.zeros(6, 3, 4)
    for row in (1, 2, 4, 5):
        one = slice(row, row + 1)
        wanted[row, labels[row]] = coder.encode(objects[one], boxes[one], labels[one])[0]
    r = Regions(boxes, torch.zeros(6, dtype=torch.int64))
    perfect = head(coder).compare(BoxOutput(torch.zeros(6, 3), wanted), r, labels, objects)["box"]
    assert float(perfect) < 1e-6
    found = head(coder).postprocess(torch.eye(2)[labels[1:3] - 1], wanted[1:3], boxes[1:3], coder, (500, 500))
    torch.testing.assert_close(found.boxes, objects[1:3], atol=1e-3, rtol=0)


def test_checkpoints_carry_the_numbers(tmp_path: Path) -> None:
    save(tmp_path / "head.safetensors", head(filled(3)), Card(("cat", "dog")))
    other = head(ClassBoxCoder(3))
    load_weights(tmp_path / "head.safetensors", other)
    assert isinstance(other.coder, ClassBoxCoder)
    assert torch.equal(other.coder.std, filled(3).std) and torch.equal(other.coder.mean, filled(3).mean)
    more = head(filled(5))
    layers = load_all_but_classes(read_weights(tmp_path / "head.safetensors"), more, "what")
    assert layers == ["class_logits", "box_deltas", "coder"]
    assert isinstance(more.coder, ClassBoxCoder) and torch.equal(more.coder.std, filled(5).std)
