"""Peak memory of Mask R-CNN on ResNet-50-FPN, regio's and torchvision's, with the same random weights.

    python benchmarks/memory.py [--device cuda]

Each measurement has a process of its own: the highest resident set (on CUDA, the most allocated by PyTorch) above what
the process held before, with the model built, everything imported and compiled by a run on a small image, and the input
in memory in the form that the library takes: uint8 for regio, floating point for torchvision. In MiB.

- a training step: two images, of 800 x 1120 or of 3000 x 4000, with ten objects, each with a mask; forward, losses,
  backward, SGD;
- detection of 100 objects with masks in one image: what the detector returns; then COCO's run-length encodings of it;
  and, of regio alone, the annotated picture. A row's peak is that up to its end. Pixels count as objects from 0.5 on.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import itertools
import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

import regio
from regio.data.masks import encode_mask
from regio.evaluate import detections_to_coco
from regio.postprocess import Postprocess
from regio.types import Targets
from regio.visualize import draw_detections
from regio.weights import from_torchvision

MIB = 2**20
CLASSES, OBJECTS = 91, 10
SMALL, SCREEN, PHOTO = (96, 128), (800, 1120), (3000, 4000)
CASES = {  # what is done, on which size of image, and the rows of the table: its stages
    "train": ("train", SCREEN, ["training step, 2 images of 800 x 1120"]),
    "train photo": ("train", PHOTO, ["training step, 2 images of 3000 x 4000"]),
    "screen": ("detect", SCREEN, ["100 detections, 800 x 1120", "and run-length encodings", "and a picture"]),
    "photo": ("detect", PHOTO, ["100 detections, 3000 x 4000", "and run-length encodings", "and a picture"]),
}
LIBRARIES = ("regio", "torchvision")


def main() -> None:
    """Measure all in processes of their own and print a table, or one of them here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--one", nargs=2, metavar=("CASE", "LIBRARY"))
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(*arguments.one, torch.device(arguments.device))))
        return
    machine = platform.processor() or platform.machine()
    where = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else machine
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    print(f"regio {regio.__version__} ({_commit()}), {versions}, {torch.get_num_threads()} threads, {where}")
    print("MiB above the model and the input\n")
    print("| | " + " | ".join(LIBRARIES) + " |\n|---|---|---|")
    for case, (_, _, rows) in CASES.items():
        columns = [_peaks(case, library, arguments.device) for library in LIBRARIES]
        for row, *cells in itertools.zip_longest(rows, *columns, fillvalue=""):
            print(f"| {row} | {' | '.join(cells)} |", flush=True)


def _commit() -> str:
    words, folder = ["git", "describe", "--always", "--dirty"], Path(__file__).parent
    called = subprocess.run(words, capture_output=True, text=True, check=False, cwd=folder)
    return called.stdout.strip() or "no commit"


def _peaks(case: str, library: str, device: str) -> list[str]:
    """The peak of each stage, measured in a process of its own."""
    words = [sys.executable, __file__, "--device", device, "--one", case, library]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    if ended.returncode < 0:
        return [f"ended by signal {-ended.returncode}"]
    if ended.returncode:
        sys.exit(ended.stderr)
    return [f"{peak / MIB:,.0f}" for peak in json.loads(ended.stdout)]


def measure(case: str, library: str, device: torch.device) -> list[int]:
    """Bytes at the peak, above those before, up to the end of each stage: what one leaves is held in the next."""
    what, size, _ = CASES[case]
    torch.manual_seed(0)
    peer = torchvision_model()
    model: nn.Module = peer if library == "torchvision" else same_model(peer)
    del peer
    model.to(device)
    prepare = {"train": train, "detect": detect}[what]
    for _ in prepare(model, library, SMALL, device):
        pass
    stages = prepare(model, library, size, device)
    before = _begin(device)
    return [_peak(device) - before for _ in stages]


def torchvision_model() -> MaskRCNN:
    """torchvision's, with the frozen batch norms and the two frozen stages that its published training has."""
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3
    )
    return MaskRCNN(backbone, CLASSES, box_score_thresh=0.0)


def same_model(peer: MaskRCNN) -> nn.Module:
    """regio's, with the same weights and the same of them frozen."""
    model = from_torchvision("maskrcnn_resnet50_fpn", peer.state_dict(), eps=1e-5)
    trained = [sum(p.numel() for p in each.parameters() if p.requires_grad) for each in (model, peer)]
    if trained[0] != trained[1] - 257:  # of torchvision's mask of the background
        raise ValueError(f"expected the same parameters to be trained, got {trained[0]} and {trained[1]}")
    model.roi_heads[0].postprocess = Postprocess(score_threshold=0.0, nms_threshold=0.5)
    return model


def images_of(library: str, size: tuple[int, int], count: int, device: torch.device) -> list[Tensor]:
    """Noise, as the library takes it."""
    pixels = torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    images = [each.to(device) for each in pixels]
    return images if library == "regio" else [each.float() / 255 for each in images]


def train(model: Any, library: str, size: tuple[int, int], device: torch.device) -> Iterator[None]:
    """A training step of two images; objects are ellipses, large and small."""
    images = images_of(library, size, 2, device)
    centre = torch.linspace(0.3, 0.7, OBJECTS)[:, None] * torch.tensor([size[1], size[0]])
    side = torch.linspace(0.05, 0.5, OBJECTS)[:, None] * torch.tensor([size[1], size[0]])
    boxes = torch.cat([centre - side / 2, centre + side / 2], 1)
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    masks = torch.stack(
        [((x - c[0]) / s[0]) ** 2 + ((y - c[1]) / s[1]) ** 2 < 0.25 for c, s in zip(centre, side, strict=True)]
    )
    labels = torch.arange(1, OBJECTS + 1)
    targets: list[Any] = [Targets(boxes, labels, masks=masks.clone()).to(device) for _ in images]
    if library == "torchvision":
        targets = [{"boxes": t.boxes, "labels": t.labels, "masks": t.masks.to(torch.uint8)} for t in targets]
    del y, x, masks
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-4, momentum=0.9)
    model.train()

    def stages() -> Iterator[None]:
        losses = model.losses(images, targets) if library == "regio" else model(images, targets)
        sum(losses.values()).backward()
        optimizer.step()
        yield

    return stages()


def detect(model: Any, library: str, size: tuple[int, int], device: torch.device) -> Iterator[None]:
    """Detection in one image, then its masks as run-length encodings, then, of regio, the picture."""
    images = images_of(library, size, 1, device)
    pixels = images[0].cpu()
    model.eval()

    def stages() -> Iterator[None]:
        with torch.inference_mode():
            (found,) = model(images)
        count = len(found["boxes"]) if library == "torchvision" else len(found)
        if size != SMALL and count != 100:
            raise ValueError(f"expected 100 detections, got {count}")
        yield
        if library == "torchvision":
            encoded = [encode_mask(np.asarray((mask[0] >= 0.5).cpu())) for mask in found["masks"]]
        else:
            found = found.to("cpu")
            encoded = detections_to_coco(found, 1, range(1, CLASSES), size)
        assert len(encoded) == count
        yield
        if library == "regio":
            draw_detections(pixels, found, [str(i) for i in range(1, CLASSES)], 0.0)
            yield

    return stages()


def _begin(device: torch.device) -> int:
    """Bytes held now, from where the peak counts."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    return _status("VmRSS")


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    return _status("VmHWM")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


if __name__ == "__main__":
    main()
