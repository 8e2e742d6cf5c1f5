"""What the README shows, runs."""

import re
from pathlib import Path

import torch

from regio.types import Detections

README = Path(__file__).parents[1] / "README.md"


def test_the_first_lines_are_the_two_commands() -> None:
    block = re.search(r"```sh\n(.*?)```", README.read_text(), re.S)
    assert block is not None
    assert block.group(1).splitlines() == ["pip install . && regio demo", 'pip install ".[test]" && pytest']


def test_python_examples() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    assert len(blocks) == 2
    torch.manual_seed(0)
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    assert isinstance(names["detections"], Detections)
    assert names["y"].shape == (1, 256, 7, 7)  # type: ignore[attr-defined]
