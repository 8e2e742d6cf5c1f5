"""Vectors of cells of one channel, in loops of the CPU kernels that read the cells of a row side by side.

Written as vector instructions with a mask, since rows are short and of any length.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from regio.kernels.cpu.vectors import INDEX, SIDE, Block, intrinsic, spread

__all__ = ["WINDOW", "add_logits_of_row", "add_window", "dot_map", "sum_window", "weigh_map"]

WINDOW = 8  # cells of a bin that are read at once; more than most bins are wide

_ALIGN = ir.IntType(32)(2)  # bytes


class _Masked(Block):
    """Vectors of which some elements are neither read nor written, since they may lie outside the array.

    Elements of uint16 are bfloat16 numbers.
    """

    def __init__(self, context: Any, builder: Any, signature: Any, values: Any, width: int) -> None:
        super().__init__(context, builder, signature, values, width)
        self.zero = ir.Constant(self.vector, None)
        self.halves = {i for i, kind in enumerate(signature.args) if getattr(kind, "dtype", None) == types.uint16}

    def weights(self, array: int, at: Any) -> tuple[Any, Any]:
        """Numbers, and which of them are not zero."""
        weights = self.load(array, at)
        return weights, self.builder.fcmp_unordered("!=", weights, self.zero)

    @contextmanager
    def pieces(self, count: Any) -> Iterator[tuple[Any, Any]]:
        """A loop over the vectors that `count` elements make: the first element of each, and which there are."""
        builder, width = self.builder, self.vector.count
        number = builder.udiv(builder.add(count, INDEX(width - 1)), INDEX(width))
        with cgutils.for_range(builder, number) as loop:
            first = builder.mul(loop.index, INDEX(width))
            left = spread(builder, ir.VectorType(INDEX, width), builder.sub(count, first))
            yield first, builder.icmp_unsigned("<", ir.Constant(left.type, list(range(width))), left)

    def read(self, array: int, at: Any, mask: Any) -> Any:
        if array not in self.halves:
            return self._read(self.vector, array, at, mask)
        builder, words = self.builder, self._words(32)
        half = self._read(self._words(16), array, at, mask)
        single = builder.bitcast(
            builder.shl(builder.zext(half, words), ir.Constant(words, [16] * words.count)), self._singles
        )
        return single if self._singles == self.vector else builder.fpext(single, self.vector)

    def write(self, value: Any, array: int, at: Any, mask: Any) -> None:
        self._write(value if array not in self.halves else self._rounded(value), array, at, mask)

    def sum(self, vector: Any) -> Any:
        name = f"llvm.vector.reduce.fadd.v{self.vector.count}{self.scalar.intrinsic_name}"
        kind = ir.FunctionType(self.scalar, (self.scalar, self.vector))
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(function, [self.scalar(0.0), vector], fastmath=("reassoc",))

    @property
    def _singles(self) -> Any:
        return ir.VectorType(ir.FloatType(), self.vector.count)

    def _words(self, bits: int) -> Any:
        return ir.VectorType(ir.IntType(bits), self.vector.count)

    def _rounded(self, value: Any) -> Any:
        """The nearest bfloat16 numbers, of two the even one; NaN stays NaN."""
        builder, words = self.builder, self._words(32)
        single = value if self._singles == self.vector else builder.fptrunc(value, self._singles)
        bits = builder.bitcast(single, words)
        shift, one, half = (ir.Constant(words, [n] * words.count) for n in (16, 1, 0x7FFF))
        even = builder.and_(builder.lshr(bits, shift), one)
        rounded = builder.lshr(builder.add(bits, builder.add(half, even)), shift)
        nan = builder.fcmp_unordered("uno", single, single)
        return builder.trunc(builder.select(nan, ir.Constant(words, [0x7FC0] * words.count), rounded), self._words(16))

    def _read(self, kind: Any, array: int, at: Any, mask: Any) -> Any:
        arguments = [self._place(kind, array, at), _ALIGN, mask, ir.Constant(kind, None)]
        return self.builder.call(self._function("load", kind, kind, arguments), arguments)

    def _write(self, value: Any, array: int, at: Any, mask: Any) -> None:
        arguments = [value, self._place(value.type, array, at), _ALIGN, mask]
        self.builder.call(self._function("store", value.type, ir.VoidType(), arguments), arguments)

    def _place(self, kind: Any, array: int, at: Any) -> Any:
        return self.builder.bitcast(self.builder.gep(self.arrays[array], [at]), kind.as_pointer())

    def _function(self, name: str, kind: Any, result: Any, arguments: Any) -> Any:
        element = f"i{kind.element.width}" if isinstance(kind.element, ir.IntType) else kind.element.intrinsic_name
        vector = f"v{kind.count}{element}"
        of_arguments = ir.FunctionType(result, [argument.type for argument in arguments])
        full = f"llvm.masked.{name}.{vector}.p0{vector}"
        return cgutils.get_or_insert_function(self.builder.module, of_arguments, full)


@intrinsic
def sum_window(
    typing: Any, x: Any, at: Any, rows: Any, row_weights: Any, row: Any, n_rows: Any, weights: Any, column: Any,
    pieces: Any
) -> Any:  # fmt: skip
    """The sum over i < n_rows and j < WINDOW * pieces of
    ``row_weights[row + i] * weights[column + j] * x[at + rows[row + i] + j]``."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        window = _Masked(context, builder, signature, values, WINDOW)
        _, at, _, _, row, n_rows, _, column, pieces = values
        total = window.variable(ir.Constant(window.vector, None))
        with cgutils.for_range(builder, pieces) as outer:
            first = builder.mul(outer.index, INDEX(WINDOW))
            column_weights, mask = window.weights(6, builder.add(column, first))
            line = window.variable(ir.Constant(window.vector, None))
            with cgutils.for_range(builder, n_rows) as inner:
                i = builder.add(row, inner.index)
                cell = builder.add(builder.add(at, first), window.element(2, i))
                value, weight = window.read(0, cell, mask), window.spread(window.element(3, i))
                builder.store(window.multiply_add(weight, value, builder.load(line)), line)
            builder.store(window.multiply_add(column_weights, builder.load(line), builder.load(total)), total)
        return window.sum(builder.load(total))

    kinds = (x, types.uintp, rows, row_weights, types.intp, types.intp, weights, types.intp, types.intp)
    return x.dtype(*kinds), generate


@intrinsic
def add_window(
    typing: Any, x: Any, at: Any, rows: Any, row_weights: Any, row: Any, n_rows: Any, weights: Any, column: Any,
    pieces: Any, value: Any
) -> Any:  # fmt: skip
    """Add to those cells of x their weight times `value`: the transpose of `sum_window`."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        window = _Masked(context, builder, signature, values, WINDOW)
        _, at, _, _, row, n_rows, _, column, pieces, value = values
        with cgutils.for_range(builder, pieces) as outer:
            first = builder.mul(outer.index, INDEX(WINDOW))
            column_weights, mask = window.weights(6, builder.add(column, first))
            with cgutils.for_range(builder, n_rows) as inner:
                i = builder.add(row, inner.index)
                cell = builder.add(builder.add(at, first), window.element(2, i))
                share = window.spread(builder.fmul(window.element(3, i), value))
                window.write(window.multiply_add(column_weights, share, window.read(0, cell, mask)), 0, cell, mask)
        return context.get_dummy_value()

    kinds = (x, types.uintp, rows, row_weights, types.intp, types.intp, weights, types.intp, types.intp, x.dtype)
    return types.void(*kinds), generate


class _WeightedMap(_Masked):
    """Weights of the cells of a map that are products of a term of the column, one of the row and one of the cell."""

    def __init__(self, context: Any, builder: Any, signature: Any, values: Any) -> None:
        super().__init__(context, builder, signature, values, SIDE)
        self.where = values[1], values[3], values[5], values[8], values[9]

    @contextmanager
    def weighted_cells(self) -> Iterator[tuple[Any, Any, Any]]:
        """A loop over vectors of cells: the number of the first, which of them there are, and their weights."""
        builder, (at, row_at, appearance_at, height, width) = self.builder, self.where
        with cgutils.for_range(builder, height) as v:
            factor = self.spread(self.element(2, builder.add(row_at, v.index)))
            first = builder.mul(v.index, width)
            with self.pieces(width) as (u, mask):
                p = builder.add(first, u)
                weight = builder.fmul(factor, self.read(0, builder.add(at, u), mask))
                yield p, mask, builder.fmul(weight, self.read(4, builder.add(appearance_at, p), mask))


@intrinsic
def weigh_map(
    typing: Any, column: Any, at: Any, rows: Any, row_at: Any, appearance: Any, appearance_at: Any, out: Any, to: Any,
    height: Any, width: Any
) -> Any:  # fmt: skip
    """``out[to + p] = rows[row_at + v] * column[at + u] * appearance[appearance_at + p]`` for all cells
    p = v * width + u of a map; returns their sum."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        weighted = _WeightedMap(context, builder, signature, values)
        total = weighted.variable(weighted.zero)
        with weighted.weighted_cells() as (p, mask, weight):
            weighted.write(weight, 6, builder.add(values[7], p), mask)
            builder.store(builder.fadd(builder.load(total), weight), total)
        return weighted.sum(builder.load(total))

    place = types.uintp
    kinds = (column, place, rows, place, appearance, place, out, place, types.intp, types.intp)
    return column.dtype(*kinds), generate


@intrinsic
def dot_map(
    typing: Any, column: Any, at: Any, rows: Any, row_at: Any, appearance: Any, appearance_at: Any, products: Any,
    products_at: Any, height: Any, width: Any
) -> Any:  # fmt: skip
    """The inner product of the weights of `weigh_map` with ``products[products_at + p]``."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        weighted = _WeightedMap(context, builder, signature, values)
        total = weighted.variable(weighted.zero)
        with weighted.weighted_cells() as (p, mask, weight):
            product = weighted.read(6, builder.add(values[7], p), mask)
            builder.store(weighted.multiply_add(weight, product, builder.load(total)), total)
        return weighted.sum(builder.load(total))

    place = types.uintp
    kinds = (column, place, rows, place, appearance, place, products, place, types.intp, types.intp)
    return column.dtype(*kinds), generate


@intrinsic
def add_logits_of_row(
    typing: Any, column: Any, at: Any, factor: Any, appearance: Any, appearance_at: Any, products: Any,
    products_at: Any, mean: Any, to_column: Any, to_appearance: Any, width: Any
) -> Any:  # fmt: skip
    """Add ``factor column[at + u] appearance[appearance_at + u] (products[products_at + u] - mean)``, the gradients of
    the logits, to ``to_column[at + u]`` and ``to_appearance[appearance_at + u]`` for u < width; returns their sum."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        row = _Masked(context, builder, signature, values, SIDE)
        _, at, factor, _, appearance_at, _, products_at, mean, _, _, width = values
        total, factor, mean = row.variable(row.zero), row.spread(factor), row.spread(mean)
        with row.pieces(width) as (u, mask):
            here, there = builder.add(at, u), builder.add(appearance_at, u)
            weight = builder.fmul(factor, builder.fmul(row.read(0, here, mask), row.read(3, there, mask)))
            product = row.read(5, builder.add(products_at, u), mask)
            logit = builder.select(mask, builder.fmul(weight, builder.fsub(product, mean)), row.zero)
            row.write(builder.fadd(row.read(8, here, mask), logit), 8, here, mask)
            row.write(builder.fadd(row.read(9, there, mask), logit), 9, there, mask)
            builder.store(builder.fadd(builder.load(total), logit), total)
        return row.sum(builder.load(total))

    number, place = column.dtype, types.uintp
    kinds = (column, place, number, appearance, place, products, place, number, to_column, to_appearance, types.intp)
    return number(*kinds), generate
