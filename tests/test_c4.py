"""Detectors whose head is the stage of the backbone after the map that they read."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from regio.backbones import Backbone, Level, efficientnet_lite0, timm_backbone, torchvision_backbone
from regio.checkpoints import Card, save
from regio.config import load_detector, model_to_dict
from regio.config.extractors import EXTRACTORS
from regio.config.systems import FasterRCNNOnC4, MaskRCNNOnC4
from regio.detector import TwoStageDetector
from regio.masks import GridMasks
from regio.postprocess import Postprocess
from regio.systems import faster_rcnn_c4, mask_rcnn_c4
from regio.types import Regions, Targets
from tests.test_cli import regio
from tests.test_cli_weights import data

SMALL = MaskRCNNOnC4(
    "torchvision:resnet18", "none", short_side=64, long_side=96, proposal_channels=8, mask_channels=8,
    regions_per_image=16, score_threshold=0.0, detections_per_image=5,
)  # fmt: skip


def photo(height: int = 64, width: int = 80) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def target() -> Targets:
    masks = torch.zeros(2, 64, 80, dtype=torch.bool)
    masks[0, 4:30, 4:24] = True
    masks[1, 10:60, 30:40] = True
    return Targets(torch.tensor([[4.0, 4, 24, 30], [30, 10, 70, 60]]), torch.tensor([1, 2]), masks=masks)


def built(settings: FasterRCNNOnC4 = SMALL) -> TwoStageDetector:
    torch.manual_seed(0)
    return settings.build(2).eval()


def lite0(name: str, levels: tuple[int, ...], **options: Any) -> Backbone:
    return efficientnet_lite0(levels, **options)


@pytest.mark.slow
@pytest.mark.parametrize("make", [torchvision_backbone, timm_backbone, lite0])
@pytest.mark.parametrize("levels", [(4, 5), (2, 3, 4)])
def test_a_backbone_splits_into_itself(make: Any, levels: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    whole = make("resnet18", levels, pretrained=False).eval()
    rest, stage = whole.split()
    assert (rest.levels, rest.channels, rest.strides) == (levels[:-1], whole.channels[:-1], whole.strides[:-1])
    assert (rest.mean, rest.std) == (whole.mean, whole.std)
    torch.manual_seed(0)
    again = make("resnet18", levels, pretrained=False).eval()
    assert isinstance(again, Backbone)
    images = torch.rand(2, 3, 64, 96)
    expected, found = again(images), rest(images)
    for a, b in zip(expected, found, strict=False):
        assert torch.equal(a.data, b.data) and a.stride == b.stride
    assert torch.equal(stage(found[-1].data), expected[-1].data)
    own = {id(whole.body.get_parameter(name)) for names in whole.stages().values() for name in names}
    assert {id(p) for p in [*rest.parameters(), *stage.parameters()]} == own
    assert [p.requires_grad for p in rest.parameters()].count(False) > 0  # frozen layers stay so


class Whole(nn.Module):
    """A network of which nobody sees how it is made."""

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [F.avg_pool2d(x, 16), F.avg_pool2d(x, 32)]


def test_what_cannot_be_split() -> None:
    network = Whole()
    network.register_parameter("one", nn.Parameter(torch.ones(1)))
    with pytest.raises(ValueError, match="backbone: expected a chain of stages, .* apart at a level; got Whole"):
        faster_rcnn_c4(3, Backbone(network, [Level(4, 3, 16), Level(5, 3, 32)], levels=(4, 5)))
    with pytest.raises(ValueError, match=r"backbone: expected two levels at least, .* got \(5,\)"):
        mask_rcnn_c4(3, torchvision_backbone("resnet18", (5,), pretrained=False))


@torch.no_grad()
def test_detections_by_hand() -> None:
    """Of given boxes: RoIAlign of C4 to 14 x 14, layer4, the mean, a linear layer; masks from the kept boxes."""
    detector = built(replace(SMALL, detections_per_image=3)).double()
    box, mask = detector.roi_heads
    image = photo().double() / 255
    boxes = torch.tensor([[4.0, 4, 24, 30], [30, 10, 70, 60], [0, 0, 80, 64]], dtype=torch.float64)
    _, (c4,) = detector.features([image])
    assert c4.data.shape == (1, 256, 4, 5) and c4.stride == 16

    def stage(some: torch.Tensor) -> torch.Tensor:
        return box.trunk[0](roi_align(c4.data, [some], 14, 1 / 16, 2, aligned=True))

    output = box.predict([c4], Regions(boxes, torch.zeros(3, dtype=torch.int64)))
    y = stage(boxes)
    assert y.shape == (3, 512, 7, 7)
    logits = F.linear(y.mean((2, 3)), box.class_logits.weight, box.class_logits.bias)
    torch.testing.assert_close(output.logits, logits)
    (found,) = detector([image], [boxes])
    assert len(found) == 3 and isinstance(found.masks, GridMasks)
    deconvolution = mask.trunk[1][0]
    y = F.relu(F.conv_transpose2d(stage(found.boxes), deconvolution.weight, deconvolution.bias, stride=2))
    grids = F.conv2d(y, mask.mask_logits.weight, mask.mask_logits.bias).sigmoid()
    assert grids.shape == (3, 2, 14, 14)
    torch.testing.assert_close(found.masks.values, grids[torch.arange(3), found.labels - 1])


@pytest.mark.slow
@pytest.mark.parametrize("output", ["sigmoid", "class-agnostic", "softmax"])
def test_both_heads_train_the_one_stage(output: Any) -> None:
    detector = built(replace(SMALL, mask_output=output))
    box, mask = detector.roi_heads
    assert mask.trunk[0] is box.trunk[0] and mask.extractor is box.extractor
    assert len({id(p) for p in detector.parameters()}) == len(list(detector.parameters()))
    losses = detector.losses([photo()], [target()])
    weight = box.trunk[0].layer4[0].conv1.weight
    of_class, of_mask = (torch.autograd.grad(losses[name], weight, retain_graph=True)[0] for name in ("class", "mask"))
    assert of_class.abs().sum() > 0 and of_mask.abs().sum() > 0


@pytest.mark.slow
def test_a_checkpoint_comes_back_exactly(tmp_path: Path) -> None:
    detector = built()
    with torch.no_grad():
        detector.roi_heads[0].trunk[0].layer4[1].conv2.weight.normal_(0, 0.01)
    save(tmp_path / "a.safetensors", detector, Card(("cat", "dog"), model=model_to_dict(SMALL)))
    again, _ = load_detector(tmp_path / "a.safetensors")
    state = again.state_dict()
    assert state.keys() == detector.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in detector.state_dict().items())
    assert again.roi_heads[1].trunk[0] is again.roi_heads[0].trunk[0]
    with torch.no_grad():
        (a,), (b,) = detector([photo()]), again.eval()([photo()])
    assert len(a) == 5 and torch.equal(a.boxes, b.boxes)
    assert isinstance(a.masks, GridMasks) and isinstance(b.masks, GridMasks)
    assert torch.equal(a.masks.values, b.masks.values)


@torch.no_grad()
@pytest.mark.parametrize("extractor", ["roi-pool", "deformable-roi-pool", "learned"])
@pytest.mark.parametrize("backbone", ["torchvision:resnext50_32x4d", "timm:resnet26"])
@pytest.mark.slow
def test_any_extractor_and_any_residual_network(extractor: str, backbone: str) -> None:
    kind = EXTRACTORS[extractor](bins=(14, 14))  # type: ignore[call-arg]
    detector = built(replace(SMALL, extractor=kind, backbone=backbone))
    (found,) = detector([photo()])
    assert len(found) == 5 and isinstance(found.masks, GridMasks) and found.masks.values.shape == (5, 14, 14)


@torch.no_grad()
def test_a_stage_before_the_last_as_the_head() -> None:
    detector = built(replace(SMALL, level=3))
    assert detector.backbone.strides == (8,) and detector.roi_heads[0].class_logits.in_features == 256
    detector.roi_heads[0].postprocess = Postprocess(0.0, detections_per_image=2)
    (found,) = detector([photo()])
    assert isinstance(found.masks, GridMasks) and found.masks.values.shape == (2, 14, 14)


@pytest.mark.slow
def test_from_training_to_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = str(data(tmp_path, ("cat", "dog"), masks=True))
    sizes = ["short_side=64", "long_side=96", "proposal_channels=8", "mask_channels=8", "regions_per_image=8"]
    words = ["--model", "mask-rcnn-c4", "--backbone", "torchvision:resnet18", "backbone_weights=none", *sizes]
    quick = ["--batch-size", "2", "--steps", "2", "ema=0.9", "workers=0", "device=cpu", "--name", "a"]
    assert regio("train", source, "--validation", source, *words, *quick) == 0
    assert regio("train", source, "--name", "a", "--resume") == 0
    weights = tmp_path / "runs" / "a" / "weights" / "last.safetensors"
    assert not any(name.startswith("roi_heads.1.trunk.0.") for name in load_file(weights))  # once, of the box head
    assert regio("val", source, "--output", "out") == 0
    assert "masks" in json.loads((tmp_path / "out" / "results.json").read_text())
    assert regio("detect", "0.png", "--score", "0", "--output", "found") == 0
    found = json.loads((tmp_path / "found" / "detections.json").read_text())[0]["detections"]
    assert found and all("segmentation" in each for each in found)
