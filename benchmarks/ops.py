"""Every function of `regio.ops` against torchvision's, in one process, on a CPU or a GPU.

    python benchmarks/ops.py [--only NAME] [--device cuda] [--repeats N] [--json FILE] [--tiny] [--beside]

Inputs are float32 and contiguous, boxes have no gradients. Each time is the median of `repeats` runs after two warm-up
runs, ours and the other in turn, with the interquartile range; on a GPU, between CUDA events. What torchvision lacks is
compared with mmcv where it is installed, `ms_deform_attn` otherwise with its published PyTorch form by `grid_sample`,
and the rest with nothing. A ratio below 1 is a loss; losses are listed at the end. With `--beside` one other process is
busy all the time; `GOMP_SPINCOUNT=10000` or `OMP_WAIT_POLICY=passive` in the environment then show what short waits of
PyTorch's threads are worth.

The last columns are the bytes that have to move (inputs are read once, the result is written once; with backward twice
that) and how many times longer ours takes than the machine needs to copy so many.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor
from torch.nn.functional import grid_sample

from regio import ops
from roi import IMAGE, SIZES, STRIDE, geometric_mean, machine, random_boxes, spread

try:
    import mmcv.ops as mmcv
except ImportError:
    mmcv = None

# Besides the sizes of detectors in practice (`roi.SIZES`): from 1 to 2000 boxes, from 1 to 1024 channels.
ENDS = [(n, c) for n in (1, 16, 300, 2000) for c in (1, 16, 256, 1024) if (n, c) not in SIZES]
# Boxes and channels of a bin in 7 x 7: the classes of VOC and COCO with the background, Light-Head R-CNN's 10.
POSITION_SENSITIVE = [(300, 21), (300, 81), (1000, 10), (1, 1), (1, 21), (2000, 1), (2000, 20)]
# Images, channels in and out, height and width, groups, offset groups: ResNet-50's stages on 800 x 1216, and the ends.
CONVOLUTIONS = [
    (1, 128, 128, (100, 152), 1, 1),
    (1, 256, 256, (50, 76), 1, 1),
    (1, 512, 512, (25, 38), 1, 1),
    (2, 256, 256, (50, 76), 1, 4),
    (1, 256, 256, (50, 76), 32, 1),
    (1, 1024, 1024, (25, 38), 1, 1),
    (1, 16, 16, (50, 76), 1, 1),
    (1, 1, 1, (50, 76), 1, 1),
    (8, 64, 64, (7, 7), 1, 1),
]
# Images, queries, heads, channels of a head, points: the decoder and the encoder of Deformable DETR.
ATTENTIONS = [(1, 300, 8, 32, 4), (1, 4000, 8, 32, 4), (2, 300, 8, 32, 4), (1, 1, 1, 1, 1)]
LEVELS = [(100, 152), (50, 76), (25, 38), (13, 19)]


@dataclass(frozen=True)
class Case:
    """One call. inputs: by name; those in `learned` get gradients. theirs: None where there is no peer."""

    name: str
    size: str
    inputs: dict[str, Any]
    learned: tuple[str, ...]
    ours: Callable[..., Tensor]
    theirs: Callable[..., Tensor] | None
    other: str = "torchvision"


@dataclass(frozen=True)
class Row:
    """One comparison; times in milliseconds. Without another there is no ratio."""

    name: str
    size: str
    backward: bool
    ours: float
    ours_iqr: float
    other: str
    theirs: float | None
    theirs_iqr: float | None
    bytes_moved: int
    copy_limit: float
    ratio: float | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ratio", None if self.theirs is None else self.theirs / self.ours)

    def __str__(self) -> str:
        direction = "forward + backward" if self.backward else "forward"
        line = f"{self.name:24}{self.size:34}{direction:19}{self.ours:10.2f} ({self.ours_iqr:7.2f})"
        if self.theirs is None:
            line += f"{'':43}"
        else:
            line += f"{self.theirs:11.2f} ({self.theirs_iqr:8.2f}) {self.other:11}{self.ratio:9.1f}"
        return f"{line}{self.bytes_moved / 1e6:9.1f}{self.ours / self.copy_limit:8.1f}"


def times_in_turn(runs: list[Callable[[], object]], repeats: int, device: torch.device) -> list[list[float]]:
    """Milliseconds of each run, taken in turn so that a busy moment meets all of them."""
    for run in runs * 2:
        run()
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for run, measured in zip(runs, times, strict=True):
            if device.type == "cuda":
                start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                torch.cuda.synchronize()
                start.record()
                run()
                stop.record()
                torch.cuda.synchronize()
                measured.append(start.elapsed_time(stop))
            else:
                begin = time.perf_counter()
                run()
                measured.append((time.perf_counter() - begin) * 1e3)
    return times


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a millisecond, read and written together, of copying 256 MB."""
    source, target = (torch.ones(1 << 26, device=device) for _ in range(2))
    (times,) = times_in_turn([lambda: target.copy_(source)], 9, device)
    return 2 * source.nbytes / statistics.median(times)


def compare(case: Case, backward: bool, device: torch.device, bandwidth: float, repeats: int) -> Row:
    inputs = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in case.inputs.items()}
    grad = torch.randn_like(case.ours(**inputs)) if backward else None

    def step(function: Callable[..., Tensor]) -> None:
        leaves = {k: v.detach().requires_grad_(backward) if k in case.learned else v for k, v in inputs.items()}
        y = function(**leaves)
        if grad is not None:
            y.backward(grad)

    functions = [case.ours] if case.theirs is None else [case.ours, case.theirs]
    times = times_in_turn([lambda f=f: step(f) for f in functions], repeats, device)  # type: ignore[misc]
    result = case.ours(**inputs)
    moved = sum(v.nbytes for v in inputs.values() if isinstance(v, Tensor)) + result.nbytes
    moved *= 2 if backward else 1
    medians, spreads = [statistics.median(t) for t in times], [spread(t) for t in times]
    theirs = (medians[1], spreads[1]) if len(times) > 1 else (None, None)
    row = (medians[0], spreads[0], case.other, *theirs, moved, moved / bandwidth)
    return Row(case.name, case.size, backward, *row)


def rois(boxes: int) -> Tensor:
    return torch.nn.functional.pad(random_boxes(boxes), (1, 0))


def feature_map(channels: int) -> Tensor:
    return torch.randn(1, channels, IMAGE[0] // STRIDE, IMAGE[1] // STRIDE)


def pooling_cases(sizes: list[tuple[int, int]]) -> Iterator[Case]:
    """RoI functions on one map at stride 16, 7 x 7 bins."""
    scale = 1 / STRIDE
    tv = torchvision.ops
    other = None if mmcv is None else mmcv
    kinds: list[tuple[str, Callable[..., Tensor], Callable[..., Tensor] | None, str]] = [
        ("roi_pool", lambda f, x, b: f(x, b, 7, scale), tv.roi_pool, "torchvision"),
        ("roi_align", lambda f, x, b: f(x, b, 7, scale, 2, True), tv.roi_align, "torchvision"),
        ("roi_align (adaptive)", lambda f, x, b: f(x, b, 7, scale), tv.roi_align, "torchvision"),
        ("prroi_pool", lambda f, x, b: f(x, b, (7, 7), scale), other and other.prroi_pool, "mmcv"),
        ("roi_warp", lambda f, x, b: f(x, b, 7, scale), None, ""),
    ]
    for name, call, theirs, by in kinds:
        ours = getattr(ops, name.split()[0])
        for boxes, channels in sizes:
            yield Case(
                name, f"{boxes} boxes, {channels} channels", {"x": feature_map(channels), "b": rois(boxes)}, ("x",),
                lambda x, b, f=ours, call=call: call(f, x, b),
                theirs and (lambda x, b, f=theirs, call=call: call(f, x, b)), by,
            )  # fmt: skip


def deformable_pooling_cases(sizes: list[tuple[int, int]], groups: list[tuple[int, int]]) -> Iterator[Case]:
    """Poolings with offsets, without and with channels of their own for each bin."""
    call = lambda f, x, b, o: f(x, b, o, (7, 7), 1 / STRIDE, 2)  # noqa: E731
    theirs = mmcv and (lambda x, b, o: call(mmcv.deform_roi_pool, x, b, o))
    for boxes, channels in sizes:
        inputs = {"x": feature_map(channels), "b": rois(boxes), "o": torch.randn(boxes, 2, 7, 7)}
        size = f"{boxes} boxes, {channels} channels"
        yield Case(
            "deform_roi_pool", size, inputs, ("x", "o"), lambda x, b, o: call(ops.deform_roi_pool, x, b, o), theirs,
            "mmcv",
        )  # fmt: skip
    for boxes, channels in groups:
        x, b, size = feature_map(49 * channels), rois(boxes), f"{boxes} boxes, 49 x {channels} channels"
        for name, arguments in (("ps_roi_pool", ()), ("ps_roi_align", (2,))):
            ours, peer = getattr(ops, name), getattr(torchvision.ops, name)
            yield Case(
                name, size, {"x": x, "b": b}, ("x",),
                lambda x, b, f=ours, a=arguments: f(x, b, 7, 1 / STRIDE, *a),
                lambda x, b, f=peer, a=arguments: f(x, b, 7, 1 / STRIDE, *a),
            )  # fmt: skip
        yield Case(
            "deform_ps_roi_pool", size, {"x": x, "b": b, "o": torch.randn(boxes, 2, 7, 7)}, ("x", "o"),
            lambda x, b, o: ops.deform_ps_roi_pool(x, b, o, 7, 1 / STRIDE), None,
        )  # fmt: skip


def pyramid_cases(sizes: list[tuple[int, int]]) -> Iterator[Case]:
    """RoIAlign on a pyramid of four levels, strides 4 to 32."""
    names = ["0", "1", "2", "3"]
    ours, theirs = (module.MultiScaleRoIAlign(names, 7, 2) for module in (ops, torchvision.ops))
    for boxes, channels in sizes:
        maps = {
            f"x{i}": torch.randn(1, channels, IMAGE[0] // 2**k, IMAGE[1] // 2**k) for i, k in enumerate(range(2, 6))
        }

        def call(layer: Callable[..., Tensor], b: Tensor, **maps: Tensor) -> Tensor:
            return layer({k[1:]: v for k, v in maps.items()}, [b], [IMAGE])

        yield Case(
            "MultiScaleRoIAlign", f"{boxes} boxes, {channels} channels", maps | {"b": random_boxes(boxes)}, tuple(maps),
            lambda b, call=call, **maps: call(ours, b, **maps),
            lambda b, call=call, **maps: call(theirs, b, **maps),
        )  # fmt: skip


def convolution_cases(sizes: list[tuple[int, int, int, tuple[int, int], int, int]]) -> Iterator[Case]:
    """3 x 3 deformable convolutions, offsets of about a cell."""
    for n, channels, outputs, size, groups, offset_groups in sizes:
        inputs = {
            "x": torch.randn(n, channels, *size),
            "o": torch.randn(n, 18 * offset_groups, *size),
            "w": torch.randn(outputs, channels // groups, 3, 3),
        }
        text = f"{n} x {channels} x {size[0]} x {size[1]}, {groups}/{offset_groups} groups"
        yield Case(
            "deform_conv2d", text, inputs, ("x", "o", "w"),
            lambda x, o, w: ops.deform_conv2d(x, o, w, padding=(1, 1)),
            lambda x, o, w: torchvision.ops.deform_conv2d(x, o, w, padding=(1, 1)),
        )  # fmt: skip
        masked = inputs | {"m": torch.rand(n, 9 * offset_groups, *size)}
        yield Case(
            "deform_conv2d (masked)", text, masked, tuple(masked),
            lambda x, o, w, m: ops.deform_conv2d(x, o, w, padding=(1, 1), mask=m),
            lambda x, o, w, m: torchvision.ops.deform_conv2d(x, o, w, padding=(1, 1), mask=m),
        )  # fmt: skip


def attention_cases(sizes: list[tuple[int, int, int, int, int]], levels: list[tuple[int, int]]) -> Iterator[Case]:
    """Multi-scale deformable attention."""
    starts = [sum(h * w for h, w in levels[:i]) for i in range(len(levels))]

    def pure(v: Tensor, p: Tensor, w: Tensor) -> Tensor:
        n, _, heads, channels = v.shape
        total = []
        for i, (cells, (rows, columns)) in enumerate(zip(v.split([a * b for a, b in levels], 1), levels, strict=True)):
            maps = cells.flatten(2).transpose(1, 2).reshape(n * heads, channels, rows, columns)
            grid = (2 * p[:, :, :, i] - 1).transpose(1, 2).flatten(0, 1)
            total.append(grid_sample(maps, grid, align_corners=False))
        weights = w.transpose(1, 2).flatten(0, 1).flatten(2)[:, None]
        return (torch.cat(total, -1) * weights).sum(-1).unflatten(0, (n, heads)).flatten(1, 2).transpose(1, 2)

    def by_mmcv(v: Tensor, p: Tensor, w: Tensor) -> Tensor:
        at = torch.tensor(levels, device=v.device), torch.tensor(starts, device=v.device)
        return mmcv.multi_scale_deform_attn.MultiScaleDeformableAttnFunction.apply(v, *at, p, w, 64)

    for n, queries, heads, channels, points in sizes:
        inputs = {
            "v": torch.randn(n, sum(h * w for h, w in levels), heads, channels),
            "p": torch.rand(n, queries, heads, len(levels), points, 2),
            "w": torch.rand(n, queries, heads, len(levels), points),
        }
        yield Case(
            "ms_deform_attn", f"{n} x {queries} queries, {heads} x {channels} channels", inputs, ("v", "p", "w"),
            lambda v, p, w: ops.ms_deform_attn(v, levels, starts, p, w),
            by_mmcv if mmcv is not None and torch.cuda.is_available() else pure,
            "mmcv" if mmcv is not None and torch.cuda.is_available() else "grid_sample",
        )  # fmt: skip


def box_cases(counts: list[int]) -> Iterator[Case]:
    """Suppression at IoU 0.7, among all boxes and within 80 classes, and overlaps with 100 boxes."""
    tv = torchvision.ops
    for count in counts:
        inputs = {"b": random_boxes(count), "s": torch.rand(count)}
        yield Case("nms", f"{count} boxes", inputs, (), lambda b, s: ops.nms(b, s, 0.7), lambda b, s: tv.nms(b, s, 0.7))
        yield Case(
            "batched_nms", f"{count} boxes, 80 classes", inputs | {"i": torch.randint(0, 80, (count,))}, (),
            lambda b, s, i: ops.batched_nms(b, s, i, 0.7), lambda b, s, i: tv.batched_nms(b, s, i, 0.7),
        )  # fmt: skip
        yield Case(
            "box_iou", f"{count} x 100 boxes", {"a": random_boxes(count), "b": random_boxes(100)}, (),
            lambda a, b: ops.box_iou(a, b), lambda a, b: tv.box_iou(a, b),
        )  # fmt: skip


def all_cases(tiny: bool) -> Iterator[Case]:
    boxes = [(4, 8)] if tiny else SIZES + ENDS
    yield from pooling_cases(boxes)
    yield from deformable_pooling_cases(boxes, [(4, 2)] if tiny else POSITION_SENSITIVE)
    yield from pyramid_cases([(4, 8)] if tiny else [*SIZES, (1, 1), (1, 256), (2000, 1)])
    yield from convolution_cases([(1, 4, 4, (8, 9), 1, 1)] if tiny else CONVOLUTIONS)
    yield from attention_cases([(1, 5, 2, 4, 3)] if tiny else ATTENTIONS, [(8, 9), (4, 5)] if tiny else LEVELS)
    yield from box_cases([10] if tiny else [1, 10, 100, 1000, 2000, 10000])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="functions whose name contains this")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--repeats", type=int, default=9, help="runs of each measurement, at least 2 (default 9)")
    parser.add_argument("--json", type=Path, help="write the table to this file")
    parser.add_argument("--tiny", action="store_true", help="one small size of each, to see that everything runs")
    parser.add_argument("--beside", action="store_true", help="beside a process that keeps one core busy")
    arguments = parser.parse_args()
    with busy_process() if arguments.beside else nullcontext():
        measure(arguments)


@contextmanager
def busy_process() -> Iterator[None]:
    """One process that does nothing but keep a core busy."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


def measure(arguments: argparse.Namespace) -> None:
    bandwidth = copy_bandwidth(arguments.device)
    about = machine() | {"device": str(arguments.device), "copy_gigabytes_a_second": round(bandwidth / 1e6, 1)}
    print("  ".join(f"{k} {v}" for k, v in about.items()))
    print(f"{'':77}{'ours ms (IQR)':>20}{'theirs ms (IQR)':>22} {'':11}{'ratio':>9}{'MB':>9}{'x copy':>8}")
    rows = []
    for case in all_cases(arguments.tiny):
        if arguments.only not in case.name:
            continue
        for backward in (False, True) if case.learned else (False,):
            rows.append(compare(case, backward, arguments.device, bandwidth, arguments.repeats))
            print(rows[-1], flush=True)
    ratios = [row.ratio for row in rows if row.ratio is not None]
    losses = [row for row in rows if row.ratio is not None and row.ratio < 1]
    if ratios:
        print(f"geometric mean of {len(ratios)} ratios: {geometric_mean(ratios):.1f}; losses: {len(losses)}")
    for row in losses:
        print(row)
    if arguments.json:
        table = {"machine": about, "rows": [asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
