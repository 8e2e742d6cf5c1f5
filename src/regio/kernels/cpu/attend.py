"""CPU kernels of `regio.kernels.attend` for boxes that read the whole map.

The weights are written once, in the dtype of the matrix product, and the gradients of the terms are summed without an
array of those of the logits.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regio.kernels.cpu import threads
from regio.kernels.cpu.compile import compiled
from regio.kernels.cpu.inner_loops import add_logits_of_row, dot_map, weigh_map

__all__ = ["add_term_gradients", "weigh"]

Array = np.ndarray[Any, Any]
U = np.uintp

_LEAST = 1 << 15  # weights: fewer are made before another thread has begun


def weigh(column: Tensor, row: Tensor, appearance: Tensor, out: Tensor) -> Tensor:
    """``out[b, k, v * W + u] = column[b, k, u] row[b, k, v] appearance[k, v * W + u]``; returns the sums [n, K, 1].

    column: [n, K, W], row: [n, K, H] and appearance: [K, H * W], float32 or float64. out: [n, K, H * W], float32,
    float64 or bfloat16. All contiguous.
    """
    boxes, parts, width = column.shape
    total = column.new_empty((boxes, parts, 1))
    sizes = parts, row.shape[2], width
    run = partial(_weigh, _flat(column), _flat(row), _flat(appearance), sizes, _flat(out), _flat(total))
    threads.share(run, boxes * parts, grain=-(-_LEAST // max(1, appearance.shape[1])))
    return total


@compiled
def _weigh(
    column: Array, row: Array, appearance: Array, sizes: tuple[int, int, int], out: Array, total: Array, begin: int,
    end: int
) -> None:  # fmt: skip
    parts, height, width = sizes
    for i in range(begin, end):
        at = U(i % parts * height * width)
        total[i] = weigh_map(
            column, U(i * width), row, U(i * height), appearance, at, out, U(i * height * width), height, width
        )


def add_term_gradients(
    column: Tensor,
    row: Tensor,
    appearance: Tensor,
    scale: Tensor,
    products: Tensor,
    to_column: Tensor,
    to_row: Tensor,
    to_appearance: Tensor,
) -> None:
    """Add to the gradients of the three terms those of the logits, ``w_p (products_p - sum over q of w_q products_q)``.

    w: as of `weigh`, times scale [n, K, 1]. products: [n, K, H * W], of a dtype as there; the rest has the dtype and
    shape of the terms. A thread has parts of its own, so the order of the sums is that of the boxes.
    """
    sizes = *column.shape[:2], row.shape[2], column.shape[2]
    arrays = (_flat(t) for t in (column, row, appearance, scale, products, to_column, to_row, to_appearance))
    threads.share(partial(_add_term_gradients, sizes, *arrays), column.shape[1], shares=2)


@compiled
def _add_term_gradients(
    sizes: tuple[int, int, int, int], column: Array, row: Array, appearance: Array, scale: Array, products: Array,
    to_column: Array, to_row: Array, to_appearance: Array, begin: int, end: int
) -> None:  # fmt: skip
    boxes, parts, height, width = sizes
    for k in range(begin, end):
        for b in range(boxes):
            i = b * parts + k
            mean = scale[i] * dot_map(
                column, U(i * width), row, U(i * height), appearance, U(k * height * width), products,
                U(i * height * width), height, width
            )  # fmt: skip
            for v in range(height):
                at, products_at = U((k * height + v) * width), U((i * height + v) * width)
                factor = row[U(i * height + v)] * scale[i]
                to_row[U(i * height + v)] += add_logits_of_row(
                    column, U(i * width), factor, appearance, at, products, products_at, mean, to_column,
                    to_appearance, width
                )  # fmt: skip


def _flat(x: Tensor) -> Array:
    x = x.view(-1)
    return x.view(torch.int16).numpy().view(np.uint16) if x.dtype == torch.bfloat16 else x.numpy()
