"""Operations in which boxes read feature maps: the registration with PyTorch that they share.

The kernels of the operation `name` are three functions of the modules `regio.kernels.cpu.name` and
`regio.kernels.cuda.name`, imported at the first call:

    forward(maps, image, level, arguments, groups) -> features
    backward_maps(grad, maps, image, level, arguments, groups) -> a gradient of each map
    backward_arguments(grad, maps, image, level, arguments, groups) -> a gradient of each argument

`arguments` are the tensors that say where the boxes read; `groups` is the channel group of each part.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from regio.kernels.maps import like_maps

__all__ = ["has_kernel", "map_operation"]

Operation = Callable[[Sequence[Tensor], Tensor, Tensor, Sequence[Tensor], Sequence[int]], Tensor]

_INPUTS = "Tensor[] maps, Tensor image, Tensor level, Tensor[] arguments, int[] groups"
_TRITON = importlib.util.find_spec("triton") is not None


def has_kernel(x: Tensor) -> bool:
    """Whether the operations have a kernel for the device of `x`; elsewhere their PyTorch references run."""
    return x.device.type == "cpu" or (x.device.type == "cuda" and _TRITON)


def map_operation(name: str, like: Operation, *, differentiable_arguments: bool) -> Operation:
    """Register `regio::name` and its two backward operations; `like` makes an empty result of the right shape,
    dtype and layout. Arguments that are not differentiable (whole numbers) have no `backward_arguments`."""
    forward = _register(name, "forward", f"({_INPUTS}) -> Tensor", like)
    backward_maps = _register(
        name, "backward_maps", f"(Tensor grad, {_INPUTS}) -> Tensor[]", lambda grad, maps, *rest: like_maps(maps)
    )
    if differentiable_arguments:
        backward_arguments = _register(
            name,
            "backward_arguments",
            f"(Tensor grad, {_INPUTS}) -> Tensor[]",
            lambda grad, maps, image, level, arguments, groups: [a.new_empty(a.shape) for a in arguments],
        )

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        maps, image, level, arguments, ctx.groups = inputs
        ctx.levels = len(maps)
        ctx.save_for_backward(*maps, image, level, *arguments)

    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        saved = ctx.saved_tensors  # once: under checkpointing they can be asked for only once
        maps, (image, level, *arguments) = list(saved[: ctx.levels]), saved[ctx.levels :]
        need_maps, _, _, need_arguments, _ = ctx.needs_input_grad
        inputs = (grad, maps, image, level, arguments, ctx.groups)
        to_maps = backward_maps(*inputs) if any(need_maps) else [None] * len(maps)
        to_arguments = backward_arguments(*inputs) if any(need_arguments) else [None] * len(arguments)
        return to_maps, None, None, to_arguments, None

    forward.register_autograd(backward, setup_context=keep)
    return forward


def _register(name: str, function: str, schema: str, like: Callable[..., Any]) -> Any:
    def on(device: str) -> Callable[..., Any]:
        def run(*inputs: Any) -> Any:
            return getattr(import_module(f"regio.kernels.{device}.{name}"), function)(*inputs)

        return run

    full_name = f"regio::{name}" if function == "forward" else f"regio::{name}_{function}"
    operation = torch.library.custom_op(full_name, on("cpu"), mutates_args=(), device_types="cpu", schema=schema)
    operation.register_kernel("cuda", on("cuda"))
    operation.register_fake(like)
    return operation
