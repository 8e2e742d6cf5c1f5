"""Makes detectron2.json: what detectron2 itself finds on a photo, with the weights of `by_name.py`.

Its sources are needed, at the commit below, but not its compiled part, in which no operator of these detectors lies:

    git clone https://github.com/facebookresearch/detectron2 && git -C detectron2 checkout COMMIT
    pip install --target site --no-deps fvcore iopath omegaconf yacs tabulate cloudpickle hydra-core termcolor \
        portalocker antlr4-python3-runtime==4.9.3 pycocotools
    PYTHONPATH=detectron2:site:. python tests/weights/detectron2_vectors.py detectron2/configs PHOTO.jpg

All is computed in float64: what makes float32 of a tensor leaves it as it is. Photos go the way
of `DefaultPredictor`: blue, green, red, scaled as bytes. Fewer proposals than usual are kept, so that a test takes
seconds. Written with PyTorch 2.15, torchvision 0.29 and Pillow 13.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

sys.modules.setdefault("pkg_resources", types.ModuleType("pkg_resources"))
sys.modules.setdefault("detectron2._C", types.ModuleType("detectron2._C"))

from detectron2.config import get_cfg  # type: ignore[import-not-found]  # noqa: E402
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES  # type: ignore[import-not-found]  # noqa: E402
from detectron2.data.transforms import ResizeShortestEdge  # type: ignore[import-not-found]  # noqa: E402
from detectron2.modeling import build_model  # type: ignore[import-not-found]  # noqa: E402
from pycocotools.mask import encode  # noqa: E402

from tests.weights.by_name import LAST, shapes, weights  # noqa: E402

COMMIT = "02b5c4e295e990042a714712c21dc79b731e8833"
SHORT_SIDE, LONG_SIDE, PROPOSALS = 160, 200, 60
NAMES = (
    "mask_rcnn_R_50_C4_1x",
    "mask_rcnn_R_50_DC5_1x",
    "mask_rcnn_R_50_FPN_3x",
    "faster_rcnn_R_101_C4_3x",
    "faster_rcnn_R_101_DC5_3x",
    "faster_rcnn_R_101_FPN_3x",
    "mask_rcnn_X_101_32x8d_FPN_3x",
)


def model(configs: Path, name: str) -> nn.Module:
    """The detector with random weights, in float64."""
    cfg = get_cfg()
    folder = "COCO-InstanceSegmentation" if name.startswith("mask") else "COCO-Detection"
    cfg.merge_from_file(str(configs / folder / f"{name}.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = PROPOSALS
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = SHORT_SIDE, LONG_SIDE
    detector = build_model(cfg).double().eval()
    for buffer, values in ((detector.pixel_mean, cfg.MODEL.PIXEL_MEAN), (detector.pixel_std, cfg.MODEL.PIXEL_STD)):
        buffer.copy_(torch.tensor(values, dtype=torch.float64).view(-1, 1, 1))  # they were float32 before
    return detector


@torch.no_grad()
def spread(detector: nn.Module, layers: list[str], run: Any) -> dict[str, list[float]]:
    """The factors and biases with which these layers vary as they should, from the outputs of a run without them."""
    found: dict[str, list[float]] = {}

    def hook(name: str) -> Any:
        def keep(layer: Any, _: Any, outputs: Tensor) -> Tensor:
            if name in found:
                return outputs
            rows = (outputs - layer.bias.view(-1, *[1] * (outputs.ndim - 2))).movedim(1, -1).flatten(0, -2)
            factor = LAST[name] / float(rows.std(0).mean())
            bias = -factor * rows.mean(0)
            found[name] = [float(f"{factor:.6g}"), *(round(float(b), 4) for b in bias)]
            varied = rows * found[name][0] + torch.tensor(found[name][1:])
            return varied.view(outputs.movedim(1, -1).shape).movedim(-1, 1)

        return keep

    hooks = [detector.get_submodule(name).register_forward_hook(hook(name)) for name in layers]
    run()
    for each in hooks:
        each.remove()
    return found


@torch.no_grad()
def vector(configs: Path, name: str, photo: Path) -> dict[str, Any]:
    """What `name` finds, and the numbers that its weights follow from."""
    detector = model(configs, name)
    own = {key: tuple(tensor.shape) for key, tensor in detector.state_dict().items()}
    assert own == shapes(name), set(own) ^ set(shapes(name))
    pixels = np.asarray(Image.open(photo).convert("RGB"))[:, :, ::-1]
    scaled = ResizeShortestEdge([SHORT_SIDE, SHORT_SIDE], LONG_SIDE).get_transform(pixels).apply_image(pixels)
    image = torch.from_numpy(scaled.astype("float64").transpose(2, 0, 1))
    inputs = [{"image": image, "height": pixels.shape[0], "width": pixels.shape[1]}]
    layers = [layer for layer in LAST if f"{layer}.weight" in own]
    detector.load_state_dict(weights(name, {layer: [1.0] + [0.0] * own[f"{layer}.bias"][0] for layer in layers}))
    last = spread(detector, layers, lambda: detector(inputs))
    detector.load_state_dict(weights(name, last))
    layer = detector.get_submodule("roi_heads.box_predictor.cls_score")
    free = round(last["roi_heads.box_predictor.cls_score"][-1], 4)

    def found_with(surplus: float) -> Any:
        """The detections with the background's bias raised by `surplus`."""
        last["roi_heads.box_predictor.cls_score"][-1] = round(free + surplus, 4)
        layer.bias.copy_(torch.tensor(last["roi_heads.box_predictor.cls_score"][1:]))
        return detector(inputs)[0]["instances"]

    low, high = 0.0, 20.0
    found = found_with(low)
    while not 4 <= len(found) <= 8:
        surplus = (low + high) / 2
        found = found_with(surplus)
        low, high = (surplus, high) if len(found) > 8 else (low, surplus)
    assert 3 <= len(found) <= 8, len(found)
    made = {
        "scaled": list(scaled.shape[:2]),
        "scaled_sum": int(scaled.astype(np.int64).sum()),
        "boxes": found.pred_boxes.tensor.tolist(),
        "labels": (found.pred_classes + 1).tolist(),
        "scores": found.scores.tolist(),
        "last": last,
    }
    if found.has("pred_masks"):
        made["masks"] = [encode(np.asfortranarray(mask.numpy().astype(np.uint8))) for mask in found.pred_masks]
        made["masks"] = [{"size": rle["size"], "counts": rle["counts"].decode()} for rle in made["masks"]]
    print(name, len(found), found.scores.tolist(), found.pred_classes.tolist(), flush=True)
    return made


def main() -> None:
    configs, photo = Path(sys.argv[1]), Path(sys.argv[2])
    to = Tensor.to
    Tensor.float = lambda self: self if self.dtype == torch.float64 else to(self, torch.float32)  # type: ignore[method-assign]
    Tensor.to = lambda self, *a, **k: (  # type: ignore[method-assign]
        self if self.dtype == torch.float64 and torch.float32 in a else to(self, *a, **k)
    )
    made = {
        "commit": COMMIT,
        "photo": photo.name,
        "short_side": SHORT_SIDE,
        "long_side": LONG_SIDE,
        "proposals": PROPOSALS,
        "classes": [each["name"] for each in COCO_CATEGORIES if each["isthing"]],
        "detectors": {name: vector(configs, name, photo) for name in sys.argv[3:] or NAMES},
    }
    Path(__file__).with_name("detectron2.json").write_text(json.dumps(made))


if __name__ == "__main__":
    main()
