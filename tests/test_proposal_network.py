"""A proposal network alone."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from regio.boxes import resize_boxes
from regio.checkpoints import read_card
from regio.config.systems import FasterRCNNOnFPN
from regio.data import Shapes
from regio.detector import TwoStageDetector
from regio.evaluate import ProposalRecall, evaluate
from regio.optimisation import AdamW
from regio.train import TrainConfig, train
from regio.types import Targets


def network() -> TwoStageDetector:
    """The first stage of a small detector: one without heads."""
    torch.manual_seed(0)
    sizes = (16.0, 32.0, 64.0, 128.0)
    detector = FasterRCNNOnFPN(channels=32, short_side=96, long_side=128, anchor_sizes=sizes).build(6)
    parts = {name: getattr(detector, name) for name in ("preprocess", "backbone", "neck", "proposals")}
    return TwoStageDetector(**parts)


def test_proposals_are_those_of_the_rpn_in_pixels_of_the_images() -> None:
    model = network()
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in ((70, 120), (140, 90))]
    with torch.no_grad():
        found = model(images)
        batch, maps = model.features(images)
        proposals = model.proposals(maps)  # type: ignore[misc]
    for image, one, scaled, size in zip(images, found, proposals, batch.sizes, strict=True):
        height, width = image.shape[1:]
        torch.testing.assert_close(one.boxes, resize_boxes(scaled.boxes, size, (height, width)))
        assert one.boxes.min() >= 0
        assert one.boxes[:, 2].max() <= width + 1e-3 and one.boxes[:, 3].max() <= height + 1e-3
        assert one.labels.unique().tolist() == [1] and 10 < len(one) <= 1000
        assert one.scores.tolist() == sorted(one.scores.tolist(), reverse=True)
        assert one.scores.min() >= 0 and one.scores.max() <= 1


def test_classes_do_not_count_and_images_without_objects_do() -> None:
    model, image = network(), torch.randint(0, 256, (3, 96, 96), dtype=torch.uint8)
    box = torch.tensor([[10.0, 10.0, 60.0, 60.0]])
    losses = []
    for label in (1, 5):
        torch.manual_seed(1)
        losses.append(model.losses([image], [Targets(box, torch.tensor([label]))]))
    assert losses[0].keys() == {"rpn_objectness", "rpn_box"}
    assert losses[0] == losses[1]
    none = model.losses([image], [Targets(box[:0], torch.zeros(0, dtype=torch.int64))])
    assert none["rpn_box"] == 0 and none["rpn_objectness"] > 0


@pytest.mark.slow
def test_it_is_trained_and_measured_by_the_loop_of_detectors(tmp_path: Path) -> None:
    recall = ProposalRecall(Shapes(12, seed=1))
    model = network()
    before = evaluate(model, recall).numbers
    config = TrainConfig(steps=40, batch_size=4, optimizer=AdamW(2e-3), evaluate_every=100, workers=0, device="cpu")
    after = train(model, Shapes(40), recall, config, tmp_path).numbers
    assert after["ar_100"] > before["ar_100"] + 0.1
    card = read_card(tmp_path / "weights" / "best.safetensors")
    assert card.metrics == after and card.normalisation["short_side"] == 96
    assert "val_recall50_300" in (tmp_path / "metrics.csv").read_text().splitlines()[0]
    with pytest.raises(ValueError, match="evaluator ProposalRecall"):
        from regio.evaluate import BoxEvaluator

        train(network(), Shapes(40), BoxEvaluator(recall.dataset), replace(config), tmp_path, resume=True)
