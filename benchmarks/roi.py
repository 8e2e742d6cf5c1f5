"""RoIAlign and RoIPool on a CPU against torchvision's, in one process.

    python benchmarks/roi.py [--json FILE] [--repeats N]

Boxes of mixed sizes in an 800 x 1216 image, a map at stride 16, 7 x 7 bins, float32, contiguous (NCHW) features, boxes
without gradients. Each time is the median of `repeats` runs after two warm-up runs, ours and torchvision's in turn,
with the interquartile range. The first row of each kind is the one that is tracked; the others are sizes of detectors
in practice. A ratio below 1 is a loss, and is listed like any other.

The last columns compare ours with the time that the machine takes to copy the bytes that have to move: the map is read
once and the features are written once; with backward, twice that.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torchvision
from torch import Tensor
from torchvision.ops import roi_align, roi_pool

import regio
from regio.regions import RegionExtractor, RoIAlign, RoIPool
from regio.types import FeatureMap, Regions

IMAGE = (800, 1216)
STRIDE = 16
SIZES = [
    (1000, 256),
    (128, 128),
    (128, 256),
    (128, 1024),
    (512, 128),
    (512, 256),
    (512, 1024),
    (2000, 128),
    (2000, 256),
]


@dataclass(frozen=True)
class Row:
    """One comparison; times in milliseconds."""

    name: str
    boxes: int
    channels: int
    ours: float
    ours_iqr: float
    torchvision: float
    torchvision_iqr: float
    copy_limit: float

    @property
    def ratio(self) -> float:
        return self.torchvision / self.ours


def random_boxes(count: int) -> Tensor:
    """Boxes [count, 4] inside the image: sides of 32 to 512 pixels (log-uniform), aspect ratios of 1/2 to 2."""
    generator = torch.Generator().manual_seed(0)
    size = 32 * 16 ** torch.rand(count, generator=generator)
    ratio = 2 ** (torch.rand(count, generator=generator) - 0.5)
    height, width = (size / ratio).clamp(max=IMAGE[0]), (size * ratio).clamp(max=IMAGE[1])
    x = torch.rand(count, generator=generator) * (IMAGE[1] - width)
    y = torch.rand(count, generator=generator) * (IMAGE[0] - height)
    return torch.stack([x, y, x + width, y + height], dim=1)


def times_in_turn(runs: list[Callable[[], object]], repeats: int) -> list[list[float]]:
    """Milliseconds of each run, taken in turn so that a busy moment meets all of them."""
    for run in runs * 2:
        run()
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for run, measured in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            measured.append((time.perf_counter() - start) * 1e3)
    return times


def spread(values: list[float]) -> float:
    first, _, third = statistics.quantiles(values, n=4)
    return third - first


def geometric_mean(values: list[float]) -> float:
    return math.exp(statistics.fmean(math.log(v) for v in values))


def copy_bandwidth() -> float:
    """Bytes a millisecond, read and written together, of copying 256 MB."""
    source, target = torch.ones(1 << 26), torch.ones(1 << 26)
    (times,) = times_in_turn([lambda: target.copy_(source)], 9)
    return 2 * source.nbytes / statistics.median(times)


def compare(
    name: str, extractor: RegionExtractor, theirs: Callable[[Tensor, Tensor], Tensor], boxes: int, channels: int,
    backward: bool, bandwidth: float, repeats: int
) -> Row:  # fmt: skip
    data = torch.randn(1, channels, IMAGE[0] // STRIDE, IMAGE[1] // STRIDE)
    r = Regions(random_boxes(boxes), torch.zeros(boxes, dtype=torch.int64))
    rois = torch.cat([r.image[:, None], r.boxes], 1)
    grad = torch.randn(boxes, channels, *extractor.bins)

    def step(features: Callable[[Tensor], Tensor]) -> None:
        leaf = data.detach().requires_grad_(backward)
        y = features(leaf)
        if backward:
            y.backward(grad)

    runs = [
        lambda: step(lambda x: extractor(FeatureMap(x, STRIDE), r)),
        lambda: step(lambda x: theirs(x, rois)),
    ]
    ours, other = times_in_turn(runs, repeats)
    limit = (data.nbytes + grad.nbytes) * (2 if backward else 1) / bandwidth
    medians = statistics.median(ours), statistics.median(other)
    return Row(name, boxes, channels, medians[0], spread(ours), medians[1], spread(other), limit)


def machine() -> dict[str, object]:
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        processor = names[0] if names else processor
    return {
        "regio": regio.__version__, "torch": torch.__version__, "torchvision": torchvision.__version__,
        "processor": processor, "threads": torch.get_num_threads(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the table to this file")
    parser.add_argument("--repeats", type=int, default=9, help="runs of each measurement (default 9)")
    arguments = parser.parse_args()
    bandwidth = copy_bandwidth()
    about = machine() | {"copy_gigabytes_a_second": round(bandwidth / 1e6, 1)}
    print("  ".join(f"{k} {v}" for k, v in about.items()))
    head = f"{'':36}{'boxes':>6}{'chan.':>6}{'ours ms (IQR)':>17}{'torchvision ms (IQR)':>25}{'ratio':>8}"
    print(f"{head}{'copy ms':>9}{'x copy':>8}")
    kinds = [
        ("RoIAlign 2 x 2", RoIAlign(7), lambda x, rois: roi_align(x, rois, 7, 1 / STRIDE, 2, True)),
        ("RoIPool", RoIPool(7), lambda x, rois: roi_pool(x, rois, 7, 1 / STRIDE)),
    ]
    rows = []
    for name, extractor, theirs in kinds:
        for backward in (False, True):
            for boxes, channels in SIZES:
                title = f"{name} {'forward + backward' if backward else 'forward'}"
                row = compare(title, extractor, theirs, boxes, channels, backward, bandwidth, arguments.repeats)
                rows.append(row)
                line = f"{title:36}{row.boxes:6}{row.channels:6}{row.ours:9.1f} ({row.ours_iqr:5.1f})"
                line += f"{row.torchvision:16.1f} ({row.torchvision_iqr:6.1f}){row.ratio:8.1f}"
                print(f"{line}{row.copy_limit:9.2f}{row.ours / row.copy_limit:8.1f}", flush=True)
    losses = sum(row.ratio < 1 for row in rows)
    print(
        f"losses: {losses} of {len(rows)}; geometric mean of the ratios {geometric_mean([r.ratio for r in rows]):.1f}"
    )
    if arguments.json:
        table = [asdict(row) | {"ratio": row.ratio} for row in rows]
        arguments.json.write_text(json.dumps({"machine": about, "rows": table}, indent=2) + "\n")


if __name__ == "__main__":
    main()
