"""Rows divided by level and joined again: where they were, with the gradients of an indexing."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regio.rows import joined_rows, rows_of_levels


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 3), max_size=12), st.integers(0, 2**31))
def test_rows_come_back_to_their_places_with_their_gradients(levels: list[int], seed: int) -> None:
    level, generator = torch.tensor(levels, dtype=torch.int64), torch.Generator().manual_seed(seed)
    x = torch.randn(len(levels), 2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    rows = rows_of_levels(level, 4)
    assert sorted(torch.cat(rows).tolist()) == list(range(len(levels)))
    assert all(bool((level[own] == i).all()) for i, own in enumerate(rows))
    y = joined_rows([x[own] * (i + 1) for i, own in enumerate(rows)], rows)
    factor = (level + 1)[:, None, None]
    assert torch.equal(y, x * factor)
    upstream = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    (found,) = torch.autograd.grad(y, x, upstream)
    assert torch.equal(found, upstream * factor)


def test_second_derivatives_and_half_precision() -> None:
    rows = [torch.tensor([2, 0]), torch.tensor([1])]
    parts = [torch.randn(2, 3, dtype=torch.float64, requires_grad=True), torch.randn(1, 3, dtype=torch.float64)]
    assert torch.autograd.gradgradcheck(lambda x: joined_rows([x**2, parts[1]], rows), parts[0])
    half = joined_rows([parts[0].detach().bfloat16(), parts[1].bfloat16()], rows)
    assert half.dtype == torch.bfloat16 and torch.equal(half[1], parts[1][0].bfloat16())
    compiled = torch.compile(joined_rows, backend="eager", fullgraph=True)
    assert torch.equal(compiled(parts, rows), joined_rows(parts, rows))
