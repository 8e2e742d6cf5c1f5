"""The CUDA kernels of `pool_max` against the reference."""

import pytest
import torch
from torch import Tensor

from regio.kernels.arguments import Reads
from regio.kernels.cuda import pool_max
from regio.kernels.pool_max import pool_max_reference
from tests.kernels.cuda.cases import DEVICE, check, deterministic, in_groups, pyramid, with_maps


def reference(maps: list[Tensor], image: Tensor, arguments: list[Tensor], level: Tensor, groups: list[int]) -> Tensor:
    return pool_max_reference(maps, image, *arguments, level, groups).flatten(2)


def case(maps: list[Tensor], boxes: int = 5, bins: tuple[int, int] = (2, 3), groups: tuple[int, ...] = ()) -> Reads:
    """Bins of all sizes, empty ones, ones that overlap, and ones that lie partly or wholly outside."""
    g = torch.Generator().manual_seed(0)
    top, left = (torch.randint(-3, 8, (boxes, k), generator=g) for k in bins)
    bottom, right = (low + torch.randint(-1, 6, low.shape, generator=g) for low in (top, left))
    image = torch.randint(0, len(maps[0]), (boxes,), generator=g)
    level = torch.arange(boxes) % len(maps)
    arguments = [a.to(DEVICE) for a in (top, bottom, left, right)]
    return Reads(maps, image.to(DEVICE), level.to(DEVICE), arguments, list(groups))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_equals_reference(dtype: torch.dtype) -> None:
    check(pool_max, reference, case(pyramid(3, dtype)))


def test_levels_and_groups() -> None:
    maps = pyramid(6, sizes=((5, 7), (9, 4), (1, 1)))
    check(pool_max, reference, case(in_groups(maps), boxes=9, groups=(1, 0, 2, 2, 0, 1)))


def test_several_blocks() -> None:
    """More bins and channels than a program takes, and a map of several tiles."""
    check(pool_max, reference, case(pyramid(70, sizes=((9, 9),), images=1), 2, (3, 6)))


def test_channels_last() -> None:
    check(pool_max, reference, with_maps(case(pyramid(4)), lambda x: x.contiguous(memory_format=torch.channels_last)))


@pytest.mark.parametrize(("boxes", "bins"), [(0, (2, 2)), (2, (0, 2)), (2, (1, 0))])
def test_nothing_to_read(boxes: int, bins: tuple[int, int]) -> None:
    check(pool_max, reference, case(pyramid(3), boxes, bins))


def one_bin(x: Tensor) -> Reads:
    """The whole of a map as one bin."""
    zero = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    low, far = zero[:, None], torch.full((1, 1), 1 << 40, device=DEVICE)
    return Reads([x.to(DEVICE)], zero, zero, [low - (1 << 40), far, low, far], [])


@pytest.mark.parametrize("values", [[1.0, 5, 2, 5], [-3.0, -2, -2, -5], [float("-inf")] * 4])
def test_the_first_of_equals_gets_the_gradient(values: list[float]) -> None:
    c = one_bin(torch.tensor(values).view(1, 1, 2, 2))
    first = max(values)
    assert pool_max.forward(c).item() == first
    wanted = torch.zeros(4, device=DEVICE)
    wanted[values.index(first)] = 3
    grad = torch.full((1, 1, 1), 3.0, device=DEVICE)
    assert torch.equal(pool_max.backward_maps(grad, c)[0].flatten(), wanted)
    with deterministic():
        assert torch.equal(pool_max.backward_maps(grad, c)[0].flatten(), wanted)


@pytest.mark.parametrize("at", range(4))
def test_not_a_number_is_not_hidden(at: int) -> None:
    x = torch.tensor([1.0, 5, 2, 5])
    x[at] = float("nan")
    assert pool_max.forward(one_bin(x.view(1, 1, 2, 2))).isnan().all()


def test_an_index_out_of_range_gives_nan() -> None:
    c = case(pyramid(3, sizes=((5, 7), (4, 4))), boxes=4)
    image, level = c.image.clone(), c.level.clone()
    image[0], level[1] = 2, -1
    bad = Reads(c.maps, image, level, c.arguments, [])
    out, whole = pool_max.forward(bad), pool_max.forward(c)
    assert out[:2].isnan().all() and torch.equal(out[2:], whole[2:])
    grads = pool_max.backward_maps(torch.ones_like(out), bad)
    with deterministic():
        for a, b in zip(grads, pool_max.backward_maps(torch.ones_like(out), bad), strict=True):
            torch.testing.assert_close(a, b)
