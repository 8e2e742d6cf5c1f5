"""The code of docs/extractors.md runs, and its tables are complete."""

import re
from pathlib import Path

import torch

import regio.regions
from regio.config import EXTRACTORS
from regio.regions import LearnedRegionFeatures, RegionExtractor

PAGE = (Path(__file__).parents[1] / "docs" / "extractors.md").read_text()


def test_code_runs() -> None:
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(blocks) == 2
    torch.manual_seed(0)
    for block in blocks:
        exec(block, names)
    assert names["y"].shape == (1, 256, 7, 7)  # type: ignore[attr-defined]
    assert names["detector"].roi_heads[0].extractor.bins == (7, 7)  # type: ignore[attr-defined]


def test_tables_name_every_extractor() -> None:
    classes = [
        name
        for name in regio.regions.__all__
        if isinstance(kind := getattr(regio.regions, name), type) and issubclass(kind, RegionExtractor)
    ]
    left_out = {"RegionExtractor", "SamplingExtractor"}
    assert [name for name in classes if f"{name}(" not in PAGE and name not in left_out] == []
    assert [name for name in EXTRACTORS if f"`{name}`" not in PAGE] == []
    assert LearnedRegionFeatures.__name__ in classes
