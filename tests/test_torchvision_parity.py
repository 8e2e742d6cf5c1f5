"""torchvision's detectors and those made from their weights find the same."""

import urllib.error
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.detection import FasterRCNN, fasterrcnn_resnet50_fpn
from torchvision.models.resnet import Bottleneck

from regio.masks import GridMasks
from regio.matching import BalancedSampler
from regio.weights import TORCHVISION, from_torchvision, load_trained, torchvision_detector
from tests.photos import photo, voc_photo


@torch.no_grad()
def distinctive(image: Tensor, short_side: int, name: str = "fasterrcnn_resnet50_fpn") -> FasterRCNN:
    """A random torchvision detector that gives boxes of the image different classes, scores and refinements.

    As torchvision initialises it, all scores are equal but for rounding noise, and so is their order. Here each layer,
    on the image, has outputs with mean zero and a given deviation, as in a trained network.
    """
    torch.manual_seed(0)
    model = get_model(name, weights=None, weights_backbone=None, min_size=short_side).eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 1.0
            norm.train()
    for block in model.backbone.body.modules():
        if isinstance(block, Bottleneck):
            block.bn3.weight.fill_(0.2)  # or rounding errors grow from block to block
    heads, predictor = model.roi_heads.box_head, model.roi_heads.box_predictor
    rest = {layer: 1.0 for layer in (*model.rpn.head.conv.modules(), *heads.modules()) if _is_bare(layer)}
    if model.roi_heads.has_mask():
        masks, last = model.roi_heads.mask_head, model.roi_heads.mask_predictor
        rest |= {layer: 1.0 for layer in masks.modules() if _is_bare(layer)}
        rest |= {last.conv5_mask: 1.0, last.mask_fcn_logits: 3.0}
    deviations: dict[nn.Module, float] = {
        **rest,
        model.rpn.head.cls_logits: 2.0,
        model.rpn.head.bbox_pred: 0.3,
        predictor.cls_score: 3.0,
        predictor.bbox_pred: 1.0,
    }

    def spread(layer: nn.Module, _: tuple[Tensor, ...], outputs: Tensor) -> Tensor:
        """Scale and shift the weights, the first time the layer is used, and so its outputs."""
        if layer not in deviations:
            return outputs
        rows = outputs.movedim(1, -1).flatten(0, -2)
        outward = isinstance(layer, nn.ConvTranspose2d)
        scale, mean = deviations.pop(layer) / rows.std(0), rows.mean(0)
        along = (1, -1, 1, 1) if outward else (-1, *[1] * (layer.weight.ndim - 1))  # type: ignore[operator, union-attr]
        layer.weight.mul_(scale.view(along))  # type: ignore[operator, union-attr]
        layer.bias.sub_(mean).mul_(scale)  # type: ignore[operator, union-attr]
        shape = (1, -1, *[1] * (outputs.ndim - 2))
        return (outputs - mean.view(shape)) * scale.view(shape)

    hooks = [layer.register_forward_hook(spread) for layer in deviations]
    model([image])
    for hook in hooks:
        hook.remove()
    return model.eval()


def _is_bare(layer: nn.Module) -> bool:
    """Whether it is a layer whose outputs no norm scales."""
    return isinstance(layer, nn.Linear | nn.Conv2d) and layer.bias is not None


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TORCHVISION if name != "fasterrcnn_resnet50_fpn"])
def test_same_detections_and_masks_of_every_model(name: str, shared_data: Path) -> None:
    """In float64: labels, boxes to 1e-4 pixels, scores and the pixels of masks to 1e-4."""
    file = sorted((shared_data / "voc2012_100" / "JPEGImages").glob("*.jpg"))[0]
    image = photo(file).double() / 255
    theirs = distinctive(image.float(), 240, name).double()
    ours = from_torchvision(name, theirs.state_dict(), eps=1e-5).double().eval()
    ours.preprocess = replace(ours.preprocess, short_side=240)
    with torch.no_grad():
        (expected,), (found,) = theirs([image]), ours([image])
    assert len(found) == len(expected["boxes"]) > 30
    assert len(found.labels.unique()) > 3
    torch.testing.assert_close(found.scores, expected["scores"], rtol=0, atol=1e-4)
    torch.testing.assert_close(found.labels, expected["labels"])
    torch.testing.assert_close(found.boxes, expected["boxes"], rtol=0, atol=1e-4)
    assert ("masks" in expected) == (found.masks is not None) == name.startswith("mask")
    if found.masks is not None:
        assert isinstance(found.masks, GridMasks)
        size = (image.shape[1], image.shape[2])
        for grid, box, theirs_mask in zip(found.masks.values, found.boxes, expected["masks"][:, 0], strict=True):
            pasted = torch.zeros_like(theirs_mask)
            window, values = found.masks.pasting(grid, box, size)
            pasted[window] = values
            torch.testing.assert_close(pasted, theirs_mask, rtol=0, atol=1e-4)
        assert float(found.masks.values.std()) > 0.1


@pytest.mark.slow
def test_names_files_and_what_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="torchvision: expected one of fasterrcnn_resnet50_fpn, .*, got 'yolo'"):
        torchvision_detector("yolo")
    with pytest.raises(FileNotFoundError, match=r"none\.pth: weights of maskrcnn_resnet50_fpn: no such file"):
        torchvision_detector("maskrcnn_resnet50_fpn", tmp_path / "none.pth")
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    torch.manual_seed(0)
    state = get_model(name, weights=None, weights_backbone=None).state_dict()
    torch.save(state, tmp_path / "mobile.pth")
    detector, names = torchvision_detector(name, tmp_path / "mobile.pth")
    assert len(names) == 90 and names[0] == "person" and not detector.training
    with pytest.raises(ValueError, match=r"mobile\.pth: fasterrcnn_resnet50_fpn: not .* is missing, .* and"):
        torchvision_detector("fasterrcnn_resnet50_fpn", tmp_path / "mobile.pth")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def offline(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    with pytest.raises(FileNotFoundError, match=r"maskrcnn_resnet50_fpn_v2_coco-.*pth: weights of .*hub.checkpoints"):
        torchvision_detector("maskrcnn_resnet50_fpn_v2")
    file = tmp_path / "hub" / "checkpoints" / "fasterrcnn_mobilenet_v3_large_320_fpn-907ea3f9.pth"
    file.parent.mkdir(parents=True)
    torch.save(state, file)
    assert load_trained(f"torchvision:{name}={tmp_path / 'mobile.pth'}").labels == names
    again = load_trained(f"torchvision:{name}", score_threshold=0.2).detector
    assert again.roi_heads[0].postprocess.score_threshold == 0.2
    assert torch.equal(again.neck.state_dict()["lateral.0.weight"], detector.neck.state_dict()["lateral.0.weight"])


@pytest.mark.parametrize(
    ("short_side", "dtype"),
    [
        (320, torch.float32),
        pytest.param(800, torch.float32, marks=pytest.mark.slow),
        pytest.param(480, torch.float64, marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_same_detections(short_side: int, dtype: torch.dtype, shared_data: Path) -> None:
    """Boxes to 1e-4 pixels in float64; in float32, where the two round differently, to 1e-4 of the longer side."""
    files = sorted((shared_data / "voc2012_100" / "JPEGImages").glob("*.jpg"))[:2]
    theirs = distinctive(photo(files[0]) / 255, short_side).to(dtype)
    ours = from_torchvision("fasterrcnn_resnet50_fpn", theirs.state_dict(), eps=1e-5).to(dtype)
    ours.preprocess = replace(ours.preprocess, short_side=short_side)
    for file in files:
        image = photo(file).to(dtype) / 255
        with torch.no_grad():
            (expected,), (found,) = theirs([image]), ours([image])
        assert len(found) == len(expected["boxes"]) == 100
        assert len(found.labels.unique()) > 5
        assert float(found.scores.std()) > 0.01
        torch.testing.assert_close(found.scores, expected["scores"], rtol=0, atol=1e-4)
        # Scores that differ by less than rounding may change places; each detection has one of its own all the same.
        unit = max(image.shape) if dtype == torch.float32 else 1
        apart = (found.boxes[:, None] - expected["boxes"]).abs().amax(2) / unit
        apart += (found.labels[:, None] != expected["labels"]) + (found.scores[:, None] - expected["scores"]).abs()
        sure = expected["scores"] > expected["scores"][-1] + 1e-4  # of the last, others may have been kept
        assert int(sure.sum()) > 90
        distance, nearest = apart[:, sure].min(0)
        assert float(distance.max()) < 1e-4
        assert len(nearest.unique()) == int(sure.sum())


@pytest.mark.slow
def test_same_losses(shared_data: Path) -> None:
    """With every anchor and every proposal sampled nothing is random, and in float64 only exact ties are noise."""
    names = ["chair", "dog", "tvmonitor"]
    image, target = voc_photo(shared_data / "voc2012_100", "2007_000063", names)
    other, two = voc_photo(shared_data / "voc2012_100", "2007_000121", names)
    images, targets = [image.double() / 255, other.double() / 255], [target, two]
    theirs = distinctive(image / 255, 128).double()
    ours = from_torchvision("fasterrcnn_resnet50_fpn", theirs.state_dict(), eps=1e-5).double()
    ours.preprocess = replace(ours.preprocess, short_side=128)
    everything = BalancedSampler(10**6, 1.0)
    ours.proposals.sampler = everything  # type: ignore[attr-defined]
    head = ours.roi_heads[0]
    head.sampler = replace(head.sampler, sampler=everything)
    for sampler in (theirs.rpn.fg_bg_sampler, theirs.roi_heads.fg_bg_sampler):
        sampler.batch_size_per_image, sampler.positive_fraction = 10**6, 1.0
    theirs.train()
    for norm in theirs.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()
    with torch.no_grad():
        expected = theirs(images, [{"boxes": t.boxes.double(), "labels": t.labels} for t in targets])
        found = ours.losses(images, [replace(t, boxes=t.boxes.double()) for t in targets])
    pairs = {
        "rpn_objectness": "loss_objectness",
        "rpn_box": "loss_rpn_box_reg",
        "class": "loss_classifier",
        "box": "loss_box_reg",
    }
    assert found.keys() == pairs.keys()
    for name, their_name in pairs.items():
        assert expected[their_name] > 0
        torch.testing.assert_close(found[name], expected[their_name].double(), rtol=1e-5, atol=0)


@pytest.mark.slow
def test_older_and_newer_names_are_read() -> None:
    torch.manual_seed(0)
    state = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=5).state_dict()
    older = {
        name.replace("_blocks.0.0.", "_blocks.0.")
        .replace("_blocks.1.0.", "_blocks.1.")
        .replace("_blocks.2.0.", "_blocks.2.")
        .replace("_blocks.3.0.", "_blocks.3.")
        .replace("rpn.head.conv.0.0.", "rpn.head.conv."): value
        for name, value in state.items()
    }
    assert older.keys() != state.keys()
    a = from_torchvision("fasterrcnn_resnet50_fpn", state).state_dict()
    b = from_torchvision("fasterrcnn_resnet50_fpn", older).state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert torch.equal(a["neck.lateral.1.weight"], state["backbone.fpn.inner_blocks.1.0.weight"])
    assert a["roi_heads.0.class_logits.bias"].shape == (5,)

    del state["backbone.body.layer1.0.conv1.weight"]
    with pytest.raises(ValueError, match=r"backbone\.body\.layer1\.0\.conv1\.weight is missing"):
        from_torchvision("fasterrcnn_resnet50_fpn", state)
    with pytest.raises(ValueError, match=r"fasterrcnn_resnet50_fpn: not torchvision's"):
        from_torchvision("fasterrcnn_resnet50_fpn", {})
