"""detectron2's detectors and those made from their weights find the same.

What detectron2 finds is in detectron2.json, which detectron2_vectors.py made.
"""

import json
import pickle
import urllib.error
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from regio.config.systems import Detectron2
from regio.data.masks import decode_masks
from regio.preprocess import PillowPreprocess
from regio.types import Targets
from regio.weights import DETECTRON2, detectron2_detector, from_detectron2, load_trained
from regio.weights.detectron2 import COCO
from tests.photos import photo
from tests.weights.by_name import LAST, shapes, weights

VECTORS = json.loads(Path(__file__).with_name("detectron2.json").read_text())
FAST = "mask_rcnn_R_50_FPN_3x"


@dataclass(frozen=True)
class InDouble(PillowPreprocess):
    """In float64 from the scaled bytes on."""

    def resize(self, image: Tensor) -> Tensor:
        return super().resize(image).double()


@cache
def any_weights(name: str) -> dict[str, Tensor]:
    """Those by name, and of the last layers as they are."""
    return weights(name, {layer: [0.01] + [0.0] * shapes(name).get(f"{layer}.bias", (0,))[0] for layer in LAST})


@torch.no_grad()
@pytest.mark.parametrize(
    "name", [name if name == FAST else pytest.param(name, marks=pytest.mark.slow) for name in VECTORS["detectors"]]
)
def test_same_detections_and_masks(name: str, shared_data: Path) -> None:
    """In float64 from a photo's bytes on: labels, boxes to 1e-4 pixels, scores to 1e-6, every pixel of the
    masks."""
    expected: dict[str, Any] = VECTORS["detectors"][name]
    image = photo(shared_data / "voc2012_100" / "JPEGImages" / VECTORS["photo"])
    detector = from_detectron2(name, weights(name, expected["last"])).double().eval()
    own = detector.preprocess
    assert isinstance(own, PillowPreprocess)
    detector.preprocess = InDouble(VECTORS["short_side"], VECTORS["long_side"], own.mean, own.std, own.divisor)
    detector.proposals.test_filter = replace(detector.proposals.test_filter, post_nms_top_n=VECTORS["proposals"])
    scaled = detector.preprocess.resize(image)
    assert list(scaled.shape[1:]) == expected["scaled"] and int(scaled.sum()) == expected["scaled_sum"]
    (found,) = detector([image])
    assert len(found) == len(expected["labels"]) >= 3
    assert found.labels.tolist() == expected["labels"]
    assert len(set(expected["labels"])) >= 3
    torch.testing.assert_close(found.scores, torch.tensor(expected["scores"]).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.boxes, torch.tensor(expected["boxes"]).double(), rtol=0, atol=1e-4)
    assert (found.masks is not None) == ("masks" in expected) == name.startswith("mask")
    if found.masks is not None:
        size = (image.shape[1], image.shape[2])
        theirs = decode_masks(expected["masks"], size)
        ours = found.masks.paste(found.boxes, size)
        assert (theirs.flatten(1).sum(1) > 0).any()
        assert int((theirs != ours).sum()) == 0


def test_every_name_of_the_zoo() -> None:
    """Those of COCO-Detection and COCO-InstanceSegmentation with Faster and Mask R-CNN."""
    forms = {"R_50": ("C4", "DC5", "FPN"), "R_101": ("C4", "DC5", "FPN"), "X_101_32x8d": ("FPN",)}
    names = {
        f"{kind}_rcnn_{network}_{form}_{schedule}"
        for kind in ("faster", "mask")
        for network, own in forms.items()
        for form in own
        for schedule in (("1x", "3x") if network == "R_50" else ("3x",))
    }
    assert set(DETECTRON2) == names
    assert len({kind.file for kind in DETECTRON2.values()}) == 20
    assert VECTORS["classes"] == list(COCO) and len(COCO) == 80


@pytest.mark.parametrize(("size", "expected"), [
    ((480, 640), (800, 1067)), ((375, 500), (800, 1067)), ((640, 427), (1199, 800)), ((333, 500), (800, 1201)),
    ((500, 500), (800, 800)), ((200, 1000), (267, 1333)), ((1000, 3), (1333, 4)), ((97, 100), (800, 825)),
])  # fmt: skip
def test_sides_are_rounded_halves_up(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert PillowPreprocess(800, 1333, (0, 0, 0), (1, 1, 1)).size_of(size) == expected


def test_bytes_are_scaled_as_pillow_does() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (61, 90, 3), dtype=np.uint8)
    preprocess = PillowPreprocess(32, 64, (0.5, 0.5, 0.5), (0.25, 0.5, 1.0))
    expected = np.array(Image.fromarray(pixels).resize((47, 32), Image.Resampling.BILINEAR))
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    assert np.array_equal(preprocess.resize(image).permute(1, 2, 0).numpy(), expected)
    batch = preprocess([image])
    assert batch.sizes == [(32, 47)] and batch.data.shape == (1, 3, 32, 64)
    value = (torch.tensor(expected[3, 4]).float() / 255 - 0.5) / torch.tensor([0.25, 0.5, 1.0])
    torch.testing.assert_close(batch.data[0, :, 3, 4], value)
    exact = preprocess.resize(image.double() / 255) * 255  # by the same filter, not rounded
    assert float((exact - torch.from_numpy(expected).permute(2, 0, 1)).abs().max()) <= 1


@pytest.mark.slow
def test_colours_classes_and_anchors_are_reordered() -> None:
    name = "faster_rcnn_R_50_C4_1x"
    state = dict(any_weights(name))
    bias = torch.arange(81.0)
    state["roi_heads.box_predictor.cls_score.bias"] = bias
    state["roi_heads.box_predictor.bbox_pred.bias"] = torch.arange(320.0)
    state["proposal_generator.rpn_head.objectness_logits.bias"] = torch.arange(15.0)
    state["proposal_generator.rpn_head.anchor_deltas.bias"] = torch.arange(60.0)
    own = from_detectron2(name, state).state_dict()
    assert own["roi_heads.0.class_logits.bias"].tolist() == [80, *range(80)]
    assert own["roi_heads.0.box_deltas.bias"].tolist() == [0, 0, 0, 0, *range(320)]
    # theirs: three ratios of each size; ours: five sizes of each ratio
    assert own["proposals.objectness.bias"].tolist() == [3 * size + ratio for ratio in range(3) for size in range(5)]
    assert own["proposals.deltas.bias"].view(15, 4)[1].tolist() == [12, 13, 14, 15]
    theirs = state["backbone.stem.conv1.weight"]
    assert torch.equal(own["backbone.body.conv1.weight"], theirs[:, [2, 1, 0]])
    state["proposal_generator.anchor_generator.cell_anchors.0"] = torch.zeros(15, 4)
    state["pixel_mean"] = state["pixel_std"] = torch.zeros(3, 1, 1)
    assert from_detectron2(name, state).state_dict().keys() == own.keys()


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="detectron2: expected one of faster_rcnn_R_50_C4_1x, .*, got 'yolo'"):
        from_detectron2("yolo", {})
    name = "faster_rcnn_R_50_C4_1x"
    with pytest.raises(ValueError, match=f"{name}: not detectron2's: roi_heads.box_predictor.cls_score.bias is miss"):
        from_detectron2(name, {})
    state = dict(any_weights(name))
    del state["roi_heads.res5.1.conv2.norm.running_var"]
    state["keypoints.weight"] = torch.zeros(1)
    state["proposal_generator.rpn_head.objectness_logits.bias"] = torch.zeros(3)
    with pytest.raises(
        ValueError, match=r"layer4.1.bn2.running_var is missing, keypoints.weight is not a part"
    ) as error:
        from_detectron2(name, state)
    assert "proposals.objectness.bias has shape [3], expected [15]" in str(error.value)


@pytest.mark.slow
def test_files_and_where_they_are_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "faster_rcnn_R_50_FPN_3x"
    state = any_weights(name)
    with pytest.raises(FileNotFoundError, match=rf"none\.pkl: weights of {name}: no such file"):
        detectron2_detector(name, tmp_path / "none.pkl")
    arrays = {key: tensor.numpy() for key, tensor in state.items()}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "a person"}))
    torch.save({"model": state, "iteration": 3}, tmp_path / "b.pth")
    first, names = detectron2_detector(name, tmp_path / "a.pkl")
    second = load_trained(f"detectron2:{name}={tmp_path / 'b.pth'}", score_threshold=0.3)
    assert names == second.labels == COCO and not first.training
    assert second.detector.roi_heads[0].postprocess.score_threshold == 0.3  # type: ignore[union-attr]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.detector.parameters(), strict=True))
    with pytest.raises(ValueError, match=r"a\.pkl: mask_rcnn_R_50_FPN_3x: not detectron2's: roi_heads\.1\.\w+"):
        detectron2_detector("mask_rcnn_R_50_FPN_3x", tmp_path / "a.pkl")
    fewer = {
        key: value[: 4 if "cls_score" in key else 12] if "box_predictor" in key else value
        for key, value in arrays.items()
    }
    (tmp_path / "c.pkl").write_bytes(pickle.dumps(fewer))
    with pytest.raises(ValueError, match=r"c\.pkl: .*expected weights for COCO's 80 classes, got 3"):
        detectron2_detector(name, tmp_path / "c.pkl")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def offline(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(
        FileNotFoundError, match=rf"model_final_280758\.pkl: weights of {name}, not in .*hub.checkpoints"
    ):
        detectron2_detector(name)
    (tmp_path / "a.pkl").rename(tmp_path / "hub" / "checkpoints" / "model_final_280758.pkl")
    assert len(load_trained(f"detectron2:{name}").labels) == 80


@pytest.mark.slow
def test_its_system_trains() -> None:
    system = Detectron2("mask_rcnn_R_50_C4_1x", short_side=64, long_side=96)
    torch.manual_seed(0)
    detector = system.build(3, pretrained=False)
    with pytest.raises(ValueError, match="--weights: expected torchvision:NAME or detectron2:NAME"):
        system.build(3)
    assert detector.roi_heads[0].class_logits.out_features == 4  # type: ignore[union-attr]
    masks = torch.zeros(1, 60, 80, dtype=torch.bool)
    masks[0, 10:40, 10:50] = True
    target = Targets(torch.tensor([[10.0, 10, 50, 40]]), torch.tensor([2]), masks=masks)
    losses = detector.losses([torch.randint(0, 256, (3, 60, 80), dtype=torch.uint8)], [target])
    assert set(losses) == {"rpn_objectness", "rpn_box", "class", "box", "mask"}
    torch.stack([*losses.values()]).sum().backward()
    stage = detector.roi_heads[1].trunk[0]  # type: ignore[union-attr, index]
    assert float(stage.layer4[0].conv1.weight.grad.abs().sum()) > 0
    assert detector.backbone.body.layer1[0].conv1.weight.grad is None  # frozen, as there
