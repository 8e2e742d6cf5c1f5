"""A small COCO dataset and a small VOC dataset on disk, which tests damage as they need."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


def save_image(path: Path, size: tuple[int, int], seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def coco_source() -> dict[str, Any]:
    """Two images of 40 x 60 (width x height); categories 3 and 7, listed out of order."""
    return {
        "images": [
            {"id": 11, "file_name": "a.png", "width": 40, "height": 60},
            {"id": 12, "file_name": "b.png", "width": 40, "height": 60},
        ],
        "annotations": [
            {"id": 1, "image_id": 11, "category_id": 7, "bbox": [1, 2, 10, 20], "area": 150.5, "iscrowd": 0},
            {"id": 2, "image_id": 11, "category_id": 3, "bbox": [5.5, 6.25, 4, 8], "iscrowd": 1},
        ],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
    }


@pytest.fixture
def write_coco(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    """Writes the images of `coco_source` and the given JSON beside them; gives the path of the JSON."""

    def write(source: dict[str, Any]) -> Path:
        for number, name in enumerate(("a.png", "b.png")):
            save_image(tmp_path / name, (60, 40), number)
        file = tmp_path / "trainval.json"
        file.write_text(json.dumps(source))
        return file

    return write


def voc_page(objects: str, name: str = "a.png", size: str = "<width>40</width><height>60</height>") -> str:
    return f"<annotation><filename>{name}</filename><size>{size}</size>{objects}</annotation>"


def voc_object(name: str, corners: tuple[object, object, object, object], difficult: int | None = None) -> str:
    sides = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
    flag = "" if difficult is None else f"<difficult>{difficult}</difficult>"
    return f"<object><name>{name}</name>{flag}<bndbox>{sides}</bndbox></object>"


@pytest.fixture
def write_voc(tmp_path: Path) -> Callable[[dict[str, str]], Path]:
    """Writes XML pages by stem with an image for each; gives the folder."""

    def write(pages: dict[str, str]) -> Path:
        (tmp_path / "Annotations").mkdir()
        for number, (stem, page) in enumerate(pages.items()):
            (tmp_path / "Annotations" / f"{stem}.xml").write_text(page)
            save_image(tmp_path / "JPEGImages" / f"{stem}.png", (60, 40), number)
        return tmp_path

    return write
