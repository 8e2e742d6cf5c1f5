"""The code of docs/extractors.md runs, and its tables are complete."""

import re
from pathlib import Path

import torch

import regio.regions
from regio.config import EXTRACTORS
from regio.regions import LearnedRegionFeatures, RegionExtractor
from regio.types import FeatureMap, Regions

PAGE = (Path(__file__).parents[1] / "docs" / "extractors.md").read_text()


def test_code_runs() -> None:
    names: dict[str, object] = {"RegionExtractor": RegionExtractor}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(blocks) == 3
    torch.manual_seed(0)
    for block in blocks:
        exec(block, names)
    x, r = FeatureMap(torch.ones(1, 3, 20, 30), 8), Regions(torch.tensor([[16.0, 24.0, 96.0, 88.0]]), torch.tensor([0]))
    middle = names["MiddleCells"]()  # type: ignore[operator]
    assert middle(x, r).flatten().tolist() == [1.0, 1.0, 1.0]
    assert middle.weights(x, r).count_nonzero() == 4 * 4


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
