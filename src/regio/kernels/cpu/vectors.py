"""The innermost loops of the CPU kernels on blocks of channels of fixed width, written as vector instructions.

A block stays in registers while the cells of a bin pass by, which a loop over channels for each cell cannot do. LLVM
turns the vectors into whatever the processor has. Arrays are flat, of one floating point dtype, but for arrays of
offsets (uintp); offsets count elements. Cells are given as a list of offsets, or as the sums of row and column offsets.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from numba import extending
from numba.core import cgutils, types

__all__ = ["INDEX", "SIDE", "Block", "Blocks", "intrinsic", "narrow", "spread", "transpose_block", "wide"]

SIDE = 16  # of a square that is transposed

_FLAGS = ("contract", "nsz", "reassoc")
INDEX = ir.IntType(64)

intrinsic: Any = extending.intrinsic  # its own types do not say that the first argument is not passed


class Block:
    """Vectors of `width` elements of arrays, in the code that is being generated for a call of an intrinsic."""

    def __init__(self, context: Any, builder: Any, signature: Any, values: Any, width: int) -> None:
        self.builder, self.values = builder, values
        self.arrays = {
            i: context.make_array(kind)(context, builder, values[i]).data
            for i, kind in enumerate(signature.args)
            if isinstance(kind, types.Array)
        }
        self.scalar = context.get_value_type(signature.args[0].dtype)
        self.vector = ir.VectorType(self.scalar, width)

    def variable(self, value: Any) -> Any:
        """A place for a vector that changes in a loop."""
        return cgutils.alloca_once_value(self.builder, value)

    def element(self, array: int, at: Any) -> Any:
        return self.builder.load(self.builder.gep(self.arrays[array], [at]))

    def load(self, array: int, at: Any) -> Any:
        value = self.builder.load(self._pointer(array, at))
        value.align = 4  # whole cells may begin anywhere
        return value

    def store(self, value: Any, array: int, at: Any) -> None:
        self.builder.store(value, self._pointer(array, at)).align = 4

    def _pointer(self, array: int, at: Any) -> Any:
        return self.builder.bitcast(self.builder.gep(self.arrays[array], [at]), self.vector.as_pointer())

    def spread(self, scalar: Any) -> Any:
        """A vector of which every element is `scalar`."""
        return spread(self.builder, self.vector, scalar)

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        return self.builder.fadd(self.builder.fmul(a, b, flags=_FLAGS), c, flags=_FLAGS)

    def maximum(self, where: Any) -> tuple[Any, Any]:
        """The largest of the `cells` of array 0, not counting NaN, and in which channels there is a NaN.

        Two chains of dependence, each of one short operation: with NaN in the comparison it would be one long chain.
        """
        builder, none = self.builder, ir.Constant(ir.VectorType(ir.IntType(1), self.vector.count), None)
        best, nan = self.variable(self.spread(self.scalar(float("-inf")))), self.variable(none)
        with self.cells(*where) as (_, _, cell):
            value, held = self.load(0, cell), builder.load(best)
            builder.store(builder.select(builder.fcmp_ordered(">", value, held), value, held), best)
            builder.store(builder.or_(builder.load(nan), builder.fcmp_unordered("uno", value, value)), nan)
        return builder.load(best), builder.load(nan)

    @contextmanager
    def cells(self, at: Any, row_step: Any, step: Any, rows: Any, columns: Any) -> Iterator[tuple[Any, Any, Any]]:
        """A loop over rows x columns cells in row-major order: row, column and offset."""
        builder = self.builder
        with cgutils.for_range(builder, rows) as outer:
            row = builder.add(at, builder.mul(outer.index, row_step))
            with cgutils.for_range(builder, columns) as inner:
                yield outer.index, inner.index, builder.add(row, builder.mul(inner.index, step))

    @contextmanager
    def grid(self, values: Any) -> Iterator[tuple[Any, Any]]:
        """A loop over the cells of `sum_grid`, each with its weight as a vector."""
        builder = self.builder
        _, _, _, row, n_rows, _, _, column, n_columns, shift, *_ = values
        with cgutils.for_range(builder, n_rows) as outer:
            i = builder.add(row, outer.index)
            corner, row_weight = builder.add(self.element(1, i), shift), self.element(2, i)
            with cgutils.for_range(builder, n_columns) as inner:
                j = builder.add(column, inner.index)
                weight = builder.fmul(row_weight, self.element(6, j))
                yield builder.add(corner, self.element(5, j)), self.spread(weight)


def spread(builder: Any, kind: Any, scalar: Any) -> Any:
    """A vector of type `kind` of which every element is `scalar`."""
    nothing = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(nothing, scalar, ir.IntType(32)(0))
    return builder.shuffle_vector(first, nothing, ir.VectorType(ir.IntType(32), kind.count)(None))


class Blocks:
    """The loops for blocks of `width` channels, as functions that kernels can call."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.sum_list, self.add_list = _over_a_list(width)
        self.sum_grid, self.add_grid = _over_a_grid(width)
        self.maximum, self.add_to_maximum = _of_the_largest(width)


def _over_a_list(width: int) -> tuple[Any, Any]:
    @intrinsic
    def sum_list(typing: Any, x: Any, starts: Any, weights: Any, shift: Any, n: Any, tile: Any, to: Any) -> Any:
        """``tile[to + c] = sum over i < n of weights[i] * x[starts[i] + shift + c]`` for c < width."""

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            block = Block(context, builder, signature, values, width)
            total = block.variable(ir.Constant(block.vector, None))
            with cgutils.for_range(builder, values[4]) as loop:
                cell = block.load(0, builder.add(block.element(1, loop.index), values[3]))
                weight = block.spread(block.element(2, loop.index))
                builder.store(block.multiply_add(weight, cell, builder.load(total)), total)
            block.store(builder.load(total), 5, values[6])
            return context.get_dummy_value()

        return types.void(x, starts, weights, types.uintp, types.intp, tile, types.uintp), generate

    @intrinsic
    def add_list(typing: Any, x: Any, starts: Any, weights: Any, shift: Any, n: Any, tile: Any, at: Any) -> Any:
        """``x[starts[i] + shift + c] += weights[i] * tile[at + c]`` for i < n and c < width."""

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            block = Block(context, builder, signature, values, width)
            value = block.load(5, values[6])
            with cgutils.for_range(builder, values[4]) as loop:
                at = builder.add(block.element(1, loop.index), values[3])
                weight = block.spread(block.element(2, loop.index))
                block.store(block.multiply_add(weight, value, block.load(0, at)), 0, at)
            return context.get_dummy_value()

        return types.void(x, starts, weights, types.uintp, types.intp, tile, types.uintp), generate

    return sum_list, add_list


def _over_a_grid(width: int) -> tuple[Any, Any]:
    # The lists of rows and columns are parts of longer ones, from element `row` and `column` on: a slice of an array
    # would cost compiled code two atomic operations on its reference count.
    @intrinsic
    def sum_grid(
        typing: Any, x: Any, rows: Any, row_weights: Any, row: Any, n_rows: Any, columns: Any, column_weights: Any,
        column: Any, n_columns: Any, shift: Any, tile: Any, to: Any
    ) -> Any:  # fmt: skip
        """``tile[to + c] = sum over i < n_rows, j < n_columns of row_weights[row + i] column_weights[column + j]
        x[rows[row + i] + columns[column + j] + shift + c]`` for c < width."""

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            block = Block(context, builder, signature, values, width)
            total = block.variable(ir.Constant(block.vector, None))
            with block.grid(values) as (cell, weight):
                builder.store(block.multiply_add(weight, block.load(0, cell), builder.load(total)), total)
            block.store(builder.load(total), 10, values[11])
            return context.get_dummy_value()

        axes = (rows, row_weights, types.intp, types.intp, columns, column_weights, types.intp, types.intp)
        return types.void(x, *axes, types.uintp, tile, types.uintp), generate

    @intrinsic
    def add_grid(
        typing: Any, x: Any, rows: Any, row_weights: Any, row: Any, n_rows: Any, columns: Any, column_weights: Any,
        column: Any, n_columns: Any, shift: Any, tile: Any, at: Any
    ) -> Any:  # fmt: skip
        """Add to those cells of x their weight times ``tile[at + c]``: the transpose of `sum_grid`."""

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            block = Block(context, builder, signature, values, width)
            value = block.load(10, values[11])
            with block.grid(values) as (cell, weight):
                block.store(block.multiply_add(weight, value, block.load(0, cell)), 0, cell)
            return context.get_dummy_value()

        axes = (rows, row_weights, types.intp, types.intp, columns, column_weights, types.intp, types.intp)
        return types.void(x, *axes, types.uintp, tile, types.uintp), generate

    return sum_grid, add_grid


def _of_the_largest(width: int) -> tuple[Any, Any]:
    @intrinsic
    def maximum(
        typing: Any, x: Any, at: Any, row_step: Any, step: Any, rows: Any, columns: Any, tile: Any, to: Any
    ) -> Any:
        """``tile[to + c]`` = the largest of rows x columns cells (at least one) from x[at + c] on, for c < width."""

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            block = Block(context, builder, signature, values, width)
            best, nan = block.maximum(values[1:6])
            block.store(builder.select(nan, block.spread(block.scalar(float("nan"))), best), 6, values[7])
            return context.get_dummy_value()

        return types.void(x, types.uintp, *(types.intp,) * 4, tile, types.uintp), generate

    @intrinsic
    def add_to_maximum(
        typing: Any, x: Any, at: Any, row_step: Any, step: Any, rows: Any, columns: Any, grad_x: Any, grad_at: Any,
        grad_row_step: Any, grad_step: Any, tile: Any, to: Any
    ) -> Any:  # fmt: skip
        """Add ``tile[to + c]`` to `grad_x` where the first, row by row, of the largest of the cells lies, for
        c < width. Cell (i, j) has its gradient at ``grad_at + i * grad_row_step + j * grad_step``."""

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            block = Block(context, builder, signature, values, width)
            where, (grad_at, grad_row_step, grad_step) = values[1:6], values[7:10]
            (best, nan), value = block.maximum(where), block.load(10, values[11])
            zero = ir.Constant(block.vector, None)
            searching = block.variable(ir.Constant(ir.VectorType(ir.IntType(1), width), [1] * width))
            with block.cells(*where) as (i, j, cell):
                candidate, held = block.load(0, cell), builder.load(searching)
                largest = builder.and_(builder.not_(nan), builder.fcmp_ordered("==", candidate, best))
                first_nan = builder.and_(nan, builder.fcmp_unordered("uno", candidate, candidate))
                found = builder.and_(held, builder.or_(largest, first_nan))
                builder.store(builder.and_(held, builder.not_(found)), searching)
                shift = builder.add(builder.mul(i, grad_row_step), builder.mul(j, grad_step))
                target = builder.add(grad_at, shift)
                block.store(builder.fadd(block.load(6, target), builder.select(found, value, zero)), 6, target)
            return context.get_dummy_value()

        places = (types.uintp, types.intp, types.intp)
        return types.void(x, *places, types.intp, types.intp, grad_x, *places, tile, types.uintp), generate

    return maximum, add_to_maximum


@intrinsic
def transpose_block(typing: Any, source: Any, at: Any, step: Any, target: Any, to: Any, target_step: Any) -> Any:
    """``target[to + j * target_step + i] = source[at + i * step + j]`` for i, j < SIDE."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        block = Block(context, builder, signature, values, SIDE)
        _, at, step, _, to, target_step = values
        lines = [block.load(0, builder.add(at, builder.mul(step, INDEX(i)))) for i in range(SIDE)]
        half = SIDE // 2
        # A perfect shuffle of lines i and i + SIDE / 2, log2(SIDE) times, is a transposition.
        masks = [
            ir.Constant(ir.VectorType(ir.IntType(32), SIDE), [first + k // 2 + SIDE * (k % 2) for k in range(SIDE)])
            for first in (0, half)
        ]
        for _ in range(SIDE.bit_length() - 1):
            lines = [builder.shuffle_vector(lines[i // 2], lines[i // 2 + half], masks[i % 2]) for i in range(SIDE)]
        for j, line in enumerate(lines):
            block.store(line, 3, builder.add(to, builder.mul(target_step, INDEX(j))))
        return context.get_dummy_value()

    return types.void(source, types.uintp, types.uintp, target, types.uintp, types.uintp), generate


wide = Blocks(64)  # four registers of 512 bits in float32
narrow = Blocks(16)  # for the channels that are left over
