"""Time the kernels on a CUDA GPU, and torchvision's where it has the operation: ``python benchmarks/gpu.py``.

Times are between two CUDA events, so they include gaps in which the GPU waits for launches: the median and the
interquartile range of runs after a warm-up, the two libraries in turn. The last columns compare ours with the time that
this GPU takes to copy the bytes that have to move: maps are read once and results written once, and the gradients of
both the same when going backward.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torchvision
from torch import Tensor
from torchvision.ops import deform_conv2d, roi_align, roi_pool

import regio
from regio.kernels.attend import attend
from regio.kernels.pool_max import pool_max
from regio.kernels.sample_grid import sample_grid
from regio.kernels.sample_points import sample_points

HEIGHT, WIDTH, CHANNELS, BOXES, BINS = 50, 76, 256, 1000, 7  # an image of 800 x 1216 pixels at stride 16
WARM_UP, RUNS = 10, 50
DEVICE = "cuda"

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Row:
    """One measurement; times in milliseconds, copy the time to copy the bytes that have to move."""

    name: str
    dtype: str
    backward: bool
    ours: float
    ours_iqr: float
    torchvision: float | None
    torchvision_iqr: float | None
    megabytes: float
    copy: float


def times_in_turn(runs: list[Callable[[], object]]) -> list[list[float]]:
    """Milliseconds of each run on the GPU."""
    for _ in range(WARM_UP):
        for run in runs:
            run()
    pairs: list[list[tuple[torch.cuda.Event, torch.cuda.Event]]] = [[] for _ in runs]
    for _ in range(RUNS):
        for run, events in zip(runs, pairs, strict=True):
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run()
            stop.record()
            events.append((start, stop))
    torch.cuda.synchronize()
    return [[start.elapsed_time(stop) for start, stop in events] for events in pairs]


def middle(times: list[float]) -> tuple[float, float]:
    """Median and interquartile range."""
    first, _, third = statistics.quantiles(times, n=4)
    return statistics.median(times), third - first


def copy_bandwidth() -> float:
    """Bytes a millisecond, read and written together, of copying 1 GiB."""
    source = torch.ones(1 << 28, device=DEVICE)
    target = torch.empty_like(source)
    (times,) = times_in_turn([lambda: target.copy_(source)])
    return 2 * source.nbytes / statistics.median(times)


def random_boxes() -> Tensor:
    """Boxes [BOXES, 4] in cells: sides of 2 to 32, aspect ratios of 1/2 to 2."""
    g = torch.Generator().manual_seed(0)
    side, ratio = 2 * 16 ** torch.rand(BOXES, generator=g), 2 ** (torch.rand(BOXES, generator=g) - 0.5)
    width, height = (side * ratio).clamp(max=WIDTH - 1), (side / ratio).clamp(max=HEIGHT - 1)
    x, y = torch.rand(BOXES, generator=g) * (WIDTH - width), torch.rand(BOXES, generator=g) * (HEIGHT - height)
    return torch.stack([x, y, x + width, y + height], 1).to(DEVICE)


def aligned(boxes: Tensor, image: Tensor, rois: Tensor) -> tuple[Run, Run]:
    """RoIAlign with 2 x 2 samples a bin."""
    samples = (torch.arange(2 * BINS, device=DEVICE).view(BINS, 2) + 0.5) / 2
    x0, y0, x1, y1 = (boxes - 0.5)[:, :, None, None].unbind(1)
    rows, columns = y0 + samples * (y1 - y0) / BINS, x0 + samples * (x1 - x0) / BINS
    rows, columns = rows.clamp(0, HEIGHT - 1), columns.clamp(0, WIDTH - 1)
    weight = torch.full_like(rows, 0.5)
    return (
        lambda x: sample_grid(x, image, rows, columns, weight, weight),
        lambda x: roi_align(x, rois.to(x.dtype), BINS, 1.0, 2, True),
    )


def pooled(boxes: Tensor, image: Tensor, rois: Tensor) -> tuple[Run, Run]:
    """RoIPool."""
    x0, y0, x1, y1 = boxes.round().long()[:, :, None].unbind(1)
    i = torch.arange(BINS, device=DEVICE)

    def ends(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        side = high - low + 1
        return low + i * side // BINS, low - (-(i + 1) * side) // BINS

    (top, bottom), (left, right) = ends(y0, y1), ends(x0, x1)
    return (
        lambda x: pool_max(x, image, top, bottom, left, right),
        lambda x: roi_pool(x, rois.to(x.dtype), BINS, 1.0),
    )


def deformable() -> tuple[Run, Run]:
    """A 3 x 3 deformable convolution to as many channels; the matrix product is part of both."""
    g = torch.Generator().manual_seed(0)
    offset = torch.randn(1, 18, HEIGHT, WIDTH, generator=g).to(DEVICE)  # (vertical, horizontal) of each tap
    weight = (torch.randn(CHANNELS, CHANNELS, 3, 3, generator=g) / 48).to(DEVICE)
    v, u = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    tap = torch.arange(9)
    base = torch.stack([u.reshape(-1, 1) + tap % 3 - 1, v.reshape(-1, 1) + tap // 3 - 1], 2).to(DEVICE)
    shift = offset.view(9, 2, HEIGHT * WIDTH).permute(2, 0, 1).flip(2)
    points = (base + shift)[:, :, None].contiguous()
    weight, image = torch.ones_like(points[..., 0]), torch.zeros(HEIGHT * WIDTH, dtype=torch.int64, device=DEVICE)
    matrix = weight.flatten(2).permute(2, 1, 0).flatten(0, 1)  # [9 C, C]
    return (
        lambda x: sample_points(x, image, points, weight).transpose(1, 2).flatten(1) @ matrix.to(x.dtype),
        lambda x: deform_conv2d(x, offset.to(x.dtype), weight.to(x.dtype), padding=1),
    )


def attended(boxes: Tensor, image: Tensor) -> Run:
    """Learned region features over the whole map; torchvision has no such operation."""
    g = torch.Generator().manual_seed(0)
    parts = BINS * BINS
    column = torch.randn(BOXES, parts, WIDTH, generator=g).to(DEVICE)
    row = torch.randn(BOXES, parts, HEIGHT, generator=g).to(DEVICE)
    appearance = torch.randn(1, parts, HEIGHT, WIDTH, generator=g).to(DEVICE)
    support = torch.tensor([0, 0, WIDTH, HEIGHT], device=DEVICE).expand(len(boxes), 4).contiguous()
    return lambda x: attend(x, image, column, row, appearance, support)


def measure(name: str, ours: Run, theirs: Run | None, dtype: torch.dtype, backward: bool, bandwidth: float) -> Row:
    last = torch.randn(1, CHANNELS, HEIGHT, WIDTH, device=DEVICE, dtype=dtype)
    forms = [last.contiguous(memory_format=torch.channels_last), last]  # each library with the format it is made for
    toward = [torch.randn_like(run(x)) for run, x in zip((ours, theirs), forms, strict=True) if run is not None]

    def step(run: Run, x: Tensor, grad: Tensor) -> None:
        leaf = x.detach().requires_grad_(backward)
        y = run(leaf)
        if backward:
            y.backward(grad)

    runs = [
        lambda run=run, x=x, grad=grad: step(run, x, grad)
        for run, x, grad in zip((ours, theirs)[: len(toward)], forms, toward, strict=False)
    ]
    times = [middle(t) for t in times_in_turn(runs)]
    moved = (last.nbytes + toward[0].nbytes) * (2 if backward else 1)
    other = times[1] if len(times) > 1 else (None, None)
    kind = str(dtype).removeprefix("torch.")
    return Row(name, kind, backward, *times[0], *other, moved / 1e6, moved / bandwidth)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the table to this file")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py: no CUDA GPU here; nothing was measured")
    bandwidth = copy_bandwidth()
    about = {
        "regio": regio.__version__, "torch": torch.__version__, "torchvision": torchvision.__version__,
        "gpu": torch.cuda.get_device_name(), "copy_gigabytes_a_second": round(bandwidth / 1e6),
    }  # fmt: skip
    print("  ".join(f"{k} {v}" for k, v in about.items()))
    boxes, image = random_boxes(), torch.zeros(BOXES, dtype=torch.int64, device=DEVICE)
    rois = torch.cat([image[:, None], boxes], 1)
    kinds: list[tuple[str, Run, Run | None]] = [
        ("RoIAlign 2 x 2", *aligned(boxes, image, rois)),
        ("RoIPool", *pooled(boxes, image, rois)),
        ("deformable convolution", *deformable()),
        ("learned region features", attended(boxes, image), None),
    ]
    print(f"{'':44}{'ours ms (IQR)':>18}{'torchvision ms (IQR)':>24}{'ratio':>8}{'MB':>8}{'x copy':>8}")
    rows = []
    for name, ours, theirs in kinds:
        for dtype in (torch.float32, torch.float16):
            for backward in (False, True):
                row = measure(name, ours, theirs, dtype, backward, bandwidth)
                rows.append(row)
                title = f"{name} {row.dtype} {'forward + backward' if backward else 'forward'}"
                line = f"{title:44}{row.ours:10.3f} ({row.ours_iqr:5.3f})"
                if row.torchvision is not None:
                    line += f"{row.torchvision:16.3f} ({row.torchvision_iqr:5.3f}){row.torchvision / row.ours:8.1f}"
                else:
                    line += f"{'-':>24}{'-':>8}"
                print(f"{line}{row.megabytes:8.1f}{row.ours / row.copy:8.1f}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": about, "rows": [asdict(r) for r in rows]}, indent=2) + "\n")


if __name__ == "__main__":
    main()
