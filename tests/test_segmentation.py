"""Segmentation networks: scores of pixels, the loss, and a training."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regio.backbones import efficientnet_lite0
from regio.config import TrainConfig
from regio.config.systems import DeepLab
from regio.data import Shapes
from regio.deformable_conv import DeformableConv2d
from regio.evaluate import MeanIoU
from regio.optimisation import AdamW
from regio.preprocess import Preprocess
from regio.ready import ReadySegmentation
from regio.segmentation import SegmentationNetwork, bilinear_at
from regio.systems import deeplab
from regio.train import train
from regio.types import IGNORED, ClassMap, FeatureMap, Targets

GREY = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


class MeanColours(nn.Module):
    """A backbone whose map is the mean colour of each 4 x 4 block."""

    def forward(self, images: Tensor) -> tuple[FeatureMap]:
        return (FeatureMap(F.avg_pool2d(images, 4), 4),)


def network(short_side: int, long_side: int, classes: int = 4, factor: float = 1.0) -> SegmentationNetwork:
    """Scores that are known: class c is `factor` times a fixed mixture of the mean colours of a cell."""
    classifier = nn.Conv2d(3, classes, 1)
    generator = torch.Generator().manual_seed(3)
    classifier.weight = nn.Parameter(factor * torch.randn(classes, 3, 1, 1, generator=generator))
    classifier.bias = nn.Parameter(factor * torch.randn(classes, generator=generator))
    return SegmentationNetwork(
        preprocess=Preprocess(short_side, long_side, *GREY, divisor=4),
        backbone=MeanColours(),
        hidden=nn.Identity(),
        classifier=classifier,
    )


def photo(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand((3, height, width), generator=torch.Generator().manual_seed(seed))


def truth(height: int, width: int, seed: int = 0, classes: int = 4) -> Targets:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (height, width), generator=generator, dtype=torch.uint8)
    labels[torch.rand((height, width), generator=generator) < 0.3] = IGNORED
    return Targets(torch.zeros((0, 4)), torch.zeros(0, dtype=torch.int64), class_map=labels)


def score_of_pixel(cells: Tensor, row: float, column: float, stride: float) -> list[float]:
    """By the hat functions of Dai et al. 2017, equation 4, written out; outside, the nearest cell."""
    height, width = cells.shape[1:]
    value = cells.detach().tolist()
    v = min(max((row + 0.5) / stride - 0.5, 0.0), height - 1.0)
    u = min(max((column + 0.5) / stride - 0.5, 0.0), width - 1.0)
    return [
        sum(
            max(0.0, 1 - abs(v - i)) * max(0.0, 1 - abs(u - j)) * value[c][i][j]
            for i in range(height)
            for j in range(width)
        )
        for c in range(len(cells))
    ]


@pytest.mark.parametrize("factor", [1.0, 60.0])
def test_the_loss_is_that_of_loops_over_pixels(factor: float) -> None:
    """Two images of other sizes in one batch: neither padded pixels nor those of unknown class count."""
    model, images = network(12, 20, factor=factor).double(), [photo(12, 18).double(), photo(12, 13, 1).double()]
    targets = [truth(12, 18), truth(12, 13, 1)]
    losses = []
    for image, target in zip(images, targets, strict=True):
        padded = F.pad(image, (0, -image.shape[2] % 4, 0, -image.shape[1] % 4))
        cells = model.classifier(F.avg_pool2d(padded[None], 4))[0]
        assert target.class_map is not None
        for row in range(image.shape[1]):
            for column in range(image.shape[2]):
                label = int(target.class_map[row, column])
                if label != IGNORED:
                    scores = score_of_pixel(cells, row, column, 4)
                    highest = max(scores)
                    losses.append(highest + math.log(sum(math.exp(s - highest) for s in scores)) - scores[label])
    (loss,) = model.losses(images, targets).values()
    assert float(loss.detach()) == pytest.approx(sum(losses) / len(losses), rel=1e-9)


def test_pixels_of_unknown_class_have_no_gradient() -> None:
    model, image, target = network(12, 20), photo(12, 16), truth(12, 16)
    assert target.class_map is not None
    nothing = replace(target, class_map=torch.full_like(target.class_map, IGNORED))
    loss = model.losses([image], [nothing])["pixel"]
    loss.backward()
    assert float(loss.detach()) == 0
    assert not model.classifier.weight.grad.any()


def test_a_class_map_is_read_at_the_nearest_pixel_of_the_scaled_image() -> None:
    """At twice the size each pixel is four; at the size of the photo nothing is changed."""
    image, target = photo(8, 12), truth(8, 12)
    assert target.class_map is not None
    double = target.class_map.repeat_interleave(2, 0).repeat_interleave(2, 1)
    small, large = network(8, 12), network(16, 24)
    scaled = large.preprocess.resize(image)
    expected = large.losses([scaled], [replace(target, class_map=double)])
    torch.testing.assert_close(large.losses([image], [target]), expected)
    assert float(small.losses([image], [target])["pixel"].detach()) != float(expected["pixel"].detach())


def test_bilinear_is_that_of_interpolate() -> None:
    x = torch.randn((5, 7, 9), generator=torch.Generator().manual_seed(0))
    for height, width in ((7, 9), (112, 144), (10, 31), (3, 4)):
        v, u = ((torch.arange(n) + 0.5) * (cells / n) - 0.5 for n, cells in ((height, 7), (width, 9)))
        expected = F.interpolate(x[None], (height, width), mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(bilinear_at(x, v, u), expected, rtol=0, atol=2e-5)


def test_the_released_transposed_convolution_is_the_same_surface_but_for_the_borders() -> None:
    """Kernel 32, stride 16, cropped by 8: half-pixel centres, and zeros around the map."""
    cells = torch.randn((3, 5, 6), generator=torch.Generator().manual_seed(0))
    hat = 1 - (torch.arange(32) - 15.5).abs() / 16
    kernel = (hat[:, None] * hat).expand(3, 1, 32, 32)
    theirs = F.conv_transpose2d(cells[None], kernel, stride=16, groups=3)[0, :, 8 : 8 + 80, 8 : 8 + 96]
    ours = bilinear_at(cells, *((torch.arange(n) + 0.5) / 16 - 0.5 for n in (80, 96)))
    torch.testing.assert_close(ours[:, 8:-8, 8:-8], theirs[:, 8:-8, 8:-8])
    torch.testing.assert_close(theirs[:, 0, 40], ours[:, 0, 40] * (0.5 + 0.5 / 16))


@torch.no_grad()
@pytest.mark.parametrize("strip", [1, 500, 1 << 24])
def test_class_maps_are_the_largest_scores(strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the pixels of the photos, whatever is made at a time, and alone as in a padded batch."""
    monkeypatch.setattr("regio.segmentation.STRIP", strip)
    model, images = network(12, 40), [photo(24, 30), photo(12, 19, 1), photo(5, 16, 2)]
    found = model(images)
    for image, each in zip(images, found, strict=True):
        assert each.size == image.shape[1:]
        batch, x = model.scores([image])
        (alone,) = model([image])
        assert torch.equal(alone.labels, each.labels)
        torch.testing.assert_close(alone.scores, each.scores)
        cells = x.data[0, :, : x.extents[0][0], : x.extents[0][1]].detach().double()
        scale = batch.sizes[0][0] / image.shape[1], batch.sizes[0][1] / image.shape[2]
        for row, column in ((0, 0), (2, 7), (image.shape[1] - 1, image.shape[2] - 1)):
            at = (row + 0.5) * scale[0] - 0.5, (column + 0.5) * scale[1] - 0.5
            scores = torch.tensor(score_of_pixel(cells, at[0], at[1], 4))
            assert int(each.labels[row, column]) == int(scores.argmax())
            assert float(each.scores[row, column]) == pytest.approx(float(scores.softmax(0).max()), rel=1e-4)


def test_large_scores_and_half_precision() -> None:
    """Scores of thousands have a loss and probabilities; under autocast they are made in float32."""
    model, image, target = network(12, 20, factor=5000.0), photo(12, 16), truth(12, 16)
    exact = model.double()
    expected = float(exact.losses([image.double()], [target])["pixel"].detach())
    model = network(12, 20, factor=5000.0)
    with torch.autocast("cpu", torch.bfloat16):
        loss, (found,) = model.losses([image], [target])["pixel"], model([image])
    assert loss.dtype == torch.float32 and float(loss.detach()) == pytest.approx(expected, rel=0.02)
    assert found.scores.dtype == torch.float32 and bool(((found.scores > 0) & (found.scores <= 1)).all())


def test_wrong_targets_are_named() -> None:
    model, image, target = network(12, 20), photo(12, 16), truth(12, 16)
    for bad, message in {
        Targets(target.boxes, target.labels): r"targets\[0\]: expected a class map, as samples of .*, got none",
        truth(16, 12): r"targets\[0\]: expected a class map of the size \[12, 16\] of its image, got \[16, 12\]",
        truth(12, 16, classes=9): r"targets\[0\]: expected labels of 0 \.\. 3 or 255, got 8",
    }.items():
        with pytest.raises(ValueError, match=message):
            model.losses([image], [bad])
    with pytest.raises(ValueError, match="targets: expected 1, one an image, got 2"):
        model.losses([image], [target, target])
    with pytest.raises(ValueError, match=r"class_map: expected \[H, W\] uint8, got \[2, 3\] torch.int64"):
        Targets(target.boxes, target.labels, class_map=torch.zeros((2, 3), dtype=torch.int64))
    with pytest.raises(ValueError, match=r"scores: expected \[2, 3\] on cpu, got \[3, 2\]"):
        ClassMap(torch.zeros((2, 3), dtype=torch.uint8), torch.zeros((3, 2)))
    backbone = efficientnet_lite0(output_stride=16, pretrained=False)
    with pytest.raises(ValueError, match=r"num_classes: expected 2 \.\. 255, with the background, got 256"):
        deeplab(256, backbone)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"norm": "none"}, {"norm": "batch"}, {"norm": "group", "deformable_layers": 3}])
def test_deeplab_is_dilated_and_its_ready_form_agrees(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = DeepLab(channels=32, short_side=96, long_side=160, **settings).build(3).eval()
    deformable = sum(isinstance(module, DeformableConv2d) for module in model.modules())
    assert deformable == settings.get("deformable_layers", 0)
    images = [scene.image for scene in Shapes(2)]
    with torch.no_grad():
        x = model.scores(images)[1]
        assert x.stride == 16
        model.classifier.weight.mul_(2 / x.data.std())  # scores of an untrained network are near each other
        expected, exact = model(images), model.scores(images)[1].data
    assert expected[0].labels.unique().numel() > 1
    for each, ours in zip(ReadySegmentation(model, precision="32-true")(images), expected, strict=True):
        assert float((each.labels == ours.labels).float().mean()) > 0.999
        torch.testing.assert_close(each.scores, ours.scores, rtol=0, atol=1e-4)
    half = ReadySegmentation(model, precision="bf16-mixed")
    assert all(each.scores.dtype == torch.float32 for each in half(images))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rounded = half.network.scores(images)[1].data
    assert rounded.dtype == torch.float32
    # An untrained head has the small differences of its features, of which 50 layers with 8 bits leave so much.
    assert float(torch.corrcoef(torch.stack([rounded.flatten(), exact.flatten()]))[0, 1]) > 0.9


@pytest.mark.slow
def test_a_short_training_finds_the_shapes(tmp_path: Path) -> None:
    """A network that has seen eight scenes sixty times tells some shapes in them from the background, which alone has a
    mean IoU of 0.12."""
    torch.manual_seed(0)
    model = DeepLab(channels=64, short_side=128, long_side=256, output_stride=8).build(6)
    config = TrainConfig(steps=120, batch_size=4, optimizer=AdamW(1e-3), evaluate_every=1e9, device="cpu", workers=0)
    scenes = Shapes(8).with_class_maps()
    numbers = train(model, scenes, MeanIoU(scenes), config, tmp_path).numbers
    assert numbers["mean_iou"] > 0.18
    assert numbers["pixel_accuracy"] > 0.87
    assert len(list((tmp_path / "predictions").glob("*.png"))) == 8
