"""Detections in a photo by ONNX Runtime, without PyTorch or regio: `python examples/onnx_runtime.py MODEL.onnx PHOTO
[SCORE]` prints the name, score and box (x1, y1, x2, y2) in pixels of each, and how many pixels its mask has. MODEL.onnx
is what `regio export` writes. Needs numpy, onnxruntime and pillow."""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def detect(session, photo):
    """The outputs by name, boxes in pixels of `photo`, a PIL image."""
    about = session.get_modelmeta().custom_metadata_map
    ratio = np.ones(4, np.float32)
    if about["scaled_by"] == "caller":
        rule = json.loads(about["preprocess"])
        scale = min(rule["short_side"] / min(photo.size), rule["long_side"] / max(photo.size))
        scaled = photo.resize([max(1, round(side * scale)) for side in photo.size], Image.Resampling.BILINEAR)
        ratio = np.tile(np.divide(photo.size, scaled.size), 2).astype(np.float32)
        photo = scaled
    pixels = np.asarray(photo).transpose(2, 0, 1)[None]  # [1, 3, H, W], a batch of one
    inputs = {"images": np.ascontiguousarray(pixels), "sizes": np.array([pixels.shape[2:]], np.int64)}
    outputs = dict(zip([output.name for output in session.get_outputs()], session.run(None, inputs), strict=True))
    return outputs | {"boxes": outputs["boxes"] * ratio}


def paste(grid, box, size):
    """Which pixels of an image of `size` (height, width) belong to the mask `grid` [M, M] over `box`: bool [H, W].

    The value of a pixel is the grid, bilinear between the centres of its cells and falling to 0 outside, at the centre
    of the pixel (mask_pasting PasteAtCentres; PasteRounded differs from it by up to a pixel at the border).
    """
    cells = len(grid)
    weights = []
    for low, high, length in ((box[1], box[3], size[0]), (box[0], box[2], size[1])):
        at = (np.arange(length) + 0.5 - low) / max(high - low, 1e-6) * cells - 0.5  # in cells
        weights.append(np.maximum(0, 1 - np.abs(at[:, None] - np.arange(cells))))
    return weights[0] @ grid @ weights[1].T >= 0.5


if __name__ == "__main__":
    session = onnxruntime.InferenceSession(sys.argv[1])
    photo = ImageOps.exif_transpose(Image.open(sys.argv[2])).convert("RGB")
    names = json.loads(session.get_modelmeta().custom_metadata_map["labels"])
    found = detect(session, photo)
    for i in np.flatnonzero(found["scores"] >= float(sys.argv[3] if len(sys.argv) > 3 else 0.5)):
        box = found["boxes"][i]
        mask = f" {paste(found['masks'][i], box, photo.size[::-1]).sum()} pixels" if "masks" in found else ""
        print(names[found["labels"][i] - 1], f"{found['scores'][i]:.3f}", *box.round(1), mask)
