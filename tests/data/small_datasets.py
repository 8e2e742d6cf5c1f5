"""A small COCO dataset and a small VOC dataset, written to disk for tests to damage."""

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def save_image(path: Path, seed: int = 0) -> None:
    """Noise of 40 x 60 pixels (width x height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (60, 40, 3), dtype=np.uint8)).save(path)


def coco_source() -> dict[str, Any]:
    """Two images; categories 3 and 7, listed out of order; one object, one crowd, both in the first image."""
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


def write_coco(folder: Path, source: Any) -> Path:
    """Writes `source` and the images of `coco_source` beside it; gives the path of the JSON file."""
    for number, name in enumerate(("a.png", "b.png")):
        save_image(folder / name, number)
    file = folder / "trainval.json"
    file.write_text(json.dumps(source))
    return file


def voc_page(*objects: str, size: str = "<width>40</width><height>60</height>", filename: str = "x.jpg") -> str:
    return f"<annotation><filename>{filename}</filename><size>{size}</size>{''.join(objects)}</annotation>"


def voc_object(name: str, corners: tuple[object, ...], difficult: int | None = None) -> str:
    sides = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
    flag = "" if difficult is None else f"<difficult>{difficult}</difficult>"
    return f"<object><name>{name}</name>{flag}<bndbox>{sides}</bndbox></object>"


def write_voc(folder: Path, pages: dict[str, str]) -> Path:
    """Writes XML pages, keyed by stem, with an image for each; gives the folder of the dataset."""
    (folder / "Annotations").mkdir(parents=True)
    for number, (stem, page) in enumerate(pages.items()):
        (folder / "Annotations" / f"{stem}.xml").write_text(page)
        save_image(folder / "JPEGImages" / f"{stem}.png", number)
    return folder


def write_yolo_folder(folder: Path, labels: dict[str, str | None], page: str = "names: [cat, dog]") -> Path:
    """Writes an image ``images/train/STEM.png`` for each of `labels`, its label file unless that is None, and
    ``data.yaml``, of which train and val are the same; gives the path of the latter."""
    for number, (stem, text) in enumerate(labels.items()):
        save_image(folder / "images" / "train" / f"{stem}.png", number)
        if text is not None:
            (folder / "labels" / "train").mkdir(parents=True, exist_ok=True)
            (folder / "labels" / "train" / f"{stem}.txt").write_text(text)
    file = folder / "data.yaml"
    file.write_text(f"train: images/train\nval: images/train\n{page}\n")
    return file


def write_png_header(file: Path, width: int, height: int) -> Path:
    """Writes a PNG that says it has so many pixels, and has next to none; gives its path."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b""))
    return file
