"""The weights of `regio.kernels.attend`, made a tile of a few boxes at a time, and its sums and gradients from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Tile", "TiledSoftmax", "Weights"]

_TILE = 2**21  # numbers in a tile of weights or of gathered features: 8 MiB in float32
_WORTH_GATHERING = 0.5  # of the map; a larger support is read as the whole map, with zeros outside the support


class _Scratch:
    """Memory for the tensors of a tile, used again by the next one.

    New memory of this size comes from the system page by page, which takes longer than the arithmetic on it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._kept: dict[str, Tensor] = {}

    def __call__(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor [*shape] of arbitrary content; it is lost when the same name is asked for again."""
        count = math.prod(shape)
        kept = self._kept.get(name)
        if kept is None or kept.numel() < count or kept.dtype != dtype:
            kept = self._kept[name] = torch.empty(count, dtype=dtype, device=self._device)
        return kept[:count].view(shape)


@dataclass(frozen=True)
class Tile:
    """A few boxes of one image. cells: [n, S], the cells that each reads, padded with -1; None is the whole map."""

    image: int
    boxes: Tensor
    cells: Tensor | None


@dataclass(frozen=True)
class Weights:
    """The weights of a tile up to their scale.

    operand: [n, K, L] in the dtype of the matrix products. scale: [n, K, 1], what makes them sum to one. values: they
    in the dtype of the terms, or None where they are the products of the factors and were not written down.
    """

    operand: Tensor
    scale: Tensor
    values: Tensor | None


class TiledSoftmax:
    """The weights of some boxes, made one tile at a time. Arguments: see `attend`; dtype: its `aggregate_dtype`."""

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
        self.image, self.cells = image, cells
        # Up to their scale the weights have the range of float32, which bfloat16 shares and float16 has not.
        self.dtype = torch.float32 if dtype == torch.float16 else dtype
        self.scratch = _Scratch(x.device)
        self.size = (int(x.shape[2]), int(x.shape[3]))
        self.parts, self.area = column.shape[1], x.shape[2] * x.shape[3]
        self.features = (
            x.detach().permute(0, 2, 3, 1).reshape(len(x), self.area, x.shape[1]).to(self.dtype)
        )  # [N, HW, C]
        self.appearance = None if appearance is None else appearance.detach().flatten(2)  # [N, K, HW]
        self.exp_appearance = None
        if self.appearance is not None:
            self.exp_appearance = (self.appearance - self.appearance.amax(2, keepdim=True)).exp_()
        self.support = support
        self.column, self.exp_column = self._shifted(column, support[:, 0], support[:, 2])
        self.row, self.exp_row = self._shifted(row, support[:, 1], support[:, 3])
        self._kernel = _cpu_kernel() if x.device.type == "cpu" else None
        if cells is None and self._kernel is None:
            self.support = self._reachable()

    def sums(self) -> Tensor:
        """The weighted sums [R, K, C] of the cells, in the dtype of the terms."""
        out = self.column.new_zeros((*self.column.shape[:2], self.features.shape[2]))
        for tile in self.tiles():
            weights = self.weights(tile)
            out[tile.boxes] = self.product("sums", weights.operand, self.features_of(tile)).mul_(weights.scale)
        return out

    def gradients(self, of_sums: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Those of the features [N, H * W, C], of the terms [R, K, W] and [R, K, H], and of the appearance [N, K,
        H * W] (or empty), in the dtype of the terms, from that [R, K, C] of the sums."""
        to_features = self.column.new_zeros(self.features.shape)  # cell by cell in memory, whatever the order of x
        to_column, to_row = self.column.new_zeros(self.column.shape), self.row.new_zeros(self.row.shape)
        to_appearance = self.column.new_zeros((0,) if self.appearance is None else self.appearance.shape)
        for tile in self.tiles():
            weights, of_tile = self.weights(tile), of_sums[tile.boxes]
            scaled, of_tile = (of_tile * weights.scale).to(self.dtype), of_tile.to(self.dtype)
            if tile.cells is None:
                to_features[tile.image] += torch.mm(weights.operand.flatten(0, 1).t(), scaled.flatten(0, 1))
                to_cells = to_appearance if self.appearance is not None else None
                self._add_term_gradients(tile, weights, of_tile, to_column, to_row, to_cells)
                continue
            of_features = self.product("of features", weights.operand.mT, scaled).flatten(0, 1)
            products = self.product("products", of_tile, self.features_of(tile).mT)
            to_logits, shape = self.to_logits(weights, products), products.shape
            u, v, cell = self.positions(tile.cells)
            to_features[tile.image].index_add_(0, cell.flatten(), of_features)
            column, row = to_column[tile.boxes], to_row[tile.boxes]  # copies of zeros
            to_column[tile.boxes] = column.scatter_add_(2, u.expand(shape), to_logits)
            to_row[tile.boxes] = row.scatter_add_(2, v.expand(shape), to_logits)
            if self.appearance is not None:
                to_appearance[tile.image].index_add_(1, cell.flatten(), to_logits.transpose(0, 1).flatten(1))
        return to_features, to_column, to_row, to_appearance

    @staticmethod
    def _shifted(term: Tensor, start: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
        """`term` [R, K, L] less its maximum over the range of each box, -inf outside it; and its exponential, of which
        what is below `_least` is zero."""
        at = torch.arange(term.shape[2], device=term.device)
        outside = (at < start[:, None]) | (at >= stop[:, None])
        term = term.detach().masked_fill(outside[:, None], -math.inf)
        term -= term.amax(2, keepdim=True).clamp_(min=torch.finfo(term.dtype).min)  # an empty range has no maximum
        weights = term.exp()
        return term, weights.masked_fill_(weights < _least(weights.dtype), 0)

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

    def tiles(self) -> Iterator[Tile]:
        """The boxes in tiles of one image each, large supports first; boxes that read nothing are in none."""
        if self.cells is None:
            sides = (self.support[:, 2:] - self.support[:, :2]).clamp(min=0)
            count = sides[:, 0] * sides[:, 1]
        else:
            count = (self.cells >= 0).sum(1)
        depth = max(self.parts, self.features.shape[2])
        # On a CPU, boxes that read few cells are none of these (`regio.kernels.cpu.attend_lists`).
        worth_gathering = _WORTH_GATHERING * self.area if self._kernel is None else 0
        for image in range(len(self.features)):
            boxes = (self.image == image).nonzero()[:, 0]
            boxes = boxes[count[boxes].argsort(descending=True, stable=True)]
            counts = count[boxes].tolist()
            start = 0
            while start < len(counts) and counts[start] > 0:
                whole = self.cells is None and counts[start] > worth_gathering
                length = _rounded_up(counts[start])
                most = max(1, _TILE // (self.area * self.parts if whole else length * depth))
                # A tile is padded to its largest box, so it ends where boxes become half as large.
                least = worth_gathering if whole else counts[start] / 2
                stop = start + 1
                while stop < min(start + most, len(counts)) and counts[stop] > least:
                    stop += 1
                some = boxes[start:stop]
                yield Tile(image, some, None if whole else self._cells_of(some, length))
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

    def weights(self, tile: Tile) -> Weights:
        """The weights of a tile."""
        if self._kernel is not None and tile.cells is None:
            operand = self.scratch("weights as operand", (len(tile.boxes), self.parts, self.area), self.dtype)
            total = self._kernel.weigh(*self._factors(tile), operand)
            if not bool(self._lost(total).any()):
                return Weights(operand, _reciprocal(total), None)
        values = self._combined(tile, "weights", self.exp_column, self.exp_row, self.exp_appearance, torch.mul)
        if tile.cells is not None:
            values *= (tile.cells >= 0)[:, None]
        total = values.sum(2, keepdim=True)
        lost = self._lost(total)
        if bool(lost.any()):
            logits = self._combined(tile, "logits", self.column, self.row, self.appearance, torch.add)
            if tile.cells is not None:
                logits.masked_fill_((tile.cells < 0)[:, None], -math.inf)
            logits -= logits.amax(2, keepdim=True).clamp_(min=torch.finfo(logits.dtype).min)
            logits.masked_fill_(logits < math.log(_least(logits.dtype)), -math.inf)
            values.copy_(torch.where(lost, logits.exp_(), values))
            total = values.sum(2, keepdim=True)
        operand = values
        if values.dtype != self.dtype:
            operand = self.scratch("weights as operand", values.shape, self.dtype).copy_(values)
        return Weights(operand, _reciprocal(total), values)

    def _lost(self, total: Tensor) -> Tensor:
        """Where the three factors peak so far apart that what `_least` leaves out is more than rounding of the sum."""
        return total < 2 * self.area * _least(total.dtype) / torch.finfo(total.dtype).eps

    def to_logits(self, weights: Weights, products: Tensor) -> Tensor:
        """The gradients [n, K, L] of the logits from `products` [n, K, L], those of the weights."""
        assert weights.values is not None
        scaled = weights.values * weights.scale
        to_logits = scaled * products
        return to_logits.addcmul_(scaled, to_logits.sum(2, keepdim=True), value=-1)

    def _add_term_gradients(
        self, tile: Tile, weights: Weights, of_sums: Tensor, to_column: Tensor, to_row: Tensor,
        to_appearance: Tensor | None
    ) -> None:  # fmt: skip
        """For a tile that reads the whole map: set the gradients [R, K, W] and [R, K, H] of the terms of its boxes, and
        add to that [N, K, H * W] of the appearance term. of_sums: the gradient [n, K, C] of the results, in the dtype
        of the matrix products."""
        features = self.features[tile.image].mT
        if weights.values is None:
            assert self._kernel is not None
            products = self._product("products", of_sums, features)
            column, row, appearance = self._factors(tile)
            to_terms = torch.zeros_like(column), torch.zeros_like(row)
            to_cells = torch.zeros_like(appearance) if to_appearance is None else to_appearance[tile.image]
            self._kernel.add_term_gradients(column, row, appearance, weights.scale, products, *to_terms, to_cells)
            to_column[tile.boxes], to_row[tile.boxes] = to_terms
            return
        to_logits = self.to_logits(weights, self.product("products", of_sums, features))
        grid = to_logits.unflatten(2, self.size)
        to_column[tile.boxes], to_row[tile.boxes] = grid.sum(2), grid.sum(3)
        if to_appearance is not None:
            to_appearance[tile.image] += to_logits.sum(0)

    def _factors(self, tile: Tile) -> tuple[Tensor, Tensor, Tensor]:
        """The exponentials of the three terms, [n, K, W], [n, K, H] and [K, H * W]."""
        column = self.exp_column[tile.boxes]
        if self.exp_appearance is None:
            return column, self.exp_row[tile.boxes], column.new_ones((self.parts, self.area))
        return column, self.exp_row[tile.boxes], self.exp_appearance[tile.image].contiguous()

    def _combined(
        self,
        tile: Tile,
        name: str,
        column: Tensor,
        row: Tensor,
        appearance: Tensor | None,
        combine: Callable[..., Tensor],
    ) -> Tensor:
        """column(u), row(v) and appearance(p), added or multiplied: [n, K, HW or S], in the scratch memory `name`."""
        column, row = column[tile.boxes], row[tile.boxes]
        count = len(column)
        if tile.cells is None:
            out = self.scratch(name, (count, self.parts, *self.size), column.dtype)
            combine(column[:, :, None, :], row[:, :, :, None], out=out)
            out = out.flatten(2)
            return out if appearance is None else combine(out, appearance[tile.image], out=out)
        shape = (count, self.parts, tile.cells.shape[1])
        out, factor = self.scratch(name, shape, column.dtype), self.scratch("factor", shape, column.dtype)
        u, v, cell = (index.expand(shape) for index in self.positions(tile.cells))
        combine(torch.gather(column, 2, u, out=out), torch.gather(row, 2, v, out=factor), out=out)
        if appearance is not None:
            combine(out, torch.gather(appearance[tile.image].expand(count, -1, -1), 2, cell, out=factor), out=out)
        return out

    def positions(self, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Column, row and index [n, 1, S] of the cells [n, S]; padding counts as cell 0."""
        known = cells.clamp(min=0)[:, None]
        return known % self.size[1], known // self.size[1], known

    def features_of(self, tile: Tile) -> Tensor:
        """The features [HW, C] or [n, S, C] that a tile reads."""
        features = self.features[tile.image]
        if tile.cells is None:
            return features
        out = self.scratch("features", (tile.cells.numel(), features.shape[1]), self.dtype)
        torch.index_select(features, 0, tile.cells.clamp(min=0).flatten(), out=out)
        return out.unflatten(0, tile.cells.shape)

    def product(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        """The matrix product of a [n, I, J] with b [J, L] or [n, J, L], in the dtype of the weights."""
        out = self._product(name, a, b)
        if self.dtype == self.column.dtype:
            return out
        return self.scratch(f"{name}, widened", tuple(out.shape), self.column.dtype).copy_(out)

    def _product(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        out = self.scratch(name, (*a.shape[:2], b.shape[-1]), self.dtype)
        if b.ndim == 3:
            return torch.bmm(a, b, out=out)
        torch.mm(a.flatten(0, 1), b, out=out.flatten(0, 1))  # `matmul` can copy b for each of the n
        return out


def _cpu_kernel() -> Any:
    from regio.kernels.cpu import attend

    return attend


def _least(dtype: torch.dtype) -> float:
    """Below this a factor of a weight counts as zero. Products of two that are not below are normal numbers: with those
    under them, which Gaussian parts have on most of a map, a matrix product takes up to eight times as long."""
    return math.sqrt(torch.finfo(dtype).tiny)


def _reciprocal(total: Tensor) -> Tensor:
    return torch.where(total > 0, total.reciprocal(), 0.0)


def _rounded_up(count: int) -> int:
    """The next number with three significant bits: matrix products of few different shapes, of which kernels are
    kept."""
    step = 1 << max(0, count.bit_length() - 3)
    return -(-count // step) * step
