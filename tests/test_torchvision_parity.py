"""torchvision's Faster R-CNN and the one made from its weights detect the same."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, fasterrcnn_resnet50_fpn

from regio.systems.torchvision_weights import fasterrcnn_resnet50_fpn_from_torchvision
from tests.photos import photo


@torch.no_grad()
def spread(layer: nn.Linear | nn.Conv2d, inputs: Tensor, scale: float) -> None:
    """Random weights under which the outputs for `inputs` [R, C] have mean zero and standard deviation `scale`."""
    weight = torch.randn(len(layer.weight), inputs.shape[1])
    outputs = inputs @ weight.T
    weight *= scale / outputs.std(0, keepdim=True).T
    layer.weight.copy_(weight.view_as(layer.weight))
    assert layer.bias is not None
    layer.bias.copy_(-(inputs @ weight.T).mean(0))


def distinctive(image: Tensor, short_side: int) -> FasterRCNN:
    """A random torchvision detector that gives boxes of the image different classes, scores and refinements.

    Without this, scores of random weights are all but equal and their order is rounding noise.
    """
    torch.manual_seed(0)
    model = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, min_size=short_side).eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(std=0.1)  # type: ignore[union-attr]
            norm.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    seen: dict[nn.Module, Tensor] = {}
    rpn, predictor = model.rpn.head, model.roi_heads.box_predictor
    hooks = [
        layer.register_forward_hook(lambda layer, args, _: seen.setdefault(layer, args[0].detach()))
        for layer in (rpn.cls_logits, predictor.cls_score)
    ]
    with torch.no_grad():
        model([image])
        cells = seen[rpn.cls_logits].flatten(2)[0].T
        spread(rpn.cls_logits, cells, 2.0)
        spread(rpn.bbox_pred, cells, 0.3)
        seen.clear()
        model([image])
        spread(predictor.cls_score, seen[predictor.cls_score], 3.0)
        spread(predictor.bbox_pred, seen[predictor.cls_score], 1.0)
    for hook in hooks:
        hook.remove()
    return model


@pytest.mark.parametrize("short_side", [320, pytest.param(800, marks=pytest.mark.slow)])
def test_same_detections(short_side: int, shared_data: Path) -> None:
    files = sorted((shared_data / "voc2012_100" / "JPEGImages").glob("*.jpg"))[: 3 if short_side < 800 else 2]
    theirs = distinctive(photo(files[0]) / 255, short_side)
    ours = fasterrcnn_resnet50_fpn_from_torchvision(theirs.state_dict(), norm_eps=1e-5)
    ours.preprocess = replace(ours.preprocess, short_side=short_side)
    for file in files:
        image = photo(file)
        with torch.no_grad():
            (expected,), (found,) = theirs([image / 255]), ours([image])
        assert len(found) == len(expected["boxes"]) == 100
        assert len(found.labels.unique()) > 5
        assert float(found.scores.std()) > 0.01
        assert torch.equal(found.labels, expected["labels"])
        torch.testing.assert_close(found.scores, expected["scores"], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.boxes, expected["boxes"], rtol=0, atol=1e-4 * max(image.shape))


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
    a = fasterrcnn_resnet50_fpn_from_torchvision(state).state_dict()
    b = fasterrcnn_resnet50_fpn_from_torchvision(older).state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert torch.equal(a["neck.lateral.1.weight"], state["backbone.fpn.inner_blocks.1.0.weight"])
    assert a["head.class_logits.bias"].shape == (5,)

    del state["backbone.body.layer1.0.conv1.weight"]
    with pytest.raises(ValueError, match=r"backbone\.body\.layer1\.0\.conv1\.weight is missing"):
        fasterrcnn_resnet50_fpn_from_torchvision(state)
    with pytest.raises(ValueError, match=r"not torchvision's fasterrcnn_resnet50_fpn"):
        fasterrcnn_resnet50_fpn_from_torchvision({})
