"""What the README shows, runs."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from regio.types import Detections

README = Path(__file__).parents[1] / "README.md"


def test_the_first_lines_are_the_two_commands() -> None:
    block = re.search(r"```sh\n(.*?)```", README.read_text(), re.S)
    assert block is not None
    assert block.group(1).splitlines() == ["pip install . && regio demo", 'pip install ".[test]" && pytest']


@pytest.mark.slow
def test_python_examples() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    assert len(blocks) == 2
    torch.manual_seed(0)
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    assert isinstance(names["detections"], Detections)
    assert names["y"].shape == (1, 256, 7, 7)  # type: ignore[attr-defined]


def test_the_head_of_the_architecture_page() -> None:
    page = (README.parent / "docs" / "architecture.md").read_text()
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(block, names)
    head = names["LargeBoxes"](150.0)
    found = Detections(torch.tensor([[0.0, 0, 10, 10], [0, 0, 20, 10]]), torch.tensor([1, 2]), torch.tensor([0.9, 0.8]))
    (kept,) = head([], [found])
    assert kept.labels.tolist() == [2]
    assert head.losses([], [found.boxes], []) == ([found.boxes], {})
