"""Fixed dilation of the last layers of a backbone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from regio.backbones import Backbone, Chain, Level, efficientnet_lite0, timm_backbone, torchvision_backbone
from regio.backbones.deformable import deformable_layers, with_deformable
from regio.backbones.dilation import with_dilation
from regio.config import RunConfig
from regio.config.systems import DeepLab, FasterRCNN
from regio.data import Shapes
from regio.detector import TwoStageDetector
from regio.settings import override
from tests.test_deformable_backbones import LITTLE, maps, moved, with_any_norms


def one_convolution(conv: nn.Conv2d) -> Backbone:
    """A backbone of nothing but `conv`."""
    return Backbone(Chain({"conv": conv}, ["conv"]), [Level(1, conv.out_channels, 1)], levels=(1,), frozen=0)


@pytest.mark.parametrize("dilation", [1, 2, 4, 8])
@pytest.mark.parametrize("kernel", [3, 5, (3, 1)])
def test_taps_are_so_many_cells_apart(kernel: Any, dilation: int) -> None:
    """A filter of ones gives a single bright cell as a grid of bright cells, `dilation` apart, around it."""
    rows, columns = (kernel, kernel) if isinstance(kernel, int) else kernel
    conv = nn.Conv2d(3, 1, (rows, columns), padding=(rows // 2, columns // 2), bias=False)
    nn.init.ones_(conv.weight)
    backbone = with_dilation(one_convolution(conv), 1, dilation=dilation)
    x = torch.zeros(1, 3, 41, 43)
    x[0, 1, 20, 21] = 1
    expected = torch.zeros(41, 43)
    for i in range(rows):
        for j in range(columns):
            expected[20 + (i - rows // 2) * dilation, 21 + (j - columns // 2) * dilation] = 1
    assert torch.equal(maps(backbone, x)[0][0, 0], expected)


BACKBONES: dict[str, Callable[[], Backbone]] = {
    "resnet50": lambda: torchvision_backbone("resnet50", (4, 5), pretrained=False, output_stride=16),
    "resnet18, live norms": lambda: torchvision_backbone("resnet18", pretrained=False, frozen=0, frozen_norm=False),
    "timm resnet18": lambda: timm_backbone("resnet18", (3, 4), pretrained=False),
    "lite0": lambda: efficientnet_lite0((4, 5), output_stride=16),
}


@pytest.mark.slow
@pytest.mark.parametrize("make", BACKBONES.values(), ids=BACKBONES)
def test_maps_keep_their_sizes_and_deformable_layers_begin_as_these(make: Callable[[], Backbone]) -> None:
    x = torch.randn(2, 3, 90, 109)
    with torch.no_grad():
        before = maps(with_any_norms(make()), x)
        backbone = with_any_norms(make())
        assert with_dilation(backbone, 2, dilation=4) is backbone
        after = maps(backbone, x)
        assert [each.shape for each in after] == [each.shape for each in before]
        assert not torch.allclose(after[-1], before[-1], rtol=1e-2)
        with_deformable(backbone, 2)
        assert [each.dilation for each in deformable_layers(backbone).values()] == [(4, 4)] * 2
        scale = float(after[-1].abs().max())
        torch.testing.assert_close(maps(backbone, x)[-1], after[-1], rtol=1e-4, atol=1e-5 * scale)
        assert not torch.allclose(maps(moved(backbone), x)[-1], after[-1], rtol=1e-2)


def test_only_the_last_layers_change() -> None:
    """Those of res5 in a ResNet."""
    backbone = with_dilation(torchvision_backbone("resnet50", pretrained=False, output_stride=16), 3, dilation=6)
    dilations = {name: each.dilation for name, each in backbone.named_modules() if isinstance(each, nn.Conv2d)}
    assert {name for name, each in dilations.items() if each == (6, 6)} == {
        f"body.layer4.{block}.conv2" for block in range(3)
    }


@pytest.mark.parametrize(
    ("conv", "layers", "dilation", "message"),
    [
        (nn.Conv2d(3, 4, 3, padding=1), 1, 0, "dilation: expected a positive number of cells, got 0"),
        (nn.Conv2d(3, 4, 3, padding=1), 2, 4, "layers: expected 1 to 1, the number of convolutions larger .* got 2"),
        (nn.Conv2d(3, 4, 3, padding=1), 0, 4, "layers: expected 1 to 1, .* got 0"),
        (nn.Conv2d(3, 4, 3), 1, 4, r"layers: expected convolutions of odd kernels, .* got conv .* padding \(0, 0\)"),
        (nn.Conv2d(3, 4, 2), 1, 4, r"layers: expected convolutions of odd kernels, .* kernel \(2, 2\)"),
        (nn.Conv2d(3, 4, 3, padding="same"), 1, 4, "layers: .* padding same of zeros"),
        (nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), 1, 4, "layers: .* of circular"),
    ],
)
def test_what_cannot_be_dilated(conv: nn.Conv2d, layers: int, dilation: int, message: str) -> None:
    backbone, was = one_convolution(conv), conv.dilation
    with pytest.raises(ValueError, match=f"^{message}"):
        with_dilation(backbone, layers, dilation=dilation)
    assert conv.dilation == was


def test_a_deformable_backbone_is_not_dilated_afterwards() -> None:
    """The convolutions that its offsets come from would be."""
    backbone = with_deformable(torchvision_backbone("resnet18", (5,), pretrained=False), 1)
    with pytest.raises(ValueError, match="backbone: expected one without deformable convolutions, got 1: layer4"):
        with_dilation(backbone, 1, dilation=4)


def test_the_setting_of_the_systems() -> None:
    few = {key: value for key, value in LITTLE.items() if not key.startswith("deformable")}

    def dilations(model: FasterRCNN | DeepLab) -> list[tuple[int, ...]]:
        built = model.build(2)
        convolutions = [each for each in built.backbone.modules() if isinstance(each, nn.Conv2d)]
        return [each.dilation for each in convolutions if max(each.kernel_size) > 1]

    plain = dilations(FasterRCNN(**few))  # type: ignore[arg-type]
    assert dilations(FasterRCNN(**few, dilation=6)) == plain[:-3] + [(6, 6)] * 3  # type: ignore[arg-type]
    detector = FasterRCNN(**few, dilation=6, dilated_layers=1).build(2)  # type: ignore[arg-type]
    assert isinstance(detector, TwoStageDetector)
    sample = Shapes(1)[0]
    detector.eval()([sample.image])
    assert dilations(DeepLab(dilation=8, dilated_layers=2))[-3:] == [plain[-1], (8, 8), (8, 8)]


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="^dilated_layers: expected 1 to 17, the number of convolutions"):
        FasterRCNN(dilation=4, dilated_layers=99).build(2)
    with pytest.raises(ValueError, match="^dilated_layers: expected a dilation with it, got none"):
        FasterRCNN(dilated_layers=2).build(2)
    with pytest.raises(ValueError, match="^dilation: expected a whole number >= 0, got -1"):
        override(RunConfig("x", model=FasterRCNN()), ["dilation=-1"])
