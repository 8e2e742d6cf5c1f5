"""The CUDA kernels of `sample_grid` against the reference."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from regio.kernels.arguments import Reads, coordinate_dtype
from regio.kernels.cuda import sample_grid
from regio.kernels.sample_grid import sample_grid_reference
from tests.kernels.cuda.cases import DEVICE, check, in_groups, pyramid, with_maps


def reference(maps: list[Tensor], image: Tensor, arguments: list[Tensor], level: Tensor, groups: list[int]) -> Tensor:
    rows, row_weight, columns, column_weight = arguments
    return sample_grid_reference(maps, image, rows, columns, row_weight, column_weight, level, groups).flatten(2)


def case(
    maps: list[Tensor],
    boxes: int = 5,
    bins: tuple[int, int] = (2, 3),
    samples: tuple[int, int] = (2, 1),
    groups: tuple[int, ...] = (),
) -> Reads:
    """Samples inside, on whole numbers, on the same cells, between the border cells and the outside, and far away."""
    g = torch.Generator().manual_seed(0)
    arguments = []
    for k, s in zip(bins, samples, strict=True):
        positions = torch.rand(boxes, k, s, generator=g) * 9 - 1.5
        positions[::2, :1] = positions[::2, :1].round()
        positions[1::2] = positions[1::2] / 3
        weight = torch.randn(boxes, k, s, generator=g)
        weight[1:2, :, 1:] = 0
        arguments += [a.to(coordinate_dtype(maps[0])).to(DEVICE) for a in (positions, weight)]
    image = torch.randint(0, len(maps[0]), (boxes,), generator=g)
    level = torch.arange(boxes) % len(maps)
    return Reads(maps, image.to(DEVICE), level.to(DEVICE), arguments, list(groups))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_equals_reference(dtype: torch.dtype) -> None:
    check(sample_grid, reference, case(pyramid(3, dtype)))


def test_levels_and_groups() -> None:
    maps = pyramid(6, sizes=((5, 7), (9, 4), (1, 1)))
    check(sample_grid, reference, case(in_groups(maps), samples=(1, 3), groups=(1, 0, 2, 2, 0, 1)))


def test_several_blocks() -> None:
    """More bins and channels than a program takes, and a map of several tiles."""
    check(sample_grid, reference, case(pyramid(70, sizes=((9, 9),), images=1), 2, (3, 6), (1, 2)))


@pytest.mark.parametrize("form", [lambda x: x.contiguous(memory_format=torch.channels_last), lambda x: x.mT])
def test_memory_formats(form: Callable[[Tensor], Tensor]) -> None:
    check(sample_grid, reference, with_maps(case(pyramid(4)), form))


@pytest.mark.parametrize(
    ("boxes", "bins", "samples"), [(0, (2, 2), (1, 1)), (2, (0, 2), (1, 1)), (2, (1, 2), (0, 1)), (2, (1, 2), (1, 0))]
)
def test_nothing_to_read(boxes: int, bins: tuple[int, int], samples: tuple[int, int]) -> None:
    check(sample_grid, reference, case(pyramid(3), boxes, bins, samples))


def test_positions_that_are_no_numbers_read_zero() -> None:
    c = case(pyramid(3), boxes=2, samples=(2, 2))
    rows, _, columns, _ = c.arguments
    rows[0, 0, 0], rows[0, 1, 0], columns[1, 0, 1] = float("nan"), float("inf"), float("-inf")
    zeroed = [a.clone() for a in c.arguments]
    for positions, weight in (zeroed[:2], zeroed[2:]):
        weight[~positions.isfinite()] = 0
    other = Reads(c.maps, c.image, c.level, zeroed, [])
    assert torch.equal(sample_grid.forward(c), sample_grid.forward(other))
    grad = torch.ones(2, 3, 6, device=DEVICE)
    assert all(g.isfinite().all() for g in sample_grid.backward_arguments(grad, c))


def test_whole_numbers_read_one_cell_each() -> None:
    """A block average of cells whose neighbours may hold anything."""
    x = torch.full((1, 1, 4, 4), float("nan"), device=DEVICE)
    x[0, 0, 1:3, 1:3] = torch.tensor([[1.0, 2], [3, 4]], device=DEVICE)
    zero = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    positions, weight = torch.tensor([[[1.0, 2]]], device=DEVICE), torch.full((1, 1, 2), 0.5, device=DEVICE)
    assert sample_grid.forward(Reads([x], zero, zero, [positions, weight, positions, weight], [])).item() == 2.5


def test_an_index_out_of_range_gives_nan() -> None:
    c = case(pyramid(3, sizes=((5, 7), (4, 4))), boxes=4)
    image, level = c.image.clone(), c.level.clone()
    image[0], level[1] = 2, -1
    bad = Reads(c.maps, image, level, c.arguments, [])
    out, whole = sample_grid.forward(bad), sample_grid.forward(c)
    assert out[:2].isnan().all() and torch.equal(out[2:], whole[2:])
    grad = torch.ones_like(out)
    assert all(not g[:2].any() for g in sample_grid.backward_arguments(grad, bad))
    assert all(g.isfinite().all() for g in sample_grid.backward_maps(grad, bad))
