"""`sample_points` and `sample_grid`: the equation, the reference, gradients, and the torch.library registration."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.ops import deform_conv2d

from regio.kernels import sample_grid as grid_module
from regio.kernels import sample_points as points_module
from regio.kernels.sample_grid import sample_grid, sample_grid_reference
from regio.kernels.sample_points import sample_points, sample_points_reference


def close(a: Tensor, b: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def maps(
    channels: int = 5, dtype: torch.dtype = torch.float64, generator: torch.Generator | None = None
) -> list[Tensor]:
    generator = generator or torch.Generator().manual_seed(0)
    return [torch.randn(2, channels, *s, generator=generator, dtype=torch.float64).to(dtype) for s in ((6, 8), (3, 4))]


def random_samples(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """image, points, weight, level of five boxes with three parts of four samples, some outside, some of weight 0."""
    generator = torch.Generator().manual_seed(1)
    points = torch.rand(5, 3, 4, 2, generator=generator, dtype=torch.float64) * 11 - 2
    weight = torch.randn(5, 3, 4, generator=generator, dtype=torch.float64)
    weight[0, 1] = 0
    return torch.tensor([0, 1, 1, 0, 1]), points.to(dtype), weight.to(dtype), torch.tensor([0, 1, 0, 0, 1])


def random_grid(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """image, rows, columns, their weights, and level, of five boxes with 2 x 3 bins of 3 x 2 samples."""
    generator = torch.Generator().manual_seed(2)
    rows = torch.rand(5, 2, 3, generator=generator, dtype=torch.float64) * 9 - 2
    columns = torch.rand(5, 3, 2, generator=generator, dtype=torch.float64) * 11 - 2
    weights = torch.randn(5, 2, 3, generator=generator, dtype=torch.float64), torch.randn(5, 3, 2, generator=generator)
    a, b, c, d = (t.to(dtype) for t in (rows, columns, *weights))
    return torch.tensor([0, 1, 1, 0, 1]), a, b, c, d, torch.tensor([0, 1, 0, 0, 1])


def test_points_equal_the_equation() -> None:
    (x, _), (image, points, weight, _) = maps(), random_samples()
    q_v, q_u = torch.arange(6.0).double(), torch.arange(8.0).double()
    row = (1 - (points[..., 1, None] - q_v).abs()).clamp(min=0)
    column = (1 - (points[..., 0, None] - q_u).abs()).clamp(min=0)
    expected = torch.einsum("rks,rksv,rksu,rcvu->rck", weight, row, column, x[image])
    close(sample_points(x, image, points, weight), expected)
    close(sample_points_reference(x, image, points, weight), expected)


def test_hand_worked_sample() -> None:
    """At (u, v) = (1.25, 0.5) of [[0, 1, 2], [3, 4, 5]]: 0.75 and 0.25 of the columns, half of each row."""
    x = torch.arange(6.0).reshape(1, 1, 2, 3)
    points = torch.tensor([[[[1.25, 0.5]]], [[[2.5, 1.0]]], [[[-1.0, 0.0]]], [[[float("nan"), 0.0]]]])
    y = sample_points(x, torch.zeros(4, dtype=torch.int64), points, torch.ones(4, 1, 1))
    assert y.flatten().tolist() == [2.75, 2.5, 0.0, 0.0]


def test_points_equal_the_reference_with_gradients() -> None:
    image, points, weight, level = random_samples()
    x, y = maps()
    inputs = [t.requires_grad_() for t in (x, y, points, weight)]
    ours = sample_points([x, y], image, points, weight, level)
    theirs = sample_points_reference([x, y], image, points, weight, level)
    close(ours, theirs)
    grad = torch.randn_like(ours)
    for a, b in zip(torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(theirs, inputs, grad), strict=True):
        close(a, b)
    assert torch.autograd.gradcheck(lambda x, y, p, c: sample_points([x, y], image, p, c, level), inputs)


def test_grid_equals_the_reference_with_gradients() -> None:
    image, *axes, level = random_grid()
    x, y = maps()
    inputs = [t.requires_grad_() for t in (x, y, *axes)]
    ours, theirs = sample_grid([x, y], image, *axes, level), sample_grid_reference([x, y], image, *axes, level)
    close(ours, theirs)
    grad = torch.randn_like(ours)
    for a, b in zip(torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(theirs, inputs, grad), strict=True):
        close(a, b)
    assert torch.autograd.gradcheck(lambda x, y, *axes: sample_grid([x, y], image, *axes, level), inputs)


def test_derivative_at_whole_cells_is_that_from_above() -> None:
    """As torchvision's deformable convolution, whose offsets start at zero: they must be able to move."""
    x = torch.randn(1, 3, 5, 6, dtype=torch.float64)
    offset = torch.zeros(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    expected = deform_conv2d(x, offset, torch.ones(1, 3, 1, 1, dtype=torch.float64))
    (expected_grad,) = torch.autograd.grad(expected.sum(), offset)
    v, u = torch.meshgrid(torch.arange(5.0).double(), torch.arange(6.0).double(), indexing="ij")
    for sample in (sample_points, sample_points_reference):
        points = torch.stack([u, v], -1).reshape(30, 1, 1, 2).requires_grad_()
        image = torch.zeros(30, dtype=torch.int64)
        y = sample(x, image, points, torch.ones(30, 1, 1, dtype=torch.float64))
        (grad,) = torch.autograd.grad(y.sum(), points)
        close(grad.reshape(5, 6, 2).flip(-1).permute(2, 0, 1)[None], expected_grad)
        axes = [t.detach().reshape(30, 1, 1).clone().requires_grad_() for t in (points[..., 1], points[..., 0])]
        y = sample_grid(x, image, *axes, *[torch.ones(30, 1, 1, dtype=torch.float64)] * 2)
        close(torch.stack(torch.autograd.grad(y.sum(), axes), -1).flatten(), grad.flip(-1).flatten())


@pytest.mark.parametrize("channels", [1, 15, 16, 17, 255, 257, 600])
def test_channels_that_do_not_fill_a_block(channels: int) -> None:
    image, points, weight, level = random_samples()
    x = [m.requires_grad_() for m in maps(channels)]
    ours, theirs = (f(x, image, points, weight, level) for f in (sample_points, sample_points_reference))
    close(ours, theirs)
    grad = torch.randn_like(ours)
    for a, b in zip(torch.autograd.grad(ours, x, grad), torch.autograd.grad(theirs, x, grad), strict=True):
        close(a, b)


@pytest.mark.parametrize("boxes", [1, 2, 5])
@pytest.mark.parametrize("channels", [2, 3, 16, 17])
def test_few_boxes_and_few_channels_of_a_large_map(boxes: int, channels: int) -> None:
    """Which are read one channel at a time where the cells of a channel follow each other."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, channels, 40, 45, generator=generator, dtype=torch.float64)
    image, *axes, _ = random_grid()
    inputs = [image[:boxes], *(t[:boxes] for t in axes)]
    inputs[1][0] += torch.tensor([0.0, 30.0]).view(2, 1)  # bins wider and higher than others
    inputs[2][0] *= 4
    results = []
    for form in (torch.contiguous_format, torch.channels_last):
        leaf = x.clone(memory_format=form).requires_grad_()
        y = sample_grid(leaf, *inputs)
        y.backward(torch.cos(torch.arange(y.numel()).double()).view(y.shape))
        results.append((y, leaf.grad))
    expected = sample_grid_reference(leaf := x.clone().requires_grad_(), *inputs)
    expected.backward(torch.cos(torch.arange(expected.numel()).double()).view(expected.shape))
    for y, grad in results:
        close(y, expected)
        close(grad, leaf.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_are_float32(dtype: torch.dtype) -> None:
    """The result is that of the float32 features, rounded once."""
    image, points, weight, level = random_samples(torch.float32)
    low = maps(20, dtype)
    expected = sample_points([m.float() for m in low], image, points, weight, level)
    out = sample_points(low, image, points.double(), weight, level)
    assert out.dtype == dtype
    assert torch.equal(out, expected.to(dtype))


GROUPS = {"points": [2, 0, 1], "grid": [0, 1, 2, 2, 1, 0]}

# A map [N, 3 * C, H, W] as [N, 3, C, H, W] in every order in memory that a kernel distinguishes.
ORDERS: dict[str, Callable[[Tensor], Tensor]] = {
    "group after group": lambda x: x.unflatten(1, (3, -1)),
    "channel after channel": lambda x: x.unflatten(1, (3, -1)).transpose(1, 2).contiguous().transpose(1, 2),
    "cells of groups": lambda x: x.contiguous(memory_format=torch.channels_last).unflatten(1, (3, -1)),
    "cells of channels": lambda x: x.unflatten(1, (3, -1)).permute(0, 3, 4, 2, 1).contiguous().permute(0, 4, 3, 1, 2),
    "columns": lambda x: x.unflatten(1, (3, -1)).transpose(3, 4).contiguous().transpose(3, 4),
    "every second cell": lambda x: torch.stack([x, x], 4).flatten(3)[..., ::2].unflatten(1, (3, -1)),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_groups_of_channels(dtype: torch.dtype, order: str) -> None:
    """Part k reads the channels of its group: the same as all channels, and the group chosen afterwards."""
    image, points, weight, level = random_samples()
    x = maps(21, dtype)
    grouped = [ORDERS[order](m) for m in x]
    y = sample_points(x, image, points, weight, level)
    out = sample_points(grouped, image, points, weight, level, groups=GROUPS["points"])
    tolerance = 1e-12 if dtype == torch.float64 else 1e-2
    close(out, torch.stack([y[:, 7 * g : 7 * g + 7, k] for k, g in enumerate(GROUPS["points"])], 2), tolerance)
    image, *axes, level = random_grid()
    y = sample_grid(x, image, *axes, level).flatten(2)
    out = sample_grid(grouped, image, *axes, level, groups=GROUPS["grid"]).flatten(2)
    close(out, torch.stack([y[:, 7 * g : 7 * g + 7, k] for k, g in enumerate(GROUPS["grid"])], 2), tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_gradients_of_groups(order: str) -> None:
    image, *samples, level = random_samples()
    inputs = [*maps(6), *samples]
    inputs = [t.requires_grad_() for t in inputs]

    def points(a: Tensor, b: Tensor, *samples: Tensor) -> Tensor:
        return sample_points([ORDERS[order](m) for m in (a, b)], image, *samples, level, groups=GROUPS["points"])

    assert torch.autograd.gradcheck(points, inputs, atol=1e-6)
    image, *axes, level = random_grid()
    inputs = [t.requires_grad_() for t in [*maps(6), *axes]]

    def grid(a: Tensor, b: Tensor, *axes: Tensor) -> Tensor:
        return sample_grid([ORDERS[order](m) for m in (a, b)], image, *axes, level, groups=GROUPS["grid"])

    assert torch.autograd.gradcheck(grid, inputs, atol=1e-6)


def test_bad_groups_raise() -> None:
    image, points, weight, level = random_samples()
    x = [m.unsqueeze(2) for m in maps()]
    for groups in ([0, 1], [0, 1, 5], [0, -1, 0]):
        message = rf"groups: expected 3 numbers in \[0, 5\), one a part, got \{groups}"
        with pytest.raises(ValueError, match=message):
            sample_points(x, image, points, weight, level, groups=groups)
    with pytest.raises(ValueError, match=r"x: expected shape \[N, G, C, H, W\], got \[2, 5, 6, 8\]"):
        sample_points(maps(), image, points, weight, level, groups=[0, 1, 2])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("groups", [[], GROUPS["points"]])
@pytest.mark.parametrize("order", ORDERS)
def test_registration_of_points(groups: list[int], order: str) -> None:
    image, points, weight, level = random_samples(torch.float32)
    x = [(ORDERS[order](m) if groups else m).requires_grad_() for m in maps(6, dtype=torch.float32)]
    samples = image, level, [points.requires_grad_(), weight.requires_grad_()], groups
    torch.library.opcheck(points_module._sample_points, (x, *samples))
    check_backward(
        "sample_points", torch.randn(5, 2 if any(groups) else 6, 3), x, image, level, [points, weight], groups
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("groups", [[], GROUPS["grid"]])
@pytest.mark.parametrize("order", ORDERS)
def test_registration_of_grid(groups: list[int], order: str) -> None:
    image, rows, columns, row_weight, column_weight, level = random_grid(torch.float32)
    x = [(ORDERS[order](m) if groups else m).requires_grad_() for m in maps(6, dtype=torch.float32)]
    axes = [rows.requires_grad_(), row_weight, columns, column_weight.requires_grad_()]
    torch.library.opcheck(grid_module._sample_grid, (x, image, level, axes, groups))
    check_backward("sample_grid", torch.randn(5, 2 if any(groups) else 6, 6), x, image, level, axes, groups)


def check_backward(
    name: str, grad: Tensor, x: list[Tensor], image: Tensor, level: Tensor, arguments: list[Tensor], groups: list[int]
) -> None:
    frozen = [m.detach() for m in x], image, level, [a.detach() for a in arguments], groups
    for function in ("backward_maps", "backward_arguments"):
        torch.library.opcheck(getattr(torch.ops.regio, f"{name}_{function}").default, (grad, *frozen))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": []}, "x: expected one map"),
        ({"x": torch.zeros(3, 4, 5)}, r"x: expected shape \[N, C, H, W\]"),
        ({"x": [torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 3, 3)]}, "x: expected maps that agree"),
        ({"x": [torch.zeros(1, 2, 3, 3)] * 2, "level": None}, "level: expected"),
        ({"image": torch.zeros(4)}, r"image: expected \[R\] int64"),
        ({"points": torch.zeros(4, 1, 2)}, r"points: expected shape \[R, K, S, 2\]"),
        ({"points": torch.zeros(3, 1, 1, 2)}, r"points: expected shape \[4, 1, 1, 2\]"),
        ({"weight": torch.zeros(4, 1, 2)}, r"weight: expected shape \[4, 1, 1\]"),
        ({"image": torch.tensor([0, 0, 1, 0])}, r"image: expected an index in \[0, 1\), got 1 at row 2"),
        ({"level": torch.tensor([0, 0, 0, 1])}, r"level: expected an index in \[0, 1\), got 1 at row 3"),
    ],
)
def test_bad_arguments_raise(change: dict[str, object], message: str) -> None:
    arguments = {
        "x": torch.zeros(1, 2, 3, 3),
        "image": torch.zeros(4, dtype=torch.int64),
        "points": torch.zeros(4, 1, 1, 2),
        "weight": torch.zeros(4, 1, 1),
        "level": torch.zeros(4, dtype=torch.int64),
    }
    with pytest.raises(ValueError, match=message):
        sample_points(**(arguments | change))


@pytest.mark.parametrize("name", ["sample_points", "sample_grid"])
@pytest.mark.parametrize("asked_of", ["maps", "places"])
def test_gradients_of_gradients_are_refused(name: str, asked_of: str) -> None:
    """Not lost: neither where the incoming gradient is recorded nor where it is a constant."""
    x = [each.requires_grad_() for each in maps()]
    if name == "sample_points":
        image, place, weight, level = random_samples()
        place.requires_grad_()
        y = sample_points(x, image, place, weight, level)
    else:
        image, place, columns, row_weight, column_weight, level = random_grid()
        place.requires_grad_()
        y = sample_grid(x, image, place, columns, row_weight, column_weight, level)
    leaf = x[0] if asked_of == "maps" else place
    (constant,) = torch.autograd.grad(y.sum(), leaf, create_graph=True)
    (recorded,) = torch.autograd.grad(y.square().sum(), leaf, create_graph=True)
    torch.testing.assert_close(constant, torch.autograd.grad(y.sum(), leaf, retain_graph=True)[0])
    for gradient in (constant, recorded):
        with pytest.raises(RuntimeError, match="gradients of reading feature maps cannot be differentiated again"):
            gradient.square().sum().backward(retain_graph=True)


def test_a_position_that_is_no_number_has_no_gradient() -> None:
    x = torch.randn(1, 2, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = torch.tensor([[[float("nan"), 1.2]]], dtype=torch.float64)
    columns = torch.tensor([[[2.3, 3.1]]], dtype=torch.float64)
    found = []
    for form in (sample_grid, sample_grid_reference):
        leaves = [t.clone().requires_grad_() for t in (rows, columns, torch.ones_like(rows), torch.ones_like(rows))]
        image = torch.zeros(1, dtype=torch.int64)
        form([x], image, *leaves, image).sum().backward()
        found.append([t.grad for t in leaves])
    for ours, theirs in zip(*found, strict=True):
        assert ours is not None and theirs is not None and bool(ours.isfinite().all())
        close(ours, theirs)
    assert found[0][0] is not None and float(found[0][0][0, 0, 0]) == 0 != float(found[0][0][0, 0, 1])
