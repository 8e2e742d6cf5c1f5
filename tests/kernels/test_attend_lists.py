"""Boxes whose parts read few cells: listed or not, results and gradients are those of the equation, to rounding."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from regio.kernels.attend import attend, attend_reference
from regio.kernels.cpu.attend_lists import ListedBoxes
from regio.regions import Dense, GridPrior, LearnedRegionFeatures
from regio.types import FeatureMap, Regions

PARTS = 12
Terms = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def terms(width_of_parts: float, spread: float = 0.5, size: tuple[int, int] = (24, 31), channels: int = 20) -> Terms:
    """Gaussian parts about random cells, some of them outside of the map, with random terms of the given spread on top;
    two images of different extents, and boxes that read all, some or none of them."""
    g = torch.Generator().manual_seed(0)
    height, width = size
    boxes = 15

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    def gaussian(length: int) -> Tensor:
        centre = torch.rand(boxes, PARTS, 1, generator=g, dtype=torch.float64) * (length + 8) - 4
        return -((torch.arange(length) - centre) ** 2) / (2 * width_of_parts**2) + spread * normal(boxes, PARTS, length)

    image = torch.randint(0, 2, (boxes,), generator=g)
    extent = torch.tensor([[width, height], [width - 6, height - 3]])[image]
    support = torch.cat([torch.zeros_like(extent), extent], 1)
    support[3] = torch.tensor([2, 5, 9, 6])
    support[5] = torch.tensor([4, 4, 4, 9])
    x, appearance = normal(2, channels, height, width), spread * normal(2, PARTS, height, width)
    return x, image, gaussian(width), gaussian(height), appearance, support


def read_by_listing(t: Terms) -> int:
    x, image, column, row, appearance, support = t
    boxes = ListedBoxes(x, image, column, row, appearance, support, x.dtype)
    return len(image) - len(boxes.sums()[1])


def with_gradients(function: Any, t: Terms, **options: Any) -> list[Tensor]:
    leaves = [a.clone().requires_grad_() if a.is_floating_point() else a for a in t]
    out = function(*leaves, **options)
    wanted = [a for a in leaves if a.is_floating_point()]
    toward = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, wanted, toward)]


def assert_close_to_largest(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Of the features and of the gradient of the map beside their own largest number, and of those of the terms, which
    are differences of numbers as large as the results, beside the largest of all."""
    sizes = [float(b.abs().max()) for b in expected]
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        scale = sizes[i] if i < 2 else max(sizes[0], *sizes[2:])
        torch.testing.assert_close(a.double() / scale, b / scale, rtol=0, atol=tolerance)


def rounded(t: Terms, features: torch.dtype, others: torch.dtype) -> Terms:
    x, image, column, row, appearance, support = t
    return x.to(features), image, column.to(others), row.to(others), appearance.to(others), support


# Width of the Gaussians, spread of the random terms, and how many of the 15 boxes are listed: parts that read single
# cells, as the grid prior begins, as wide as a large bin; peaks in the appearance alone; and no peaks at all.
CASES = {
    "single cells": (0.1, 0.5, 15),
    "as the prior": (0.5, 0.5, 15),
    "sharp terms": (1.0, 6.0, 15),
    "wide": (2.0, 0.5, None),
    "flat": (1e3, 0.0, 2),
}


@pytest.mark.parametrize("name", CASES)
def test_listed_as_expected(name: str) -> None:
    """Two boxes have supports so small that they are listed in any case."""
    width, spread, listed = CASES[name]
    found = read_by_listing(rounded(terms(width, spread), torch.float32, torch.float32))
    assert (2 < found < 15) if listed is None else (found == listed)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("features", "others", "tolerance"),
    [
        (torch.float64, torch.float64, 1e-12),
        (torch.float32, torch.float32, 1e-5),
        (torch.float16, torch.float32, 1e-3),
        (torch.bfloat16, torch.float32, 1.2e-2),
    ],
)
def test_equals_reference(name: str, features: torch.dtype, others: torch.dtype, tolerance: float) -> None:
    """With padded images, centres outside of them, and supports of one cell and none."""
    width, spread, _ = CASES[name]
    t = rounded(terms(width, spread), features, others)
    exact = rounded(t, torch.float64, torch.float64)
    assert_close_to_largest(with_gradients(attend, t), with_gradients(attend_reference, exact), tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_left_out_is_below_rounding(dtype: torch.dtype) -> None:
    """The sum of the weights of the cells that are not listed, in float64."""
    x, image, column, row, appearance, support = rounded(terms(0.7, 0.5), dtype, dtype)
    boxes = ListedBoxes(x, image, column, row, appearance, support, dtype)
    (lists,) = boxes.lists()
    logits = column[:, :, None, :].double() + row[:, :, :, None].double() + appearance[image].double()
    assert (lists.ends[::PARTS] >= 0).all()
    for box in range(len(image)):
        u0, v0, u1, v1 = support[box].tolist()
        inside = torch.zeros(x.shape[2:], dtype=torch.bool)
        inside[v0:v1, u0:u1] = True
        ends = [box * lists.room, *lists.ends[box * PARTS : (box + 1) * PARTS].tolist()]
        for part, (first, last) in enumerate(pairwise(ends)):
            exact = logits[box, part].where(inside, -torch.inf).flatten().softmax(0).nan_to_num(0.0)
            listed = torch.from_numpy(lists.cells[first:last]).long()
            left_out = exact.index_fill(0, listed, 0).sum()
            assert float(left_out) <= torch.finfo(dtype).eps / 2
            found = torch.from_numpy(lists.weights[first:last]).double()
            torch.testing.assert_close(found, exact[listed], rtol=1e-5, atol=1e-12)


def test_a_part_reads_few_cells() -> None:
    """With the grid prior's width and nothing else a part reads fewer than 40 of 744 cells."""
    x, image, column, row, appearance, support = rounded(terms(0.5, 0.0), torch.float32, torch.float32)
    (lists,) = ListedBoxes(x, image, column, row, appearance, support, x.dtype).lists()
    starts = torch.arange(len(image)) * lists.room
    read = torch.from_numpy(lists.ends).view(-1, PARTS)[:, -1] - starts
    assert 15 < float(read.double().mean()) / PARTS < 40


@pytest.mark.slow
def test_gradcheck() -> None:
    x, image, column, row, appearance, support = terms(0.5, 0.5, (9, 8), 2)
    some = slice(0, 4)
    terms_of = [x, column[some], row[some], appearance]
    assert read_by_listing((x, image[some], column[some], row[some], appearance, support[some] // 3)) == 4

    def run(x: Tensor, column: Tensor, row: Tensor, appearance: Tensor) -> Tensor:
        return attend(x, image[some], column, row, appearance, support[some] // 3)

    assert torch.autograd.gradcheck(run, [t.clone().requires_grad_() for t in terms_of])


def test_without_an_appearance_term() -> None:
    x, image, column, row, _, support = terms(0.5)

    def of(function: Any) -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in (x, column, row)]
        out = function(leaves[0], image, *leaves[1:], None, support)
        return [out.detach(), *torch.autograd.grad(out, leaves, torch.cos(out.detach()))]

    for a, b in zip(of(attend), of(attend_reference), strict=True):
        torch.testing.assert_close(a, b)


def test_peaks_apart_are_not_listed() -> None:
    """The columns' peak and that of the appearance are so far apart that their product has no digits: logits are
    added instead."""
    x, image, column, row, appearance, support = rounded(terms(0.5), torch.float32, torch.float32)
    appearance[:, 0, 20, 3] += 300
    t = x, image, column, row, appearance, support
    assert read_by_listing(t) < 15
    exact = rounded(t, torch.float64, torch.float64)
    assert_close_to_largest(with_gradients(attend, t), with_gradients(attend_reference, exact), 1e-5)


@pytest.mark.parametrize("place", ["column", "row", "appearance", "x"])
def test_not_a_number_is_not_hidden(place: str) -> None:
    names = ("x", "image", "column", "row", "appearance", "support")
    t = dict(zip(names, terms(0.5), strict=True))
    t["support"][:] = torch.tensor([0, 0, 31, 24])
    before = attend(*t.values())
    if place == "x":
        t["x"][:, 4, 12, 12] = torch.nan
    elif place == "appearance":
        t["appearance"][:, 2, 12, 12] = torch.nan
    else:
        t[place][3, 2, 0] = torch.nan  # far from the peak, perhaps
    after = attend(*t.values())
    if place == "x":  # where the weight of the cell is not below rounding
        assert after.isnan().any() and not after[:, :4].isnan().any()
    elif place == "appearance":
        assert after[:, :, 2].isnan().all() and not after[:, :, 3:].isnan().any()
        torch.testing.assert_close(after[:, :, 3:], before[:, :, 3:])
    else:
        assert after[3, :, 2].isnan().all() and torch.equal(after[4:], before[4:])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_and_chunks_do_not_matter(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit."""
    t = rounded(terms(0.5), torch.float32, torch.float32)
    expected = with_gradients(attend, t)
    before = torch.get_num_threads()
    monkeypatch.setattr("regio.kernels.cpu.attend_lists._CHUNK", 1)
    try:
        torch.set_num_threads(threads)
        found = with_gradients(attend, t)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_module_equals_dense_form() -> None:
    """From boxes to features, with boxes outside of the image, against all weights at once; all gradients."""
    torch.manual_seed(0)
    x = FeatureMap(torch.randn(2, 16, 20, 26, requires_grad=True), 8, ((160, 208), (120, 150)))
    corner = torch.rand(20, 2) * 240 - 40
    r = Regions(torch.cat([corner, corner + torch.rand(20, 2) * 90], 1), torch.arange(20) % 2)
    for prior in (GridPrior(), None):
        e = LearnedRegionFeatures(16, 7, 32, 16, prior=prior)
        for p in e.parameters():
            torch.nn.init.normal_(p, std=0.1)
        leaves, found = [x.data, *e.parameters()], []
        for mode in (e.mode, Dense()):
            e.mode = mode
            out = e(x, r)
            found.append(
                [out.detach(), *torch.autograd.grad(out, leaves, torch.cos(torch.arange(out.numel()).view(out.shape)))]
            )
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.detach().abs().max()))
