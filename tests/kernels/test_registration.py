"""Every registered operation as PyTorch's own `opcheck` judges it: schema, autograd registration, shapes and strides of
fake tensors, and a compiled forward and backward pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from regio.kernels import (  # noqa: F401 (they register)
    attend,
    deform_conv,
    depthwise,
    nms,
    pool_max,
    sample_grid,
    sample_points,
)

pytestmark = [
    pytest.mark.slow,  # each compiles a forward and a backward pass
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),  # opcheck itself reads it
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

CHANNELS, PARTS = 2, {"sample_points": 3, "sample_grid": 6, "pool_max": 6}
GROUPS = {"sample_points": [0, 2, 1], "sample_grid": [0, 1, 2, 2, 1, 0], "pool_max": [0, 1, 2, 2, 1, 0]}
SIZES = [(6, 8), (3, 4)]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=generator()).to(dtype)


def places(name: str, boxes: int, form: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """The arguments of a map operation that say where `boxes` boxes read."""
    if name == "sample_points":
        return [form(normal(boxes, 3, 2, 2) * 3 + 2), form(normal(boxes, 3, 2))]
    if name == "sample_grid":
        rows, columns = normal(boxes, 2, 2), normal(boxes, 3, 2)
        return [form(t) for t in (rows * 2 + 2, rows, columns * 2 + 2, columns)]
    top, left = (torch.randint(0, 3, (boxes, n), generator=generator()) for n in (2, 3))
    return [top, top + 2, left, left + 2]


def same(x: Tensor) -> Tensor:
    return x


def every_other(x: Tensor) -> Tensor:
    """The same numbers with holes between them in memory."""
    return x.repeat_interleave(2, -1)[..., ::2]


def last_first(x: Tensor) -> Tensor:
    """The same numbers, the first two axes exchanged in memory."""
    return x.transpose(0, 1).contiguous().transpose(0, 1)


CASES = {  # boxes, maps, whether in groups, dtype, how maps and arguments lie in memory
    "one map": (5, 1, False, torch.float32, same, same),
    "a pyramid": (5, 2, False, torch.float32, same, same),
    "groups": (5, 1, True, torch.float32, same, same),
    "groups of a pyramid": (5, 2, True, torch.float32, last_first, same),
    "no boxes": (0, 1, False, torch.float32, same, same),
    "no boxes of a pyramid": (0, 2, True, torch.float32, same, same),
    "one box": (1, 1, False, torch.float32, same, same),
    "bfloat16": (5, 1, False, torch.bfloat16, same, same),
    "float64 with holes": (5, 1, False, torch.float64, every_other, every_other),
    "exchanged axes": (5, 2, False, torch.float32, last_first, last_first),
}


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("case", CASES)
def test_map_operations(name: str, case: str) -> None:
    boxes, levels, in_groups, dtype, of_maps, of_arguments = CASES[case]
    shape = (2, 3, CHANNELS) if in_groups else (2, CHANNELS)
    maps = [of_maps(normal(*shape, *size, dtype=dtype)) for size in SIZES[:levels]]
    arguments = places(name, boxes, of_arguments)
    if dtype == torch.float64:
        arguments = [a.to(dtype) if a.is_floating_point() else a for a in arguments]
    image, level, groups = torch.arange(boxes) % 2, torch.arange(boxes) % levels, GROUPS[name] if in_groups else []
    grad = normal(boxes, CHANNELS, PARTS[name], dtype=dtype)
    operations = [n for n in (f"{name}_backward_maps", f"{name}_backward_arguments") if hasattr(torch.ops.regio, n)]
    assert len(operations) == (1 if name == "pool_max" else 2)
    for operation in operations:
        torch.library.opcheck(
            getattr(torch.ops.regio, operation).default, (grad, maps, image, level, arguments, groups)
        )
    for t in (*maps, *arguments):
        t.requires_grad_(t.is_floating_point())
    torch.library.opcheck(getattr(torch.ops.regio, name).default, (maps, image, level, arguments, groups))


@pytest.mark.parametrize("boxes", [5, 0])
@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize(
    ("dtype", "product", "with_appearance"),
    [
        (torch.float32, torch.float32, True),
        (torch.float32, torch.float32, False),
        (torch.float64, torch.float64, True),
        (torch.bfloat16, torch.bfloat16, True),
        (torch.float16, torch.float16, True),
    ],
)
def test_attend(boxes: int, listed: bool, dtype: torch.dtype, product: torch.dtype, with_appearance: bool) -> None:
    term = torch.float64 if dtype == torch.float64 else torch.float32
    column, row = normal(boxes, 3, 8, dtype=term), normal(boxes, 3, 6, dtype=term)
    appearance = normal(2, 3, 6, 8, dtype=term) if with_appearance else None
    support = torch.tensor([[0, 0, 8, 6], [1, 1, 4, 5], [2, 2, 2, 2]])[torch.arange(boxes) % 3]
    cells = torch.arange(4).expand(boxes, 4) * 7 if listed else None
    x, image = normal(2, 5, 6, 8, dtype=dtype), torch.arange(boxes) % 2
    arguments = (x, image, column, row, appearance, support, cells, product)
    torch.library.opcheck(torch.ops.regio.attend_backward.default, (normal(boxes, 5, 3, dtype=dtype), *arguments))
    for t in (x, column, row, appearance):
        if t is not None:
            t.requires_grad_()
    torch.library.opcheck(torch.ops.regio.attend.default, arguments)


@pytest.mark.parametrize("boxes", [50, 1, 0])
def test_nms(boxes: int) -> None:
    corner = torch.rand(boxes, 2, generator=generator()) * 20
    corners = torch.cat([corner, corner + 8], 1)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        arguments = (corners.to(dtype), torch.arange(boxes).to(dtype), torch.arange(boxes) % 3, 0.5)
        torch.library.opcheck(torch.ops.regio.nms.default, arguments)


@pytest.mark.parametrize("images", [2, 0])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_depthwise(images: int, form: torch.memory_format) -> None:
    for dtype in (torch.float32, torch.float64):
        shapes = (images, 4, 4, 4), (images, 4, 8, 8), (4, 1, 5, 5)
        tensors = [normal(*shape, dtype=dtype).contiguous(memory_format=form) for shape in shapes]
        arguments = (*tensors, [1, 1], [0, 0], [1, 1])
        torch.library.opcheck(torch.ops.regio.depthwise_weight_gradient.default, arguments)


def test_no_operation_is_left_out() -> None:
    checked = {"attend", "attend_backward", "nms", "depthwise_weight_gradient", *PARTS}
    checked |= {"deform_conv", "deform_conv_backward"}  # in test_deform_conv.py
    checked |= {f"{name}_backward_maps" for name in PARTS}
    checked |= {f"{name}_backward_arguments" for name in PARTS if name != "pool_max"}
    registered = {
        n.split("::")[1].split(".")[0] for n in torch._C._dispatch_get_all_op_names() if n.startswith("regio::")
    }
    assert registered == checked
