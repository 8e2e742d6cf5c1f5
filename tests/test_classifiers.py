"""Classifiers taken apart: the parts give what the whole gives."""

from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from regio.classifiers import split_classifier
from regio.regions import HalfOpenCorners, RoIPool
from regio.types import Regions

NORMAL = torch.Generator().manual_seed(0)


def weights_file(folder: Path, name: str) -> tuple[nn.Module, Path]:
    """A classifier whose outputs are not all alike, and its weights in a file."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.uniform_(layer.bias, -0.1, 0.1)
    torch.save(model.state_dict(), folder / f"{name}.pth")
    return model, folder / f"{name}.pth"


@pytest.mark.parametrize(
    "name", [pytest.param("vgg16", marks=pytest.mark.slow), pytest.param("vgg11_bn", marks=pytest.mark.slow), "alexnet"]
)
@torch.no_grad()
def test_region_features_of_the_whole_image_are_those_of_the_classifier(tmp_path: Path, name: str) -> None:
    """RoI pooling of the whole map is the pooling it takes the place of: 14 x 14 cells to 7 x 7, or 13 x 13 to 6 x 6 by
    windows of 3 every 2."""
    model, file = weights_file(tmp_path, name)
    backbone, trunk = split_classifier(name, weights=file, centred=False)
    image = torch.randn(1, 3, 224, 224, generator=NORMAL)
    (x,) = backbone.eval()(image)
    assert x.stride == 16 and x.size == ((13, 13) if name == "alexnet" else (14, 14))
    side = 16.0 * x.size[0]
    region = Regions(torch.tensor([[0.0, 0.0, side, side]]), torch.zeros(1, dtype=torch.int64))
    y = RoIPool(trunk.bins, HalfOpenCorners())(x, region)
    pooled = model.avgpool(model.features(image))  # type: ignore[operator]
    torch.testing.assert_close(y, pooled, rtol=1e-5, atol=1e-5 * float(pooled.max()))
    expected = pooled.flatten(1)
    for layer in [*model.classifier][:-1]:  # type: ignore[arg-type]
        expected = layer(expected)
    fc7 = trunk.eval().layers(y)["fc7"]
    torch.testing.assert_close(fc7, expected, rtol=1e-5, atol=1e-5 * float(expected.max()))
    assert fc7.std() > 0.01


@pytest.mark.slow
@torch.no_grad()
def test_centred_cells_of_alexnet() -> None:
    """Cell (i, j) sees the pixels about ((i + 0.5) * 16, (j + 0.5) * 16), and the map covers the image; as it comes its
    cells are half a cell beside, and the last row and column are missing."""
    torch.manual_seed(0)
    for centred, centre, size in ((True, 7.5, (16, 24)), (False, 15.5, (15, 23))):
        backbone, _ = split_classifier("alexnet", pretrained=False, centred=centred)
        assert backbone(torch.zeros(1, 3, 256, 384))[0].size == size
        with torch.enable_grad():
            image = torch.rand(1, 3, 512, 512, requires_grad=True)
            backbone(image)[0].data[0, :, 16, 16].sum().backward()
        assert image.grad is not None
        seen = image.grad.abs().sum((0, 1)) > 0
        for axis in (0, 1):
            pixels = seen.any(axis).nonzero()[:, 0]
            assert (pixels[0] + pixels[-1] + 1) / 2 == centre + 16 * 16


def test_what_is_frozen() -> None:
    backbone, trunk = split_classifier("alexnet", pretrained=False)
    assert {name for name, p in backbone.named_parameters() if not p.requires_grad} == {"body.0.weight", "body.0.bias"}
    assert all(p.requires_grad for p in trunk.parameters())
    assert trunk.dropout.p == 0.5 and trunk.width == 4096 and trunk.bins == (6, 6) and trunk.channels == 256


@pytest.mark.slow
def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name: expected alexnet or a VGG, which have fully connected layers, got res"):
        split_classifier("resnet50")
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        split_classifier("alexnet", weights=tmp_path / "none.pth")
    model = torchvision.models.get_model("alexnet", weights=None)
    only_features = tmp_path / "features.pth"
    torch.save(model.features.state_dict(), only_features)
    with pytest.raises(ValueError, match=r"features\.pth: classifier\.1\.weight: expected .* got nothing"):
        split_classifier("alexnet", weights=only_features)
    other = {k: torch.zeros(10, 9216) if k == "classifier.1.weight" else v for k, v in model.state_dict().items()}
    torch.save(other, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth: classifier\.1\.weight: .*got shape \[10, 9216\]"):
        split_classifier("alexnet", weights=tmp_path / "other.pth")
