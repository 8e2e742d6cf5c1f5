"""CUDA kernels of `regio.kernels.attend`, for boxes that read all cells of their support.

The logits of a tile of cells are made where they are used, from a vector of the column term and one of the row term;
nothing of the size of boxes x parts x cells is written to memory (compare Dao et al. 2022, whose logits are an inner
product per cell). Going forward, a program has some parts of a box and some channels, goes through the support in tiles
with a running maximum, and hands the weights to a matrix product.

Going backward, programs that own a box give the gradients of its column and row terms, and programs that own a tile of
the map give those of features and appearance, from the boxes that read the tile, in their order. There are no atomic
operations, so results are the same each time.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from regio.kernels.cuda import launch
from regio.kernels.cuda.cells import box_tile, map_tile, touches

__all__ = ["backward", "forward"]

_COLUMN_BLOCKS = 8  # at most; the gradient of a row term is a sum of as many numbers, which are kept for a moment
_CELLS = 64  # of a tile
_SIDE = 8  # of a tile that is owned
# Weights, of which the largest is 1 or all sum to 1, are multiplied by this before they become operands of a matrix
# product, and its result is divided by it. In float16 a weight below 2^-14 has fewer digits and one below 2^-25 is
# zero, and on a large map all may be below. It is a power of two, so in other dtypes it changes no digit.
_RANGE = tl.constexpr(2.0**15)


def forward(
    x: Tensor,
    image: Tensor,
    column: Tensor,
    row: Tensor,
    appearance: Tensor | None,
    support: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """Weighted sums [R, C, K], stored as [R, K, C], in the dtype of x; `dtype` is that of the matrix product."""
    inputs = _contiguous(x, image, column, row, appearance, support, dtype)
    block = _block(x, column, appearance, dtype)
    return _sums(inputs, block, x.dtype)[0].transpose(1, 2)


def backward(
    gradient: Tensor,
    x: Tensor,
    image: Tensor,
    column: Tensor,
    row: Tensor,
    appearance: Tensor | None,
    support: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, column, row and appearance (empty for None).

    With y = sum_p w_p x_p and g the gradient of y: that of x_p is w_p g, that of logit p is w_p (<g, x_p> - <g, y>).
    """
    inputs = image, column, row, appearance, support, dtype
    if dtype != torch.float16:
        return _backward(gradient, x, *inputs)
    # As an operand the gradient would lose what is too small for float16, so it is in a unit of its own meanwhile.
    norm = torch.linalg.vector_norm(gradient, dtype=torch.float32)
    unit = torch.exp2(torch.frexp(norm).exponent.clamp(min=-100).float() - 15)
    unit = unit.where(torch.isfinite(norm), 1)
    to_x, *to_terms = _backward(gradient / unit, x.float(), *inputs)
    to_column, to_row, to_appearance = (t * unit for t in to_terms)
    return (to_x * unit).to(x.dtype), to_column, to_row, to_appearance


def _backward(
    gradient: Tensor,
    x: Tensor,
    image: Tensor,
    column: Tensor,
    row: Tensor,
    appearance: Tensor | None,
    support: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (images, channels, height, width), (boxes, parts) = x.shape, column.shape[:2]
    inputs = _contiguous(x, image, column, row, appearance, support, dtype)
    block = _block(x, column, appearance, dtype)
    y, log_total = _sums(inputs, block, column.dtype)
    g = gradient.transpose(1, 2).to(dtype).contiguous()
    mean = (g.to(y.dtype) * y).sum(2)
    shape = (channels, height, width, parts)
    u0, v0, u1, v1 = support.unbind(1)
    bounds = torch.stack([v0, u0, v1 - 1, u1 - 1], 1).float()
    to_x = x.new_empty((images, height, width, channels))
    to_column, tile = torch.zeros_like(inputs[2]), _box_tile(width)
    to_row = column.new_zeros((boxes, parts, height, triton.cdiv(width, tile["COLUMNS"])))
    to_appearance = column.new_empty((0,) if appearance is None else appearance.shape)
    tiles = triton.cdiv(height, _SIDE) * triton.cdiv(width, _SIDE)
    part_blocks, channel_blocks = triton.cdiv(parts, block["PARTS"]), triton.cdiv(channels, block["CHANNELS"])
    with torch.cuda.device_of(x):
        _term_gradients[boxes * part_blocks,](
            *inputs, *shape, g, log_total, mean, to_column, to_row, to_row.shape[3], **tile, **block
        )
        _feature_gradients[tiles, channel_blocks, images](
            *inputs, *shape, g, log_total, bounds, to_x, boxes, SIDE=_SIDE, BOXES=64, **block
        )
        if appearance is not None:
            _appearance_gradients[tiles, part_blocks, images](
                *inputs, *shape, g, log_total, mean, bounds, to_appearance, boxes, SIDE=_SIDE, BOXES=64, **block
            )
    return to_x.permute(0, 3, 1, 2), to_column, to_row.sum(3), to_appearance


def _contiguous(
    x: Tensor,
    image: Tensor,
    column: Tensor,
    row: Tensor,
    appearance: Tensor | None,
    support: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, ...]:
    """What all kernels begin with: features [N, H, W, C] in `dtype`, and the others as they are."""
    features = x.detach().permute(0, 2, 3, 1).to(dtype).contiguous()
    terms = [column, row, column if appearance is None else appearance]  # one that is not read
    return features, image.contiguous(), *(t.detach().contiguous() for t in terms), support.contiguous()


def _block(x: Tensor, column: Tensor, appearance: Tensor | None, dtype: torch.dtype) -> dict[str, Any]:
    """How all kernels are compiled: whether there is an appearance term, the parts and channels of a program (so that a
    tile of features has 16 KiB), and how float32 is multiplied, which is as exactly as PyTorch is told to."""
    parts, channels = column.shape[1], x.shape[1]
    exact = torch.get_float32_matmul_precision() == "highest"
    return {
        "APPEARANCE": appearance is not None,
        "PARTS": min(64, max(16, triton.next_power_of_2(parts))),
        "CHANNELS": min(256 // dtype.itemsize, max(16, triton.next_power_of_2(channels))),
        "PRECISION": "ieee" if dtype == torch.float64 else "tf32x3" if exact else "tf32",
        "num_warps": 8,
        "num_stages": 1,
        **launch.FUSED,
    }


def _box_tile(width: int) -> dict[str, int]:
    """The tile of cells in which a program goes through the support of its box."""
    columns = min(_CELLS, max(16, triton.next_power_of_2(triton.cdiv(width, _COLUMN_BLOCKS))))
    return {"ROWS": _CELLS // columns, "COLUMNS": columns}


def _sums(inputs: tuple[Tensor, ...], block: dict[str, Any], out_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The weighted sums [R, K, C], and the logarithms [R, K] of the sums of the exponentials of the logits."""
    features, _, column = inputs[:3]
    _, height, width, channels = features.shape
    boxes, parts = column.shape[:2]
    out = features.new_empty((boxes, parts, channels), dtype=out_dtype)
    log_total = column.new_empty((boxes, parts))
    grid = launch.programs(boxes, parts, channels, block)
    with torch.cuda.device_of(features):
        _forward[grid](*inputs, channels, height, width, parts, out, log_total, **_box_tile(width), **block)
    return out, log_total


@triton.jit
def _logits(
    column: tl.tensor, row: tl.tensor, appearance: tl.tensor, support: tl.tensor, r: tl.tensor, n: tl.tensor,
    k: tl.tensor, v: tl.tensor, u: tl.tensor, parts: tl.tensor, height: tl.tensor, width: tl.tensor,
    APPEARANCE: tl.constexpr
) -> Any:  # fmt: skip
    """The logits [PARTS, ROWS * COLUMNS] of the cells of rows v and columns u, and which of the cells are read."""
    in_u = (u >= tl.load(support + 4 * r)) & (u < tl.load(support + 4 * r + 2))
    in_v = (v >= tl.load(support + 4 * r + 1)) & (v < tl.load(support + 4 * r + 3))
    # Offsets within a box or an image are 32-bit numbers: tiles of wider ones take too many registers.
    real = (k < parts)[:, None]
    a = tl.load(column + r * parts * width + (k * width)[:, None] + u[None, :], mask=real & in_u[None, :], other=0.0)
    b = tl.load(row + r * parts * height + (k * height)[:, None] + v[None, :], mask=real & in_v[None, :], other=0.0)
    total = b[:, :, None] + a[:, None, :]
    inside = in_v[:, None] & in_u[None, :]
    if APPEARANCE:
        cell = (k * (height * width))[:, None, None] + (v[:, None] * width + u[None, :])[None, :, :]
        start = appearance + n * parts * height * width
        total += tl.load(start + cell, mask=real[:, :, None] & inside[None, :, :], other=0.0)
    total = tl.reshape(total, (k.shape[0], v.shape[0] * u.shape[0]))
    return total, tl.reshape(inside, (v.shape[0] * u.shape[0],))


@triton.jit
def _features(
    features: tl.tensor, n: tl.tensor, v: tl.tensor, u: tl.tensor, inside: tl.tensor, c: tl.tensor,
    height: tl.tensor, width: tl.tensor, channels: tl.tensor
) -> Any:  # fmt: skip
    """The features [ROWS * COLUMNS, CHANNELS] of the cells of rows v and columns u; zero where they are not read."""
    cell = tl.reshape(v[:, None] * width + u[None, :], (v.shape[0] * u.shape[0],))
    start = features + n * height * width * channels
    at = start + (cell * channels)[:, None] + c[None, :]
    return tl.load(at, mask=inside[:, None] & (c < channels)[None, :], other=0.0)


@triton.jit(do_not_specialize=launch.UNSPECIALIZED)
def _forward(
    features: tl.tensor, image: tl.tensor, column: tl.tensor, row: tl.tensor, appearance: tl.tensor,
    support: tl.tensor, channels: tl.tensor, height: tl.tensor, width: tl.tensor, parts: tl.tensor, out: tl.tensor,
    log_total: tl.tensor, APPEARANCE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PARTS: tl.constexpr,
    CHANNELS: tl.constexpr, PRECISION: tl.constexpr
) -> None:  # fmt: skip
    r, k, c = box_tile(parts, channels, PARTS, CHANNELS)
    n = tl.load(image + r)
    left, top = tl.load(support + 4 * r).to(tl.int32), tl.load(support + 4 * r + 1).to(tl.int32)
    right, bottom = tl.load(support + 4 * r + 2).to(tl.int32), tl.load(support + 4 * r + 3).to(tl.int32)
    SUM: tl.constexpr = column.dtype.element_ty
    largest = tl.full((PARTS,), float("-inf"), SUM)
    total = tl.zeros((PARTS,), SUM)
    acc = tl.zeros((PARTS, CHANNELS), SUM)
    for u0 in range(left, right, COLUMNS):
        for v0 in range(top, bottom, ROWS):
            v, u = v0 + tl.arange(0, ROWS), u0 + tl.arange(0, COLUMNS)
            logits, inside = _logits(
                column, row, appearance, support, r, n, k, v, u, parts, height, width, APPEARANCE
            )  # fmt: skip
            logits = tl.where(inside[None, :], logits, float("-inf"))
            larger = tl.maximum(largest, tl.max(logits, 1))
            shift = tl.where(larger == float("-inf"), 0, larger)
            weights, scale = tl.exp(logits - shift[:, None]), tl.exp(largest - shift)
            total = total * scale + tl.sum(weights, 1)
            value = _features(features, n, v, u, inside, c, height, width, channels)
            acc = acc * scale[:, None]
            acc += tl.dot((weights * _RANGE).to(value.dtype), value, input_precision=PRECISION, out_dtype=SUM)
            largest = larger
    empty = total == 0
    result = tl.where(empty[:, None], 0, acc / (tl.where(empty, 1, total) * _RANGE)[:, None])
    at = r * parts + k
    to = (at * channels)[:, None] + c[None, :]
    tl.store(out + to, result.to(out.dtype.element_ty), mask=(k < parts)[:, None] & (c < channels)[None, :])
    # Of all channel blocks, which find the same number.
    tl.store(log_total + at, tl.where(empty, 0, largest + tl.log(tl.where(empty, 1, total))), mask=k < parts)


@triton.jit
def _weights(
    logits: tl.tensor, inside: tl.tensor, log_total: tl.tensor, r: tl.tensor, k: tl.tensor, parts: tl.tensor
) -> Any:
    """The weights [PARTS, ROWS * COLUMNS], zero for cells that are not read."""
    log_sum = tl.load(log_total + r * parts + k, mask=k < parts, other=0.0)
    return tl.where(inside[None, :], tl.exp(logits - log_sum[:, None]), 0)


@triton.jit
def _logit_gradients(
    features: tl.tensor, column: tl.tensor, row: tl.tensor, appearance: tl.tensor, support: tl.tensor,
    grad: tl.tensor, log_total: tl.tensor, mean: tl.tensor, r: tl.tensor, n: tl.tensor, k: tl.tensor, v: tl.tensor,
    u: tl.tensor, channels: tl.tensor, height: tl.tensor, width: tl.tensor, parts: tl.tensor,
    APPEARANCE: tl.constexpr, CHANNELS: tl.constexpr, PRECISION: tl.constexpr
) -> Any:  # fmt: skip
    """The gradients [PARTS, ROWS * COLUMNS] of the logits of one box. mean: [R, K], of <g, x> under the weights."""
    logits, inside = _logits(column, row, appearance, support, r, n, k, v, u, parts, height, width, APPEARANCE)
    product = tl.zeros((k.shape[0], v.shape[0] * u.shape[0]), column.dtype.element_ty)
    start = grad + r * parts * channels
    for first in range(0, channels, CHANNELS):
        c = first + tl.arange(0, CHANNELS)
        value = _features(features, n, v, u, inside, c, height, width, channels)
        at = start + (k * channels)[:, None] + c[None, :]
        g = tl.load(at, mask=(k < parts)[:, None] & (c < channels)[None, :], other=0.0)
        product += tl.dot(g, tl.trans(value), input_precision=PRECISION, out_dtype=column.dtype.element_ty)
    product -= tl.load(mean + r * parts + k, mask=k < parts, other=0.0)[:, None]
    weights = _weights(logits, inside, log_total, r, k, parts)
    return tl.where(inside[None, :] & (k < parts)[:, None], weights * product, 0)


@triton.jit(do_not_specialize=launch.UNSPECIALIZED)
def _term_gradients(
    features: tl.tensor, image: tl.tensor, column: tl.tensor, row: tl.tensor, appearance: tl.tensor,
    support: tl.tensor, channels: tl.tensor, height: tl.tensor, width: tl.tensor, parts: tl.tensor, grad: tl.tensor,
    log_total: tl.tensor, mean: tl.tensor, to_column: tl.tensor, to_row: tl.tensor, column_blocks: tl.tensor,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, PARTS: tl.constexpr, CHANNELS: tl.constexpr, PRECISION: tl.constexpr,
    APPEARANCE: tl.constexpr
) -> None:  # fmt: skip
    """Gradients of the column terms, and of the row terms as one summand, [R, K, H, column_blocks], a column block."""
    r, k, _ = box_tile(parts, CHANNELS, PARTS, CHANNELS)
    n = tl.load(image + r)
    left, top = tl.load(support + 4 * r).to(tl.int32), tl.load(support + 4 * r + 1).to(tl.int32)
    right, bottom = tl.load(support + 4 * r + 2).to(tl.int32), tl.load(support + 4 * r + 3).to(tl.int32)
    for u0 in range(left, right, COLUMNS):
        u = u0 + tl.arange(0, COLUMNS)
        by_column = tl.zeros((PARTS, COLUMNS), column.dtype.element_ty)
        for v0 in range(top, bottom, ROWS):
            v = v0 + tl.arange(0, ROWS)
            slope = _logit_gradients(
                features, column, row, appearance, support, grad, log_total, mean, r, n, k, v, u, channels, height,
                width, parts, APPEARANCE, CHANNELS, PRECISION,
            )  # fmt: skip
            slope = tl.reshape(slope, (PARTS, ROWS, COLUMNS))
            by_column += tl.sum(slope, 1)
            to = ((r * parts + k)[:, None] * height + v[None, :]) * column_blocks + (u0 - left) // COLUMNS
            tl.store(to_row + to, tl.sum(slope, 2), mask=(k < parts)[:, None] & (v < bottom)[None, :])
        to = (r * parts + k)[:, None] * width + u[None, :]
        tl.store(to_column + to, by_column, mask=(k < parts)[:, None] & (u < right)[None, :])


@triton.jit(do_not_specialize=launch.UNSPECIALIZED)
def _feature_gradients(
    features: tl.tensor, image: tl.tensor, column: tl.tensor, row: tl.tensor, appearance: tl.tensor,
    support: tl.tensor, channels: tl.tensor, height: tl.tensor, width: tl.tensor, parts: tl.tensor, grad: tl.tensor,
    log_total: tl.tensor, bounds: tl.tensor, to_x: tl.tensor, boxes: tl.tensor, SIDE: tl.constexpr,
    BOXES: tl.constexpr, PARTS: tl.constexpr, CHANNELS: tl.constexpr, PRECISION: tl.constexpr,
    APPEARANCE: tl.constexpr
) -> None:  # fmt: skip
    n, c = tl.program_id(2).to(tl.int64), tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    top, left, cell_v, cell_u = map_tile(tl.program_id(0), width, SIDE)
    v, u = top + tl.arange(0, SIDE), left + tl.arange(0, SIDE)
    acc = tl.zeros((SIDE * SIDE, CHANNELS), column.dtype.element_ty)
    for first in range(0, boxes, BOXES):
        some = first + tl.arange(0, BOXES).to(tl.int64)
        near = touches(bounds, image, image, some, some < boxes, n, n, top, left, SIDE)
        if tl.sum(near.to(tl.int32), 0) > 0:
            for box in range(first, tl.minimum(first + BOXES, boxes)):
                r = tl.full((), 0, tl.int64) + box
                if touches(bounds, image, image, r, r < boxes, n, n, top, left, SIDE):
                    for first_part in range(0, parts, PARTS):
                        k = first_part + tl.arange(0, PARTS)
                        logits, inside = _logits(
                            column, row, appearance, support, r, n, k, v, u, parts, height, width, APPEARANCE
                        )  # fmt: skip
                        weights = _weights(logits, inside, log_total, r, k, parts)
                        at = grad + r * parts * channels + (k * channels)[:, None] + c[None, :]
                        g = tl.load(at, mask=(k < parts)[:, None] & (c < channels)[None, :], other=0.0)
                        weights = tl.trans(weights * _RANGE).to(g.dtype)
                        acc += tl.dot(weights, g, input_precision=PRECISION, out_dtype=acc.dtype)
    to = ((n * height + cell_v) * width + cell_u) * channels
    real = ((cell_v < height) & (cell_u < width))[:, None] & (c < channels)[None, :]
    tl.store(to_x + to[:, None] + c[None, :], (acc / _RANGE).to(to_x.dtype.element_ty), mask=real)


@triton.jit(do_not_specialize=launch.UNSPECIALIZED)
def _appearance_gradients(
    features: tl.tensor, image: tl.tensor, column: tl.tensor, row: tl.tensor, appearance: tl.tensor,
    support: tl.tensor, channels: tl.tensor, height: tl.tensor, width: tl.tensor, parts: tl.tensor, grad: tl.tensor,
    log_total: tl.tensor, mean: tl.tensor, bounds: tl.tensor, to_appearance: tl.tensor, boxes: tl.tensor,
    SIDE: tl.constexpr, BOXES: tl.constexpr, PARTS: tl.constexpr, CHANNELS: tl.constexpr, PRECISION: tl.constexpr,
    APPEARANCE: tl.constexpr
) -> None:  # fmt: skip
    n, k = tl.program_id(2).to(tl.int64), tl.program_id(1) * PARTS + tl.arange(0, PARTS)
    top, left, cell_v, cell_u = map_tile(tl.program_id(0), width, SIDE)
    v, u = top + tl.arange(0, SIDE), left + tl.arange(0, SIDE)
    acc = tl.zeros((PARTS, SIDE * SIDE), column.dtype.element_ty)
    for first in range(0, boxes, BOXES):
        some = first + tl.arange(0, BOXES).to(tl.int64)
        near = touches(bounds, image, image, some, some < boxes, n, n, top, left, SIDE)
        if tl.sum(near.to(tl.int32), 0) > 0:
            for box in range(first, tl.minimum(first + BOXES, boxes)):
                r = tl.full((), 0, tl.int64) + box
                if touches(bounds, image, image, r, r < boxes, n, n, top, left, SIDE):
                    acc += _logit_gradients(
                        features, column, row, appearance, support, grad, log_total, mean, r, n, k, v, u, channels,
                        height, width, parts, APPEARANCE, CHANNELS, PRECISION,
                    )  # fmt: skip
    to = ((n * parts + k)[:, None] * height + cell_v[None, :]) * width + cell_u[None, :]
    real = (k < parts)[:, None] & ((cell_v < height) & (cell_u < width))[None, :]
    tl.store(to_appearance + to, acc, mask=real)
