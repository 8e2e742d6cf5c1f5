"""Quantized tensors, which torchvision's `roi_align` and `nms` take on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["dequantized", "quantized_like"]


def dequantized(x: Any) -> Any:
    """The numbers that a quantized tensor stands for, alone or in a list; anything else as it is."""
    if isinstance(x, (list, tuple)):
        return [dequantized(t) for t in x]
    return x.dequantize() if isinstance(x, Tensor) and x.is_quantized else x


def quantized_like(y: Tensor, x: Tensor) -> Tensor:
    """`y` with the dtype, scale and zero point of a quantized `x`; as it is for any other."""
    if not x.is_quantized:
        return y
    return torch.quantize_per_tensor(y, x.q_scale(), x.q_zero_point(), x.dtype)
