"""CPU kernels of `regio.kernels.attend` for boxes whose parts read few cells: the cells are listed, and only they are
read.

The weights of a part, up to their sum, are exp(column(u) + row(v) + appearance(p)), each term less its maximum. The
cell where column and row have theirs has the weight ``least``, so the sum is no less than that, and cells with weights
below ``least * eps / area`` do not move it together. The columns and rows that such cells fill are found from the
terms, since no other factor is above one; of the cells that are left, each is formed. What is left out is less
than half of the dtype's resolution in all: rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from regio.kernels.cpu import buffer_pool, threads
from regio.kernels.cpu.channels_last import add_cells, cell_product, sum_cells
from regio.kernels.cpu.compile import compiled
from regio.kernels.cpu.inner_loops import NARROW, keep_weights_of_row, largest, span_not_below

__all__ = ["ListedBoxes", "Lists"]

Array = np.ndarray[Any, Any]
U = np.uintp

# Of the cells of a map: if a part reads more, a matrix product with the whole map is faster, by the dtype of that.
_SHARE = {torch.bfloat16: 0.1, torch.float16: 0.22, torch.float32: 0.22, torch.float64: 0.22}
_AHEAD = 6  # a box may be ahead of that by what this part of its parts may read
_CHUNK = 1 << 20  # cells in the lists that are kept at a time
_MANY = -1  # in place of an end of a list: the box is not listed


class _Terms(NamedTuple):
    """Flat arrays: column [R, K, W] and row [R, K, H] as logits, appearance [N, K, H * W] as weights of at most 1,
    image [R], support [R, 4]. most: cells that a part may read on average."""

    column: Array
    row: Array
    appearance: Array
    image: Array
    support: Array
    parts: int
    height: int
    width: int
    most: int


class Lists(NamedTuple):
    """What the n boxes from `start` on read. The cells ``v * W + u`` of a box, part after part, and their weights are
    those of the flat arrays cells and weights [n * room] from ``i * room`` on for its number i among the n; ends: flat
    [n * K], where the list of each part ends there; the first is -1 for a box that is not listed."""

    start: int
    stop: int
    room: int
    cells: Array
    weights: Array
    ends: Array


class ListedBoxes:
    """The boxes of `attend` whose parts read few cells.

    Arguments: as of `attend`, on a CPU, dtype that of the operands of the matrix product which takes the other boxes.
    Here all is in the dtype of the terms.
    """

    def __init__(
        self,
        x: Tensor,
        image: Tensor,
        column: Tensor,
        row: Tensor,
        appearance: Tensor | None,
        support: Tensor,
        dtype: torch.dtype,
    ) -> None:
        (self.boxes, parts), (_, self.channels, height, width) = column.shape[:2], x.shape
        self.features = x.detach().permute(0, 2, 3, 1).to(column.dtype).contiguous()  # [N, H, W, C]
        self.with_appearance = appearance is not None
        if appearance is None:
            weights = column.new_ones((len(x), parts, height * width))
        else:
            logits = appearance.detach().flatten(2)
            weights = (logits - logits.amax(2, keepdim=True)).exp_()
        self.terms = _Terms(
            _flat(column), _flat(row), _flat(weights), _flat(image), _flat(support), parts, height, width,
            most=math.ceil(_SHARE[dtype] * height * width),
        )  # fmt: skip

    def lists(self) -> Iterator[Lists]:
        """The lists of all boxes, a few boxes at a time, in memory that the next ones take over."""
        room = self.terms.most * (self.terms.parts + self.terms.parts // _AHEAD)
        count = max(1, min(self.boxes, _CHUNK // max(1, room)))
        cells, weights = np.empty(count * room, np.int32), np.empty(count * room, self.terms.column.dtype)
        ends = np.empty(count * self.terms.parts, np.int64)
        for start in range(0, self.boxes, count):
            lists = Lists(start, min(start + count, self.boxes), room, cells, weights, ends)
            threads.share(partial(_list_boxes, self.terms, lists), lists.stop - start, shares=4)
            yield lists

    def counts(self) -> Tensor:
        """The cells that each part reads, [R, K] int64; H W for boxes that are not listed."""
        found = []
        for lists in self.lists():
            starts = np.arange(lists.stop - lists.start)[:, None] * lists.room
            ends = lists.ends[: starts.size * self.terms.parts].reshape(starts.size, self.terms.parts)
            counts = np.diff(ends, axis=1, prepend=starts)
            found.append(np.where(ends[:, :1] == _MANY, self.terms.height * self.terms.width, counts))
        return torch.from_numpy(np.concatenate([np.empty((0, self.terms.parts), np.int64), *found]))

    def sums(self) -> tuple[Tensor, Tensor]:
        """The results [R, K, C], and the boxes [n] int64 that are not listed, of which they are arbitrary."""
        out = buffer_pool.empty((self.boxes, self.terms.parts, self.channels), self.features.dtype)
        rest = []
        for lists in self.lists():
            run = partial(_sum_lists, self.terms, lists, _flat(self.features), _flat(out), self.channels)
            threads.share(run, lists.stop - lists.start, shares=4)
            rest.append(self._not_listed(lists))
        return out, torch.from_numpy(np.concatenate([np.empty(0, np.int64), *rest]))

    def gradients(self, of_sums: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """The gradients [N, H * W, C], [R, K, W], [R, K, H] and [N, K, H * W] (empty where there is no appearance term)
        from that of the results [R, K, C]; and the boxes [n] int64 that are not listed, which have no part in them."""
        parts, height, width = self.terms.parts, self.terms.height, self.terms.width
        images, new = len(self.features), self.features.new_zeros
        to_features = new((images, height * width, self.channels))
        to_column, to_row = new((self.boxes, parts, width)), new((self.boxes, parts, height))
        to_appearance = new((images, parts, height * width) if self.with_appearance else (0,))
        x, grad = _flat(self.features), _flat(of_sums.to(self.features.dtype))
        logits, rest = None, []
        for lists in self.lists():
            logits = np.empty_like(lists.weights) if logits is None else logits
            run = partial(
                _term_gradients, self.terms, lists, x, grad, self.channels, logits, _flat(to_column), _flat(to_row)
            )
            threads.share(run, lists.stop - lists.start, shares=4)
            run = partial(_feature_gradients, self.terms, lists, grad, self.channels, _flat(to_features))
            threads.share(run, self.channels, grain=NARROW)
            if self.with_appearance:
                run = partial(_appearance_gradients, self.terms, lists, logits, _flat(to_appearance))
                threads.share(run, parts)
            rest.append(self._not_listed(lists))
        gradients = to_features, to_column, to_row, to_appearance
        return gradients, torch.from_numpy(np.concatenate([np.empty(0, np.int64), *rest]))

    def _not_listed(self, lists: Lists) -> Array:
        firsts = lists.ends[: (lists.stop - lists.start) * self.terms.parts : self.terms.parts]
        return lists.start + (firsts == _MANY).nonzero()[0]


def _flat(x: Tensor) -> Array:
    return x.detach().contiguous().view(-1).numpy()


@compiled
def _list_boxes(terms: _Terms, lists: Lists, begin: int, end: int) -> None:
    """Write the lists of the boxes [begin, end) of some."""
    parts, ends = terms.parts, lists.ends
    factors = np.empty(terms.width, terms.column.dtype)
    for i in range(begin, end):
        first = i * lists.room
        for k in range(parts):
            last = i * lists.room + terms.most * (k + 1 + parts // _AHEAD)
            first = _list_part(terms, lists.start + i, k, factors, lists.cells, lists.weights, first, last)
            if first == _MANY:
                ends[i * parts] = _MANY
                break
            ends[i * parts + k] = first


@compiled
def _list_part(
    terms: _Terms, box: int, k: int, factors: Array, cells: Array, weights: Array, first: int, last: int
) -> int:  # fmt: skip
    """Write the cells that part k of a box reads and their weights to cells and weights[first:]; returns the end of the
    list, or _MANY where that could be after `last` or where the weights have lost their range."""
    column, row, appearance, support, width = terms.column, terms.row, terms.appearance, terms.support, terms.width
    u0, v0, u1, v1 = support[4 * box], support[4 * box + 1], support[4 * box + 2], support[4 * box + 3]
    if u0 >= u1 or v0 >= v1:
        return first
    at, row_at = U((box * terms.parts + k) * width + u0), U((box * terms.parts + k) * terms.height + v0)
    map_at = U((terms.image[box] * terms.parts + k) * terms.height * width)
    top_column, top_row = largest(column, at, u1 - u0), largest(row, row_at, v1 - v0)
    top_u = u0 + span_not_below(column, at, u1 - u0, top_column)[0]
    top_v = v0 + span_not_below(row, row_at, v1 - v0, top_row)[0]
    least = appearance[map_at + U(top_v * width + top_u)]
    kind = np.finfo(column.dtype)
    if not (least > kind.tiny / kind.eps**2 and top_column > -np.inf and top_row > -np.inf):
        return _MANY
    # A quarter of the resolution for the columns and rows that are left out, and a quarter for cells of the others.
    least *= kind.eps / 4
    limit = np.log(least / column.dtype.type((u1 - u0) * (v1 - v0)))
    left, right = span_not_below(column, at, u1 - u0, top_column + limit)
    top, bottom = span_not_below(row, row_at, v1 - v0, top_row + limit)
    least /= column.dtype.type((right - left) * (bottom - top))
    for u in range(left, right):
        factors[u - left] = np.exp(column[at + U(u)] - top_column)
    n = U(first)
    for v in range(top, bottom):
        if n + U(right - left) > last:
            return _MANY
        cell = (v0 + v) * width + u0 + left
        n = keep_weights_of_row(
            factors, U(0), np.exp(row[row_at + U(v)] - top_row), appearance, map_at + U(cell), least, right - left,
            cell, weights, cells, n
        )  # fmt: skip
    total = column.dtype.type(0)
    for i in range(U(first), n):
        total += weights[i]
    scale = 1 / total
    for i in range(U(first), n):
        weights[i] *= scale
    return int(n)


@compiled
def _sum_lists(terms: _Terms, lists: Lists, x: Array, out: Array, channels: int, begin: int, end: int) -> None:
    """out[r] for the boxes [begin, end) of some."""
    parts, area, cells, weights = terms.parts, terms.height * terms.width, lists.cells, lists.weights
    at, w = np.empty(area, U), np.empty(area, x.dtype)
    for i in range(begin, end):
        if lists.ends[i * parts] == _MANY:
            continue
        first, box = i * lists.room, lists.start + i
        for k in range(parts):
            n = lists.ends[i * parts + k] - first
            for m in range(n):
                at[m] = U((terms.image[box] * area + cells[first + m]) * channels)
                w[m] = weights[first + m]
            sum_cells(x, at, w, n, out, U((box * parts + k) * channels), channels)
            first += n


@compiled
def _term_gradients(
    terms: _Terms, lists: Lists, x: Array, grad: Array, channels: int, logits: Array, to_column: Array, to_row: Array,
    begin: int, end: int
) -> None:  # fmt: skip
    """Of the boxes [begin, end) of some: those of the logits of their cells, and add them to those of the terms."""
    parts, height, width, cells, weights = terms.parts, terms.height, terms.width, lists.cells, lists.weights
    for i in range(begin, end):
        if lists.ends[i * parts] == _MANY:
            continue
        first, box = i * lists.room, lists.start + i
        for k in range(parts):
            part, last = box * parts + k, lists.ends[i * parts + k]
            mean = x.dtype.type(0)
            for n in range(first, last):
                cell = U((terms.image[box] * height * width + cells[n]) * channels)
                logits[n] = cell_product(x, cell, grad, U(part * channels), channels)
                mean += weights[n] * logits[n]
            v = 0
            for n in range(first, last):
                while cells[n] >= (v + 1) * width:
                    v += 1
                logits[n] = weights[n] * (logits[n] - mean)
                to_column[U(part * width + cells[n] - v * width)] += logits[n]
                to_row[U(part * height + v)] += logits[n]
            first = last


@compiled
def _feature_gradients(
    terms: _Terms, lists: Lists, grad: Array, channels: int, to_x: Array, begin: int, end: int
) -> None:
    """Add to those of the channels [begin, end) what comes from some boxes."""
    parts, area, cells, weights = terms.parts, terms.height * terms.width, lists.cells, lists.weights
    at, w = np.empty(area, U), np.empty(area, to_x.dtype)
    for i in range(lists.stop - lists.start):
        if lists.ends[i * parts] == _MANY:
            continue
        first, box = i * lists.room, lists.start + i
        for k in range(parts):
            n = lists.ends[i * parts + k] - first
            for m in range(n):
                at[m] = U((terms.image[box] * area + cells[first + m]) * channels + begin)
                w[m] = weights[first + m]
            add_cells(to_x, at, w, n, grad, U((box * parts + k) * channels + begin), end - begin)
            first += n


@compiled
def _appearance_gradients(
    terms: _Terms, lists: Lists, logits: Array, to_appearance: Array, begin: int, end: int
) -> None:
    """Add to those of the parts [begin, end) what comes from some boxes."""
    parts, area = terms.parts, terms.height * terms.width
    for i in range(lists.stop - lists.start):
        if lists.ends[i * parts] == _MANY:
            continue
        for k in range(begin, end):
            first = lists.ends[i * parts + k - 1] if k else i * lists.room
            at = (terms.image[lists.start + i] * parts + k) * area
            for n in range(first, lists.ends[i * parts + k]):
                to_appearance[U(at + lists.cells[n])] += logits[n]
