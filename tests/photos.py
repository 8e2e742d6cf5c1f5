"""Real photos for tests."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from regio.types import Targets


def photo(file: Path) -> Tensor:
    """The image [3, H, W] uint8 in `file`."""
    with Image.open(file) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def voc_photo(folder: Path, stem: str, names: list[str]) -> tuple[Tensor, Targets]:
    """An image of a VOC `folder` and its objects; label l is ``names[l - 1]``."""
    boxes, labels = [], []
    for element in ElementTree.parse(folder / "Annotations" / f"{stem}.xml").getroot().iter("object"):
        box = element.find("bndbox")
        assert box is not None
        boxes.append([float(box.findtext(side, "")) for side in ("xmin", "ymin", "xmax", "ymax")])
        labels.append(names.index(element.findtext("name", "")) + 1)
    return photo(folder / "JPEGImages" / f"{stem}.jpg"), Targets(torch.tensor(boxes), torch.tensor(labels))
