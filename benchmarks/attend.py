"""Learned region features on a CPU: the separable form against the equations as they are written.

    python benchmarks/attend.py [--json FILE] [--repeats N] [--boxes R] [--threads T] [--scopes S ...]

One map of 38 x 51 cells at stride 16 with 256 channels, 300 boxes, 49 parts, whole image, both terms (the sizes of
table 1 of Gu et al. 2018). Times are medians of `repeats` runs after two warm-up runs, all variants in turn so that a
busy moment meets each of them, with the minimum and the interquartile range. Memory is the growth of the peak resident
size over one run (Linux). "x dense" compares with the dense form in float32; below 1 is a loss.

    module   from boxes and map to features, as a detector calls it; weights as they start without a prior, flat
    prior    the same with the prior of RoIAlign, which is where `--extractor learned` begins
    kernel   from queries W_k_box E(b), keys W_im E(p) and A to features
    sigma S  the kernel on Gaussians with a deviation of S cells on the grid of each box, and appearance terms with a
             deviation of 0.5: the parts of `prior` when they have become wider

    dense           every inner product of Eq. 8, softmax, one matrix product, all boxes at once
    dense in tiles  the same for 11 boxes at a time, which stays in the cache
    exact           `Exact`: the sum of a column and a row term
    sampled         `Sampled`: 196 + 196 cells at most, logits gathered from the two terms
    sampled, embeddings   the same cells, inner products with gathered embeddings of the positions
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

import regio
from regio.kernels.attend import attend
from regio.kernels.cpu.attend_lists import ListedBoxes
from regio.regions.learned import Exact, LearnedRegionFeatures, Sampled, embed
from regio.regions.priors import GridPrior, RoIAlignPrior
from regio.regions.support import WholeImage
from regio.types import FeatureMap, Regions

HEIGHT, WIDTH, STRIDE, CHANNELS, PARTS = 38, 51, 16, 256, 49
TILE = 11  # boxes
SCOPES = ("kernel", "module", "prior", "sigma")
Variant = Callable[[], Tensor]
Clock = Callable[[], float]  # seconds


@dataclass(frozen=True)
class Row:
    """One variant; times in milliseconds, memory in MiB."""

    scope: str
    variant: str
    backward: bool
    median: float
    minimum: float
    iqr: float
    memory: float | None
    times_dense: float | None


def random_regions(count: int) -> Regions:
    """Boxes inside the image: sides of 32 to 512 pixels (log-uniform), aspect ratios of 1/2 to 2."""
    generator = torch.Generator().manual_seed(0)
    image = torch.tensor([WIDTH, HEIGHT]) * STRIDE
    size = 32 * 16 ** torch.rand(count, 1, generator=generator)
    ratio = 2 ** (torch.rand(count, 1, generator=generator) - 0.5)
    sides = torch.cat([size * ratio, size / ratio], 1).minimum(image)
    corner = torch.rand(count, 2, generator=generator) * (image - sides)
    return Regions(torch.cat([corner, corner + sides], 1), torch.zeros(count, dtype=torch.int64))


def softmax_sum(queries: Tensor, keys: Tensor, appearance: Tensor, x: Tensor) -> Tensor:
    """The direct form: queries [R, K, C_g], keys [HW, C_g], appearance [K, HW], x [HW, C]."""
    return (queries @ keys.t() + appearance).softmax(2) @ x


def in_tiles(queries: Tensor, keys: Tensor, appearance: Tensor, x: Tensor) -> Tensor:
    return torch.cat([softmax_sum(some, keys, appearance, x) for some in queries.split(TILE)])


def gathered(queries: Tensor, keys: Tensor, appearance: Tensor, x: Tensor, cells: Tensor) -> Tensor:
    """The paper's efficient form: the embeddings, the appearance and the features of `cells` [R, S] are gathered."""
    known = cells.clamp(min=0)
    logits = queries @ keys[known].mT + appearance.t()[known].mT
    return logits.masked_fill((cells < 0)[:, None], -torch.inf).softmax(2) @ x[known]


def gathered_in_tiles(queries: Tensor, keys: Tensor, appearance: Tensor, x: Tensor, cells: Tensor) -> Tensor:
    count = int((cells >= 0).sum(1).max())
    cells = cells.sort(1, descending=True).values[:, :count]
    tiles = zip(queries.split(TILE), cells.split(TILE), strict=True)
    return torch.cat([gathered(some, keys, appearance, x, at) for some, at in tiles])


def module_variants(boxes: int) -> tuple[dict[str, Variant], list[Tensor]]:
    """The variants of the whole module, and the tensors that receive gradients."""
    e = LearnedRegionFeatures(CHANNELS)
    x = FeatureMap(torch.randn(1, CHANNELS, HEIGHT, WIDTH).contiguous(memory_format=torch.channels_last), STRIDE)
    r = random_regions(boxes)
    cells = Sampled().cells(x, r, WholeImage()(x, r))

    def parts() -> tuple[Tensor, Tensor, Tensor, Tensor]:
        code = embed(r.boxes / STRIDE, e.embedding_channels).flatten(1) @ e.box_weight.t() * e.scale
        queries = (code @ e.part_weight.flatten(0, 1).t()).unflatten(1, (PARTS, e.key_channels))
        u = embed(torch.arange(WIDTH) + 0.5, e.embedding_channels).expand(HEIGHT, -1, -1)
        v = embed(torch.arange(HEIGHT) + 0.5, e.embedding_channels)[:, None].expand(-1, WIDTH, -1)
        keys = torch.cat([u, v], 2).flatten(0, 1) @ e.position_weight.t()
        features = x.data[0].flatten(1).t()
        return queries, keys, e.appearance_weight @ features.t(), features

    def evaluate(mode: Exact) -> Variant:
        return lambda: mode(e, x, r)

    half = torch.bfloat16
    variants: dict[str, Variant] = {
        "dense": lambda: softmax_sum(*parts()),
        "dense in tiles": lambda: in_tiles(*parts()),
        "exact": evaluate(Exact()),
        "exact, bfloat16": evaluate(Exact(aggregate_dtype=half)),
        "sampled, embeddings": lambda: gathered_in_tiles(*parts(), cells),
        "sampled": evaluate(Sampled()),
        "sampled, bfloat16": evaluate(Sampled(aggregate_dtype=half)),
    }
    return variants, [x.data, *e.parameters()]


def prior_variants(boxes: int) -> tuple[dict[str, Variant], list[Tensor]]:
    """The module with the prior of RoIAlign. The dense form has no prior, which would only take it longer."""
    e = LearnedRegionFeatures(CHANNELS, prior=RoIAlignPrior())
    x = FeatureMap(torch.randn(1, CHANNELS, HEIGHT, WIDTH).contiguous(memory_format=torch.channels_last), STRIDE)
    r = random_regions(boxes)

    def evaluate(mode: Exact) -> Variant:
        return lambda: mode(e, x, r)

    half = torch.bfloat16
    modes = {"exact": Exact(), "exact, bfloat16": Exact(aggregate_dtype=half), "sampled": Sampled()}
    return {name: evaluate(mode) for name, mode in modes.items()}, [x.data, *e.parameters()]


def gaussian_variants(boxes: int, sigma: float) -> tuple[dict[str, Variant], list[Tensor], float]:
    """The kernel on Gaussian parts, and the cells that a part reads."""
    r = random_regions(boxes)
    x = FeatureMap(torch.randn(1, CHANNELS, HEIGHT, WIDTH).contiguous(memory_format=torch.channels_last), STRIDE)
    column, row = (
        t.expand(-1, 7, 7, -1).flatten(1, 2).contiguous() for t in GridPrior(sigma)(x, r, (7, 7))
    )  # fmt: skip
    appearance, support = torch.randn(1, PARTS, HEIGHT, WIDTH) / 2, WholeImage()(x, r)
    arguments = x.data, r.image, column, row, appearance, support
    read = ListedBoxes(*arguments, torch.float32).counts().double().mean()
    variants: dict[str, Variant] = {"exact": lambda: attend(*arguments)}
    return variants, [x.data, column, row, appearance], float(read)


def kernel_variants(boxes: int) -> tuple[dict[str, Variant], list[Tensor]]:
    """The variants from queries and keys on, and the tensors that receive gradients."""
    queries, columns, rows = (torch.randn(*s, 256) * 0.2 for s in ((boxes, PARTS), (WIDTH,), (HEIGHT,)))
    x, appearance = torch.randn(1, HEIGHT, WIDTH, CHANNELS), torch.randn(1, PARTS, HEIGHT, WIDTH)
    image, support = torch.zeros(boxes, dtype=torch.int64), torch.tensor([[0, 0, WIDTH, HEIGHT]]).repeat(boxes, 1)

    def direct(form: Callable[..., Tensor]) -> Variant:
        return lambda: form(
            queries, (rows[:, None] + columns).flatten(0, 1), appearance[0].flatten(1), x[0].flatten(0, 1)
        )

    def exact(dtype: torch.dtype) -> Tensor:
        terms = queries @ torch.cat([columns, rows]).t()
        column, row = terms.split([WIDTH, HEIGHT], 2)
        return attend(x.permute(0, 3, 1, 2), image, column, row, appearance, support, aggregate_dtype=dtype)

    variants: dict[str, Variant] = {
        "dense": direct(softmax_sum),
        "dense in tiles": direct(in_tiles),
        "exact": lambda: exact(torch.float32),
        "exact, bfloat16": lambda: exact(torch.bfloat16),
    }
    return variants, [queries, columns, rows, x, appearance]


def with_backward(run: Variant, leaves: list[Tensor]) -> Variant:
    def step() -> Tensor:
        out = run()
        torch.autograd.grad(out, leaves, torch.ones_like(out))
        return out.detach()

    return step


def times_in_turn(runs: list[Variant], repeats: int, clock: Clock) -> list[list[float]]:
    """Milliseconds of each run."""
    for run in runs * 2:
        run()
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for run, measured in zip(runs, times, strict=True):
            start = clock()
            run()
            measured.append((clock() - start) * 1e3)
    return times


def peak_memory(run: Variant) -> float | None:
    """MiB by which the resident size peaks above where it was, or None where the system does not tell."""
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not reset.exists():
        return None

    def read(name: str) -> float:
        return next(int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if line.startswith(name))

    reset.write_text("5")
    before = read("VmRSS")
    run()
    return read("VmHWM") - before


def largest_difference(variants: dict[str, Variant], name: str) -> float:
    """Between `name` and dense, over the largest value; both as [R, C, K]."""
    with torch.no_grad():
        dense = variants["dense"]().mT
        return float((variants[name]() - dense).abs().max() / dense.abs().max())


def measure(scope: str, variants: dict[str, Variant], leaves: list[Tensor], repeats: int, clock: Clock) -> list[Row]:
    rows = []
    for backward in (False, True):
        for leaf in leaves:
            leaf.requires_grad_(backward)
        runs = {n: with_backward(run, leaves) if backward else run for n, run in variants.items()}
        times = dict(zip(runs, times_in_turn(list(runs.values()), repeats, clock), strict=True))
        dense = statistics.median(times["dense"]) if "dense" in times else None
        for name, measured in times.items():
            first, median, third = statistics.quantiles(measured, n=4)
            memory = peak_memory(runs[name])
            rows.append(
                Row(scope, name, backward, median, min(measured), third - first, memory, dense and dense / median)
            )
    for leaf in leaves:
        leaf.requires_grad_(False)
    return rows


def machine() -> dict[str, object]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "regio": regio.__version__, "torch": torch.__version__, "processor": (names or [platform.machine()])[0],
        "threads": torch.get_num_threads(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the table to this file")
    parser.add_argument("--repeats", type=int, default=9, help="runs of each measurement (default 9)")
    parser.add_argument("--boxes", type=int, default=300)
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="of all threads together, for a machine that does other things too",
    )
    parser.add_argument("--scopes", nargs="+", choices=SCOPES, default=SCOPES)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    about = machine() | {"boxes": arguments.boxes}
    print("  ".join(f"{k} {v}" for k, v in about.items()))
    clock = time.process_time if arguments.processor_time else time.perf_counter
    rows, differences = [], {}
    print(f"{'':8}{'':22}{'':20}{'median':>9}{'minimum':>9}{'IQR':>8} ms{'peak MiB':>10}{'x dense':>9}")

    def report(scope: str, variants: dict[str, Variant], leaves: list[Tensor]) -> None:
        for row in measure(scope, variants, leaves, arguments.repeats, clock):
            rows.append(row)
            direction = "forward + backward" if row.backward else "forward"
            memory = "" if row.memory is None else f"{row.memory:.0f}"
            times = "" if row.times_dense is None else f"{row.times_dense:.2f}"
            print(
                f"{scope:8}{row.variant:22}{direction:20}{row.median:9.1f}{row.minimum:9.1f}{row.iqr:8.1f}   "
                f"{memory:>10}{times:>9}",
                flush=True,
            )

    for scope, make in (("kernel", kernel_variants), ("module", module_variants)):
        if scope not in arguments.scopes:
            continue
        variants, leaves = make(arguments.boxes)
        differences[scope] = {n: largest_difference(variants, n) for n in ("exact", "exact, bfloat16")}
        report(scope, variants, leaves)
    if "prior" in arguments.scopes:
        report("prior", *prior_variants(arguments.boxes))
    for sigma in (0.5, 1.0, 2.0, 4.0, 8.0) if "sigma" in arguments.scopes else ():
        variants, leaves, read = gaussian_variants(arguments.boxes, sigma)
        print(f"sigma {sigma}: {read:.0f} of {HEIGHT * WIDTH} cells are read for a part")
        report(f"sigma {sigma:g}", variants, leaves)
    for scope, found in differences.items():
        for name, value in found.items():
            print(f"{scope}: largest difference of '{name}' from dense, over the largest value: {value:.1e}")
    if arguments.json:
        found = {"machine": about, "differences": differences, "rows": [asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
