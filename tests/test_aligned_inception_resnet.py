"""Aligned-Inception-ResNet: the stages of its table, its size, and where its cells look."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet101

from regio.backbones import Chain, aligned_inception_resnet
from regio.backbones.inception_resnet import STAGES, InceptionResNetBlock, stages
from regio.checkpoints import Card, save
from regio.config import load_detector, model_to_dict
from regio.config.systems import FasterRCNN
from regio.frozen_norm import FrozenBatchNorm
from regio.fused import fuse

SMALL = {"blocks": (1, 1, 1, 1), "width": 16}


def small(output_stride: int = 32) -> Chain:
    """The network with one block a stage, and every norm with numbers of its own."""
    torch.manual_seed(0)
    layers = stages(output_stride=output_stride, **SMALL)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    for norm in norms(Chain(layers)):
        norm.running_mean.normal_(0, 0.1, generator=generator)  # type: ignore[union-attr]
        norm.running_var.uniform_(0.8, 1.2, generator=generator)  # type: ignore[union-attr]
    return Chain(layers, list(layers)).eval()


def norms(module: nn.Module) -> Iterator[nn.BatchNorm2d]:
    return (each for each in module.modules() if isinstance(each, nn.BatchNorm2d))


def test_the_stages_of_table_6() -> None:
    with torch.device("meta"):
        layers = stages()
        x = torch.zeros(1, 3, 224, 224)
        sizes = {}
        for name, layer in layers.items():
            x = layer(x)
            sizes[name] = x.shape[1:]
    assert sizes == {
        "conv1": (64, 112, 112),
        "conv2": (256, 56, 56),
        "conv3": (512, 28, 28),
        "conv4": (1024, 14, 14),
        "conv5": (2048, 7, 7),
    }
    counts = [sum(isinstance(each, InceptionResNetBlock) for each in layer) for layer in [*layers.values()][1:]]  # type: ignore[arg-type]
    assert tuple(counts) == STAGES == (3, 4, 23, 3)


def test_every_convolution_is_square_and_padded_by_half_its_reach() -> None:
    with torch.device("meta"):
        layers = [each for each in Chain(stages(output_stride=8)).modules() if isinstance(each, nn.Conv2d)]
    for conv in layers:
        assert conv.kernel_size in ((1, 1), (3, 3), (7, 7))
        assert conv.padding == ((conv.kernel_size[0] // 2) * conv.dilation[0],) * 2
    changes = [conv for conv in layers if conv.out_channels > conv.in_channels and conv.kernel_size == (1, 1)]
    assert [conv.stride[0] for conv in changes if conv.in_channels % 7] == [1, 2, 1, 1]


@pytest.mark.slow
def test_the_classifier_is_near_the_papers_size() -> None:
    """64.3 million parameters in table 7, where ResNet-101, of 44.5 million, has 46.0."""
    with torch.device("meta"):
        ours = nn.Sequential(*stages().values(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))
        theirs = resnet101()
        billions = []
        for model in (ours, theirs):
            with FlopCounterMode(display=False) as counter:
                model(torch.zeros(1, 3, 224, 224))
            billions.append(counter.get_total_flops() / 2e9)
    millions = [sum(p.numel() for p in model.parameters()) / 1e6 for model in (ours, theirs)]
    assert millions == pytest.approx([62.76, 44.55], abs=0.01)
    assert abs(millions[0] / 64.3 - 1) < 0.03
    assert billions == pytest.approx([10.81, 7.80], abs=0.01)


@torch.no_grad()
@pytest.mark.parametrize("dilation", [1, 2])
def test_the_block_written_out(dilation: int) -> None:
    torch.manual_seed(0)
    block = InceptionResNetBlock(32, dilation).eval()
    for norm in norms(block):
        for tensor in (norm.running_mean, norm.bias):
            nn.init.normal_(tensor, std=0.2)  # type: ignore[arg-type]
        for tensor in (norm.running_var, norm.weight):
            nn.init.uniform_(tensor, 0.5, 1.5)  # type: ignore[arg-type]
    convs = [each for each in block.modules() if isinstance(each, nn.Conv2d)]
    assert [conv.out_channels for conv in convs] == [2, 4, 4, 4, 6, 8, 32]

    def layer(x: Tensor, number: int) -> Tensor:
        conv, norm = convs[number], [*norms(block)][number]
        reach = dilation * (conv.kernel_size[0] // 2)
        y = F.conv2d(x, conv.weight, None, 1, reach, dilation)
        return F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias)

    x = torch.randn(2, 32, 7, 9)
    first = layer(x, 0).relu()
    second = layer(layer(x, 1).relu(), 2).relu()
    third = layer(layer(layer(x, 3).relu(), 4).relu(), 5).relu()
    expected = (x + layer(torch.cat([first, second, third], 1), 6)).relu()
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_a_cell_looks_around_its_pixel_at_every_level(output_stride: int) -> None:
    """Its receptive field reaches as far to both sides of pixel stride * i. Weights above 0 show all of it, and a mean
    in place of the maximum, which has a gradient at one pixel alone."""
    body = small(output_stride)
    pooling = body.conv2[0]
    body.conv2[0] = nn.AvgPool2d(pooling.kernel_size, pooling.stride, pooling.padding)
    for name, parameter in body.named_parameters():
        nn.init.constant_(parameter, 1.0 if name.endswith("1.weight") else 0.01)
        if parameter.ndim == 4:
            nn.init.constant_(parameter, 1 / parameter[0].numel())
    side = 576
    x = torch.ones(1, 3, side, side, requires_grad=True)
    for level, y in enumerate(body(x), 1):
        stride = min(2**level, output_stride)
        assert y.shape[2:] == (side // stride, side // stride)
        for cell in (144 // stride + 144 // stride, 288 // stride + 1):
            (grad,) = torch.autograd.grad(y[0, :, cell, cell + 1].sum(), x, retain_graph=True)
            rows = grad[0, 0].abs().sum(1).nonzero()[:, 0]
            columns = grad[0, 0].abs().sum(0).nonzero()[:, 0]
            assert rows[0] > 0 and rows[-1] < side - 1  # all of it is inside the image
            assert int(rows[0] + rows[-1]) == 2 * stride * cell
            assert int(columns[0] + columns[-1]) == 2 * stride * (cell + 1)


@torch.no_grad()
def test_an_image_moved_by_32_pixels_moves_its_map_by_a_cell() -> None:
    body = small()
    wide = torch.rand(1, 3, 320, 480)
    one, other = (body(wide[..., start : start + 448])[-1] for start in (0, 32))
    inside = slice(4, 9)  # 128 pixels from the border, beyond which no cell of this small network looks
    torch.testing.assert_close(one[..., 4:6, 5:10], other[..., 4:6, inside], rtol=1e-4, atol=1e-5)
    assert float((one[..., 4:6, inside] - other[..., 4:6, inside]).abs().max()) > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("output_stride", [8, 16])
def test_the_dilated_form_has_the_cells_of_the_other_between_its_own(output_stride: int) -> None:
    plain, dilated = small(), small(output_stride)
    assert dilated.state_dict().keys() == plain.state_dict().keys()
    x = torch.rand(1, 3, 96, 128)
    for level, (ours, theirs) in enumerate(zip(dilated(x), plain(x), strict=True), 1):
        step = max(2**level // output_stride, 1)
        torch.testing.assert_close(ours[..., ::step, ::step], theirs, rtol=1e-4, atol=1e-5)
        assert ours.shape[2] == theirs.shape[2] * step


def test_as_a_backbone() -> None:
    torch.manual_seed(0)
    backbone = aligned_inception_resnet((2, 3))
    maps = backbone(torch.rand(2, 3, 64, 96))
    assert [tuple(x.data.shape) for x in maps] == [(2, 256, 16, 24), (2, 512, 8, 12)]
    assert backbone.channels == (256, 512) and backbone.strides == (4, 8)
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    assert len([*norms(backbone)]) > 0  # random statistics are not fixed
    frozen = aligned_inception_resnet((3,), frozen=2)
    fixed = {name.split(".")[1] for name, p in frozen.named_parameters() if not p.requires_grad}
    assert fixed == {"conv1", "conv2"}
    assert aligned_inception_resnet((1, 3), output_stride=8).strides == (2, 8)
    rest, stage = backbone.split()
    images = torch.rand(1, 3, 64, 96)
    backbone.eval()
    torch.testing.assert_close(stage(rest(images)[0].data), backbone(images)[1].data)


@torch.no_grad()
def test_fused_it_gives_the_same() -> None:
    torch.manual_seed(0)
    backbone = aligned_inception_resnet((2, 3), frozen_norm=True).eval()
    assert any(isinstance(each, FrozenBatchNorm) for each in backbone.modules())
    images = torch.rand(1, 3, 64, 96)
    expected = backbone(images)
    backbone.body = fuse(backbone.body, torch.float32, torch.rand(1, 3, 96, 128))
    assert not any(isinstance(each, nn.BatchNorm2d | FrozenBatchNorm) for each in backbone.modules())
    for ours, theirs in zip(backbone(images), expected, strict=True):
        torch.testing.assert_close(ours.data, theirs.data, rtol=1e-3, atol=1e-3)


def test_weights_of_a_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    given = aligned_inception_resnet((3,))
    torch.save(given.body.state_dict() | {"fc.weight": torch.zeros(10, 512)}, tmp_path / "a.pth")
    backbone = aligned_inception_resnet((2,), weights=tmp_path / "a.pth", pretrained=True)
    images = torch.rand(1, 3, 64, 64)
    own = aligned_inception_resnet((2,), frozen_norm=True)
    assert torch.equal(backbone.body.conv1[0].weight, given.body.conv1[0].weight)
    assert not torch.equal(own.body.conv1[0].weight, given.body.conv1[0].weight)
    assert backbone(images)[0].data.shape == (1, 256, 16, 16)


def test_what_is_not_there_is_said() -> None:
    line = "aligned_inception_resnet has no published weights: give a file of your own, or none for random ones"
    with pytest.raises(FileNotFoundError, match=line):
        aligned_inception_resnet(pretrained=True)
    with pytest.raises(FileNotFoundError, match=f"backbone_weights: {line}"):
        FasterRCNN(backbone="aligned_inception_resnet").build(2)
    with pytest.raises(FileNotFoundError, match="x.pth: weights of aligned_inception_resnet: no such file"):
        aligned_inception_resnet((2,), weights="x.pth")
    with pytest.raises(ValueError, match="output_stride: expected 8, 16 or 32, got 4"):
        aligned_inception_resnet((2,), output_stride=4)
    with pytest.raises(ValueError, match=r"levels: expected levels from 1 to 5, got \[6\] and frozen 0"):
        aligned_inception_resnet((6,))
    with pytest.raises(ValueError, match="width: expected a multiple of 16, got 40"):
        InceptionResNetBlock(40)


@torch.no_grad()
def test_by_name_in_a_detector() -> None:
    torch.manual_seed(0)
    settings = FasterRCNN(
        backbone="aligned_inception_resnet", backbone_weights="none", level=3, frozen=0, short_side=64, long_side=96,
        channels=16, hidden=16, score_threshold=0.0, anchor_sizes=(16.0,),
    )  # fmt: skip
    detector = settings.build(2).eval()
    assert detector.backbone.strides == (8,)
    assert len(detector([torch.rand(3, 64, 80)])[0]) > 0


def test_a_detector_with_weights_of_a_file_comes_back_from_its_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(aligned_inception_resnet((3,)).body.state_dict(), tmp_path / "a.pth")
    settings = FasterRCNN(
        backbone="aligned_inception_resnet", backbone_weights=str(tmp_path / "a.pth"), level=3, frozen=0, channels=16,
        hidden=16, deformable_layers=3,
    )  # fmt: skip
    detector = settings.build(2)
    save(tmp_path / "a.safetensors", detector, Card(("cat", "dog"), model=model_to_dict(settings)))
    again, _ = load_detector(tmp_path / "a.safetensors")
    assert any("offset" in name for name in detector.state_dict())
    for name, tensor in detector.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
