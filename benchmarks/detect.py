"""Detection from image files to boxes, end to end: regio beside torchvision, ONNX Runtime and OpenVINO.

    python benchmarks/detect.py resnet50 voc2012_100/JPEGImages
    python benchmarks/detect.py default coco_s320/val --images 300

Faster R-CNN with a pyramid, the same random weights for all: torchvision's ResNet-50-FPN at 800 pixels, or regio's
default detector at its 320 (beside torchvision's code with the same backbone). The class scores are spread so that
there are objects to find. ONNX Runtime and OpenVINO run what `regio export` writes. Each reads the files in turn, one
image at a time, by Pillow; regio also as `regio detect` does, which reads, detects and draws side by side.

Milliseconds an image over the folder, after some images of each size have been seen, which is not counted; `first`
includes these, and the making of the detector. The order of the systems is turned in each round; the median of the
rounds and their extremes are printed.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import regio.cli  # noqa: F401  # isort: skip  (first, since its settings are read when PyTorch is loaded)
import onnxruntime
import openvino
import torch
import torchvision
from torch import Tensor, nn

from regio.config.systems import FasterRCNNOnFPN
from regio.data import read_image
from regio.detector import TwoStageDetector
from regio.export import export_onnx
from regio.inference import detect_files, find_images
from regio.ready import InferencePrecision, ReadyDetector
from regio.weights import from_torchvision
from torchvision_peer import TorchvisionDetector

CLASSES = 90


def resnet50() -> tuple[TwoStageDetector, nn.Module]:
    """regio's and torchvision's, with the same weights."""
    peer = torchvision.models.detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    spread(peer.roi_heads.box_predictor.cls_score)
    return from_torchvision("fasterrcnn_resnet50_fpn", peer.state_dict()).eval(), peer.eval()


def default() -> tuple[TwoStageDetector, nn.Module]:
    """regio's, and torchvision's code with the same backbone; the other weights are random in both."""
    settings = FasterRCNNOnFPN()
    own = settings.build(CLASSES)
    spread(own.roi_heads[0].class_logits)
    peer = TorchvisionDetector(settings, CLASSES).model
    spread(peer.roi_heads.box_predictor.cls_score)
    return own.eval(), peer.eval()


def spread(layer: nn.Linear) -> None:
    """Scores of all sizes, as a trained layer has them."""
    nn.init.normal_(layer.weight, std=0.1)


def of_torchvision(
    model: nn.Module, dtype: torch.dtype | None, layout: torch.memory_format
) -> Callable[[Tensor], object]:
    model = model.to(memory_format=layout)

    @torch.inference_mode()
    def run(image: Tensor) -> object:
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            return model([image.float() / 255])[0]["boxes"]

    return run


def of_onnx_runtime(file: Path) -> Callable[[Tensor], object]:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, inputs_of(image))[0]


def of_openvino(file: Path, precision: str) -> Callable[[Tensor], object]:
    core = openvino.Core()
    options = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    model = core.compile_model(core.read_model(file), "CPU", options)
    return lambda image: model(inputs_of(image))[0]


def of_regio(detector: TwoStageDetector, precision: InferencePrecision | None) -> Callable[[Tensor], object]:
    ready = ReadyDetector(detector, precision=precision)
    return lambda image: ready([image])


def inputs_of(image: Tensor) -> dict[str, object]:
    return {"images": image[None].contiguous().numpy(), "sizes": torch.tensor([image.shape[1:]]).numpy()}


def folder_of(run: Callable[[Tensor], object]) -> Callable[[Sequence[Path]], None]:
    def work(files: Sequence[Path]) -> None:
        for file in files:
            run(read_image(file))

    return work


def side_by_side(detector: TwoStageDetector, pictures: bool) -> Callable[[Sequence[Path]], None]:
    ready, names = ReadyDetector(detector), [str(i) for i in range(1000)]

    def work(files: Sequence[Path]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            detect_files(ready, files, names, Path(folder), score_threshold=0.5, pictures=pictures)

    return work


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", choices=["resnet50", "default"])
    parser.add_argument("folder")
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without", nargs="*", default=[], help="systems whose names begin so")
    chosen = parser.parse_args()
    files = find_images([chosen.folder])[: chosen.images]
    torch.manual_seed(0)
    own, peer = resnet50() if chosen.model == "resnet50" else default()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        export_onnx(own, file)
        last = torch.channels_last
        makers: dict[str, Callable[[], Callable[[Sequence[Path]], None]]] = {
            "torchvision, defaults": lambda: folder_of(of_torchvision(peer, None, torch.contiguous_format)),
            "torchvision, channels last, bfloat16": lambda: folder_of(of_torchvision(peer, torch.bfloat16, last)),
            "ONNX Runtime": lambda: folder_of(of_onnx_runtime(file)),
            "OpenVINO, float32": lambda: folder_of(of_openvino(file, "f32")),
            "OpenVINO, bfloat16": lambda: folder_of(of_openvino(file, "bf16")),
            "regio, float32": lambda: folder_of(of_regio(own, "32-true")),
            "regio": lambda: folder_of(of_regio(own, None)),
            "regio detect, without pictures": lambda: side_by_side(own, False),
            "regio detect": lambda: side_by_side(own, True),
        }
        makers = {name: make for name, make in makers.items() if not name.startswith(tuple(chosen.without) or ("-",))}
        runs, first, times = {}, {}, {name: [] for name in makers}
        for name, make in makers.items():
            began = time.perf_counter()
            try:
                runs[name] = make()
                runs[name](files)
            except Exception as error:  # a peer that cannot run is a line of the table
                runs.pop(name, None)
                print(f"{name}: {type(error).__name__}: {str(error).splitlines()[0][:150]}")
                continue
            first[name] = (time.perf_counter() - began) / len(files) * 1e3
        for turn in range(chosen.rounds):
            order = list(runs)
            for name in order[turn % len(order) :] + order[: turn % len(order)]:
                began = time.perf_counter()
                runs[name](files)
                times[name].append((time.perf_counter() - began) / len(files) * 1e3)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    print(
        f"{len(files)} images of {chosen.folder}, {torch.get_num_threads()} threads, {platform.processor() or 'CPU'}, "
        f"commit {commit}, torch {torch.__version__}, torchvision {torchvision.__version__}, "
        f"onnxruntime {onnxruntime.__version__}, openvino {openvino.__version__.split('-')[0]}\n"
    )
    print("| system | ms an image | rounds | images/s | first |\n|---|---|---|---|---|")
    for name in runs:
        own_times = times[name]
        middle = median(own_times)
        spreads = f"{min(own_times):.0f} to {max(own_times):.0f}"
        print(f"| {name} | {middle:.1f} | {spreads} | {1e3 / middle:.1f} | {first[name]:.0f} |")


if __name__ == "__main__":
    main()
