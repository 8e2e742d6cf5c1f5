"""Fully connected layers in two by truncated SVD."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from regio.checkpoints import Card, read_card, save
from regio.config import load_detector, model_from_dict, model_to_dict
from regio.config.systems import RPN, FasterRCNN, FasterRCNNOnFPN
from regio.ready import ReadyDetector
from regio.roi_heads import ConvolutionsAndLinear, FullyConnected
from regio.truncated_svd import compress_checkpoint, low_rank, truncate, truncated_svd
from tests.test_cli import here, regio

__all__ = ["here"]
SMALL = FasterRCNN(channels=8, hidden=32, short_side=64, long_side=96, score_threshold=0.0)


@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (20, 20)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_with_all_singular_values_it_is_the_layer(shape: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(*shape, dtype=dtype), 10 * torch.randn(30, shape[0], dtype=dtype)
    pair = truncated_svd(linear, min(shape))
    assert [each.weight.dtype for each in pair] == [dtype, dtype]
    torch.testing.assert_close(pair(x), linear(x), rtol=1e-5, atol=1e-5)
    assert pair[0].bias is None


@pytest.mark.parametrize("shape", [(40, 12), (12, 40)])
@pytest.mark.parametrize("rank", [1, 5, 11])
def test_the_error_is_that_of_the_singular_values_left_out(shape: tuple[int, int], rank: int) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(*shape).double()
    pair = truncated_svd(linear, rank)
    product = pair[1].weight @ pair[0].weight
    values = torch.linalg.svdvals(linear.weight)
    torch.testing.assert_close((product - linear.weight).square().sum(), values[rank:].square().sum())
    torch.testing.assert_close(torch.linalg.svdvals(pair[0].weight), values[:rank])  # S V^T
    torch.testing.assert_close(pair[1].weight.T @ pair[1].weight, torch.eye(rank).double())  # U
    assert torch.equal(pair[1].bias, linear.bias)


def test_a_layer_without_a_bias() -> None:
    linear = nn.Linear(6, 4, bias=False)
    torch.testing.assert_close(truncated_svd(linear, 4)(torch.eye(6)), linear(torch.eye(6)))


@pytest.mark.parametrize("rank", [0, 5])
def test_ranks_that_there_are_not(rank: int) -> None:
    with pytest.raises(ValueError, match=f"rank: expected 1 to 4 for 6 inputs and 4 outputs, got {rank}"):
        truncated_svd(nn.Linear(6, 4), rank)
    with pytest.raises(ValueError, match=f"rank: expected 1 to 4 .*got {rank}"):
        low_rank(6, 4, rank)


def test_a_trunk_whose_layers_are_truncated() -> None:
    torch.manual_seed(0)
    trunk, y = FullyConnected(4, (3, 3), 32), torch.randn(7, 4, 3, 3)
    whole = trunk.layers(y)
    made = truncate(trunk, {"fc6": 0.25, "fc7": 32})
    assert [(each.name, each.rank) for each in made] == [("fc6", 8), ("fc7", 32)]
    assert made[0].weights == (36 * 32 + 32, 8 * (36 + 32) + 32)
    assert made[0].kept < 0.99 and made[1].kept == pytest.approx(1)
    layers = trunk.layers(y)
    assert not torch.allclose(layers["fc6"], whole["fc6"], atol=1e-3)
    assert layers["fc7"].shape == (7, 32)
    for bad, message in {
        "fc8": "expected fc6 or fc7, got 'fc8'",
        "fc6": "fc6 is truncated already, to rank 8",
    }.items():
        with pytest.raises(ValueError, match=message):
            truncate(trunk, {bad: 2})
    whole_trunk = FullyConnected(4, (3, 3), 32)
    with pytest.raises(ValueError, match="fc7: expected a rank of 1 to 32, or a share of it, got 33"):
        truncate(whole_trunk, {"fc6": 4, "fc7": 33})
    assert isinstance(whole_trunk.fc6, nn.Linear)  # nothing has been changed
    with pytest.raises(TypeError, match="trunk: expected fully connected layers fc6 and fc7, got Conv"):
        truncate(ConvolutionsAndLinear(4, (3, 3), 8), {"fc6": 4})


def checkpoint(folder: Path, system: FasterRCNN | FasterRCNNOnFPN | RPN = SMALL) -> Path:
    torch.manual_seed(0)
    card = Card(("cat", "dog"), model=model_to_dict(system), metrics={"AP": 0.5})
    save(folder / "best.safetensors", system.build(2, pretrained=False), card)
    return folder / "best.safetensors"


@pytest.mark.slow
@pytest.mark.parametrize(
    "system", [SMALL, FasterRCNNOnFPN(channels=8, hidden=32, short_side=64, long_side=96, score_threshold=0.0)]
)
def test_a_truncated_checkpoint_is_loaded_like_any_other(tmp_path: Path, system: FasterRCNN | FasterRCNNOnFPN) -> None:
    file = checkpoint(tmp_path, system)
    compress_checkpoint(file, tmp_path / "full.safetensors", {"fc6": 32, "fc7": 32})
    compress_checkpoint(file, tmp_path / "small.safetensors", {"fc6": 4})
    card = read_card(tmp_path / "small.safetensors")
    assert model_from_dict(card.model) == replace(system, fc6_rank=4) and card.metrics == {}
    image = torch.randint(0, 256, (3, 64, 80), dtype=torch.uint8)
    whole, full, small = (
        load_detector(tmp_path / f"{name}.safetensors")[0].eval()([image])[0] for name in ("best", "full", "small")
    )
    torch.testing.assert_close(full.boxes, whole.boxes, atol=1e-3, rtol=0)
    torch.testing.assert_close(full.scores, whole.scores, atol=1e-5, rtol=0)
    assert len(small) > 0 and not torch.equal(small.scores[:5], whole.scores[:5])
    detector = load_detector(tmp_path / "small.safetensors")[0].eval()
    ready = ReadyDetector(detector, precision="32-true")([image])[0]
    torch.testing.assert_close(ready.scores, small.scores, atol=1e-4, rtol=0)
    resized = tmp_path / "again.safetensors"
    with pytest.raises(ValueError, match=r"small\.safetensors: svd: fc6 is truncated already, to rank 4"):
        compress_checkpoint(tmp_path / "small.safetensors", resized, {"fc6": 2})
    assert not resized.exists()


@pytest.mark.slow
def test_regio_convert_svd(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(checkpoint(here))
    assert regio("convert", file, "small.safetensors", "--svd", "fc6=25%,fc7=4") == 0
    output = capsys.readouterr().out
    assert "fc6: rank 8, 12,576 weights become 3,424, " in output and "fc7: rank 4" in output
    assert "no smaller" not in output
    assert model_from_dict(read_card("small.safetensors").model) == replace(SMALL, fc6_rank=8, fc7_rank=4)
    assert regio("convert", file, "full.safetensors", "--svd", "fc7=32") == 0
    assert "fc7 has become no smaller" in capsys.readouterr().out
    for words, message in {
        ("new", "--svd", "fc6"): "--svd: expected LAYER=RANK, as fc6=1024 or fc6=25%, got 'fc6'",
        ("new", "--svd", "fc6=0"): "got 'fc6=0'",
        ("new", "--svd", "fc6=150%"): "got 'fc6=150%'",
        ("new", "--svd", "fc9=3"): "svd: expected fc6 or fc7, got 'fc9'",
        ("full.safetensors", "--svd", "fc6=3"): "full.safetensors: expected a new file, this one exists",
        ("new",): "expected --to FORMAT for a data set, with --link or without, or --svd for a checkpoint",
        ("new", "--svd", "fc6=3", "--to", "yolo"): "expected --to FORMAT for a data set",
    }.items():
        assert regio("convert", file, *words) == 2
        assert message in capsys.readouterr().err
    assert not Path("new").exists()
    rpn = str(checkpoint(here, RPN(channels=8, short_side=64, long_side=96)))
    assert regio("convert", rpn, "new", "--svd", "fc6=3") == 2
    assert "expected a system with the layers fc6 and fc7, got rpn" in capsys.readouterr().err
