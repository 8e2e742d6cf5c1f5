"""CUDA kernels of `regio.kernels.sample_points`: a program has some parts of a box and some channels, and goes through
the samples with vectors of channels.

Gradients of the maps are added with atomic operations, in no fixed order; under
`torch.use_deterministic_algorithms(True)` each tile of a map looks for the boxes that read it, and sums in their order.
An index of an image or a level out of range gives NaN: to look for one would make the CPU wait for the GPU.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from regio.kernels.arguments import Reads
from regio.kernels.cuda import launch
from regio.kernels.cuda.cells import (
    bilinear_weight,
    box_tile,
    first_channel,
    owned_tile,
    store_owned,
    touches,
    writes_result,
)

__all__ = ["backward_arguments", "backward_maps", "forward"]


def forward(reads: Reads) -> Tensor:
    """Features [R, C, K], stored as [R, K, C]."""
    samples = _contiguous(reads)
    boxes, parts, count = samples[1].shape
    out = reads.maps[0].new_empty((boxes, parts, reads.channels))
    launch.run_by_box(_forward, reads, parts, *samples, out, reads.channels, parts, count)
    return out.transpose(1, 2)


def backward_maps(grad: Tensor, reads: Reads) -> list[Tensor]:
    """A gradient of each map."""
    points, weights = samples = _contiguous(reads)
    boxes, parts, count = weights.shape

    def add(sums: list[Tensor]) -> None:
        arguments = (*samples, grad, *grad.stride(), reads.channels, parts, count)
        launch.run_by_box(_scatter, reads, parts, *arguments, sums=sums)

    def add_in_order(sums: list[Tensor]) -> None:
        u, v = points.flatten(1, 2).unbind(2)
        bounds = torch.stack([v.amin(1), u.amin(1), v.amax(1), u.amax(1)], 1)
        by_part = grad.transpose(1, 2).contiguous()
        launch.run_by_cell(_gather, reads, sums, *samples, bounds, by_part, reads.channels, boxes, parts, count)

    return launch.map_gradients(reads, add, add_in_order if weights.numel() else None)


def backward_arguments(grad: Tensor, reads: Reads) -> list[Tensor]:
    """The gradients of points and weight; no two programs write to one place."""
    points, weights = samples = _contiguous(reads)
    parts, count = weights.shape[1:]
    grads = [torch.empty_like(points), torch.empty_like(weights)]
    arguments = (*samples, grad, *grad.stride(), *grads, reads.channels, parts, count)
    launch.run_by_box(_sample_gradients, reads, parts, *arguments, all_channels=True)
    return grads


def _contiguous(reads: Reads) -> list[Tensor]:
    return [a.detach().contiguous() for a in reads.arguments]


@triton.jit
def _sample(
    points: tl.tensor, sample_weights: tl.tensor, at: tl.tensor, real: tl.tensor, height: tl.tensor, width: tl.tensor
) -> Any:
    """The samples `at`: their weight, which is 0 outside the map, whether they are near it, the cell at the top left,
    and how far they lie to the right of it and below."""
    u = tl.load(points + 2 * at, mask=real, other=-2.0)
    v = tl.load(points + 2 * at + 1, mask=real, other=-2.0)
    near = (u >= -1) & (u < width) & (v >= -1) & (v < height)
    u, v = tl.where(near, u, 0), tl.where(near, v, 0)
    left, top = tl.floor(u), tl.floor(v)
    weight = tl.load(sample_weights + at, mask=near, other=0.0)
    return weight, near, left.to(tl.int32), top.to(tl.int32), u - left, v - top


@triton.jit
def _corner(
    near: tl.tensor, left: tl.tensor, top: tl.tensor, du: tl.tensor, dv: tl.tensor, height: tl.tensor, width: tl.tensor
) -> Any:
    """One of the four cells about a sample: whether it is in the map, and its number there."""
    column, row = left + du, top + dv
    inside = near & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return inside, (row * width + column).to(tl.int64)


@triton.jit(do_not_specialize=launch.UNSPECIALIZED)
def _forward(
    x: tl.tensor, image: tl.tensor, level: tl.tensor, group: tl.tensor, images: tl.tensor, levels: tl.tensor,
    this: tl.tensor, height: tl.tensor, width: tl.tensor, cell_stride: tl.tensor, points: tl.tensor,
    sample_weights: tl.tensor, out: tl.tensor, channels: tl.tensor, parts: tl.tensor, samples: tl.tensor,
    GROUPED: tl.constexpr, PARTS: tl.constexpr, CHANNELS: tl.constexpr
) -> None:  # fmt: skip
    r, k, c = box_tile(parts, channels, PARTS, CHANNELS)
    n, where = tl.load(image + r), tl.load(level + r)
    if writes_result(where, this, levels):
        known = (n >= 0) & (n < images) & (where == this)
        readable = tl.where(known, parts, 0)
        cell0 = x + n * height * width * cell_stride + first_channel(group, k, k < parts, channels, GROUPED)
        acc = tl.zeros((PARTS, CHANNELS), sample_weights.dtype.element_ty)
        for s in range(samples):
            at = (r * parts + k) * samples + s
            weight, near, left, top, across, down = _sample(points, sample_weights, at, k < readable, height, width)
            for dv in tl.static_range(2):
                for du in tl.static_range(2):
                    inside, cell = _corner(near, left, top, du, dv, height, width)
                    w = weight * (across if du else 1 - across) * (down if dv else 1 - down)
                    reads = (inside & (w != 0))[:, None] & (c < channels)[None, :]
                    value = tl.load((cell0 + cell * cell_stride)[:, None] + c[None, :], mask=reads, other=0.0)
                    acc += tl.where(inside, w, 0)[:, None] * value.to(acc.dtype)
        result = tl.where(known, acc, float("nan"))
        to = ((r * parts + k) * channels)[:, None] + c[None, :]
        tl.store(out + to, result.to(out.dtype.element_ty), mask=(k < parts)[:, None] & (c < channels)[None, :])


@triton.jit(do_not_specialize=launch.UNSPECIALIZED)
def _scatter(
    x: tl.tensor, image: tl.tensor, level: tl.tensor, group: tl.tensor, images: tl.tensor, levels: tl.tensor,
    this: tl.tensor, height: tl.tensor, width: tl.tensor, cell_stride: tl.tensor, sums: tl.tensor, points: tl.tensor,
    sample_weights: tl.tensor, grad: tl.tensor, grad_r: tl.tensor, grad_c: tl.tensor, grad_k: tl.tensor,
    channels: tl.tensor, parts: tl.tensor, samples: tl.tensor, GROUPED: tl.constexpr, PARTS: tl.constexpr,
    CHANNELS: tl.constexpr
) -> None:  # fmt: skip
    r, k, c = box_tile(parts, channels, PARTS, CHANNELS)
    n = tl.load(image + r)
    if (n >= 0) & (n < images) & (tl.load(level + r) == this):
        cell0 = sums + n * height * width * cell_stride + first_channel(group, k, k < parts, channels, GROUPED)
        real = (k < parts)[:, None] & (c < channels)[None, :]
        g = tl.load(grad + r * grad_r + (k * grad_k)[:, None] + (c * grad_c)[None, :], mask=real, other=0.0)
        g = g.to(sample_weights.dtype.element_ty)
        for s in range(samples):
            at = (r * parts + k) * samples + s
            weight, near, left, top, across, down = _sample(points, sample_weights, at, k < parts, height, width)
            for dv in tl.static_range(2):
                for du in tl.static_range(2):
                    inside, cell = _corner(near, left, top, du, dv, height, width)
                    w = weight * (across if du else 1 - across) * (down if dv else 1 - down)
                    to = (cell0 + cell * cell_stride)[:, None] + c[None, :]
                    tl.atomic_add(to, w[:, None] * g, mask=real & (inside & (w != 0))[:, None], sem="relaxed")


@triton.jit(do_not_specialize=launch.UNSPECIALIZED)
def _gather(
    x: tl.tensor, image: tl.tensor, level: tl.tensor, group: tl.tensor, images: tl.tensor, levels: tl.tensor,
    this: tl.tensor, height: tl.tensor, width: tl.tensor, cell_stride: tl.tensor, sums: tl.tensor, points: tl.tensor,
    sample_weights: tl.tensor, bounds: tl.tensor, grad: tl.tensor, channels: tl.tensor, boxes: tl.tensor,
    parts: tl.tensor, samples: tl.tensor, GROUPED: tl.constexpr, SIDE: tl.constexpr, CHANNELS: tl.constexpr,
    BOXES: tl.constexpr
) -> None:  # fmt: skip
    """grad: [R, K, C], contiguous."""
    n, q, c, top, left, v, u = owned_tile(channels, width, SIDE, CHANNELS)
    acc = tl.zeros((SIDE * SIDE, CHANNELS), sample_weights.dtype.element_ty)
    for first in range(0, boxes, BOXES):
        some = first + tl.arange(0, BOXES).to(tl.int64)
        near = touches(bounds, image, level, some, some < boxes, n, this, top, left, SIDE)
        if tl.sum(near.to(tl.int32)) > 0:
            for box in range(first, tl.minimum(first + BOXES, boxes)):
                r = tl.full((), 0, tl.int64) + box
                if touches(bounds, image, level, r, r < boxes, n, this, top, left, SIDE):
                    for k in range(parts):
                        if q == first_channel(group, k, k < parts, 1, GROUPED):
                            w = tl.zeros((SIDE * SIDE,), sample_weights.dtype.element_ty)
                            for s in range(samples):
                                at = (r * parts + k) * samples + s
                                h = bilinear_weight(tl.load(points + 2 * at), u) * bilinear_weight(
                                    tl.load(points + 2 * at + 1), v
                                )
                                w += tl.where(h > 0, h * tl.load(sample_weights + at), 0)
                            g = tl.load(grad + (r * parts + k) * channels + c, mask=c < channels, other=0.0)
                            acc += tl.where((w != 0)[:, None], w[:, None] * g.to(acc.dtype)[None, :], 0)
    store_owned(sums, acc, n, q, c, v, u, height, width, cell_stride, channels)


@triton.jit(do_not_specialize=launch.UNSPECIALIZED)
def _sample_gradients(
    x: tl.tensor, image: tl.tensor, level: tl.tensor, group: tl.tensor, images: tl.tensor, levels: tl.tensor,
    this: tl.tensor, height: tl.tensor, width: tl.tensor, cell_stride: tl.tensor, points: tl.tensor,
    sample_weights: tl.tensor, grad: tl.tensor, grad_r: tl.tensor, grad_c: tl.tensor, grad_k: tl.tensor,
    grad_points: tl.tensor, grad_weights: tl.tensor, channels: tl.tensor, parts: tl.tensor, samples: tl.tensor,
    GROUPED: tl.constexpr, PARTS: tl.constexpr, CHANNELS: tl.constexpr
) -> None:  # fmt: skip
    r, k, _ = box_tile(parts, CHANNELS, PARTS, CHANNELS)
    n, where = tl.load(image + r), tl.load(level + r)
    if writes_result(where, this, levels):
        known = (n >= 0) & (n < images) & (where == this)
        readable = tl.where(known, parts, 0)
        cell0 = x + n * height * width * cell_stride + first_channel(group, k, k < parts, channels, GROUPED)
        for s in range(samples):
            at = (r * parts + k) * samples + s
            weight, near, left, top, across, down = _sample(points, sample_weights, at, k < readable, height, width)
            value = tl.zeros((PARTS,), sample_weights.dtype.element_ty)
            along_u = tl.zeros((PARTS,), sample_weights.dtype.element_ty)
            along_v = tl.zeros((PARTS,), sample_weights.dtype.element_ty)
            for dv in tl.static_range(2):
                for du in tl.static_range(2):
                    inside, cell = _corner(near, left, top, du, dv, height, width)
                    product = tl.zeros((PARTS,), sample_weights.dtype.element_ty)
                    for first in range(0, channels, CHANNELS):
                        c = first + tl.arange(0, CHANNELS)
                        reads = inside[:, None] & (c < channels)[None, :]
                        g = tl.load(
                            grad + r * grad_r + (k * grad_k)[:, None] + (c * grad_c)[None, :], mask=reads, other=0.0
                        )
                        y = tl.load((cell0 + cell * cell_stride)[:, None] + c[None, :], mask=reads, other=0.0)
                        product += tl.sum(g.to(value.dtype) * y.to(value.dtype), 1)
                    weight_u, weight_v = across if du else 1 - across, down if dv else 1 - down
                    value += weight_u * weight_v * product
                    along_u += (weight_v if du else -weight_v) * product
                    along_v += (weight_u if dv else -weight_u) * product
            tl.store(grad_weights + at, value, mask=k < parts)
            tl.store(grad_points + 2 * at, weight * along_u, mask=k < parts)
            tl.store(grad_points + 2 * at + 1, weight * along_v, mask=k < parts)
