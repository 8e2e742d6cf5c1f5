"""Boxes to start from: read, carried along with samples, moved with the image, given to the model."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import Tensor, nn

from regio.data import (
    Compose,
    HorizontalFlip,
    RandomCrop,
    RandomResize,
    Resize,
    Shapes,
    Transform,
    collate,
    read_proposals,
    write_proposals,
)
from regio.evaluate import ProposalRecall, evaluate
from regio.optimisation import AdamW
from regio.train import TrainConfig, train
from regio.types import Detections, Targets

BOXES = np.array([[0, 0, 10, 10], [5, 5, 9, 20], [1, 2, 3, 4]], dtype=np.float32)


def test_a_file_comes_back_best_first(tmp_path: Path) -> None:
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
    found = {7: (BOXES, np.array([0.1, 0.9, 0.5], np.float32)), 3: (BOXES[:1], np.array([0.2], np.float32)), 5: nothing}
    write_proposals(tmp_path / "p.safetensors", found)
    back = read_proposals(tmp_path / "p.safetensors")
    assert back.keys() == {3, 5, 7} and back[5].shape == (0, 4)
    assert back[7].tolist() == BOXES[[1, 2, 0]].tolist() and back[3].tolist() == BOXES[:1].tolist()
    assert read_proposals(tmp_path / "p.safetensors", most=2)[7].tolist() == BOXES[[1, 2]].tolist()


def test_cocos_results_are_proposals(tmp_path: Path) -> None:
    rows = [{"image_id": 4, "category_id": 9, "bbox": [1, 2, 3, 4], "score": score} for score in (0.1, 0.2)]
    rows[1]["bbox"] = [0, 0, 5, 5]
    (tmp_path / "p.json").write_text(json.dumps(rows))
    back = read_proposals(tmp_path / "p.json")
    assert {image: boxes.tolist() for image, boxes in back.items()} == {4: [[0, 0, 5, 5], [1, 2, 4, 6]]}


def test_what_is_no_file_of_proposals(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.json: no such file of proposals"):
        read_proposals(tmp_path / "none.json")
    (tmp_path / "a.json").write_text('[{"image_id": 1}]')
    with pytest.raises(ValueError, match=r"a\.json: expected COCO's results form"):
        read_proposals(tmp_path / "a.json")
    (tmp_path / "a.safetensors").write_text("text")
    with pytest.raises(ValueError, match=r"a\.safetensors: expected safetensors with image_id, boxes and scores"):
        read_proposals(tmp_path / "a.safetensors")
    boxes, ids = np.array([[5, 5, 1, 9]], np.float32), np.array([1])
    save_file({"image_id": ids, "boxes": boxes, "scores": np.ones(1, np.float32)}, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=r"b\.safetensors: expected finite scores and boxes .* row 0 is not"):
        read_proposals(tmp_path / "b.safetensors")
    save_file({"image_id": ids, "boxes": boxes, "scores": np.ones(2, np.float32)}, tmp_path / "c.safetensors")
    with pytest.raises(ValueError, match=r"c\.safetensors: expected boxes \[N, 4\] with an image and a score each"):
        read_proposals(tmp_path / "c.safetensors")


def test_a_data_set_wants_boxes_of_every_image() -> None:
    scenes = Shapes(2)
    with pytest.raises(ValueError, match="expected boxes of every image, got none of image"):
        scenes.with_proposals({scenes.records[0].id: BOXES})
    with pytest.raises(ValueError, match=r"expected finite \[P, 4\], got shape \[3, 3\]"):
        scenes.with_proposals({record.id: BOXES[:, :3] for record in scenes.records})
    given = scenes.with_proposals({record.id: BOXES for record in scenes.records})
    assert given[1].proposals is not None and given[1].proposals.tolist() == BOXES.tolist()
    assert scenes[1].proposals is None
    other = scenes.with_proposals({record.id: BOXES + 1 for record in scenes.records})
    assert len({s.identity()["annotations"] for s in (scenes, given, other)}) == 3


@pytest.mark.parametrize(
    "transform",
    [
        HorizontalFlip(1.0),
        Resize(100, 300),
        RandomResize(),
        RandomCrop(min_visible=0.0),
        Compose([HorizontalFlip(1.0), RandomResize()]),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_proposals_move_like_annotated_boxes(transform: Transform, seed: int) -> None:
    sample = Shapes(1, seed=seed)[0]
    moved = transform(replace(sample, proposals=sample.targets.boxes), torch.Generator().manual_seed(seed))
    assert len(moved.targets) > 0
    assert moved.proposals is not None and torch.equal(moved.proposals, moved.targets.boxes)
    assert transform(sample, torch.Generator().manual_seed(seed)).proposals is None


def test_a_batch_has_proposals_of_all_or_of_none() -> None:
    first, second = (Shapes(2)[i] for i in range(2))
    assert collate([first, second]).given == ()
    boxes = torch.from_numpy(BOXES)
    batch = collate([replace(first, proposals=boxes), replace(second, proposals=boxes[:1])]).to("cpu")
    assert [len(each) for each in batch.given[0]] == [3, 1]
    with pytest.raises(ValueError, match="expected boxes of all images of a batch or of none, got none of"):
        collate([replace(first, proposals=boxes), second])


class Echo(nn.Module):
    """Finds what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images: list[Tensor], proposals: list[Tensor]) -> list[Detections]:
        ones = [torch.ones(len(boxes), dtype=torch.int64) for boxes in proposals]
        return [Detections(boxes, one, one.float()) for boxes, one in zip(proposals, ones, strict=True)]

    def losses(self, images: list[Tensor], targets: list[Targets], proposals: list[Tensor]) -> dict[str, Tensor]:
        assert all(torch.equal(boxes, target.boxes) for boxes, target in zip(proposals, targets, strict=True))
        return {"weight": self.weight**2}


def test_training_and_evaluation_give_them_to_the_model(tmp_path: Path) -> None:
    scenes = Shapes(6, size=(64, 64))
    scenes = scenes.with_proposals({r.id: r.boxes.astype(np.float32) for r in scenes.records})
    recall = ProposalRecall(scenes)
    config = TrainConfig(steps=2, batch_size=2, workers=0, optimizer=AdamW(1e-3), device="cpu")
    found = train(Echo(), scenes, recall, config, tmp_path / "run", transform=HorizontalFlip())
    assert found.numbers["ar_100"] == 1.0
    without = scenes.with_proposals({r.id: BOXES[:0] for r in scenes.records})
    assert evaluate(Echo(), ProposalRecall(without)).numbers["ar_100"] == 0.0
