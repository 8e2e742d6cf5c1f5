"""Deformable convolutions in backbones: which ones are replaced, and that nothing else changes until they learn."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn

from regio import regions
from regio.backbones import Backbone, Chain, Level, efficientnet_lite0, timm_backbone, torchvision_backbone
from regio.backbones.deformable import deformable_layers, with_deformable
from regio.checkpoints import Card, save
from regio.config import RunConfig, load_detector, model_to_dict
from regio.config.extractors import DeformableRoIPool, RoIPool
from regio.config.systems import RCNN, RPN, FasterRCNN, FasterRCNNOnC4, FasterRCNNOnFPN, FastRCNN, System
from regio.data import Shapes
from regio.deformable_conv import DeformableConv2d, DeformableConv2dSame
from regio.frozen_norm import FrozenBatchNorm
from regio.optimisation import rate_groups
from regio.settings import override
from tests.ops.parity import tensor


def resnet50(levels: tuple[int, ...] = (5,), **options: Any) -> Backbone:
    return torchvision_backbone("resnet50", levels, pretrained=False, **options)


@torch.no_grad()
def with_any_norms(backbone: Backbone) -> Backbone:
    """Norms that do something: those of random weights are the identity, or zero at the end of a block."""
    torch.manual_seed(1)
    for norm in backbone.modules():
        if isinstance(norm, FrozenBatchNorm | nn.BatchNorm2d):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.5, 0.5)
            norm.running_mean.uniform_(-0.5, 0.5)
    return backbone.eval()


def maps(backbone: Backbone, x: Tensor) -> list[Tensor]:
    return [each.data for each in backbone(x)]


def moved(backbone: Backbone) -> Backbone:
    """Offsets that depend on the input, and are not small."""
    with torch.no_grad():
        for i, layer in enumerate(deformable_layers(backbone).values()):
            fan_in = layer.offset.weight[0].numel()
            layer.offset.weight.copy_(tensor(*layer.offset.weight.shape, seed=i, spread=fan_in**-0.5))
            layer.offset.bias.copy_(tensor(*layer.offset.bias.shape, seed=i, spread=0.7))
    return backbone


BACKBONES: dict[str, tuple[Callable[[], Backbone], dict[str, Any]]] = {
    "resnet50": (lambda: resnet50((4, 5), output_stride=16), {"layers": 6}),
    "resnet50 modulated": (lambda: resnet50(), {"modulated": True, "offset_groups": 4}),
    "resnet18, live norms": (
        lambda: torchvision_backbone("resnet18", (5,), pretrained=False, frozen=0, frozen_norm=False),
        {"stages": (2, 5)},
    ),
    "resnext50": (lambda: torchvision_backbone("resnext50_32x4d", pretrained=False), {"offset_groups": 2}),
    "vgg11": (lambda: torchvision_backbone("vgg11", (4,), pretrained=False, frozen=1), {}),
    "timm resnet18": (lambda: timm_backbone("resnet18", (3, 4), pretrained=False), {"stages": (3, 4)}),
    "lite0": (lambda: efficientnet_lite0((4, 5)), {"layers": 4}),
    "lite0 dilated": (lambda: efficientnet_lite0(output_stride=16), {"stages": (5,), "modulated": True}),
}


@pytest.mark.slow
@pytest.mark.parametrize(("make", "how"), BACKBONES.values(), ids=BACKBONES)
def test_maps_are_those_of_the_backbone_until_offsets_learn(make: Callable[[], Backbone], how: dict[str, Any]) -> None:
    """Also for a batch, and a size that is no multiple of the stride."""
    backbone, x = with_any_norms(make()), torch.randn(2, 3, 72, 90)
    with torch.no_grad():
        expected = maps(backbone, x)
        state, names = torch.get_rng_state(), set(backbone.state_dict())
        assert with_deformable(backbone, **how) is backbone
        assert torch.equal(torch.get_rng_state(), state)  # what comes after has the weights that it had
        for ours, theirs in zip(maps(backbone, x), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))
    assert names < set(backbone.state_dict())
    loss = sum(each.square().mean() for each in maps(backbone.train(), x))
    assert isinstance(loss, Tensor)
    loss.backward()
    layers = deformable_layers(backbone)
    assert layers
    for layer in layers.values():
        for parameter in (layer.weight, *layer.offset_parameters()):
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layers", "names"),
    [
        (1, ["layer4.2"]),
        (2, ["layer4.1", "layer4.2"]),
        (3, ["layer4.0", "layer4.1", "layer4.2"]),
        (6, ["layer3.3", "layer3.4", "layer3.5", "layer4.0", "layer4.1", "layer4.2"]),
    ],
)
def test_the_last_layers_of_a_resnet_are_those_of_table_1(layers: int, names: list[str]) -> None:
    """Dai et al. 2017, table 1: res5c; res5b and c; res5a, b and c; and three more of res4."""
    backbone = with_deformable(resnet50(), layers)
    assert list(deformable_layers(backbone)) == [f"body.{name}.conv2" for name in names]


def test_all_layers_of_the_stages_of_the_second_paper() -> None:
    backbone = with_deformable(resnet50((3, 4, 5)), stages=(3, 4, 5), modulated=True)
    layers = deformable_layers(backbone)
    assert [name.removesuffix(".conv2") for name in layers] == [
        f"body.layer{stage}.{block}" for stage, blocks in ((2, 4), (3, 6), (4, 3)) for block in range(blocks)
    ]
    assert layers["body.layer2.0.conv2"].stride == (2, 2)


def test_the_last_level_that_is_given_is_the_last_that_is_replaced() -> None:
    backbone = with_deformable(resnet50((4,), frozen=2), 1)
    assert list(deformable_layers(backbone)) == ["body.layer3.5.conv2"]


def test_layers_are_counted_as_they_are_executed() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.second = nn.Conv2d(4, 4, 3, padding=1)
            self.unused = nn.Conv2d(4, 4, 3, padding=1)
            self.small = nn.Conv2d(4, 4, 1)
            self.first = nn.Conv2d(3, 4, 3, stride=2, padding=1)

        def forward(self, x: Tensor) -> list[Tensor]:
            return [self.small(self.second(self.first(x)))]

    def backwards() -> Backbone:
        return Backbone(Backwards(), [Level(1, 4, 2)], levels=(1,))

    assert list(deformable_layers(with_deformable(backwards(), 1))) == ["body.second"]
    assert list(deformable_layers(with_deformable(backwards(), 2))) == ["body.first", "body.second"]


@pytest.mark.slow
def test_dilation_stride_groups_and_padding_stay() -> None:
    layers = deformable_layers(with_deformable(resnet50(output_stride=16), modulated=True, offset_groups=4))
    assert [each.dilation for each in layers.values()] == [(1, 1), (2, 2), (2, 2)]  # torchvision's, from the second on
    assert all(each.offset.dilation == each.dilation and each.modulated for each in layers.values())
    assert all(each.offset.out_channels == 3 * 9 * 4 for each in layers.values())
    lite0 = deformable_layers(with_deformable(efficientnet_lite0(), stages=(5,)))
    assert [type(each) for each in lite0.values()] == [DeformableConv2dSame] + [DeformableConv2d] * 4
    assert [each.weight.shape[2] for each in lite0.values()] == [5, 5, 5, 5, 3]
    assert all(each.groups == each.weight.shape[0] for each in lite0.values())


def test_weights_are_the_same_tensors_and_frozen_levels_stay_frozen() -> None:
    backbone = resnet50(frozen=4)
    weights = dict(backbone.named_parameters())
    fixed = {name for name, each in weights.items() if not each.requires_grad}
    with_deformable(backbone)
    now = dict(backbone.named_parameters())
    assert all(now[name] is each for name, each in weights.items())
    assert {name for name, each in now.items() if not each.requires_grad} == fixed
    assert sorted(set(now) - set(weights)) == [
        f"body.layer4.{block}.conv2.offset.{each}" for block in range(3) for each in ("bias", "weight")
    ]


@pytest.mark.slow
def test_offsets_learn_at_the_rates_of_the_papers() -> None:
    """At that of the layer in the first, at a tenth of it in the second."""
    plain, modulated = (with_deformable(resnet50(), modulated=each) for each in (False, True))
    assert [each["lr"] for each in rate_groups(plain, 0.1)] == [0.1]
    groups = rate_groups(modulated, 0.1)
    assert [each["lr"] for each in groups] == pytest.approx([0.1, 0.01])
    offsets = [p for layer in deformable_layers(modulated).values() for p in layer.offset_parameters()]
    assert {id(p) for p in groups[1]["params"]} == {id(p) for p in offsets}
    slower = with_deformable(resnet50(), modulated=True, offset_rate=0.02)
    assert [each["lr"] for each in rate_groups(slower, 0.1)] == pytest.approx([0.1, 0.002])


def test_a_state_dict_comes_back() -> None:
    backbone = moved(with_deformable(with_any_norms(efficientnet_lite0()), 2, modulated=True))
    other = with_deformable(efficientnet_lite0(pretrained=False), 2, modulated=True).eval()
    other.load_state_dict(backbone.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(maps(backbone, x)[0], maps(other, x)[0])
        assert torch.equal(maps(backbone, x)[0], maps(copy.deepcopy(backbone), x)[0])
        for layer in deformable_layers(other).values():
            for parameter in layer.offset_parameters():
                parameter.zero_()
        assert not torch.allclose(maps(backbone, x)[0], maps(other, x)[0], rtol=1e-2, atol=1e-2)


def test_the_stage_of_a_c4_detector_is_deformable() -> None:
    backbone, stage = with_deformable(torchvision_backbone("resnet18", (4, 5), pretrained=False), 5).split()
    assert [*deformable_layers(backbone)] == ["body.layer3.1.conv2"]
    names = [f"layer4.{block}.conv{conv}" for block in (0, 1) for conv in (1, 2)]
    assert [*deformable_layers(stage)] == names
    both = nn.ModuleDict({"head": stage, "backbone": backbone})
    assert [*deformable_layers(both)] == ["backbone.body.layer3.1.conv2"] + [f"head.{name}" for name in names]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    backbone, x = with_any_norms(efficientnet_lite0()), torch.randn(1, 3, 64, 96)
    plain = copy.deepcopy(backbone)
    with_deformable(backbone)
    with torch.autocast("cpu", dtype):
        (found,), (expected,) = maps(backbone, x), maps(plain, x)
    assert found.dtype == expected.dtype
    scale = expected.detach().float().abs().max()
    torch.testing.assert_close(found.float() / scale, expected.float() / scale, rtol=0, atol=0.05)
    found.float().square().mean().backward()
    assert all(layer.offset.weight.grad.abs().sum() > 0 for layer in deformable_layers(backbone).values())


@pytest.mark.slow
def test_compiles() -> None:
    backbone, x = moved(with_deformable(with_any_norms(efficientnet_lite0()))), torch.randn(2, 3, 64, 96)
    torch.compiler.reset()
    compiled = torch.compile(backbone.body, backend="aot_eager", fullgraph=True)
    (expected,) = maps(backbone, x)
    found = compiled(x)[-1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.detach().abs().max()))


# What is refused.


def odd_backbone(conv: nn.Conv2d) -> Backbone:
    return Backbone(Chain({"odd": conv}, ["odd"]), [Level(1, 4, 2)], levels=(1,))


class OwnConv(nn.Conv2d):
    """A convolution that does something else, perhaps."""


@pytest.mark.parametrize(
    ("make", "how", "message"),
    [
        (
            lambda: torchvision_backbone("resnet18", (5,), pretrained=False),
            {"layers": 0},
            "layers: expected 1 to 17",
        ),
        (
            lambda: torchvision_backbone("resnet18", (5,), pretrained=False),
            {"layers": 99},
            "layers: expected 1 to 17, the number of convolutions larger than 1 x 1, got 99",
        ),
        (
            lambda: torchvision_backbone("resnet18", (5,), pretrained=False, frozen=4),
            {"layers": 5},
            r"layers: expected convolutions that are trained, got layer3.1.conv2, which is fixed \(frozen\)",
        ),
        (
            lambda: torchvision_backbone("resnet18", (5,), pretrained=False, frozen=4),
            {"stages": (4, 5)},
            "stages: expected convolutions that are trained, got layer3.0.conv1",
        ),
        (
            lambda: Backbone(
                Chain({"conv": nn.Conv2d(3, 4, 3, 2, 1), "pool": nn.MaxPool2d(2)}, ["conv", "pool"]),
                [Level(1, 4, 2), Level(2, 4, 4)],
                levels=(2,),
            ),
            {"stages": (1, 2)},
            r"stages: expected some of \[1\], which have convolutions larger than 1 x 1, got 2",
        ),
        (lambda: efficientnet_lite0(), {"stages": (6,)}, r"stages: expected some of \[1, 2, 3, 4, 5\].*got 6"),
        (lambda: with_deformable(efficientnet_lite0(), 1), {}, "backbone: expected one without deformable"),
        (lambda: efficientnet_lite0(), {"offset_groups": 5}, "offset_groups: expected a divisor of 1152"),
        (lambda: odd_backbone(OwnConv(3, 4, 3, 2, 1)), {"layers": 1}, "layers: .*got odd, OwnConv with padding"),
        (
            lambda: odd_backbone(nn.Conv2d(3, 4, 3, 2, 1, padding_mode="reflect")),
            {"layers": 1},
            "layers: .*got odd, Conv2d with padding .* of reflect",
        ),
    ],
)
def test_what_cannot_be_replaced(make: Callable[[], Backbone], how: dict[str, Any], message: str) -> None:
    backbone = make()
    before = [type(each) for each in backbone.modules()]
    with pytest.raises(ValueError, match=message):
        with_deformable(backbone, **how)
    assert [type(each) for each in backbone.modules()] == before  # not half of it


def test_a_convolution_of_timm_that_pads_by_itself() -> None:
    """Without a norm to fold, the layer itself is timm's."""
    torch.manual_seed(0)
    backbone = odd_backbone(Conv2dSame(3, 4, 3, stride=2))
    for size in ((64, 96), (65, 95)):
        x = torch.randn(1, 3, *size)
        expected = maps(copy.deepcopy(backbone), x)[0]
        found = maps(with_deformable(copy.deepcopy(backbone), 1), x)[0]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


# In systems.

LITTLE: dict[str, Any] = {"short_side": 64, "long_side": 96, "deformable_layers": 2}
RANDOM: dict[str, Any] = {"backbone": "torchvision:resnet18", "backbone_weights": "none"}
SYSTEMS: dict[str, System] = {
    "faster-rcnn": FasterRCNN(**LITTLE),
    "faster-rcnn-fpn": FasterRCNNOnFPN(**LITTLE),
    "faster-rcnn-c4": FasterRCNNOnC4(**LITTLE, **RANDOM),
    "faster-rcnn-c4, lite0": FasterRCNNOnC4(**LITTLE, backbone="efficientnet_lite0"),
    "fast-rcnn": FastRCNN(**LITTLE, sides=(48, 64)),
    "rpn": RPN(**LITTLE),
    "rcnn": RCNN(**LITTLE, crop=64),
}


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS.values(), ids=SYSTEMS)
def test_systems_have_them_and_so_do_their_checkpoints(system: System, tmp_path: Path) -> None:
    detector = system.build(2)
    layers = deformable_layers(detector)
    assert len(layers) == 2
    with torch.no_grad():
        for layer in layers.values():
            layer.offset.bias.uniform_(-1, 1)
    save(tmp_path / "a.safetensors", detector, Card(("cat", "dog"), model=model_to_dict(system)))
    again, _ = load_detector(tmp_path / "a.safetensors")
    for name, layer in deformable_layers(again).items():
        assert torch.equal(layer.offset.bias, layers[name].offset.bias)


def test_the_convolutions_before_layers_of_a_classifier() -> None:
    alexnet = FastRCNN(**LITTLE, backbone="torchvision:alexnet", backbone_weights="none", fc="backbone", frozen=2)
    backbone, _ = alexnet.parts(pretrained=False)
    assert list(deformable_layers(backbone)) == ["body.8", "body.10"]


def test_settings_from_the_command_line() -> None:
    config = override(RunConfig(), ["model=faster-rcnn", "deformable_stages=[4, 5]", "deformable_modulated=true"])
    assert config.model == FasterRCNN(deformable_stages=(4, 5), deformable_modulated=True)
    assert config.model.proposals_alone() == RPN(deformable_stages=(4, 5), deformable_modulated=True)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="deformable_layers: expected a whole number >= 0, got -1"):
        override(config, ["deformable_layers=-1"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"deformable_modulated": True}, "deformable_modulated: expected deformable_layers or deformable_stages with"),
        ({"deformable_offset_groups": 2}, "deformable_offset_groups: expected deformable_layers or deformable_stages"),
        ({"deformable_layers": 1, "deformable_stages": (5,)}, "deformable_layers: expected 0 where deformable_stages"),
        ({"deformable_layers": 99}, "deformable_layers: expected 1 to 17, the number of convolutions"),
        ({"deformable_stages": (7,)}, r"deformable_stages: expected some of \[1, 2, 3, 4, 5\]"),
        ({"deformable_layers": 1, "deformable_offset_groups": 7}, "deformable_offset_groups: expected a divisor of"),
        ({"deformable_layers": 1, "frozen": 5}, "deformable_layers: expected convolutions that are trained"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        FasterRCNN(**settings).build(2)


@pytest.mark.parametrize("kind", [FasterRCNN, FasterRCNNOnFPN])
def test_with_deformable_pooling_offsets_learn_at_the_paper_s_rates(kind: type[FasterRCNN | FasterRCNNOnFPN]) -> None:
    """Section 2.3: at the rate of the others in convolutions, if asked for, and at a hundredth of it in RoI pooling.
    Both get gradients in one step."""
    torch.manual_seed(0)
    few = LITTLE | {"extractor": DeformableRoIPool(), "channels": 16, "hidden": 32}
    detector = kind(**few, deformable_offset_rate=1.0).build(2)  # type: ignore[arg-type]
    convolutions = [each.offset for each in deformable_layers(detector).values()]
    (pooling,) = [each.offset for each in detector.modules() if isinstance(each, regions.DeformableRoIPool)]
    sample = Shapes(1)[0]
    targets = replace(sample.targets, labels=sample.targets.labels.clamp(max=2))
    sum(detector.losses([sample.image], [targets], [targets.boxes]).values()).backward()  # type: ignore[union-attr]
    by_default = {each["lr"]: len(each["params"]) for each in rate_groups(kind(**few).build(2), 1.0)}  # type: ignore[arg-type]
    assert by_default[0.1] == sum(len([*each.parameters()]) for each in convolutions)
    assert by_default[0.01] == len([*pooling.parameters()])
    slow = rate_groups(detector, 1.0)[1]
    assert slow["lr"] == 0.01 and {id(p) for p in slow["params"]} == {id(p) for p in pooling.parameters()}
    for module in (*convolutions, pooling):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


@pytest.mark.slow
def test_parameters_of_table_4() -> None:
    """Dai et al. 2017, table 4, ResNet-101: 3 deformable layers add 0.1 M to 46.0 M (DeepLab, RPN), and with deformable
    RoI pooling 1.6 M to 58.3 M (Faster R-CNN). Counted: 0.25 M for the layers and 1.23 M for the pooling."""

    def parameters(**changes: Any) -> int:
        made = FasterRCNN(
            backbone="torchvision:resnet101", backbone_weights="none", channels=256, hidden=1024, **changes
        )
        return sum(p.numel() for p in made.build(20).parameters())

    plain = parameters(extractor=RoIPool())
    layers, pooling = 3 * (18 * 512 * 9 + 18), 98 * 256 * 49 + 98
    assert parameters(extractor=RoIPool(), deformable_layers=3) - plain == layers == 248_886
    assert parameters(extractor=DeformableRoIPool(), deformable_layers=3) - plain == layers + pooling == 1_478_296
