"""`pool_max`: the reference, ties, empty bins, and the torch.library registration."""

import pytest
import torch
from torch import Tensor

from regio.kernels import pool_max as module
from regio.kernels.pool_max import pool_max, pool_max_reference

GROUPS = [0, 1, 2, 2, 1, 0]


def arguments(channels: int = 5, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Two maps, [image, top, bottom, left, right] of six boxes with 2 x 3 bins (some empty, some outside), level."""
    generator = torch.Generator().manual_seed(0)
    x = [torch.randn(2, channels, *s, generator=generator, dtype=torch.float64).to(dtype) for s in ((6, 8), (3, 4))]
    top, left = (torch.randint(-2, 8, (6, n), generator=generator) for n in (2, 3))
    bottom, right = (t + torch.randint(-1, 5, t.shape, generator=generator) for t in (top, left))
    return x, [torch.tensor([0, 1, 1, 0, 1, 0]), top, bottom, left, right], torch.tensor([0, 1, 0, 0, 1, 1])


@pytest.mark.parametrize("channels", [1, 5, 17, 300])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_equals_the_reference(channels: int, dtype: torch.dtype) -> None:
    x, boxes, level = arguments(channels, dtype)
    ours, theirs = pool_max(x, *boxes, level), pool_max_reference(x, *boxes, level)
    assert ours.dtype == dtype
    assert torch.equal(ours, theirs)


def test_gradients() -> None:
    x, boxes, level = arguments()
    inputs = [m.requires_grad_() for m in x]
    assert torch.autograd.gradcheck(lambda *x: pool_max(x, *boxes, level), inputs)


def one_bin(x: Tensor) -> Tensor:
    """The maximum of all cells of [1, C, H, W]."""
    zero, height, width = torch.zeros(1, 1, dtype=torch.int64), *(torch.full((1, 1), n) for n in x.shape[2:])
    return pool_max(x, zero[0], zero, height, zero, width)


def test_gradient_of_equal_cells_goes_to_the_first() -> None:
    x = torch.tensor([[1.0, 3.0, 2.0], [3.0, 3.0, 0.0]])[None, None].requires_grad_()
    one_bin(x).sum().backward()
    assert x.grad[0, 0].tolist() == [[0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize("at", [0, 2, 5])
def test_nan_gives_nan(at: int) -> None:
    x = torch.arange(6.0)
    x[at] = float("nan")
    assert one_bin(x.reshape(1, 1, 2, 3)).isnan().all()


def test_minus_infinity_is_a_value() -> None:
    assert one_bin(torch.full((1, 1, 2, 3), -torch.inf)).item() == -torch.inf


def test_empty_bin_is_zero_without_gradient() -> None:
    x = torch.full((1, 2, 3, 3), -1.0, requires_grad=True)
    at = torch.tensor([[1]])
    y = pool_max(x, torch.tensor([0]), at, at, at, at + 1)
    y.sum().backward()
    assert y.flatten().tolist() == [0, 0]
    assert not x.grad.any()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("groups", [[], GROUPS])
def test_registration(groups: list[int]) -> None:
    x, boxes, level = arguments(6, torch.float32)
    if groups:
        x = [m.unflatten(1, (2, 3)).transpose(1, 2) for m in x]
    image, *sides = boxes
    torch.library.opcheck(module._pool_max, ([m.requires_grad_() for m in x], image, level, sides, groups))
    frozen = [m.detach() for m in x], image, level, sides, groups
    grad = torch.randn(6, 2 if any(groups) else 6, 6)
    torch.library.opcheck(torch.ops.regio.pool_max_backward_maps.default, (grad, *frozen))


def test_groups_of_channels() -> None:
    x, boxes, level = arguments(6)
    grouped = [m.unflatten(1, (3, 2)) for m in x]
    y, out = pool_max(x, *boxes, level), pool_max(grouped, *boxes, level, groups=GROUPS)
    chosen = [y[:, 2 * g : 2 * g + 2].flatten(2)[..., k] for k, g in enumerate(GROUPS)]
    assert torch.equal(out.flatten(2), torch.stack(chosen, 2))
    assert torch.equal(pool_max_reference(grouped, *boxes, level, GROUPS), out)
    inputs = [m.requires_grad_() for m in grouped]
    assert torch.autograd.gradcheck(lambda *x: pool_max(x, *boxes, level, groups=GROUPS), inputs)


@pytest.mark.parametrize("name", ["top", "left"])
def test_bad_sides_raise(name: str) -> None:
    x, (image, top, bottom, left, right), level = arguments()
    sides = {"top": top, "bottom": bottom, "left": left, "right": right}
    with pytest.raises(ValueError, match=rf"{name}: expected \[R, bins\] int64"):
        pool_max(x, image, **(sides | {name: sides[name].float()}), level=level)
    with pytest.raises(ValueError, match=f"{name}: expected shape"):
        pool_max(x, image, **(sides | {name: sides[name][1:]}), level=level)
