"""Softmax over the cells of a map, with logits that are a column term plus a row term plus a term of the cell.

    y_k(b) = sum over p = (u, v) of softmax_p(column_k(b, u) + row_k(b, v) + appearance_k(p)) x(p)

This is the region feature of Gu et al. 2018 (Eqs. 2 and 7): the inner product of Eq. 8 with a position embedding
[E(u), E(v)] is a sum of one term of u and one of v, so the logits of a box never exist as an inner product per cell.

How it is fast. exp(a + c + A) = exp(a) exp(c) exp(A), so a box needs W + H exponentials a part, and exp(A) is shared by
all boxes of an image; each factor is shifted by its maximum, and where their product still loses its range the logits are
summed and shifted together. The weights of a few boxes (a tile that fits the cache) are multiplied out, handed to one
matrix product and forgotten; the division by their sum is done on the result. Columns and rows which cannot reach the
last digit of the sum are left out, so that peaked weights cost little. The backward pass makes the tiles again.

The whole of it is a few dozen tensor operations on tiles, the same on every device; on a CPU they take a tenth of the time
of the matrix product, which leaves nothing for a compiled kernel to win.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["attend", "attend_reference"]

_TILE = 2**20  # numbers in a tile of weights or of gathered features: 4 MiB in float32
_WORTH_GATHERING = 0.5  # of the map; a larger support is read as the whole map, with zeros outside the support


def attend(
    x: Tensor,
    image: Tensor,
    column: Tensor,
    row: Tensor,
    appearance: Tensor | None,
    support: Tensor,
    cells: Tensor | None = None,
    *,
    aggregate_dtype: torch.dtype | None = None,
) -> Tensor:
    """Softmax-weighted sums of the cells of `x`, [R, C, K], in the dtype of `x`.

    x: [N, C, H, W]. image: [R] int64, the image of each box. column: [R, K, W] and row: [R, K, H], float32 (float64 if x
    is float64). appearance: [N, K, H, W] of the same dtype, or None for zero. support: [R, 4] int64, half-open ranges of
    cells (u0, v0, u1, v1) within the map; a box with an empty range gets zeros. cells: [R, S] int64, to read only these
    cells ``v * W + u`` (each at most once, those outside the support and -1 are passed over) and no others.

    `aggregate_dtype` is that of the operands of the matrix product (bfloat16 is about twice as fast as float32 on a CPU
    that has it); the accumulation, the logits and the sums of the weights stay in float32. It is the autocast dtype under
    autocast, and that of `x` otherwise. Gradients reach x, column, row and appearance, once (no double backward).
    Memory is the inputs, the result and a few tiles: it does not grow with R x H x W.

    Raises ValueError or TypeError for shapes, dtypes and ranges that are not as above.
    """
    if aggregate_dtype is None:
        device = x.device.type
        aggregate_dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    if x.dtype == torch.float64:
        aggregate_dtype = torch.float64
    _check(x, image, column, row, appearance, support, cells)
    return _attend(x, image, column, row, appearance, support, cells, aggregate_dtype)


def attend_reference(
    x: Tensor,
    image: Tensor,
    column: Tensor,
    row: Tensor,
    appearance: Tensor | None,
    support: Tensor,
    cells: Tensor | None = None,
) -> Tensor:
    """`attend`, written as the equation, with all weights [R, K, H, W] at once."""
    height, width = x.shape[2:]
    u, v = torch.arange(width, device=x.device), torch.arange(height, device=x.device)
    u0, v0, u1, v1 = support[:, :, None].unbind(1)
    inside = ((v >= v0) & (v < v1))[:, :, None] & ((u >= u0) & (u < u1))[:, None, :]
    if cells is not None:
        listed = (cells[:, :, None] == torch.arange(height * width, device=x.device)).any(1)
        inside = inside & listed.unflatten(1, (height, width))
    logits = column[:, :, None, :] + row[:, :, :, None]
    if appearance is not None:
        logits = logits + appearance[image]
    logits = logits.masked_fill(~inside[:, None], -math.inf).flatten(2)
    weights = logits.softmax(2).masked_fill(~inside[:, None].flatten(2), 0.0)
    return torch.einsum("rkp,rcp->rck", weights, x.flatten(2)[image].to(weights.dtype)).to(x.dtype)


def _check(
    x: Tensor,
    image: Tensor,
    column: Tensor,
    row: Tensor,
    appearance: Tensor | None,
    support: Tensor,
    cells: Tensor | None,
) -> None:
    images, _, height, width = x.shape
    boxes, parts = column.shape[:2]
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    expected = [
        ("image", image, (boxes,), torch.int64),
        ("column", column, (boxes, parts, width), dtype),
        ("row", row, (boxes, parts, height), dtype),
        ("support", support, (boxes, 4), torch.int64),
    ]
    if appearance is not None:
        expected.append(("appearance", appearance, (images, parts, height, width), dtype))
    if cells is not None:
        expected.append(("cells", cells, (boxes, cells.shape[-1]), torch.int64))
    for name, tensor, shape, kind in expected:
        if tensor.shape != shape:
            raise ValueError(f"{name}: expected shape {list(shape)}, got {list(tensor.shape)}")
        if tensor.dtype != kind:
            raise TypeError(f"{name}: expected dtype {kind}, got {tensor.dtype}")
    if torch.compiler.is_compiling() or boxes == 0:
        return  # checks that read data would break the graph
    limit = support.new_tensor([width, height, width, height])
    if bool(((support < 0) | (support > limit)).any()):
        raise ValueError(f"support: expected ranges within the map of {width} columns and {height} rows")
    if cells is not None and bool(((cells < -1) | (cells >= height * width)).any()):
        raise ValueError(f"cells: expected indices in [-1, {height * width})")


@dataclass(frozen=True)
class _Tile:
    """A few boxes of one image. cells: [n, S], the cells that each reads, padded with -1; None is the whole map."""

    image: int
    boxes: Tensor
    cells: Tensor | None


class _Attention:
    """The weights of some boxes, made one tile at a time: the part that forward and backward share."""

    def __init__(
        self,
        x: Tensor,
        image: Tensor,
        column: Tensor,
        row: Tensor,
        appearance: Tensor | None,
        support: Tensor,
        cells: Tensor | None,
        dtype: torch.dtype,
    ) -> None:
        self.image, self.cells, self.dtype = image, cells, dtype
        self.size = (int(x.shape[2]), int(x.shape[3]))
        self.parts, self.area = column.shape[1], x.shape[2] * x.shape[3]
        self.features = x.detach().permute(0, 2, 3, 1).reshape(len(x), self.area, x.shape[1]).to(dtype)  # [N, HW, C]
        self.appearance = None if appearance is None else appearance.detach().flatten(2)  # [N, K, HW]
        self.exp_appearance = None
        if self.appearance is not None:
            self.exp_appearance = (self.appearance - self.appearance.amax(2, keepdim=True)).exp_()
        self.support = support
        self.column, self.exp_column = self._shifted(column, support[:, 0], support[:, 2])
        self.row, self.exp_row = self._shifted(row, support[:, 1], support[:, 3])
        if cells is None:
            self.support = self._reachable()

    @staticmethod
    def _shifted(term: Tensor, start: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
        """`term` [R, K, L] less its maximum over the range of each box, -inf outside it; and its exponential."""
        at = torch.arange(term.shape[2], device=term.device)
        outside = (at < start[:, None]) | (at >= stop[:, None])
        term = term.detach().masked_fill(outside[:, None], -math.inf)
        term -= term.amax(2, keepdim=True).clamp_(min=torch.finfo(term.dtype).min)  # an empty range has no maximum
        return term, term.exp()

    def _reachable(self) -> Tensor:
        """The support without the columns and rows whose weights all vanish beside the largest.

        The weight of a cell of column u is at most exp(column(u) + spread) times the largest weight of the part, where
        spread is the range of the appearance term. A column is left out if that times the number of cells is below the
        resolution of the dtype, for every part: the result is that of the whole support to the last digit.
        """
        limit = math.log(torch.finfo(self.column.dtype).eps / self.area)
        threshold: float | Tensor = limit
        if self.appearance is not None:
            spread = self.appearance.amax(2) - self.appearance.amin(2)  # [N, K]
            threshold = limit - spread[self.image][:, :, None]
        ranges = []
        for term in (self.column, self.row):
            reached = ~(term < threshold).all(1)  # [R, L]; not "any above", so that NaN is kept and seen
            at = torch.arange(term.shape[2], device=term.device)
            ranges.append((at.where(reached, term.shape[2]).amin(1), at.where(reached, -1).amax(1) + 1))
        (u0, u1), (v0, v1) = ranges
        return torch.stack([u0, v0, u1, v1], 1)

    def tiles(self) -> Iterator[_Tile]:
        """The boxes in tiles of one image each, large supports first; boxes that read nothing are in none."""
        if self.cells is None:
            sides = (self.support[:, 2:] - self.support[:, :2]).clamp(min=0)
            count = sides[:, 0] * sides[:, 1]
        else:
            count = (self.cells >= 0).sum(1)
        depth = max(self.parts, self.features.shape[2])
        for image in range(len(self.features)):
            boxes = (self.image == image).nonzero()[:, 0]
            boxes = boxes[count[boxes].argsort(descending=True, stable=True)]
            counts = count[boxes].tolist()
            start = 0
            while start < len(counts) and counts[start] > 0:
                whole = self.cells is None and counts[start] > _WORTH_GATHERING * self.area
                length = _rounded_up(counts[start])
                most = max(1, _TILE // (self.area * self.parts if whole else length * depth))
                # A tile is padded to its largest box, so it ends where boxes become half as large.
                least = _WORTH_GATHERING * self.area if whole else counts[start] / 2
                stop = start + 1
                while stop < min(start + most, len(counts)) and counts[stop] > least:
                    stop += 1
                some = boxes[start:stop]
                yield _Tile(image, some, None if whole else self._cells_of(some, length))
                start = stop

    def _cells_of(self, boxes: Tensor, length: int) -> Tensor:
        """The cells [n, length] that some boxes read, padded with -1."""
        if self.cells is not None:
            order = (self.cells[boxes] < 0).to(torch.int8).argsort(dim=1, stable=True)  # padding last
            listed = self.cells[boxes].gather(1, order)[:, :length]
            return torch.nn.functional.pad(listed, (0, length - listed.shape[1]), value=-1)
        u0, v0, u1, v1 = self.support[boxes][:, :, None].unbind(1)
        at = torch.arange(length, device=boxes.device)
        width = (u1 - u0).clamp(min=1)
        cells = (v0 + at // width) * self.size[1] + u0 + at % width
        return cells.masked_fill(at >= width * (v1 - v0), -1)

    def weights(self, tile: _Tile) -> tuple[Tensor, Tensor]:
        """Weights [n, K, HW or S] up to their scale, and the scale [n, K, 1] that makes them sum to one."""
        weights = self._factors(tile, self.exp_column, self.exp_row, torch.mul)
        if self.exp_appearance is not None:
            weights *= self._per_cell(self.exp_appearance[tile.image], tile)
        if tile.cells is not None:
            weights *= (tile.cells >= 0)[:, None]
        total = weights.sum(2, keepdim=True)
        floor = math.sqrt(torch.finfo(total.dtype).tiny)
        if bool((total < floor).any()):
            total = self._sum_logits(tile, weights, total, floor)
        return weights, torch.where(total > 0, total.reciprocal(), 0.0)

    def _sum_logits(self, tile: _Tile, weights: Tensor, total: Tensor, floor: float) -> Tensor:
        """Make anew the weights whose three factors peak so far apart that their product has lost its range."""
        logits = self._factors(tile, self.column, self.row, torch.add)
        if self.appearance is not None:
            logits += self._per_cell(self.appearance[tile.image], tile)
        if tile.cells is not None:
            logits.masked_fill_((tile.cells < 0)[:, None], -math.inf)
        logits -= logits.amax(2, keepdim=True).clamp_(min=torch.finfo(logits.dtype).min)
        torch.where(total < floor, logits.exp_(), weights, out=weights)
        return weights.sum(2, keepdim=True)

    def _factors(self, tile: _Tile, column: Tensor, row: Tensor, combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """column(u) combined with row(v), [n, K, HW or S]."""
        column, row = column[tile.boxes], row[tile.boxes]
        if tile.cells is None:
            return combine(column[:, :, None, :], row[:, :, :, None]).flatten(2)
        u, v = self._positions(tile.cells)
        return combine(column.gather(2, u), row.gather(2, v))

    def _positions(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Column and row [n, K, S] of the cells [n, S], as indices to gather by; padding counts as cell 0."""
        known = cells.clamp(min=0)[:, None]
        shape = (-1, self.parts, -1)
        return (known % self.size[1]).expand(shape), (known // self.size[1]).expand(shape)

    @staticmethod
    def _per_cell(values: Tensor, tile: _Tile) -> Tensor:
        """`values` [K, HW] at the cells of a tile: [K, HW] or [n, K, S]."""
        if tile.cells is None:
            return values
        index = tile.cells.clamp(min=0)[:, None].expand(-1, len(values), -1)
        return values.expand(len(index), -1, -1).gather(2, index)

    def features_of(self, tile: _Tile) -> Tensor:
        """The features [HW, C] or [n, S, C] that a tile reads."""
        features = self.features[tile.image]
        return features if tile.cells is None else features[tile.cells.clamp(min=0)]


def _rounded_up(count: int) -> int:
    """The next number with three significant bits: matrix products of few different shapes, of which kernels are kept."""
    step = 1 << max(0, count.bit_length() - 3)
    return -(-count // step) * step


@torch.library.custom_op("regio::attend", mutates_args=())
def _attend(
    x: Tensor,
    image: Tensor,
    column: Tensor,
    row: Tensor,
    appearance: Tensor | None,
    support: Tensor,
    cells: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    attention = _Attention(x, image, column, row, appearance, support, cells, dtype)
    out = x.new_zeros((len(column), column.shape[1], x.shape[1]))
    for tile in attention.tiles():
        weights, scale = attention.weights(tile)
        sums = torch.matmul(weights.to(dtype), attention.features_of(tile))
        out[tile.boxes] = (sums * scale).to(x.dtype)
    return out.transpose(1, 2)


@_attend.register_fake
def _(
    x: Tensor,
    image: Tensor,
    column: Tensor,
    row: Tensor,
    appearance: Tensor | None,
    support: Tensor,
    cells: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    return x.new_empty((column.shape[0], column.shape[1], x.shape[1])).transpose(1, 2)


@torch.library.custom_op("regio::attend_backward", mutates_args=())
def _attend_backward(
    gradient: Tensor,
    x: Tensor,
    image: Tensor,
    column: Tensor,
    row: Tensor,
    appearance: Tensor | None,
    support: Tensor,
    cells: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, column, row and appearance (empty for None).

    With y = sum_p w_p x_p and g the gradient of y: that of x_p is w_p g, that of logit p is w_p (<g, x_p> - <g, y>).
    """
    attention = _Attention(x, image, column, row, appearance, support, cells, dtype)
    gradient = gradient.transpose(1, 2)  # [R, K, C]
    to_features = torch.zeros_like(attention.features, dtype=column.dtype)
    to_column, to_row = torch.zeros_like(column), torch.zeros_like(row)
    to_appearance = column.new_zeros((0,) if appearance is None else (len(x), *column.shape[1:2], attention.area))
    for tile in attention.tiles():
        weights, scale = attention.weights(tile)
        weights *= scale
        features, of_sums = attention.features_of(tile), gradient[tile.boxes].to(dtype)
        to_logits = torch.matmul(of_sums, features.mT).to(weights.dtype).mul_(weights)
        to_logits.addcmul_(weights, to_logits.sum(2, keepdim=True), value=-1)
        weights = weights.to(dtype)
        if tile.cells is None:
            of_features = torch.mm(weights.flatten(0, 1).t(), of_sums.flatten(0, 1))
            to_features[tile.image] += of_features
            grid = to_logits.unflatten(2, attention.size)
            to_column[tile.boxes], to_row[tile.boxes] = grid.sum(2), grid.sum(3)
            if appearance is not None:
                to_appearance[tile.image] += to_logits.sum(0)
            continue
        cell = tile.cells.clamp(min=0).flatten()
        of_features = torch.matmul(weights.mT, of_sums).flatten(0, 1)
        to_features[tile.image].index_add_(0, cell, of_features.to(column.dtype))
        u, v = attention._positions(tile.cells)
        to_column[tile.boxes] = torch.zeros_like(column[tile.boxes]).scatter_add_(2, u, to_logits)
        to_row[tile.boxes] = torch.zeros_like(row[tile.boxes]).scatter_add_(2, v, to_logits)
        if appearance is not None:
            to_appearance[tile.image].index_add_(1, cell, to_logits.transpose(0, 1).flatten(1))
    to_x = to_features.to(x.dtype).unflatten(1, attention.size).permute(0, 3, 1, 2)
    return to_x, to_column, to_row, to_appearance.unflatten(2, attention.size) if appearance is not None else to_appearance


@_attend_backward.register_fake
def _(
    gradient: Tensor,
    x: Tensor,
    image: Tensor,
    column: Tensor,
    row: Tensor,
    appearance: Tensor | None,
    support: Tensor,
    cells: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    images, channels, height, width = x.shape
    to_x = x.new_empty((images, height, width, channels)).permute(0, 3, 1, 2)
    to_appearance = column.new_empty((0,) if appearance is None else appearance.shape)
    return to_x, torch.empty_like(column), torch.empty_like(row), to_appearance


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:-1])
    ctx.dtype = inputs[-1]


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, image, column, row, appearance, support, cells = ctx.saved_tensors
    to_x, to_column, to_row, to_appearance = _attend_backward(
        gradient, x, image, column, row, appearance, support, cells, ctx.dtype
    )
    return to_x, None, to_column, to_row, None if appearance is None else to_appearance, None, None, None


_attend.register_autograd(_backward, setup_context=_keep_inputs)
