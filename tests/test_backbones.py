"""Backbones: what they declare is what they give."""

import copy
import pickle
import urllib.error
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from regio.backbones import Backbone, Level, efficientnet_lite0, timm_backbone, torchvision_backbone


def check_declarations(backbone: Backbone, height: int = 64, width: int = 96) -> None:
    maps = backbone(torch.rand(2, 3, height, width))
    assert len(maps) == len(backbone.levels)
    for x, channels, stride in zip(maps, backbone.channels, backbone.strides, strict=True):
        assert x.stride == stride
        assert x.data.shape == (2, channels, height // stride, width // stride)


def frozen_names(backbone: Backbone) -> list[str]:
    return [name for name, parameter in backbone.named_parameters() if not parameter.requires_grad]


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("resnet18", (2, 3, 4, 5)),
        ("mobilenet_v3_small", (3, 4, 5)),
        ("shufflenet_v2_x0_5", (4,)),
        ("regnet_y_400mf", (2, 5)),
        ("mnasnet0_5", (5,)),
    ],
)
@pytest.mark.slow
def test_torchvision_models(name: str, levels: tuple[int, ...]) -> None:
    check_declarations(torchvision_backbone(name, levels, pretrained=False))


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("resnet18", (2, 3, 4, 5)),
        ("mobilenetv3_small_050", (3, 5)),
        ("convnext_atto", (2, 3, 4)),
        ("resnetv2_18", (4,)),
    ],
)
@pytest.mark.slow
def test_timm_models(name: str, levels: tuple[int, ...]) -> None:
    check_declarations(timm_backbone(name, levels, pretrained=False))


@pytest.mark.parametrize("make", [timm_backbone, torchvision_backbone])
@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.slow
def test_output_stride_dilates(make, output_stride: int) -> None:  # type: ignore[no-untyped-def]
    backbone = make("resnet50", (4, 5), output_stride=output_stride, pretrained=False, frozen=0)
    assert backbone.strides == (min(16, output_stride), output_stride)
    check_declarations(backbone)
    assert any(max(m.dilation) > 1 for m in backbone.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.slow
def test_vgg_ends_where_its_stride_is_sixteen() -> None:
    backbone = torchvision_backbone("vgg11", (4,), pretrained=False, frozen=1)
    check_declarations(backbone)
    assert sum(isinstance(m, nn.MaxPool2d) for m in backbone.modules()) == 4  # pool5 is left out
    assert len(frozen_names(backbone)) == 4  # conv1 and conv2


def test_torchvision_gives_the_outputs_of_its_own_stages() -> None:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None).eval()
    backbone = torchvision_backbone("resnet18", (3,), pretrained=False, frozen_norm=False).eval()
    backbone.body.load_state_dict(
        {name: value for name, value in model.state_dict().items() if name in backbone.body.state_dict()}
    )
    x = torch.rand(1, 3, 64, 64)
    expected = model.layer2(model.layer1(model.maxpool(model.relu(model.bn1(model.conv1(x))))))
    torch.testing.assert_close(backbone(x)[0].data, expected, rtol=1e-4, atol=1e-5)


def test_lite0_has_its_imagenet_weights() -> None:
    backbone = efficientnet_lite0((1, 2, 3, 4, 5))
    check_declarations(backbone)
    assert backbone.channels == (16, 24, 40, 112, 320)
    assert backbone.mean == (127 / 255,) * 3 and backbone.std == (128 / 255,) * 3
    assert not torch.equal(backbone.body.conv_stem.weight, efficientnet_lite0(pretrained=False).body.conv_stem.weight)


def test_lite0_equals_the_whole_classifier(shared_data: Path) -> None:
    file = shared_data / "weights" / "efficientnet-lite0-57934424.pth"
    model = timm.create_model("tf_efficientnet_lite0").eval()
    given = torch.load(file, weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), given.values(), strict=True)))
    x = torch.randn(1, 3, 96, 64)
    for backbone in (efficientnet_lite0(), efficientnet_lite0(weights=file, pretrained=False)):
        found = model.bn2(model.conv_head(backbone(x)[0].data))
        torch.testing.assert_close(found, model.forward_features(x), rtol=1e-3, atol=1e-3)


def test_frozen_levels_get_no_gradient() -> None:
    backbone = torchvision_backbone("resnet18", (2, 5), pretrained=False, frozen=2)
    names = frozen_names(backbone)
    assert names and all(name.startswith(("body.conv1", "body.layer1")) for name in names)
    fine, coarse = backbone(torch.rand(1, 3, 64, 64))
    assert not fine.data.requires_grad and coarse.data.requires_grad
    assert frozen_names(torchvision_backbone("resnet18", (5,), pretrained=False, frozen=0)) == []


def test_live_norms_are_kept_on_request() -> None:
    live = torchvision_backbone("resnet18", (5,), pretrained=False, frozen=0, frozen_norm=False)
    frozen = torchvision_backbone("resnet18", (5,), pretrained=False, frozen=0)
    assert any(isinstance(m, nn.BatchNorm2d) for m in live.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in frozen.modules())
    assert live.training and frozen.training


def test_copies_and_pickles_give_the_same() -> None:
    backbone = efficientnet_lite0((4, 5), pretrained=False)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = backbone(x)[1].data
        assert torch.equal(copy.deepcopy(backbone)(x)[1].data, expected)
        assert torch.equal(pickle.loads(pickle.dumps(backbone))(x)[1].data, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_asking_for_stages_does_not_disturb_norms_that_learn(dtype: torch.dtype) -> None:
    backbone = torchvision_backbone("resnet18", (5,), pretrained=False, frozen_norm=False).to(dtype).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    assert sorted(backbone.stages()) == [1, 2, 3, 4, 5]
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert all(module.training for module in backbone.body.modules())


def test_building_does_not_disturb_the_weights() -> None:
    torch.manual_seed(3)
    a = torchvision_backbone("resnet18", (5,), pretrained=False).state_dict()
    torch.manual_seed(3)
    b = torchvision.models.resnet18(weights=None).state_dict()
    assert all(torch.equal(value, b[name.removeprefix("body.")]) for name, value in a.items())


# What a local file may hold.


@pytest.mark.slow
def test_local_file_of_a_whole_model_or_its_features(tmp_path: Path, shared_data: Path) -> None:
    model = torchvision.models.resnet18(weights=None)
    torch.save(model.state_dict(), tmp_path / "resnet18.pth")
    backbone = torchvision_backbone("resnet18", weights=tmp_path / "resnet18.pth")
    assert torch.equal(backbone.body.layer4[1].conv2.weight, model.layer4[1].conv2.weight)

    file = shared_data / "weights" / "mobilenet_v2_features_imagenet_torchvision_keys.pth"
    features = torch.load(file, weights_only=True)
    own = torchvision_backbone("mobilenet_v2", weights=file).state_dict()
    assert torch.equal(own["body.0.0.weight"], features["features.0.0.weight"])
    torch.save({name.removeprefix("features."): value for name, value in features.items()}, tmp_path / "features.pth")
    own = torchvision_backbone("mobilenet_v2", weights=tmp_path / "features.pth").state_dict()
    assert torch.equal(own["body.0.0.weight"], features["features.0.0.weight"])


def test_local_file_for_timm(tmp_path: Path) -> None:
    model = timm.create_model("resnet18")
    torch.save(model.state_dict(), tmp_path / "mine.pth")
    backbone = timm_backbone("resnet18", weights=tmp_path / "mine.pth")
    assert torch.equal(backbone.body.layer4[1].conv2.weight, model.layer4[1].conv2.weight)


def test_a_file_of_another_network_is_refused_for_timm(tmp_path: Path) -> None:
    for name, message in (("resnet26", "size mismatch for .*"), ("convnext_atto", r"no tensor for .*, of shape \[")):
        torch.save(timm.create_model(name).state_dict(), tmp_path / "other.pth")
        with pytest.raises(ValueError, match=r"other.pth: does not fit resnet18: " + message):
            timm_backbone("resnet18", weights=tmp_path / "other.pth")
    model = timm.create_model("convnext_atto")  # whose file timm takes apart by names of its own
    save_file(model.state_dict(), tmp_path / "mine.safetensors")
    backbone = timm_backbone("convnext_atto", (4,), weights=tmp_path / "mine.safetensors")
    assert torch.equal(backbone.body.stem_0.weight, model.stem[0].weight)


def test_a_file_without_the_counts_of_batches(tmp_path: Path) -> None:
    """Files of torchvision's first years have none."""
    state = torchvision.models.resnet18(weights=None).state_dict()
    torch.save({key: value for key, value in state.items() if "num_batches" not in key}, tmp_path / "old.pth")
    backbone = torchvision_backbone("resnet18", (5,), weights=tmp_path / "old.pth")
    assert torch.equal(backbone.body.state_dict()["conv1.weight"], state["conv1.weight"])


@pytest.mark.parametrize("make", [efficientnet_lite0, timm_backbone, torchvision_backbone])
def test_a_bad_file_is_named(make, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    arguments = () if make is efficientnet_lite0 else ("resnet18",)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        make(*arguments, weights=tmp_path / "nowhere.pth")
    (tmp_path / "note.pth").write_text("not weights")
    with pytest.raises(ValueError, match=r"note\.pth: not a file of weights"):
        make(*arguments, weights=tmp_path / "note.pth")
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth: .*(expected|no tensor for .* of) shape"):
        make(*arguments, weights=tmp_path / "other.pth")
    torch.save({"epoch": 3}, tmp_path / "run.pth")
    with pytest.raises(ValueError, match=r"run\.pth: expected a state dict"):
        make(*arguments, weights=tmp_path / "run.pth")


def test_offline_errors_name_what_is_wanted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.setattr(torch.hub, "urlopen", offline)
    monkeypatch.setattr("regio.pretrained.try_to_load_from_cache", lambda *args: None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=r"timm/resnet18\.a1_in1k/model\.safetensors: weights of resnet18, not in"
    ):
        timm_backbone("resnet18")
    with pytest.raises(FileNotFoundError, match=rf"resnet18-f37072fd\.pth: weights of resnet18, not in {tmp_path}"):
        torchvision_backbone("resnet18")


# What is refused.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: timm_backbone("resnet_18"), "timm has no model 'resnet_18'"),
        (lambda: torchvision_backbone("resnet_18"), "torchvision has no classifier 'resnet_18'"),
        (lambda: torchvision_backbone("swin_t", pretrained=False), "swin_t is not a chain of convolutional stages"),
        (lambda: torchvision_backbone("vit_b_32", pretrained=False), "vit_b_32 is not a chain of convolutional stages"),
        (
            lambda: timm_backbone("efficientformer_l1", (4,), output_stride=16, pretrained=False),
            "output_stride: timm does not dilate efficientformer_l1 to 16; without dilation it is 32",
        ),
        (lambda: efficientnet_lite0((5,), frozen=7), r"frozen: expected levels among \[1, 2, 3, 4, 5\].*got 7"),
        (lambda: torchvision_backbone("vgg11", output_stride=16, pretrained=False), "not vgg11 to 16"),
        (lambda: torchvision_backbone("resnet18", output_stride=16, pretrained=False), "not resnet18 to 16"),
        (lambda: torchvision_backbone("resnet18", (6,), pretrained=False), r"levels among \[1, 2, 3, 4, 5\].*got 6"),
        (lambda: timm_backbone("convnext_atto", (1, 2), pretrained=False), r"levels among \[2\].*got 1"),
        (lambda: efficientnet_lite0((7,)), r"levels among \[1, 2, 3, 4, 5\].*got 7"),
        (lambda: efficientnet_lite0((5, 4)), "in rising order"),
        (lambda: efficientnet_lite0(()), "levels: expected at least one"),
        (lambda: timm_backbone("resnet18", (), pretrained=False), "levels: expected at least one"),
        (
            lambda: efficientnet_lite0(output_stride=7, pretrained=False),
            "output_stride: expected 4, 8, 16 or",
        ),
        (lambda: timm_backbone("resnet18", output_stride=12, pretrained=False), "output_stride: expected 4, 8, 16 or"),
        (lambda: timm_backbone("vgg11", (4,), output_stride=16, pretrained=False), "timm does not dilate vgg11 to 16"),
        (lambda: timm_backbone("vit_tiny_patch16_224", (4,), pretrained=False, frozen=0), "images of any size"),
    ],
)
def test_what_a_model_has_not_is_refused(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        make()


def test_a_body_must_give_what_it_declares() -> None:
    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [self.conv(x)]

    check_declarations(Backbone(Body(), [Level(1, 8, 2)], levels=(1,)))
    with pytest.raises(ValueError, match=r"expected shape \[1, 9, H, W\] at level 1, got \[1, 8"):
        Backbone(Body(), [Level(1, 9, 2)], levels=(1,))
