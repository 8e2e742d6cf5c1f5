"""The script that trains torchvision's detector as regio's is trained."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "train_torchvision.py"
SMALL = ["channels=16", "hidden=32", "short_side=64", "long_side=96", "workers=0", "device=cpu"]


@pytest.mark.slow
def test_a_seed_decides_the_initial_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(SCRIPT.parent)

    def trained(name: str, seed: int) -> dict[str, Tensor]:
        """The weights after one step at a learning rate of zero."""
        words = ["shapes", name, f"seed={seed}", "steps=1", "batch_size=2", "optimizer.lr=0", *SMALL]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return load_file(tmp_path / "runs" / name / "weights" / "last.safetensors")

    first, again, other = trained("a", 5), trained("b", 5), trained("c", 6)
    assert [name for name in first if not torch.equal(first[name], again[name])] == []
    key = "model.roi_heads.box_head.fc6.weight"
    assert not torch.equal(first[key], other[key])
