"""What deformable convolutions cost: layers alone, and training steps of Faster R-CNN with some in its backbone.

    python benchmarks/deformable_step.py [--only NAME] [--bf16] [--layers 3] [--repeats 9] [--tiny]

Each is measured with plain convolutions, with `DeformableConv2d` and, in float32, with torchvision's operator in its
place, in turns in one process: the median of `repeats` runs after two warm-up runs, with the interquartile range.
A layer is the convolution alone or the deformable layer with the convolution for its offsets, forward and backward,
its input and output with channels last; a step is forward, losses, backward and the optimizer on two random images of
240 x 320. Offsets are of about half a cell, not the zeros that layers begin with. `--bf16`: under autocast in bfloat16.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from unittest.mock import patch

import torch
import torchvision
from torch import Tensor, nn

from regio.backbones import Backbone, efficientnet_lite0, torchvision_backbone
from regio.backbones.deformable import deformable_layers, with_deformable
from regio.deformable_conv import DeformableConv2d
from regio.systems import faster_rcnn
from regio.types import Targets

# Name, images, channels, height and width, kernel, dilation, groups: the last stage of a ResNet at stride 16 on images
# of 400 x 608 and 240 x 320, the stage before it on 800 x 1216, and EfficientNet-Lite0's on 240 x 320.
LAYERS = [
    ("1 x 512 x 25 x 38, 3 x 3", 1, 512, (25, 38), 3, 2, 1),
    ("2 x 512 x 15 x 20, 3 x 3", 2, 512, (15, 20), 3, 2, 1),
    ("1 x 256 x 50 x 76, 3 x 3", 1, 256, (50, 76), 3, 1, 1),
    ("2 x 672 x 15 x 20, 5 x 5 depthwise", 2, 672, (15, 20), 5, 1, 672),
    ("2 x 1152 x 15 x 20, 3 x 3 depthwise", 2, 1152, (15, 20), 3, 1, 1152),
]
BACKBONES: dict[str, Callable[[], Backbone]] = {
    "Faster R-CNN, ResNet-50": lambda: torchvision_backbone("resnet50", output_stride=16, pretrained=False),
    "Faster R-CNN, EfficientNet-Lite0": lambda: efficientnet_lite0(output_stride=16),
}


Run = Callable[[], None]


def moved(layer: DeformableConv2d) -> DeformableConv2d:
    """The layer with offsets of about half a cell, stored with channels last."""
    nn.init.normal_(layer.offset.bias, 0, 0.5)  # type: ignore[arg-type]
    return layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def with_torchvision(run: Run) -> Run:
    """The same with torchvision's operator in the layers."""

    def peer() -> None:
        with patch("regio.deformable_conv.deform_conv2d", torchvision.ops.deform_conv2d):
            run()

    return peer


def layer_run(layer: nn.Module, x: Tensor, autocast: AbstractContextManager) -> Run:
    """Forward and backward pass of one layer."""
    grad = torch.randn_like(layer(x)).contiguous(memory_format=torch.channels_last)

    def run() -> None:
        with autocast:
            y = layer(x.detach().requires_grad_())
        y.backward(grad.to(y.dtype))
        layer.zero_grad()

    return run


def step_run(backbone: Backbone, size: tuple[int, int], autocast: AbstractContextManager) -> Run:
    """A training step of Faster R-CNN on `backbone`."""
    detector = faster_rcnn(num_classes=5, backbone=backbone, short_side=size[0], long_side=size[1])
    detector.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD([p for p in detector.parameters() if p.requires_grad], 1e-4, momentum=0.9)
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for _ in range(2)]
    corners = torch.rand(8, 2) * torch.tensor([size[1] / 2, size[0] / 2])
    boxes = torch.cat([corners, corners + torch.tensor([size[1] / 3, size[0] / 3])], 1)
    targets = [Targets(boxes, torch.arange(8) % 4 + 1) for _ in images]

    def run() -> None:
        with autocast:
            loss = torch.stack([*detector.losses(images, targets).values()]).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def report(name: str, plain: Run, ours: Run, given: argparse.Namespace) -> None:
    """Measure runs in turns, and print a line for each."""
    runs = {"plain": plain, "regio": ours}
    if not given.bf16:
        runs["torchvision"] = with_torchvision(ours)
    times: dict[str, list[float]] = {kind: [] for kind in runs}
    for _ in range(2 + given.repeats):
        for kind, run in runs.items():
            began = time.perf_counter()
            run()
            times[kind].append((time.perf_counter() - began) * 1e3)
    quarters = {kind: statistics.quantiles(each[2:], n=4) for kind, each in times.items()}
    for kind, (low, median, high) in quarters.items():
        ratio = median / quarters["plain"][1]
        print(f"{name:44}{kind:12}{median:9.1f}  ({low:.1f} to {high:.1f}){ratio:8.2f} x plain", flush=True)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--bf16", action="store_true", help="under autocast in bfloat16")
    parser.add_argument("--layers", type=int, default=3, help="deformable layers of a backbone")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see that everything runs")
    given = parser.parse_args()
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=given.bf16)
    print(
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, {torch.get_num_threads()} threads, "
        f"{platform.processor() or platform.machine()}, {'bfloat16' if given.bf16 else 'float32'}; milliseconds"
    )
    for name, images, channels, size, kernel, dilation, groups in LAYERS:
        if given.only not in name:
            continue
        if given.tiny:
            size, channels, groups = (4, 5), 8, min(groups, 8)
        conv = nn.Conv2d(
            channels, channels, kernel, padding=dilation * (kernel // 2), dilation=dilation, groups=groups, bias=False
        ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = torch.randn(images, channels, *size).contiguous(memory_format=torch.channels_last)
        ours = layer_run(moved(DeformableConv2d.in_place_of(conv)), x, autocast)
        report(name, layer_run(conv, x, autocast), ours, given)
    for name, make in BACKBONES.items():
        if given.only not in name:
            continue
        size = (64, 96) if given.tiny else (240, 320)
        backbone = with_deformable(make(), given.layers)
        for layer in deformable_layers(backbone).values():
            moved(layer)
        ours = step_run(backbone, size, autocast)
        report(f"{name}, {given.layers} layers", step_run(make(), size, autocast), ours, given)


if __name__ == "__main__":
    main()
