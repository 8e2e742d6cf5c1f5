"""The CUDA kernels of `sample_points` against the reference."""

import pytest
import torch
from torch import Tensor

from regio.kernels.arguments import Reads, coordinate_dtype
from regio.kernels.cuda import sample_points
from regio.kernels.sample_points import sample_points_reference
from tests.kernels.cuda.cases import DEVICE, check, deterministic, in_groups, pyramid, with_maps


def reference(maps: list[Tensor], image: Tensor, arguments: list[Tensor], level: Tensor, groups: list[int]) -> Tensor:
    return sample_points_reference(maps, image, *arguments, level, groups)


def case(maps: list[Tensor], boxes: int = 6, parts: int = 3, samples: int = 2, groups: tuple[int, ...] = ()) -> Reads:
    """Points inside, on whole numbers, between the border cells and the outside, and far away."""
    g = torch.Generator().manual_seed(0)
    dtype = coordinate_dtype(maps[0])
    points = torch.rand(boxes, parts, samples, 2, generator=g) * 9 - 1.5
    points[::2, :1] = points[::2, :1].round()
    weight = torch.randn(boxes, parts, samples, generator=g)
    weight[:, -1:, :1] = 0
    image = torch.randint(0, len(maps[0]), (boxes,), generator=g)
    level = torch.arange(boxes) % len(maps)
    arguments = [points.to(dtype).to(DEVICE), weight.to(dtype).to(DEVICE)]
    return Reads(maps, image.to(DEVICE), level.to(DEVICE), arguments, list(groups))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_equals_reference(dtype: torch.dtype) -> None:
    check(sample_points, reference, case(pyramid(3, dtype)))


def test_levels_and_groups() -> None:
    maps = pyramid(6, sizes=((5, 7), (9, 4), (1, 1)))
    check(sample_points, reference, case(in_groups(maps), boxes=9, groups=(1, 0, 2)))


def test_several_blocks() -> None:
    """More parts and channels than a program takes, and a map of several tiles."""
    check(sample_points, reference, case(pyramid(70, sizes=((9, 9),), images=1), boxes=2, parts=18, samples=1))


@pytest.mark.parametrize(
    "form", [lambda x: x.contiguous(memory_format=torch.channels_last), lambda x: x.mT, lambda x: x[:, ::2]]
)
def test_memory_formats(form: object) -> None:
    check(sample_points, reference, with_maps(case(pyramid(4)), form))


@pytest.mark.parametrize(("boxes", "parts", "samples"), [(0, 3, 2), (2, 0, 2), (2, 3, 0)])
def test_nothing_to_read(boxes: int, parts: int, samples: int) -> None:
    check(sample_points, reference, case(pyramid(3), boxes, parts, samples))


def test_a_gradient_in_any_layout() -> None:
    c = case(pyramid(3))
    grad = torch.ones((), device=DEVICE).expand(6, 3, 3)
    for a, b in zip(
        sample_points.backward_maps(grad, c), sample_points.backward_maps(grad.contiguous(), c), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_points_that_are_no_numbers_read_zero() -> None:
    c = case(pyramid(3), boxes=2, parts=1, samples=3)
    points, weight = c.arguments
    points[0, 0, 0], points[0, 0, 1, 1], points[1, 0, 1] = float("nan"), float("inf"), float("-inf")
    zeroed = Reads(c.maps, c.image, c.level, [points, weight.where(points.isfinite().all(-1), 0)], [])
    grad = torch.ones(2, 3, 1, device=DEVICE)
    assert torch.equal(sample_points.forward(c), sample_points.forward(zeroed))
    assert all(g.isfinite().all() for g in sample_points.backward_arguments(grad, c))
    with deterministic():
        pairs = zip(sample_points.backward_maps(grad, c), sample_points.backward_maps(grad, zeroed), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_a_whole_number_reads_one_cell() -> None:
    """Its neighbours may hold anything."""
    x = torch.full((1, 1, 3, 3), float("nan"), device=DEVICE)
    x[0, 0, 1, 1] = 2
    zero = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    points, weight = torch.ones(1, 1, 1, 2, device=DEVICE), torch.full((1, 1, 1), 3.0, device=DEVICE)
    assert sample_points.forward(Reads([x], zero, zero, [points, weight], [])).item() == 6


def test_an_index_out_of_range_gives_nan() -> None:
    c = case(pyramid(3, sizes=((5, 7), (4, 4))), boxes=4)
    image, level = c.image.clone(), c.level.clone()
    image[0], level[1] = 2, -1
    bad = Reads(c.maps, image, level, c.arguments, [])
    out, whole = sample_points.forward(bad), sample_points.forward(c)
    assert out[:2].isnan().all() and torch.equal(out[2:], whole[2:])
    grad = torch.ones_like(out)
    assert all(not g[:2].any() for g in sample_points.backward_arguments(grad, bad))
    assert all(g.isfinite().all() for g in sample_points.backward_maps(grad, bad))
