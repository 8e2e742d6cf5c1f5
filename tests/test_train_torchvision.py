"""The script that trains torchvision's detector as regio's is trained."""

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from regio.config.systems import FasterRCNN, MaskRCNN, System
from regio.data import Shapes
from regio.masks import PixelMasks
from regio.training_log import TrainingLog

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "train_torchvision.py"
SMALL = ["channels=16", "hidden=32", "short_side=64", "long_side=96", "workers=0", "device=cpu"]
FEW = ["images=8", "validation_images=4"]
MASKS = MaskRCNN(channels=16, hidden=32, short_side=64, long_side=96, mask_channels=8, mask_layers=2)


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module of the peer."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import torchvision_peer

    return torchvision_peer


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """The script with these words."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words, *SMALL, *FEW])
    runpy.run_path(str(SCRIPT), run_name="__main__")


@pytest.mark.slow
def test_a_seed_decides_the_initial_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def trained(name: str, seed: int) -> dict[str, Tensor]:
        """The weights after one step at a learning rate of zero."""
        run(monkeypatch, "shapes", name, f"seed={seed}", "steps=1", "batch_size=2", "optimizer.lr=0")
        return load_file(tmp_path / "runs" / name / "weights" / "last.safetensors")

    first, again, other = trained("a", 5), trained("b", 5), trained("c", 6)
    assert [name for name in first if not torch.equal(first[name], again[name])] == []
    key = "model.roi_heads.box_head.fc6.weight"
    assert not torch.equal(first[key], other[key])


@pytest.mark.slow
def test_masks_are_trained_and_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, "shapes", "masks", "model=mask-rcnn", "mask_channels=8", "mask_layers=1", "steps=2", "seed=0")
    folder = tmp_path / "runs" / "masks"
    rows = TrainingLog(folder / "metrics.csv", []).rows()
    assert rows[0]["loss_mask"] > 0
    assert "val_mask_ap" in rows[-1]
    assert 0 < rows[0]["seconds"] < rows[1]["seconds"]
    assert f"training took {rows[1]['seconds']:.0f} s" in capsys.readouterr().out
    assert "masks" in json.loads((folder / "results.json").read_text())


def test_the_widths_of_the_mask_head_are_those_of_the_settings(peer: ModuleType) -> None:
    for layers, shapes in ((2, [[8, 16, 3, 3], [8, 8, 3, 3]]), (0, [])):
        heads = peer.TorchvisionDetector(replace(MASKS, mask_layers=layers), 6).model.roi_heads
        assert [list(p.shape) for p in heads.mask_head.parameters() if p.ndim == 4] == shapes
        assert list(heads.mask_predictor.conv5_mask.weight.shape) == [8 if layers else 16, 8, 2, 2]
        assert heads.mask_predictor.mask_fcn_logits.weight.shape[0] == 7


def test_masks_follow_the_image_into_and_out_of_torchvisions_transform(
    peer: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    detector = peer.TorchvisionDetector(replace(MASKS, score_threshold=0.0), 6)
    data = Shapes(2).with_masks()
    samples = [data[0], data[1]]
    given = []
    heads = detector.model.roi_heads.forward
    monkeypatch.setattr(detector.model.roi_heads, "forward", lambda *args: given.append(args) or heads(*args))
    losses = detector.losses([s.image for s in samples], [s.targets for s in samples])
    assert float(losses["loss_mask"].detach()) > 0
    for sample, size, target in zip(samples, given[0][2], given[0][3], strict=True):
        masks = sample.targets.masks
        assert masks is not None
        assert target["masks"].dtype == torch.uint8
        assert list(target["masks"].shape) == [len(masks), *size]
        torch.testing.assert_close(target["masks"].float().mean((1, 2)), masks.float().mean((1, 2)), rtol=0, atol=0.01)
    with torch.no_grad():
        found = detector([samples[0].image])[0]
    assert isinstance(found.masks, PixelMasks)
    assert list(found.masks.values.shape) == [len(found), *samples[0].size]


@pytest.mark.parametrize(
    ("system", "message"),
    [
        (FasterRCNN(), "model: expected faster-rcnn-fpn or mask-rcnn, got FasterRCNN"),
        (MaskRCNN(mask_output="softmax"), "mask_output: expected the default, got softmax"),
        (MaskRCNN(norm="group"), "norm: expected the default, got group"),
    ],
)
def test_settings_that_torchvision_lacks_are_refused(peer: ModuleType, system: System, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        peer.TorchvisionDetector(system, 6)
