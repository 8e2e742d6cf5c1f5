"""The code of docs/region_features.md runs, and the script that makes its pictures."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from regio.types import FeatureMap, Regions

PAGE = Path(__file__).parents[1] / "docs" / "region_features.md"
PICTURES = [
    "region_groups.png",
    "region_learned.jpg",
    "region_offsets.jpg",
    "region_parts.jpg",
    "region_shift.png",
    "region_terms.jpg",
    "region_weights.png",
]


def blocks() -> list[str]:
    found = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert len(found) == 3
    return found


def run(code: list[str]) -> dict[str, Any]:
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    for block in code:
        exec(block, names)
    return names


@pytest.mark.slow
def test_code_runs() -> None:
    names = run(blocks())
    grad = names["parts"].width.grad
    assert grad.shape == (7, 7)
    assert (grad != 0).all()
    assert names["detections"].boxes.shape[1] == 4


def test_the_extractor_of_the_page_is_one() -> None:
    extractor = run(blocks()[:2])["GaussianParts"]((3, 2)).double()
    x = FeatureMap(torch.randn(1, 4, 19, 22, dtype=torch.float64), stride=8)
    boxes = torch.tensor([[49.0, 45.0, 110.0, 100.0], [0.0, 0.0, 88.0, 72.0]], dtype=torch.float64, requires_grad=True)
    image = torch.zeros(2, dtype=torch.int64)
    w = extractor.weights(x, Regions(boxes, image))
    assert w.shape == (2, 1, 6, 19, 22)
    torch.testing.assert_close(w.sum((3, 4)), torch.ones_like(w[..., 0, 0]))
    down, right = (torch.arange(n) + 0.5 for n in x.size)
    centre = torch.stack([(w.sum(3) * right).sum(3), (w.sum(4) * down).sum(3)], -1)[0, 0] * 8
    expected = torch.tensor([[49 + 61 * (j + 0.5) / 2, 45 + 55 * (i + 0.5) / 3] for i in range(3) for j in range(2)])
    torch.testing.assert_close(centre, expected.double(), atol=0.1, rtol=0)  # in pixels
    assert torch.autograd.gradcheck(lambda b, _: extractor(x, Regions(b, image)), (boxes, extractor.width))
    nothing = Regions(torch.tensor([[30.0, 30.0, 30.0, 30.0]], dtype=torch.float64), image[:1])
    assert extractor(x, nothing).isfinite().all()


def test_the_pictures_of_the_page_exist_and_are_small() -> None:
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", PAGE.read_text())
    assert sorted(pictures) == [f"images/{name}" for name in PICTURES]
    assert all((PAGE.parent / picture).stat().st_size < 150_000 for picture in pictures)


def test_the_sections_that_the_page_links_to_exist() -> None:
    links = re.findall(r"\]\(([^)#\s]+\.md)(?:#([^)]*))?\)", PAGE.read_text())
    assert len(links) >= 5
    for file, section in links:
        heads = re.findall(r"^#+ (.*)$", (PAGE.parent / file).read_text(), re.M)
        assert not section or section in [re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads]


@pytest.mark.slow
def test_the_pictures_of_the_page_can_be_made(tmp_path: Path) -> None:
    script = [sys.executable, PAGE.parents[1] / "examples" / "region_features.py", tmp_path]
    made = subprocess.run([*script, "--steps", "2", "--scenes", "2"], check=True, capture_output=True, text=True)
    assert made.stdout.count("named") == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == PICTURES
    for path in tmp_path.iterdir():
        with Image.open(path) as picture:
            assert picture.width == 1245
            assert np.asarray(picture.convert("L")).std() > 10
