"""Multi-scale deformable attention against its pure PyTorch form by `grid_sample`."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from regio import ops
from tests.ops.parity import TOLERANCE, same, tensor

SHAPES = [(6, 5), (3, 3), (2, 1)]
STARTS = [0, 30, 39]


def by_grid_sample(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """Zhu et al. 2021, Eq. 3: a sum over levels and points for each head, by PyTorch's own bilinear sampling."""
    n, _, heads, channels = value.shape
    total = 0
    for level, (h, w) in enumerate(SHAPES):
        cells = value[:, STARTS[level] : STARTS[level] + h * w]
        maps = cells.permute(0, 2, 3, 1).reshape(n * heads, channels, h, w)
        grid = (2 * locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)  # [N * heads, Lq, points, 2]
        samples = grid_sample(maps, grid, align_corners=False).unflatten(0, (n, heads))
        total = total + torch.einsum("mhcqp,mqhp->mqhc", samples, weights[:, :, :, level])
    return total.flatten(2)


def inputs(dtype: torch.dtype = torch.float64, images: int = 2, queries: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """Value, locations (some outside) and weights for 4 heads of 3 channels, 3 levels, 5 points."""
    locations = (tensor(images, queries, 4, 3, 5, 2, dtype=dtype, seed=1, spread=0.5) + 0.5).requires_grad_()
    weights = tensor(images, queries, 4, 3, 5, dtype=dtype, seed=2).requires_grad_()
    return tensor(images, 41, 4, 3, dtype=dtype).requires_grad_(), locations, weights


def attention(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    return ops.ms_deform_attn(value, SHAPES, STARTS, locations, weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("images", [1, 2])
def test_equals_the_pure_pytorch_form(dtype: torch.dtype, images: int) -> None:
    same(attention, by_grid_sample, *inputs(dtype, images), tolerance=TOLERANCE[dtype])


def test_samples_do_not_cross_into_the_next_level() -> None:
    """Just below the last row of a level, a sample fades to zero, though another level follows in memory."""
    value = torch.ones(1, 41, 1, 1, dtype=torch.float64)
    y = torch.tensor([5.75 / 6, 6.0 / 6, 6.25 / 6], dtype=torch.float64)  # 5.25, 5.5 and 5.75 cells
    locations = torch.stack([torch.full_like(y, 0.5), y], -1)[None, :, None, None, None].repeat(1, 1, 1, 3, 1, 1)
    weights = torch.tensor([1.0, 0, 0], dtype=torch.float64).expand(1, 3, 1, 3)[..., None]
    expected = torch.tensor([0.75, 0.5, 0.25], dtype=torch.float64)
    torch.testing.assert_close(attention(value, locations, weights).flatten(), expected, rtol=0, atol=1e-12)


def test_shapes_as_tensors_are_mmcvs_call() -> None:
    value, locations, weights = inputs()
    y = ops.ms_deform_attn(value, torch.tensor(SHAPES), torch.tensor(STARTS), locations, weights, 64)
    assert torch.equal(y, attention(value, locations, weights))


def test_gradcheck() -> None:
    value, locations, weights = inputs(images=1, queries=2)
    locations = (locations.detach().mul(97).round().div(97) + 0.0031).requires_grad_()
    assert torch.autograd.gradcheck(attention, (value, locations, weights), fast_mode=True)


@pytest.mark.parametrize(("images", "queries"), [(0, 7), (2, 0)])
def test_no_images_and_no_queries(images: int, queries: int) -> None:
    value, locations, weights = inputs(images=images, queries=queries)
    y = attention(value, locations, weights)
    assert y.shape == (images, queries, 12)
    y.sum().backward()
    assert not value.grad.any()


def test_low_precision() -> None:
    value, locations, weights = inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        low = attention(value.bfloat16(), locations, weights)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), attention(value, locations, weights), rtol=0.05, atol=0.05)


@pytest.mark.slow
def test_compiles_without_a_graph_break() -> None:
    torch.compiler.reset()
    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True)
    same(compiled, attention, *inputs(torch.float32), tolerance=1e-5)


BAD: list[tuple[str, type[Exception], Callable[..., tuple[Any, ...]]]] = [
    ("value", ValueError, lambda v, l, w: (v[0], SHAPES, STARTS, l, w)),
    ("value", TypeError, lambda v, l, w: (v.int(), SHAPES, STARTS, l, w)),
    ("value_spatial_shapes", ValueError, lambda v, l, w: (v, [(6, 5), (3, 3), (2, 2)], STARTS, l, w)),
    ("value_level_start_index", ValueError, lambda v, l, w: (v, SHAPES, [0, 30, 38], l, w)),
    ("sampling_locations", ValueError, lambda v, l, w: (v, SHAPES, STARTS, l[:, :, :2], w)),
    ("sampling_locations", ValueError, lambda v, l, w: (v, SHAPES, STARTS, l / 0, w)),
    ("sampling_locations", ValueError, lambda v, l, w: (v, SHAPES, STARTS, l.to("meta"), w)),
    ("attention_weights", ValueError, lambda v, l, w: (v, SHAPES, STARTS, l, w[..., 1:])),
    ("attention_weights", TypeError, lambda v, l, w: (v, SHAPES, STARTS, l, w.int())),
]


@pytest.mark.parametrize(("name", "error", "arguments"), BAD)
def test_bad_input_raises(name: str, error: type[Exception], arguments: Callable[..., tuple[Any, ...]]) -> None:
    with pytest.raises(error, match=f"^{name}: expected"):
        ops.ms_deform_attn(*arguments(*inputs()))
