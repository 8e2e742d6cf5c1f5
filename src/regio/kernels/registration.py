"""Operations in which boxes read feature maps: the registration with PyTorch that they share.

The kernels of the operation `name` are three functions of the modules `regio.kernels.cpu.name` and
`regio.kernels.cuda.name`, imported at the first call:

    forward(reads) -> features
    backward_maps(grad, reads) -> a gradient of each map
    backward_arguments(grad, reads) -> a gradient of each argument

PyTorch's dispatcher has no named tuples, so in the schema of an operation the fields of `Reads` follow each other:
`map_operation` takes it apart, and `_kernel` puts it together again.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from regio.kernels.arguments import Reads, like_maps

__all__ = ["has_kernel", "map_operation", "no_view"]

_READS = "Tensor[] maps, Tensor image, Tensor level, Tensor[] arguments, int[] groups"
_library = torch.library.Library("regio", "FRAGMENT")
_TRITON = importlib.util.find_spec("triton") is not None


def has_kernel(x: Tensor) -> bool:
    """Whether the operations have a kernel for the device of `x` (on the meta device, that which makes the shape);
    elsewhere their PyTorch references run."""
    return x.device.type in ("cpu", "meta") or (x.device.type == "cuda" and _TRITON)


def no_view(x: Tensor) -> Tensor:
    """`x` as a tensor that is no view of another, in the same memory. Where gradients are taken, the result of an
    operation that is a view may not be changed in place, as ``nn.ReLU(inplace=True)`` does."""
    if not x._is_view():
        return x
    return x.new_empty(0).set_(x.untyped_storage(), x.storage_offset(), x.shape, x.stride())


def map_operation(
    name: str, like: Callable[[Reads], Tensor], *, differentiable_arguments: bool
) -> Callable[..., Tensor]:
    """Register `regio::name` and its two backward operations, and return the first, which is called with the fields of
    a `Reads`. like: makes an empty result of the right shape, dtype and layout. Arguments that are not differentiable
    (whole numbers) have no `backward_arguments`."""
    backward_maps = _register(
        name, "backward_maps", f"(Tensor grad, {_READS}) -> Tensor[]", lambda grad, *fields: like_maps(fields[0])
    )
    if differentiable_arguments:
        backward_arguments = _register(
            name,
            "backward_arguments",
            f"(Tensor grad, {_READS}) -> Tensor[]",
            lambda grad, *fields: [a.new_empty(a.shape) for a in Reads(*fields).arguments],
        )

    class Recorded(Function):
        @staticmethod
        def forward(
            ctx: Any, groups: Sequence[int], levels: int, image: Tensor, level: Tensor, *tensors: Tensor
        ) -> Tensor:
            """tensors: the maps, one a level, and the arguments."""
            ctx.groups, ctx.levels = groups, levels
            ctx.save_for_backward(image, level, *tensors)
            with torch._C._AutoDispatchBelowAutograd():
                return forward(tensors[:levels], image, level, tensors[levels:], groups)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
            image, level, *tensors = ctx.saved_tensors  # once: under checkpointing they can be asked for only once
            maps, arguments = tensors[: ctx.levels], tensors[ctx.levels :]
            needed = ctx.needs_input_grad[4:]
            reads = Reads(maps, image, level, arguments, ctx.groups)
            for_maps, for_arguments = any(needed[: ctx.levels]), any(needed[ctx.levels :])
            to_maps = _gradients(backward_maps, grad, reads) if for_maps else [None] * len(maps)
            to_arguments = _gradients(backward_arguments, grad, reads) if for_arguments else [None] * len(arguments)
            return None, None, None, None, *to_maps, *to_arguments

    def with_autograd(
        maps: Sequence[Tensor], image: Tensor, level: Tensor, arguments: Sequence[Tensor], groups: Sequence[int]
    ) -> Tensor:
        if torch.is_grad_enabled() and any(t.requires_grad for t in (*maps, *arguments)):
            return Recorded.apply(groups, len(maps), image, level, *maps, *arguments)
        with torch._C._AutoDispatchBelowAutograd():  # as PyTorch's own custom operators go on to the kernel
            return forward(maps, image, level, arguments, groups)

    # `register_autograd` would do the same, but what it does with lists of tensors takes longer than torchvision's
    # RoIAlign of a box.
    forward = _register(name, "forward", f"({_READS}) -> Tensor", lambda *fields: like(Reads(*fields)))
    _library.impl(name, with_autograd, "Autograd")
    return forward


class _Once(Function):
    """A gradient that has none itself. Asking for one raises RuntimeError; `once_differentiable` raises for incoming
    gradients that are recorded, and loses what maps and arguments do."""

    @staticmethod
    def forward(
        ctx: Any, backward: Any, groups: Sequence[int], levels: int, grad: Tensor, image: Tensor, level: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        return tuple(backward(grad, tensors[:levels], image, level, tensors[levels:], groups))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError("regio: the gradients of reading feature maps cannot be differentiated again")


def _gradients(backward: Any, grad: Tensor, reads: Reads) -> Any:
    """What `backward` gives; where gradients of gradients are recorded, as a step that has none."""
    if not torch.is_grad_enabled():
        return backward(grad, *reads)
    return _Once.apply(
        backward, reads.groups, len(reads.maps), grad, reads.image, reads.level, *reads.maps, *reads.arguments
    )


def _register(module: str, function: str, schema: str, like: Callable[..., Any]) -> Any:
    name = module if function == "forward" else f"{module}_{function}"
    _library.define(name + schema, tags=torch.Tag.pt2_compliant_tag)
    for device in ("cpu", "cuda"):
        _library.impl(name, _kernel(f"regio.kernels.{device}.{module}", function), device.upper())
    torch.library.register_fake(f"regio::{name}", like, lib=_library)
    return getattr(torch.ops.regio, name).default


def _kernel(module: str, function: str) -> Callable[..., Any]:
    """The function of a module that is imported at the first call, with the fields of `Reads` as one value."""
    load = cache(lambda: getattr(import_module(module), function))
    if function == "forward":
        return lambda *fields: no_view(load()(Reads(*fields)))
    return lambda grad, *fields: load()(grad, Reads(*fields))
