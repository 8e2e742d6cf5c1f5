"""`attend` against its reference: values, gradients, ranges that underflow, precision, memory."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from regio.kernels.attend import attend, attend_reference, readable
from regio.kernels.attend_tiles import TiledSoftmax
from regio.kernels.cpu.attend import weigh

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor]


def inputs(
    boxes: int = 7,
    parts: int = 3,
    channels: int = 5,
    size: tuple[int, int] = (6, 8),
    images: int = 2,
    dtype: torch.dtype = torch.float64,
    scale: float = 2.0,
    seed: int = 0,
) -> Inputs:
    """Random arguments; the supports have all sizes, down to empty ones, and the images are not sorted."""
    g = torch.Generator().manual_seed(seed)
    height, width = size

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    def ends(length: int) -> Tensor:
        return torch.randint(0, length + 1, (boxes, 2), generator=g).sort(1).values

    u, v = ends(width), ends(height)
    support = torch.stack([u[:, 0], v[:, 0], u[:, 1], v[:, 1]], 1)
    support[::2] = torch.tensor([0, 0, width, height])
    return (
        normal(images, channels, height, width),
        torch.randint(0, images, (boxes,), generator=g),
        normal(boxes, parts, width) * scale,
        normal(boxes, parts, height) * scale,
        normal(images, parts, height, width) * scale,
        support,
    )


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The maps here are small: sharing them between threads takes longer than the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def some_cells(boxes: int, area: int, count: int) -> Tensor:
    """Different cells for each box, padded with -1 in places."""
    g = torch.Generator().manual_seed(1)
    cells = torch.stack([torch.randperm(area, generator=g)[:count] for _ in range(boxes)])
    return cells.masked_fill(torch.rand(boxes, count, generator=g) < 0.3, -1)


def gradients(function: object, arguments: Inputs, **options: object) -> tuple[Tensor, list[Tensor]]:
    leaves = [a.clone().requires_grad_() if a is not None and a.is_floating_point() else a for a in arguments]
    out = function(*leaves, **options)
    toward = torch.cos(torch.arange(out.numel(), dtype=torch.float64)).view(out.shape).to(out.dtype)
    wanted = [a for a in leaves if a is not None and a.is_floating_point()]
    return out, list(torch.autograd.grad(out, wanted, toward))


def assert_equals_reference(arguments: Inputs, tolerance: float = 1e-10, **options: object) -> None:
    out, grads = gradients(attend, arguments, **options)
    expected, expected_grads = gradients(attend_reference, arguments, **options)
    torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)
    for a, b in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * max([1.0, *b.abs().flatten().tolist()]))


@pytest.mark.parametrize("with_appearance", [True, False])
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0, 1e4])
def test_equals_reference(with_appearance: bool, scale: float) -> None:
    """Up to logits of 1e4, where the three factors peak at different cells and their product is zero everywhere."""
    arguments = inputs(scale=scale)
    if not with_appearance:
        arguments = (*arguments[:4], None, arguments[5])
    assert_equals_reference(arguments)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_listed_cells_equal_reference(scale: float) -> None:
    arguments = inputs(scale=scale)
    assert_equals_reference(arguments, cells=some_cells(7, 48, 20))
    assert_equals_reference(arguments, cells=torch.full((7, 4), -1))


@settings(deadline=None, max_examples=30)
@given(
    boxes=st.integers(0, 40),
    parts=st.integers(1, 4),
    channels=st.integers(1, 6),
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    images=st.integers(1, 3),
    scale=st.sampled_from([0.1, 3.0, 100.0]),
    seed=st.integers(0, 99),
)
def test_equals_reference_for_any_shape(
    boxes: int, parts: int, channels: int, height: int, width: int, images: int, scale: float, seed: int
) -> None:
    assert_equals_reference(inputs(boxes, parts, channels, (height, width), images, scale=scale, seed=seed))


def test_many_tiles_equal_reference() -> None:
    """Enough boxes and cells for several tiles of each kind."""
    arguments = inputs(boxes=60, parts=49, channels=16, size=(30, 40), dtype=torch.float32, scale=0.5)
    out = attend(*arguments)
    torch.testing.assert_close(out, attend_reference(*arguments), rtol=1e-5, atol=1e-5)


def test_hand_worked() -> None:
    """Two cells with logits 0 and log 3 weigh 1/4 and 3/4."""
    x = torch.tensor([10.0, 20.0]).view(1, 1, 1, 2)
    column = torch.tensor([0.0, 3.0]).log().nan_to_num(neginf=0.0).view(1, 1, 2)
    out = attend(x, torch.tensor([0]), column, torch.zeros(1, 1, 1), None, torch.tensor([[0, 0, 2, 1]]))
    torch.testing.assert_close(out, torch.tensor([[[17.5]]]))


def test_factors_that_peak_apart_keep_their_range() -> None:
    """The column term wants the first cell and the appearance the last, by 500 each: the two share the weight."""
    x = torch.tensor([1.0, 7.0, 3.0]).view(1, 1, 1, 3)
    column, appearance = torch.tensor([500.0, 0, 0]).view(1, 1, 3), torch.tensor([0.0, 0, 500]).view(1, 1, 1, 3)
    image, support = torch.tensor([0]), torch.tensor([[0, 0, 3, 1]])
    out = attend(x, image, column, torch.zeros(1, 1, 1), appearance, support)
    torch.testing.assert_close(out, torch.tensor([[[2.0]]]))


def test_cells_too_light_to_count_are_still_exact() -> None:
    """Peaked weights, where most columns and rows are left out, in float32."""
    arguments = inputs(parts=2, size=(40, 50), dtype=torch.float32)
    x, image, column, row, appearance, support = arguments
    u, v = torch.arange(50.0), torch.arange(40.0)
    arguments = (x, image, -((u - 20) ** 2) + column, -((v - 11) ** 2) + row, appearance, support)
    assert_equals_reference(arguments, 1e-5)


@pytest.mark.parametrize("apart", [0.0, 12.0, 25.0, 60.0, 200.0])
@pytest.mark.parametrize("deviation", [1.0, 2.0, 4.0])
def test_weights_of_gaussians_are_exact_and_normal_numbers(deviation: float, apart: float) -> None:
    """On most of a map they are below the smallest normal number of float32, which makes matrix products slow. apart:
    by so much the appearance term is largest in another corner than that of the part, up to where the product of the
    three factors has lost its range."""
    height, width = 30, 40
    u, v = torch.arange(width, dtype=torch.float64), torch.arange(height, dtype=torch.float64)
    column, row = (-((x - 3) ** 2) / (2 * deviation**2) for x in (u, v))
    x, image, *_, appearance, support = inputs(2, 2, size=(height, width), images=1)
    assert appearance is not None
    appearance = appearance / 2
    appearance[..., -1, -1] += apart
    support[:] = torch.tensor([0, 0, width, height])
    exact = (x, image, column.expand(2, 2, -1).clone(), row.expand(2, 2, -1).clone(), appearance, support)
    single = tuple(each.float() if each.is_floating_point() else each for each in exact)
    expected, expected_grads = gradients(attend_reference, exact)
    softmax = TiledSoftmax(*single, None, torch.float32)
    for tile in softmax.tiles():
        weights = softmax.weights(tile).operand
        small = (weights != 0) & (weights < torch.finfo(torch.float32).tiny)
        assert int(small.sum()) == 0 if apart == 0 else float(small.float().mean()) < 0.03
        assert deviation == 4 or bool((weights == 0).any())
    torch.testing.assert_close(softmax.sums().transpose(1, 2), expected.float(), rtol=2e-5, atol=2e-5)
    toward = torch.cos(torch.arange(expected.numel(), dtype=torch.float64)).view(expected.shape).float()
    found = softmax.gradients(toward.transpose(1, 2))
    to_x, to_column, to_row, to_appearance = expected_grads
    wanted = to_x.flatten(2).mT, to_column, to_row, to_appearance.flatten(2)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b.float(), rtol=1e-4, atol=1e-4)


def test_empty_support_gives_zeros() -> None:
    x, image, column, row, appearance, support = inputs()
    support[:, 2] = support[:, 0]
    out, grads = gradients(attend, (x, image, column, row, appearance, support))
    assert not out.any() and not any(g.any() for g in grads)


def test_not_a_number_is_not_hidden() -> None:
    x, image, column, row, appearance, support = inputs()
    column[0, 0, 0] = float("nan")
    out = attend(x, image, column, row, appearance, support)
    assert out[0, :, 0].isnan().all() and not out[0, :, 1:].isnan().any() and not out[1:].isnan().any()


@pytest.mark.parametrize("cells", [None, some_cells(4, 12, 9)])
def test_gradcheck(cells: Tensor | None) -> None:
    x, image, column, row, appearance, support = inputs(boxes=4, parts=2, channels=2, size=(3, 4))

    def run(x: Tensor, column: Tensor, row: Tensor, appearance: Tensor) -> Tensor:
        return attend(x, image, column, row, appearance, support, cells)

    leaves = [t.requires_grad_() for t in (x, column, row, appearance) if t is not None]
    assert torch.autograd.gradcheck(run, leaves)


@pytest.mark.slow
@pytest.mark.parametrize("with_appearance", [True, False])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck itself reads it
def test_is_registered_as_it_should_be(with_appearance: bool) -> None:
    x, image, column, row, appearance, support = inputs(dtype=torch.float32)
    leaves = [t.requires_grad_() for t in (x, column, row, appearance) if t is not None]
    arguments = (x, image, column, row, leaves[3] if with_appearance else None, support, None, torch.float32)
    torch.library.opcheck(torch.ops.regio.attend.default, arguments)


def test_bfloat16_operands_and_features() -> None:
    arguments = inputs(boxes=20, channels=32, dtype=torch.float32)
    expected, expected_grads = gradients(attend, arguments)
    low = arguments[0].bfloat16()
    for x, options in (
        (arguments[0], {"aggregate_dtype": torch.bfloat16}),
        (low, {}),
        (low, {"aggregate_dtype": torch.float32}),
    ):
        out, grads = gradients(attend, (x, *arguments[1:]), **options)
        assert out.dtype == x.dtype
        assert [g.dtype for g in grads] == [x.dtype, *[torch.float32] * 3]
        torch.testing.assert_close(out.float(), expected, rtol=2e-2, atol=2e-2)
        for a, b in zip(grads, expected_grads, strict=True):
            torch.testing.assert_close(a.float(), b, rtol=5e-2, atol=2e-2 * float(b.abs().max()))


# Of the result and of gradients, relative to the largest number: some roundings of one number of the format.
PRECISION = {torch.float64: 1e-12, torch.float32: 5e-6, torch.float16: 1e-3, torch.bfloat16: 1.2e-2}


def peaks(apart: bool) -> Inputs:
    """Column and row terms with a peak each, near the middle of the map; that of the appearance can be far away."""
    x, image, _, _, appearance, support = inputs(boxes=12, parts=9, channels=16, size=(30, 40))
    assert appearance is not None
    g = torch.Generator().manual_seed(1)
    u0, v0 = (torch.randn(12, 9, 1, generator=g, dtype=torch.float64) * 3 + at for at in (20, 15))
    column, row = -((torch.arange(40) - u0) ** 2) / 2, -((torch.arange(30) - v0) ** 2) / 2
    if apart:
        appearance[:, :, 0, 0] = 30
    return x, image, column, row, appearance, support


LOGITS = {
    **{f"spread {s}": inputs(12, 9, 16, (30, 40), scale=s) for s in (0.01, 1.0, 30.0, 1e3)},
    "uniform": inputs(12, 9, 16, (150, 200), scale=0.0),
    "peaks": peaks(False),
    "peaks apart": peaks(True),
}


def assert_close_to_largest(out: Tensor, expected: Tensor, largest: float, tolerance: float) -> None:
    torch.testing.assert_close(out.double() / largest, expected / largest, rtol=0, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("logits", LOGITS)
@pytest.mark.parametrize(
    ("dtype", "aggregate"),
    [
        (torch.float64, None),
        (torch.float32, None),
        (torch.bfloat16, None),
        (torch.float16, None),
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float16),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float16),
    ],
)
def test_precision_for_any_logits(dtype: torch.dtype, aggregate: torch.dtype | None, logits: str, listed: bool) -> None:
    """Results and gradients beside the equation in float64, from inputs that are rounded alike."""
    x, image, column, row, appearance, support = LOGITS[logits]
    term = torch.float64 if dtype == torch.float64 else torch.float32
    arguments = (x.to(dtype), image, column.to(term), row.to(term), appearance.to(term), support)
    cells = some_cells(12, x.shape[2] * x.shape[3], 300) if listed else None
    out, grads = gradients(attend, arguments, cells=cells, aggregate_dtype=aggregate)
    exact = tuple(a.double() if a.is_floating_point() else a for a in arguments)
    expected, expected_grads = gradients(attend_reference, exact, cells=cells)
    tolerance = max(PRECISION[dtype], PRECISION[aggregate or dtype])
    out, expected = out.detach(), expected.detach()
    assert_close_to_largest(out, expected, float(expected.abs().max()), tolerance)
    assert_close_to_largest(grads[0], expected_grads[0], float(expected_grads[0].abs().max()), tolerance)
    # Those of the terms are differences, of numbers as large as the results.
    terms = max(float(t.abs().max()) for t in (expected, *expected_grads[1:]))
    for a, b in zip(grads[1:], expected_grads[1:], strict=True):
        assert_close_to_largest(a, b, terms, tolerance)


@pytest.mark.parametrize("aggregate", [None, torch.float16])
def test_float16_keeps_small_gradients(aggregate: torch.dtype | None) -> None:
    """Gradients below the smallest number of float16 reach float32 inputs."""
    arguments = inputs(boxes=12, parts=9, channels=16, dtype=torch.float32)
    leaves = [a.clone().requires_grad_() for a in arguments if a is not None and a.is_floating_point()]
    x, column, row, appearance = leaves
    out = attend(x, arguments[1], column, row, appearance, arguments[5], aggregate_dtype=aggregate)
    small, usual = (torch.autograd.grad(out, leaves, torch.cos(out.detach()) * s, True) for s in (1e-9, 1.0))
    for a, b in zip(small, usual, strict=True):
        torch.testing.assert_close(a * 1e9, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (3, 15), (2, 16), (5, 35)])
def test_weights_are_rounded_as_pytorch_rounds(size: tuple[int, int]) -> None:
    """Written as bfloat16 by the CPU kernel: to the nearest, halves to the even one, NaN and infinity kept."""
    height, width = size
    g = torch.Generator().manual_seed(0)
    column, row = torch.rand(2, 3, width, generator=g), torch.ones(2, 3, height)
    appearance = torch.ones(3, height * width)
    halves = torch.tensor([1.00390625, 1.01171875, 3.3e38, torch.inf, torch.nan, 1e-40, 0.0])
    column.view(-1)[: len(halves)] = halves[: column.numel()]
    exact = torch.empty(2, 3, height * width)
    rounded = torch.empty(2, 3, height * width, dtype=torch.bfloat16)
    sums = [weigh(column, row, appearance, out) for out in (exact, rounded)]
    expected = (column[:, :, None, :] * row[..., None]).flatten(2)
    assert torch.equal(exact.nan_to_num(-1), expected.nan_to_num(-1))
    assert torch.equal(rounded.nan_to_num(-1), expected.to(torch.bfloat16).nan_to_num(-1))
    assert torch.equal(rounded.isnan(), expected.isnan())
    torch.testing.assert_close(sums[0], expected.sum(2, keepdim=True), equal_nan=True)
    assert torch.equal(sums[0].nan_to_num(-1), sums[1].nan_to_num(-1))  # of the weights before they are rounded


def test_autocast_chooses_the_operands() -> None:
    arguments = inputs(channels=32, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = attend(*arguments)
        full = attend(*arguments, aggregate_dtype=torch.float32)
    assert torch.equal(mixed, attend(*arguments, aggregate_dtype=torch.bfloat16))
    assert torch.equal(full, attend(*arguments))
    assert not torch.equal(mixed, full)


def test_number_of_threads_does_not_matter() -> None:
    arguments = inputs(boxes=30, parts=49, channels=16, size=(20, 30), dtype=torch.float32)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(gradients(attend, arguments))
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-6)
    for a, b in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_gradients_are_deterministic() -> None:
    arguments = inputs(boxes=30, parts=9, channels=16, size=(20, 30), dtype=torch.float32)
    first, second = gradients(attend, arguments)[1], gradients(attend, arguments)[1]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_readable_by_hand() -> None:
    inside = readable(torch.tensor([[1, 0, 3, 2]]), None, (3, 4))[0].int().tolist()
    assert inside == [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    listed = readable(torch.tensor([[1, 0, 3, 2]]), torch.tensor([[2, 0, 5, -1]]), (3, 4))[0].int().tolist()
    assert listed == [[0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]


_MEMORY = """
import resource, torch
from regio.kernels.attend import attend
parts, height, width, channels = 16, 64, 64, 8
x = torch.randn(1, channels, height, width, requires_grad=True)
for boxes in (64, 1024):
    column, row = (torch.randn(boxes, parts, n, requires_grad=True) for n in (width, height))
    support = torch.tensor([[0, 0, width, height]]).repeat(boxes, 1)
    image = torch.zeros(boxes, dtype=torch.int64)
    attend(x, image, column, row, None, support).sum().backward()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no resource module")
def test_memory_does_not_grow_with_boxes_times_cells() -> None:
    """Weights of 1024 boxes x 16 parts x 4096 cells would be 256 MiB; the two terms and all made of them are 60 MiB."""
    result = subprocess.run([sys.executable, "-c", _MEMORY], capture_output=True, text=True, check=True)
    few, many = (int(line) for line in result.stdout.split())
    unit = 1024 if sys.platform == "linux" else 1  # ru_maxrss is in KiB on Linux, in bytes elsewhere
    assert (many - few) * unit < 128 * 2**20


@pytest.mark.parametrize(
    ("position", "change", "error", "message"),
    [
        (1, lambda t: t + 2, ValueError, "image: expected indices in"),
        (2, lambda t: t[:, :, 1:], ValueError, "column: expected shape"),
        (3, lambda t: t.float(), TypeError, "row: expected dtype"),
        (4, lambda t: t[:1], ValueError, "appearance: expected shape"),
        (5, lambda t: t + 1, ValueError, "support: expected ranges within the map"),
        (5, lambda t: t.float(), TypeError, "support: expected dtype"),
    ],
)
def test_bad_arguments_raise(position: int, change: object, error: type[Exception], message: str) -> None:
    arguments = list(inputs())
    arguments[position] = change(arguments[position])
    with pytest.raises(error, match=message):
        attend(*arguments)


def test_cells_out_of_range_raise() -> None:
    with pytest.raises(ValueError, match="cells: expected indices in"):
        attend(*inputs(), torch.full((7, 2), 48))
