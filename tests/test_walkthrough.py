"""The worked example of RoI pooling, deepsense.ai's 8 x 8 map, in the numbers of docs/walkthrough.md."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from regio.regions import RoIAlign, RoIPool
from regio.regions.quantisation import DisjointBins, HalfOpenCorners, OverlappingBins
from regio.types import FeatureMap, Regions

PAGE = Path(__file__).parents[1] / "docs" / "walkthrough.md"

MAP = torch.tensor(
    [
        [0.88, 0.44, 0.14, 0.16, 0.37, 0.77, 0.96, 0.27],
        [0.19, 0.45, 0.57, 0.16, 0.63, 0.29, 0.71, 0.70],
        [0.66, 0.26, 0.82, 0.64, 0.54, 0.73, 0.59, 0.26],
        [0.85, 0.34, 0.76, 0.84, 0.29, 0.75, 0.62, 0.25],
        [0.32, 0.74, 0.21, 0.39, 0.34, 0.03, 0.33, 0.48],
        [0.20, 0.14, 0.16, 0.13, 0.73, 0.65, 0.96, 0.32],
        [0.19, 0.69, 0.09, 0.86, 0.88, 0.07, 0.01, 0.48],
        [0.83, 0.24, 0.97, 0.04, 0.24, 0.35, 0.50, 0.91],
    ]
)
X = FeatureMap(MAP[None, None], stride=1)
REGION = Regions(torch.tensor([[0.0, 3.0, 7.0, 8.0]]), torch.zeros(1, dtype=torch.int64))


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        (RoIPool(2, HalfOpenCorners(), DisjointBins()), [[0.85, 0.84], [0.97, 0.96]]),
        (RoIPool(2, HalfOpenCorners(), OverlappingBins()), [[0.85, 0.96], [0.97, 0.96]]),
        (RoIPool(2), [[0.85, 0.96], [0.97, 0.91]]),
    ],
    ids=["half-open, disjoint", "half-open, overlapping", "inclusive, overlapping"],
)
def test_largest_cells(pool: RoIPool, expected: list[list[float]]) -> None:
    assert torch.equal(pool(X, REGION)[0, 0], torch.tensor(expected))


def test_disjoint_bins_are_three_and_four_columns_and_two_and_three_rows() -> None:
    pool = RoIPool(2, HalfOpenCorners(), DisjointBins())
    top, bottom, left, right = pool.cells([X], REGION, torch.zeros(1, dtype=torch.int64))
    assert torch.stack([top, bottom], 2).tolist() == [[[3, 5], [5, 8]]]
    assert torch.stack([left, right], 2).tolist() == [[[0, 3], [3, 7]]]


def bilinear(u: float, v: float) -> Tensor:
    """The map at (column, row), where cell i has its centre at i + 0.5."""
    u, v = u - 0.5, v - 0.5
    hats = [(1 - (torch.arange(8) - at).abs()).clamp(min=0) for at in (v, u)]
    return hats[0] @ MAP @ hats[1]


def test_align_is_the_mean_of_four_samples_a_bin() -> None:
    expected = torch.empty(2, 2)
    for row in range(2):
        for column in range(2):
            at = [((column + i) * 3.5, 3 + (row + j) * 2.5) for i in (0.25, 0.75) for j in (0.25, 0.75)]
            expected[row, column] = torch.stack([bilinear(u, v) for u, v in at]).mean()
    found = RoIAlign(2, samples=2)(X, REGION)[0, 0]
    torch.testing.assert_close(found, expected)
    assert (found * 100).round().tolist() == [[48, 47], [46, 46]]


def test_the_page_shows_these_numbers() -> None:
    """The code of the page runs, and gives what its comments say."""
    text = PAGE.read_text()
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    setup, calls = code.split("\nRoIPool(2, Half", 1)
    names: dict[str, object] = {}
    exec(setup, names)
    lines = ("RoIPool(2, Half" + calls).strip().splitlines()
    assert len(lines) == 4
    for line in lines:
        call, comment = line.split("#")
        found = eval(call, names)
        assert isinstance(found, Tensor)
        torch.testing.assert_close(found[0, 0], torch.tensor(eval(comment)), atol=0.0051, rtol=0)


def test_the_pictures_of_the_page_exist() -> None:
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", PAGE.read_text())
    assert len(pictures) == 5
    assert all((PAGE.parent / picture).is_file() for picture in pictures)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "names"),
    [
        ("walkthrough.py", ["align.jpg", "aligning.png", "learned.jpg", "pooling.png", "rounding.jpg"]),
        ("gallery.py", ["extractors.png"]),
    ],
)
def test_the_pictures_of_the_pages_can_be_made(script: str, names: list[str], tmp_path: Path) -> None:
    to = tmp_path if len(names) > 1 else tmp_path / names[0]
    subprocess.run([sys.executable, PAGE.parents[1] / "examples" / script, to], check=True, capture_output=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for path in tmp_path.iterdir():
        with Image.open(path) as picture:
            assert np.asarray(picture.convert("L")).std() > 10
