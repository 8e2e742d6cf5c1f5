"""How CPU kernels run: threads, forked processes, lazy compilation, and the cache on disk."""

import itertools
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import regio
from regio.kernels.arguments import coordinate_dtype, like_maps
from regio.kernels.cpu import buffer_pool, layout
from regio.kernels.cpu import threads as cpu_threads
from regio.kernels.cpu.threads import share
from regio.regions import RoIAlign, RoIPool
from regio.regions.base import RegionExtractor
from regio.types import FeatureMap, Regions


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def ranges(total: int, grain: int = 1, shares: int = 1) -> list[tuple[int, int]]:
    calls: list[tuple[int, int]] = []
    share(lambda begin, end: calls.append((begin, end)), total, grain=grain, shares=shares)
    return sorted(calls)


def test_ranges_cover_the_work(two_threads: None) -> None:
    assert ranges(10) == [(0, 5), (5, 10)]
    assert ranges(10, shares=2) == [(0, 3), (3, 6), (6, 9), (9, 10)]
    assert ranges(40, grain=16) == [(0, 32), (32, 40)]
    assert ranges(16, grain=16) == [(0, 16)]
    assert ranges(1) == [(0, 1)]


def test_thread_count_is_torchs(two_threads: None) -> None:
    """Also when it changes after the first use; the calling thread is one of them."""
    for count in (2, 1, 3):
        torch.set_num_threads(count)
        meet = threading.Barrier(count, timeout=10)
        seen: list[int] = []

        def work(begin: int, end: int, meet: threading.Barrier = meet, seen: list[int] = seen) -> None:
            seen.append(threading.get_ident())
            meet.wait()

        if count <= (os.cpu_count() or 1) + 1:
            share(work, count)
            assert len(set(seen)) == count
            assert threading.get_ident() in seen


def test_an_error_in_another_thread_is_raised(two_threads: None) -> None:
    def work(begin: int, end: int) -> None:
        if begin > 0:
            raise ZeroDivisionError("in the second range")

    with pytest.raises(ZeroDivisionError, match="in the second range"):
        share(work, 10)


def run(extractor: RegionExtractor, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Features and gradients of 50 boxes on a map with 40 channels."""
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(2, 40, 20, 30, generator=generator).requires_grad_()
    corner = torch.rand(50, 2, generator=generator) * 100
    boxes = torch.cat([corner, corner + torch.rand(50, 2, generator=generator) * 100], 1).requires_grad_()
    y = extractor(FeatureMap(data, 8), Regions(boxes, torch.arange(50) % 2))
    y.square().sum().backward()
    return y.detach(), data.grad, boxes.grad if boxes.grad is not None else torch.zeros(0)


@pytest.mark.parametrize("extractor", [RoIAlign(), RoIPool()])
def test_result_does_not_depend_on_the_number_of_threads(extractor: RegionExtractor, two_threads: None) -> None:
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(run(extractor))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_threads_of_our_own_give_the_same(two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that run where PyTorch has no libgomp, and in a forked child."""
    assert cpu_threads._run_region is not None or sys.platform != "linux"
    expected = run(RoIAlign())
    monkeypatch.setattr(cpu_threads, "_run_region", None)
    assert all(torch.equal(a, b) for a, b in zip(expected, run(RoIAlign()), strict=True))
    test_an_error_in_another_thread_is_raised(two_threads)
    test_thread_count_is_torchs(two_threads)


def test_several_threads_at_once(two_threads: None) -> None:
    expected = [run(RoIAlign(), seed) for seed in range(4)]
    results: dict[int, tuple[Tensor, ...]] = {}
    threads = [threading.Thread(target=lambda s=s: results.__setitem__(s, run(RoIAlign(), s))) for s in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(torch.equal(a, b) for s in range(4) for a, b in zip(expected[s], results[s], strict=True))


class Features(Dataset[Tensor]):
    """Each item runs a kernel in two threads, as a proposal cache would."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        torch.set_num_threads(2)
        with torch.no_grad():
            boxes = torch.tensor([[0.0, 0.0, 40.0, 40.0], [9.0, 9.0, 90.0, 70.0]])
            x = FeatureMap(torch.arange(2400.0).reshape(1, 4, 20, 30), 8)
            return RoIAlign(2)(x, Regions(boxes, torch.zeros(2, dtype=torch.int64)))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_forked_workers_run_kernels(two_threads: None) -> None:
    expected = Features()[0]  # the parent has used its threads before the fork
    loader = DataLoader(Features(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60)
    items = list(loader)
    assert len(items) == 4
    assert all(torch.equal(item, expected) for item in items)


def test_memory_of_a_result_is_used_again_once_it_is_free() -> None:
    buffer_pool.release()
    first = buffer_pool.empty((1 << 20,), torch.float32)
    place, view = first.data_ptr(), first[5:].view(-1, 1)
    assert buffer_pool.empty((1 << 20,), torch.float32).data_ptr() != place
    del first
    view.fill_(3)  # a view keeps it
    assert buffer_pool.empty((1 << 20,), torch.float32).data_ptr() != place
    del view
    again = buffer_pool.empty((1000, 1001), torch.float32)
    assert again.data_ptr() == place
    assert buffer_pool.empty((1 << 20,), torch.float32).data_ptr() != place
    buffer_pool.release()


def test_kept_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffer_pool, "_MOST", 20 << 20)
    buffer_pool.release()
    several = [buffer_pool.empty((4 << 20,), torch.uint8) for _ in range(8)]
    del several
    assert 0 < sum(b.nbytes for b in buffer_pool._free) <= 20 << 20
    buffer_pool.release()
    assert not buffer_pool._free


def test_large_results_are_ordinary_tensors() -> None:
    for shape in ((0, 5), (3,), (700, 1001), (3, 1 << 20)):
        tensor = buffer_pool.empty(shape, torch.float64)
        assert tensor.shape == shape
        assert tensor.dtype == torch.float64
        assert tensor.is_contiguous()
        assert not tensor.zero_().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (2, 16, 4, 8), (3, 37, 5, 7), (1, 20, 0, 3), (0, 3, 2, 2), (2, 600, 17, 31)]
)
def test_maps_are_transposed_and_back(shape: tuple[int, ...], dtype: torch.dtype, two_threads: None) -> None:
    x = torch.randn(shape).to(dtype)
    wide = coordinate_dtype(x)
    for stored in (x, x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3).contiguous().transpose(2, 3)):
        flat = torch.from_numpy(layout.cells(stored, wide))
        cells = flat.view(*(shape[i] for i in (0, 2, 3, 1)))
        assert torch.equal(cells, x.permute(0, 2, 3, 1).to(wide))
        target = layout.empty_like_map(stored, wide)
        (like,) = like_maps([stored])
        assert target.stride() == like.stride() or not x.numel()
        for begin, end in ((0, shape[1] // 3), (shape[1] // 3, shape[1])):
            layout.put_channels(cells[..., begin:end].reshape(-1).numpy(), target, begin, end)
        assert torch.equal(target, x.to(wide))


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1, 1), (2, 4, 3, 4, 8), (1, 49, 1, 5, 7), (1, 1, 40, 5, 7), (3, 5, 70, 9, 9)]
)
@pytest.mark.parametrize("order", list(itertools.permutations((1, 2, 3, 4))))
def test_maps_of_groups_are_copied_and_back(shape: tuple[int, ...], order: tuple[int, ...], two_threads: None) -> None:
    """As cells and as planes, from every order of groups, channels, rows and columns in memory."""
    x = torch.randn(shape, dtype=torch.bfloat16)
    back = tuple(1 + order.index(i) for i in (1, 2, 3, 4))
    stored = x.permute(0, *order).contiguous().permute(0, *back)
    cells = torch.from_numpy(layout.cells(stored, torch.float32)).view(*(shape[i] for i in (0, 3, 4, 1, 2)))
    assert torch.equal(cells, x.float().permute(0, 3, 4, 1, 2))
    planes, target = layout.planes(stored, torch.float32), layout.empty_like_map(stored, torch.float32)
    assert torch.equal(planes, x.float())
    assert layout.has_planes(planes)
    assert target.stride() == torch.empty_like(stored).stride()
    own = layout.planes_for(target).copy_(x)
    assert layout.has_planes(own)
    layout.put_planes(own, target)
    assert torch.equal(target, x.float())
    target.fill_(torch.nan)
    for begin, end in ((0, shape[2] // 3), (shape[2] // 3, shape[2])):
        layout.put_channels(cells[..., begin:end].reshape(-1).numpy(), target, begin, end)
    assert torch.equal(target, x.float())


def test_boxes_are_sorted_by_level() -> None:
    level, image = np.array([2, 0, 2, 2, 0]), np.array([0, 1, 0, 1, 1])
    rows = layout.boxes_of_each_level(image, level, 2, 4)
    assert [r.tolist() for r in rows] == [[1, 4], [], [0, 2, 3], []]
    assert [len(r) for r in layout.boxes_of_each_level(level[:0], level[:0], 2, 2)] == [0, 0]
    with pytest.raises(ValueError, match=r"level: expected an index in \[0, 2\), got 2 at row 0"):
        layout.boxes_of_each_level(image, level, 2, 2)
    with pytest.raises(ValueError, match=r"image: expected an index in \[0, 1\), got 1 at row 1"):
        layout.boxes_of_each_level(image, level, 1, 4)


@pytest.mark.slow
def test_import_does_not_load_numba() -> None:
    code = "import sys, regio.regions, regio.kernels.nms; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


NMS = """
import torch
from regio.kernels.nms import nms
boxes = torch.tensor([[0., 0., 2., 2.], [0., 0., 2., 2.], [5., 5., 6., 6.]])
print(nms(boxes, torch.tensor([.5, .6, .7]), .5).tolist())
"""


def run_copy(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run nms in a new process from a copy of the package, and report."""
    return subprocess.run(
        [sys.executable, "-c", NMS], env=os.environ | {"PYTHONPATH": str(folder)} | environment, capture_output=True,
        text=True, check=True,
    )  # fmt: skip


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder that holds a copy of the package, without anything compiled."""
    source = Path(regio.__file__).parent
    shutil.copytree(source, tmp_path / "regio", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def kept(folder: Path) -> dict[Path, int]:
    """The files of compiled kernels below a folder, and when each was written."""
    return {p: p.stat().st_mtime_ns for p in folder.glob("**/kernels-*/*.bin")}


@pytest.mark.slow
def test_compiled_kernels_are_kept(package: Path) -> None:
    assert run_copy(package).stdout.strip() == "[2, 1]"
    files = kept(package / "regio/kernels/cpu/__pycache__")
    assert files
    run_copy(package)
    assert files == kept(package / "regio/kernels/cpu/__pycache__")


@pytest.mark.slow
def test_the_users_folder_for_compiled_kernels(package: Path, tmp_path: Path) -> None:
    """Numba's own variable names it; a damaged file is written again."""
    run_copy(package, NUMBA_CACHE_DIR=str(tmp_path / "numba"))
    files = kept(tmp_path / "numba")
    assert files and not kept(package / "regio")
    for p in files:
        p.write_bytes(p.read_bytes()[:100])
    assert run_copy(package, NUMBA_CACHE_DIR=str(tmp_path / "numba")).stdout.strip() == "[2, 1]"
    assert all(p.stat().st_size > 100 for p in files)


HELPER = """
from regio.kernels.cpu.compile import compiled

@compiled
def number():
    return {value}
"""

KERNEL = """
from regio.kernels.cpu.compile import compiled
from regio.kernels.cpu.helper import number

@compiled
def ten_times():
    return 10 * number()
"""


@pytest.mark.slow
def test_a_changed_helper_is_compiled_again(package: Path) -> None:
    """Also where several processes start at once; what older sources were compiled to is removed."""
    code = "from regio.kernels.cpu.kernel import ten_times; print(ten_times())"
    (package / "regio/kernels/cpu/kernel.py").write_text(KERNEL)
    folders = set()
    for value in (3, 4):
        (package / "regio/kernels/cpu/helper.py").write_text(HELPER.format(value=value))
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(package)}, stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(3)
        ]  # fmt: skip
        for process in processes:
            assert process.communicate(timeout=120)[0].strip() == str(10 * value)
            assert process.returncode == 0
        (folder,) = {p.parent for p in kept(package)}
        folders.add(folder)
        assert {p.suffix for p in folder.iterdir()} == {".bin"}
    assert len(folders) == 2


@pytest.mark.slow
def test_no_directory_for_the_cache(package: Path, tmp_path: Path) -> None:
    """Compiled without a cache where neither the package nor the user's directory can be written."""
    (package / "regio/kernels/cpu/__pycache__").write_text("a file where the directory would be")
    (tmp_path / "file").touch()
    blocked = str(tmp_path / "file" / "below")
    out = run_copy(package, HOME=blocked, XDG_CACHE_HOME=blocked, IPYTHONDIR=blocked, PYTHONDONTWRITEBYTECODE="1")
    assert out.stdout.strip() == "[2, 1]"
    assert (package / "regio/kernels/cpu/__pycache__").is_file()
    assert not kept(tmp_path)
