"""The CPU kernel of `regio.kernels.depthwise`: a tap of the weight meets one row of the input and of the gradient at a
time, all channels of a block together."""

from __future__ import annotations

from typing import Any

import numpy as np

from regio.kernels.cpu.compile import compiled

__all__ = ["weight_gradient"]

Array = np.ndarray[Any, Any]
U = np.uintp
BLOCK = 64  # channels: the sums of 5 x 5 taps then fit the first-level cache


@compiled
def _add_products(
    x: Array, at: int, step: int, grad: Array, grad_at: int, grad_step: int, count: int, sums: Array, to: int, n: int
) -> None:
    """``sums[to + c] += sum over i < count of x[at + i step + c] grad[grad_at + i grad_step + c]``, for c < n."""
    i = 0
    while i + 4 <= count:  # four at a time: the sums are read and written a quarter as often
        x0, x1 = U(at + i * step), U(at + (i + 1) * step)
        x2, x3 = U(at + (i + 2) * step), U(at + (i + 3) * step)
        g0, g1 = U(grad_at + i * grad_step), U(grad_at + (i + 1) * grad_step)
        g2, g3 = U(grad_at + (i + 2) * grad_step), U(grad_at + (i + 3) * grad_step)
        for c in range(n):
            k = U(c)
            near = x[x0 + k] * grad[g0 + k] + x[x1 + k] * grad[g1 + k]
            sums[U(to) + k] += near + x[x2 + k] * grad[g2 + k] + x[x3 + k] * grad[g3 + k]
        i += 4
    while i < count:
        x0, g0 = U(at + i * step), U(grad_at + i * grad_step)
        for c in range(n):
            sums[U(to) + U(c)] += x[x0 + U(c)] * grad[g0 + U(c)]
        i += 1


@compiled
def weight_gradient(
    x: Array, shape: tuple[int, int, int, int], grad: Array, size: tuple[int, int], kernel: tuple[int, int],
    stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int], out: Array, begin: int, end: int
) -> None:  # fmt: skip
    """out[begin:end] of [C, Kh * Kw]. x, grad: flat channels-last cells of (N, C, H, W) = shape and of size (h, w)."""
    images, channels, height, width = shape
    rows, columns = size
    for first in range(begin, end, BLOCK):
        n = min(BLOCK, end - first)
        sums = np.zeros(kernel[0] * kernel[1] * BLOCK, x.dtype)
        for row in range(images * rows):
            image, v = row // rows, row % rows
            for i in range(kernel[0]):
                y = v * stride[0] - padding[0] + i * dilation[0]
                if y < 0 or y >= height:
                    continue
                for j in range(kernel[1]):
                    shift = j * dilation[1] - padding[1]
                    low = max(0, -(shift // stride[1]))  # the columns u of which u * stride + shift is in the map
                    high = min(columns, (width - 1 - shift) // stride[1] + 1)
                    at = ((image * height + y) * width + low * stride[1] + shift) * channels + first
                    grad_at = (row * columns + low) * channels + first
                    to = (i * kernel[1] + j) * BLOCK
                    step = stride[1] * channels
                    _add_products(x, at, step, grad, grad_at, channels, high - low, sums, to, n)
        for tap in range(out.shape[1]):
            for c in range(n):
                out[first + c, tap] = sums[tap * BLOCK + c]
