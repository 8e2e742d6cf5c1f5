"""The vector instructions of the CPU kernels against the plain loops of the same names, and these in their place."""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
import torch

from regio.kernels.cpu import inner_loops, simd, simd_plain
from regio.kernels.cpu.compile import compiled
from regio.kernels.cpu.simd_plain import NARROW, SIDE, WIDE, WINDOW

U = np.uintp
Array = np.ndarray[Any, Any]

# Around numbers whose sums are exact in any order, everything that a float may be.
SPECIAL = np.array([-0.0, 0.0, np.inf, -np.inf, np.nan, 1e-45, -3.4e38])


def numbers(size: int, dtype: type, special: bool = False) -> Array:
    """Small multiples of 1 / 4, of which products of three are exact in float32; with `special`, NaN, infinities and
    zeros of both signs among them."""
    generator = np.random.default_rng(size)
    x = generator.integers(-8, 9, size) / 4.0
    if special:
        places = generator.random(size) < 0.2
        x[places] = generator.choice(SPECIAL, places.sum())
    with np.errstate(over="ignore"):
        return x.astype(dtype)


@cache
def caller(module: Any, name: str, source: str) -> Callable[..., Any]:
    """A kernel that calls the function `name` of a module, `source` being the arguments: intrinsics can be called by
    compiled code only."""
    namespace = {"f": getattr(module, name), "U": U, "WIDE": WIDE, "NARROW": NARROW, "SIDE": SIDE}
    parameters = "a, b, x, y, z, offsets, more, w, v"
    exec(f"def call({parameters}):\n    return f({source})", namespace)
    return numba.njit(error_model="numpy")(namespace["call"])


def both(name: str, source: str, make: Callable[[], tuple[Any, ...]]) -> None:
    """Equal results and equal contents of all arrays afterwards, NaN where NaN is."""
    found = []
    for module in (simd, simd_plain):
        arguments = make()
        with np.errstate(all="ignore"):
            result = caller(module, name, source)(*arguments)
        found.append((result, arguments))
    (result, arrays), (expected, others) = found
    np.testing.assert_equal(result, expected)
    for array, other in zip(arrays, others, strict=True):
        np.testing.assert_array_equal(array, other)


SLOW = pytest.param(np.float64, False, marks=pytest.mark.slow)  # each dtype is compiled, which takes seconds in all

CASES = {
    "sum_list": "x, offsets, w, U(b), a, y, U(3), {width}",
    "add_list": "x, offsets, w, U(b), a, y, U(3), {width}",
    "sum_grid": "x, offsets, w, 1, a, more, v, 2, a, U(b), y, U(3), {width}",
    "add_grid": "x, offsets, w, 1, a, more, v, 2, a, U(b), y, U(3), {width}",
    "maximum": "x, U(b), 151, 37, a, a + 1, y, U(3), {width}",
    "add_to_maximum": "x, U(b), 151, 37, a, a + 1, z, U(5), 163, 41, y, U(3), {width}",
}
NEEDS_A_CELL = ("maximum", "add_to_maximum")


@pytest.mark.parametrize("dtype", [np.float32, pytest.param(np.float64, marks=pytest.mark.slow)])
@pytest.mark.parametrize("width", ["WIDE", pytest.param("NARROW", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CASES)
def test_blocks_of_channels(name: str, width: str, dtype: type) -> None:
    """From odd offsets on, of no cells, one and several, of which some are the same; with NaN, infinities and -0."""
    offsets, more = np.array([0, 7, 200, 7, 31, 5], U), np.array([0, 3, 11, 64, 1, 2, 9], U)
    for special in (False, True):
        for count in (1, 3) if name in NEEDS_A_CELL else (0, 1, 4):
            both(
                name,
                CASES[name].format(width=width),
                lambda count=count, special=special: (
                    count, 9, numbers(900, dtype, special), numbers(101, dtype, special), numbers(902, dtype, special),
                    offsets, more, numbers(8, dtype), numbers(9, dtype),
                ),
            )  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_sign_of_a_maximum_that_is_zero(dtype: type) -> None:
    """Of -0 and +0 the first cell is the maximum, in both forms."""
    for first in (-0.0, 0.0):
        signs = []
        for module in (simd, simd_plain):
            x = np.concatenate([np.full(NARROW, first), np.full(NARROW, -first)]).astype(dtype)
            y = np.ones(NARROW, dtype)
            call = caller(module, "maximum", "x, U(0), 0, NARROW, 1, 2, y, U(0), NARROW")
            call(0, 0, x, y, y, y, y, y, y)
            signs.append(np.signbit(y))
        assert (signs[0] == np.signbit(first)).all() and (signs[1] == signs[0]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_transposition(dtype: type) -> None:
    source = "x, U(b), U(a), y, U(1), U(19)"
    both("transpose_block", source, lambda: (17, 3, numbers(300, dtype, True), numbers(330, dtype), 0, 0, 0, 0, 0))


@pytest.mark.parametrize("dtype", [np.float32, pytest.param(np.float64, marks=pytest.mark.slow)])
@pytest.mark.parametrize("columns", [1, 5, WINDOW, WINDOW + 3])
def test_windows_of_a_row(columns: int, dtype: type) -> None:
    """Where the weight is zero the map is not read: it holds NaN there, or ends."""
    pieces = -(-columns // WINDOW)
    weights = np.zeros(pieces * WINDOW + 3, dtype)
    weights[3 : 3 + columns] = numbers(columns, dtype)
    weights[3] = -0.0
    x = np.full(41 + columns, np.nan, dtype)
    read = 3 + np.flatnonzero(weights[3 : 3 + columns])
    for row in (0, 9, 40):
        x[row + read - 3] = numbers(len(read), dtype)
    offsets = np.array([5, 0, 9, 40, 0], U)

    def make(count: int) -> tuple[Any, ...]:
        return count, pieces, x.copy(), 0, 0, offsets, 0, numbers(6, dtype), weights

    for count in (0, 1, 4):
        both("sum_window", "x, U(0), offsets, w, 1, a, v, 3, b", lambda count=count: make(count))
        source = "x, U(0), offsets, w, 1, a, v, 3, b, w[0]"
        both("add_window", source, lambda count=count: make(count))
    weights[3] = np.nan  # a weight that is not a number is not zero
    both("sum_window", "x, U(0), offsets, w, 1, a, v, 3, b", lambda: make(2))


@pytest.mark.parametrize(("dtype", "half"), [(np.float32, False), (np.float32, True), SLOW])
@pytest.mark.parametrize("width", [1, 5, SIDE, 37])
def test_maps_of_weights(width: int, dtype: type, half: bool) -> None:
    """In float32, in float64, and with bfloat16 numbers in uint16; what surrounds the arrays stays."""
    other = np.uint16 if half else dtype
    generator = np.random.default_rng(width)

    def products() -> Array:
        if half:
            return (numbers(3 * width + 8, np.float32).view(np.uint32) >> 16).astype(other)
        return numbers(3 * width + 8, dtype)

    for height in (0, 1, 3):
        terms = numbers(width + 4, dtype), numbers(height + 2, dtype), numbers(3 * width + 8, dtype)
        if half:
            terms[0][:] += generator.random(width + 4) / 64  # so that something is rounded
        for special in (False, True):
            if special and height and width > 1:
                terms[0][2], terms[0][3] = np.nan, np.inf

            def make(height: int = height, terms: tuple[Array, ...] = terms) -> tuple[Any, ...]:
                column, rows, appearance = (t.copy() for t in terms)
                return height, width, column, products(), appearance, rows, 0, 0, 0

            if not (half and not special):  # a sum of rounded numbers depends on their order
                both("weigh_map", "x, U(1), offsets, U(2), z, U(3), y, U(5), a, b", make)
                both("dot_map", "x, U(1), offsets, U(2), z, U(3), y, U(5), a, b", make)


def test_weights_are_rounded_to_bfloat16() -> None:
    """Halves to the even neighbour, NaN to NaN, and what is above the largest number to infinity."""
    x = np.concatenate([numbers(64, np.float32, True), np.random.default_rng(0).standard_normal(64, np.float32)])
    x = np.concatenate([x, np.array([0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x7F800001], np.uint32).view(np.float32)])
    one, expected = np.ones(1, np.float32), torch.from_numpy(x).bfloat16()
    for module in (simd, simd_plain):
        out = np.zeros(x.size, np.uint16)
        call = caller(module, "weigh_map", "x, U(0), y, U(0), z, U(0), w, U(0), 1, a")
        call(x.size, 0, x, one, np.ones_like(x), 0, 0, out, 0)
        found = torch.from_numpy(out.view(np.int16)).view(torch.bfloat16)
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("dtype", "half"), [(np.float32, False), (np.float32, True), SLOW])
@pytest.mark.parametrize("width", [1, 5, SIDE, 37])
def test_gradients_of_logits(width: int, dtype: type, half: bool) -> None:
    products = numbers(width + 5, dtype)
    if half:
        products = (products.view(np.uint32) >> 16).astype(np.uint16)

    def make() -> tuple[Any, ...]:
        rest = numbers(width + 4, dtype), numbers(width + 9, dtype), numbers(width + 3, dtype)
        return 0, width, numbers(width + 2, dtype), products, rest[0], rest[1], rest[2], numbers(2, dtype), 0

    both("add_logits_of_row", "x, U(1), w[0], z, U(2), y, U(4), w[1], offsets, more, b", make)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("count", [0, 1, 5, SIDE, 37])
def test_the_largest_and_what_is_not_below(count: int, dtype: type) -> None:
    """With NaN and infinities too; the elements around are larger."""
    for special in (False, True):
        x = numbers(count + 6, dtype, special)
        x[:3], x[3 + count :] = 99, np.nan
        for limit in (-np.inf, -0.5, 1.75, 8, np.nan):

            def make(x: Array = x, limit: float = limit) -> tuple[Any, ...]:
                return count, 0, x.copy(), np.array([limit], dtype), 0, 0, 0, 0, 0

            both("largest", "x, U(3), a", make)
            both("span_not_below", "x, U(3), a, y[0]", make)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("count", [0, 1, 5, SIDE, 37])
def test_weights_of_a_row_that_count(count: int, dtype: type) -> None:
    """From the first to the last of each vector; what surrounds them stays."""
    for special in (False, True):
        for least in (-np.inf, 0.25, 6, 1e9):

            def make(special: bool = special, least: float = least) -> tuple[Any, ...]:
                column, appearance = numbers(count + 2, dtype, special), numbers(count + 5, dtype)
                cells, weights = np.full(count + 9, -7, np.int32), np.full(count + 9, -7, dtype)
                return count, 40, column, appearance, weights, cells, 0, np.array([0.5, least], dtype), 0

            both("keep_weights_of_row", "x, U(1), w[0], y, U(2), w[1], a, b, z, offsets, U(4)", make)


@compiled
def _of_any_width(x: Array, width: int) -> None:
    simd.maximum(x, U(0), 0, 0, 1, 1, x, U(0), width)


def test_the_width_of_a_block_is_a_constant() -> None:
    with pytest.raises(Exception, match="width: expected a constant"):
        _of_any_width(np.zeros(64, np.float32), 16)


def test_every_function_has_both_forms() -> None:
    functions = {n for n in simd_plain.__all__ if not n.isupper()}
    assert functions == set(simd.__all__) - {"call_each"} == {n for n in inner_loops.__all__ if not n.isupper()}
    assert all(getattr(inner_loops, n) is getattr(simd, n) for n in functions)


def test_llvm_is_written_in_one_file() -> None:
    sources = Path(simd.__file__).parents[2].rglob("*.py")
    assert [p.name for p in sources if "from llvmlite" in p.read_text() or "intrinsic(" in p.read_text()] == ["simd.py"]


FALLBACK = """
import warnings
import llvmlite.ir
import torch

{change}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from regio.kernels.cpu import inner_loops, simd_plain
(warning,) = caught
print(warning.category.__name__, warning.message)
assert inner_loops.sum_grid is simd_plain.sum_grid and inner_loops.weigh_map is simd_plain.weigh_map

from regio.kernels.attend import attend, attend_reference
from regio.kernels.pool_max import pool_max, pool_max_reference
from regio.kernels.sample_grid import sample_grid, sample_grid_reference
from regio.kernels.sample_points import sample_points, sample_points_reference

torch.manual_seed(0)
image = torch.arange(9) % 2


def check(run, reference, x, *arguments):
    leaves = [t.double().requires_grad_() if t.is_floating_point() else t for t in (x, *arguments)]
    found, expected = run(leaves[0], image, *leaves[1:]), reference(leaves[0], image, *leaves[1:])
    torch.testing.assert_close(found, expected)
    wanted = [t for t in leaves if t.requires_grad]
    gradients = (torch.autograd.grad(y, wanted, torch.cos(expected.detach())) for y in (found, expected))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


for channels in (1, 83):
    x = torch.randn(2, channels, 12, 17)
    rows, columns = torch.rand(9, 3, 2) * 12, torch.rand(9, 4, 2) * 17
    check(sample_grid, sample_grid_reference, x, rows, columns, torch.randn(9, 3, 2), torch.randn(9, 4, 2))
    check(sample_points, sample_points_reference, x, torch.rand(9, 3, 4, 2) * 12, torch.randn(9, 3, 4))
    top, left = torch.randint(0, 9, (9, 3)), torch.randint(0, 9, (9, 4))
    check(pool_max, pool_max_reference, x, top, top + 3, left, left + 2)
    support = torch.tensor([[0, 0, 17, 12]]).expand(9, 4)
    terms = torch.randn(9, 5, 17), torch.randn(9, 5, 12), torch.randn(2, 5, 12, 17)
    check(attend, attend_reference, x, *terms, support)
half = x.bfloat16()
torch.testing.assert_close(
    attend(half, image, *terms, support), attend_reference(half, image, *terms, support), rtol=3e-2, atol=3e-2
)
"""


@pytest.mark.slow
def test_plain_loops_take_the_place_of_what_cannot_be_built(tmp_path: Path) -> None:
    """The second change finds the kernels of the first on the disk: it has the same loops."""
    for change in (
        "del llvmlite.ir.IRBuilder.shuffle_vector",  # noticed when the instructions are built
        "import numba.extending; del numba.extending.intrinsic",  # noticed when the file is imported
    ):
        run = subprocess.run(
            [sys.executable, "-c", FALLBACK.format(change=change)],
            env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}, capture_output=True, text=True,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        assert run.stdout.startswith("RuntimeWarning The vector instructions of regio's CPU kernels cannot be built")
        assert len(run.stdout.splitlines()) == 1
