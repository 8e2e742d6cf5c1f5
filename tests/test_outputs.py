"""What is left of what is found in a photo."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from regio.outputs import ClassMapOutput, DetectionOutput
from regio.types import ClassMap, Detections
from regio.whole_files import distinct_names


@pytest.mark.parametrize(("width", "file"), [(65500, "a.jpg"), (65501, "a.png")])
def test_a_picture_wider_than_a_jpeg_can_be(tmp_path: Path, width: int, file: str) -> None:
    image = torch.zeros(3, 2, width, dtype=torch.uint8)
    found = Detections(torch.tensor([[1.0, 0.0, 40.0, 2.0]]), torch.tensor([1]), torch.tensor([0.9]))
    (tmp_path / "pictures").mkdir()
    entry = DetectionOutput(["cat"], 0.5).write(image, found, tmp_path, "a", True)
    assert [each["name"] for each in entry["detections"]] == ["cat"]
    assert [each.name for each in (tmp_path / "pictures").iterdir()] == [file]
    assert entry["picture"] == f"pictures/{file}"
    with Image.open(tmp_path / "pictures" / file) as picture:
        assert picture.width == width


def test_a_class_map_taller_than_a_jpeg_can_be(tmp_path: Path) -> None:
    image = torch.zeros(3, 65501, 2, dtype=torch.uint8)
    output = ClassMapOutput(["cat"])
    for folder in output.folders(True):
        (tmp_path / folder).mkdir()
    output.write(image, ClassMap(torch.ones(65501, 2, dtype=torch.uint8), torch.ones(65501, 2)), tmp_path, "a", True)
    assert sorted(str(each.relative_to(tmp_path)) for each in tmp_path.glob("*/*")) == [
        "class_maps/a.png",
        "pictures/a.png",
    ]


def test_the_names_of_classes_can_be_read_below_a_small_photo(tmp_path: Path) -> None:
    output, labels = ClassMapOutput(["cat"]), torch.ones(40, 64, dtype=torch.uint8)
    for folder in output.folders(True):
        (tmp_path / folder).mkdir()
    entry = output.write(torch.zeros(3, 40, 64, dtype=torch.uint8), ClassMap(labels, labels / 1), tmp_path, "a", True)
    with Image.open(tmp_path / entry["picture"]) as picture, Image.open(tmp_path / entry["class_map"]) as map:
        assert picture.width == 640 and map.size == (64, 40)


def test_long_names_of_photos_leave_room_for_a_number() -> None:
    files = [Path(folder) / f"{'é' * 120}.jpg" for folder in "ab"]
    names = distinct_names(files, "")
    assert len(set(names)) == 2
    assert all(190 < len(name.encode(errors="surrogateescape")) < 210 for name in names)
