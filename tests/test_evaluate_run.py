import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from regio.data.dataset import DetectionDataset
from regio.data.records import Annotation, Record
from regio.evaluate import BoxEvaluator, evaluate, evaluation_mode, predict
from regio.run_report import BoxResults
from regio.types import Detections

SIZES = [(40, 60), (50, 30), (20, 20)]


def picture(record: Record) -> Tensor:
    return torch.full((3, *record.size), record.id, dtype=torch.uint8)


@pytest.fixture
def dataset() -> DetectionDataset:
    """Three images of different sizes: a full-size object of class id 30, one of class id 10, and no object."""
    boxes = [[(0.0, 0.0, 60.0, 40.0)], [(0.0, 0.0, 30.0, 50.0)], []]
    records = []
    for i, (size, rows) in enumerate(zip(SIZES, boxes, strict=True)):
        objects = [Annotation(id=i, box=box, label=i + 1, area=100.0) for box in rows]
        records.append(Record.of(7 + i, Path(f"{i}.jpg"), f"{i}.jpg", size, objects))
    return DetectionDataset(["thirty", "ten"], [30, 10], records, read=picture)


def detect(images: list[Tensor]) -> list[Detections]:
    """Finds, in the image of id 7 + i, the whole image as class i + 1; nothing in the last."""
    found = []
    for image in images:
        assert image.dtype == torch.uint8 and not torch.is_grad_enabled()
        number = int(image[0, 0, 0]) - 7
        _, height, width = image.shape
        rows = int(number < 2)
        box = torch.tensor([[0.0, 0.0, width, height]])[:rows]
        found.append(Detections(box, torch.tensor([number + 1])[:rows], torch.tensor([0.5])[:rows]))
    return found


def test_a_perfect_detector_has_ap_one(dataset: DetectionDataset) -> None:
    calls, boxes = [], BoxEvaluator(dataset)
    found = evaluate(detect, boxes, batch_size=2, progress=lambda done, n: calls.append((done, n)))
    assert [found.numbers[name] for name in ("ap", "voc_ap")] == pytest.approx([1, 1])
    assert tuple(found.numbers) == boxes.names and boxes.selects in boxes.names
    assert list(boxes.coco(found.records).per_class) == ["thirty", "ten"]
    assert calls == [(2, 3), (3, 3)]
    assert boxes.rows(found.records) == [
        {"image_id": 7, "category_id": 30, "bbox": [0.0, 0.0, 60.0, 40.0], "score": 0.5},
        {"image_id": 8, "category_id": 10, "bbox": [0.0, 0.0, 30.0, 50.0], "score": 0.5},
    ]
    assert predict(detect, boxes, batch_size=1) == found.records


def test_wide_and_tall_images_are_not_in_a_batch_as_far_as_that_goes(dataset: DetectionDataset) -> None:
    seen: list[list[tuple[int, ...]]] = []

    def noted(images: list[Tensor]) -> list[Detections]:
        seen.append([tuple(image.shape[1:]) for image in images])
        return detect(images)

    boxes = BoxEvaluator(dataset)
    records = predict(noted, boxes, batch_size=2)
    assert seen == [[(40, 60), (20, 20)], [(50, 30)]]
    assert [row["image_id"] for row in boxes.rows(records)] == [7, 8]  # in the order of the data
    assert records == predict(detect, boxes, batch_size=1)


def test_results_without_an_object_are_null(dataset: DetectionDataset) -> None:
    empty = BoxEvaluator(dataset.subset([2]))
    results = BoxResults(empty, predict(detect, empty)).to_json()
    assert results["voc"] == {"map_area": None, "map_11_points": None}
    json.dumps(results, allow_nan=False)
    boxes = BoxEvaluator(dataset)
    assert BoxResults(boxes, predict(detect, boxes)).to_json()["voc"] == {"map_area": 1, "map_11_points": 1}


def test_shares_of_the_images_add_up(dataset: DetectionDataset) -> None:
    boxes = BoxEvaluator(dataset)
    shares = [predict(detect, boxes, share=range(rank, 3, 2)) for rank in range(2)]
    assert [shares[0][0], shares[1][0], shares[0][1]] == predict(detect, boxes)


def test_an_unknown_number_selects_nothing(dataset: DetectionDataset) -> None:
    assert BoxEvaluator(dataset, "voc_ap_11_points").selects == "voc_ap_11_points"
    with pytest.raises(ValueError, match="selects: expected one of ap, ap50, .*, got 'map'"):
        BoxEvaluator(dataset, "map")


def test_a_detector_that_loses_images_is_an_error(dataset: DetectionDataset) -> None:
    with pytest.raises(ValueError, match="model: expected 3 predictions, one an image, got 1"):
        predict(lambda images: detect(images)[:1], BoxEvaluator(dataset))


class Moody(nn.Module):
    """Finds as `detect`, at random in training mode; its batch norm sees the images, and one part is fixed."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop, self.fixed = nn.BatchNorm2d(3), nn.Dropout(), nn.BatchNorm2d(3).eval()

    def forward(self, images: list[Tensor]) -> list[Detections]:
        """Scores are 0 where something was dropped."""
        found = []
        for image, one in zip(images, detect(images), strict=True):
            kept = self.drop(self.norm(image[None].float())).all()
            found.append(Detections(one.boxes, one.labels, one.scores * kept))
        return found


def test_a_module_predicts_in_evaluation_mode_and_keeps_its_modes(dataset: DetectionDataset) -> None:
    model = Moody()
    modes = {name: part.training for name, part in model.named_modules()}
    statistics = {name: value.clone() for name, value in model.state_dict().items()}
    records = predict(model, BoxEvaluator(dataset))
    assert [row["score"] for record in records for row in record] == [0.5, 0.5]
    assert {name: part.training for name, part in model.named_modules()} == modes
    assert modes["norm"] and not modes["fixed"]
    assert [name for name, value in model.state_dict().items() if not torch.equal(value, statistics[name])] == []


def test_modes_come_back_after_an_error() -> None:
    model = Moody()
    with pytest.raises(RuntimeError, match="on purpose"), evaluation_mode(model):
        assert not any(part.training for part in model.modules())
        raise RuntimeError("on purpose")
    assert [part.training for part in model.modules()] == [True, True, True, False]
