"""The inner loops of the CPU kernels as vector instructions. This is the only file that writes LLVM by hand.

**What an intrinsic is.** numba compiles a Python function to LLVM, and LLVM to machine code. A function under
``@intrinsic`` is not compiled: while numba compiles a kernel that calls it, numba runs it, once for each combination of
argument types, and gets a signature and a function `generate`. That one appends instructions to the kernel where the
call stands (`builder` is llvmlite's `IRBuilder`, `values` are the arguments), and returns the result. At run time
nothing is called. The first parameter, `typing`, is numba's and is not passed by the caller.

**Why a plain loop does not suffice.** A bin sums a few cells of a map, each of which has, say, 256 channels. numba
makes vector instructions of the loop over the channels of one cell, but then every cell reads and writes the sums in
memory. Here the sums of a block of 64 channels stay in registers (`variable` becomes one) while all cells of the bin
pass by.
The loops over few neighbouring cells (`sum_window` and below) are vectors with a mask: rows are short and of any
length, and of a plain loop over 5 or 51 numbers little or nothing becomes vectors.

What each function computes is written down as an ordinary loop in `regio.kernels.cpu.simd_plain`, under the same name
and with the same arguments; the conventions for arrays, offsets, cells and tiles are explained there. The two agree but
for the order and the rounding of sums. In all functions the arguments that are constants of the generated code, `width`
(channels of a block), have to be literals or global constants of the calling module.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending
from numba.core import cgutils, types

from regio.kernels.cpu.compile import compiled
from regio.kernels.cpu.simd_plain import NARROW, SIDE, WIDE, WINDOW

__all__ = [
    "add_grid",
    "add_list",
    "add_logits_of_row",
    "add_to_maximum",
    "add_window",
    "call_each",
    "dot_map",
    "keep_weights_of_row",
    "largest",
    "maximum",
    "span_not_below",
    "sum_grid",
    "sum_list",
    "sum_window",
    "transpose_block",
    "weigh_map",
]

U = np.uintp

_FLAGS = ("contract", "nsz", "reassoc")  # sums may be reordered, and multiply-adds fused
_INDEX = ir.IntType(64)
_ALIGN = 4  # bytes: a block may begin at any element
_MASK_ALIGN = 2  # bytes: some elements are bfloat16

# Types of arguments: an offset into an array, a step between elements or a number of things.
_OFFSET, _COUNT = types.uintp, types.intp

intrinsic: Any = extending.intrinsic  # its own types do not say that the first argument is not passed
intrinsic_of_width: Any = extending.intrinsic(prefer_literal=True)


def _width(literal: Any) -> int:
    if not isinstance(literal, types.IntegerLiteral):
        raise TypeError(f"width: expected a constant, got {literal}")
    return literal.literal_value


class _Block:
    """Vectors of `width` elements of arrays, in the code that is generated for a call.

    Arrays are named by their place among the arguments of the intrinsic. The elements of the vectors have the dtype of
    argument 0.
    """

    def __init__(self, context: Any, builder: Any, signature: Any, values: Any, width: int) -> None:
        self.builder = builder
        self.arrays = {
            i: context.make_array(kind)(context, builder, values[i]).data
            for i, kind in enumerate(signature.args)
            if isinstance(kind, types.Array)
        }
        self.scalar = context.get_value_type(signature.args[0].dtype)
        self.vector = ir.VectorType(self.scalar, width)
        self.zero = ir.Constant(self.vector, None)

    def variable(self, value: Any) -> Any:
        """A place for a vector that changes in a loop; LLVM keeps it in registers."""
        return cgutils.alloca_once_value(self.builder, value)

    def element(self, array: int, at: Any) -> Any:
        """``array[at]``."""
        return self.builder.load(self.builder.gep(self.arrays[array], [at]))

    def load(self, array: int, at: Any) -> Any:
        """``array[at : at + width]``."""
        value = self.builder.load(self._pointer(self.vector, array, at))
        value.align = _ALIGN
        return value

    def store(self, value: Any, array: int, at: Any) -> None:
        """``array[at : at + width] = value``."""
        self.builder.store(value, self._pointer(self.vector, array, at)).align = _ALIGN

    def spread(self, scalar: Any) -> Any:
        """A vector of which every element is `scalar`."""
        return _spread(self.builder, self.vector, scalar)

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        """``a * b + c``."""
        return self.builder.fadd(self.builder.fmul(a, b, flags=_FLAGS), c, flags=_FLAGS)

    def maximum(self, where: Any) -> tuple[Any, Any]:
        """The maximum of the `cells` of array 0, NaN not counted, and in which channels there is a NaN.

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
        """A loop over i < rows and j < columns: i, j and the offset ``at + i * row_step + j * step``."""
        builder = self.builder
        with cgutils.for_range(builder, rows) as outer:
            row = builder.add(at, builder.mul(outer.index, row_step))
            with cgutils.for_range(builder, columns) as inner:
                yield outer.index, inner.index, builder.add(row, builder.mul(inner.index, step))

    @contextmanager
    def grid(self, values: Any) -> Iterator[tuple[Any, Any]]:
        """A loop over the cells of `sum_grid`: the offset of each, and its weight as a vector."""
        builder = self.builder
        _, _, _, row, n_rows, _, _, column, n_columns, shift, *_ = values
        with cgutils.for_range(builder, n_rows) as outer:
            i = builder.add(row, outer.index)
            corner, row_weight = builder.add(self.element(1, i), shift), self.element(2, i)
            with cgutils.for_range(builder, n_columns) as inner:
                j = builder.add(column, inner.index)
                weight = builder.fmul(row_weight, self.element(6, j))
                yield builder.add(corner, self.element(5, j)), self.spread(weight)

    def _pointer(self, kind: Any, array: int, at: Any) -> Any:
        return self.builder.bitcast(self.builder.gep(self.arrays[array], [at]), kind.as_pointer())


def _spread(builder: Any, kind: Any, scalar: Any) -> Any:
    """A vector of type `kind` of which every element is `scalar`."""
    nothing = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(nothing, scalar, ir.IntType(32)(0))
    return builder.shuffle_vector(first, nothing, ir.VectorType(ir.IntType(32), kind.count)(None))


# Blocks of channels: the vectors are whole, and lie anywhere.


@intrinsic_of_width
def sum_list(
    typing: Any, x: Any, offsets: Any, weights: Any, shift: Any, n: Any, tile: Any, to: Any, width: Any
) -> Any:
    """``tile[to + c] = sum over i < n of weights[i] * x[offsets[i] + shift + c]`` for c < width."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        block = _Block(context, builder, signature, values, _width(width))
        _, _, _, shift, n, _, to, _ = values
        total = block.variable(block.zero)
        with cgutils.for_range(builder, n) as loop:
            cell = block.load(0, builder.add(block.element(1, loop.index), shift))
            weight = block.spread(block.element(2, loop.index))
            builder.store(block.multiply_add(weight, cell, builder.load(total)), total)
        block.store(builder.load(total), 5, to)
        return context.get_dummy_value()

    return types.void(x, offsets, weights, _OFFSET, _COUNT, tile, _OFFSET, width), generate


@intrinsic_of_width
def add_list(
    typing: Any, x: Any, offsets: Any, weights: Any, shift: Any, n: Any, tile: Any, at: Any, width: Any
) -> Any:
    """``x[offsets[i] + shift + c] += weights[i] * tile[at + c]`` for i < n and c < width: the transpose of
    `sum_list`."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        block = _Block(context, builder, signature, values, _width(width))
        _, _, _, shift, n, _, at, _ = values
        value = block.load(5, at)
        with cgutils.for_range(builder, n) as loop:
            cell = builder.add(block.element(1, loop.index), shift)
            weight = block.spread(block.element(2, loop.index))
            block.store(block.multiply_add(weight, value, block.load(0, cell)), 0, cell)
        return context.get_dummy_value()

    return types.void(x, offsets, weights, _OFFSET, _COUNT, tile, _OFFSET, width), generate


@intrinsic_of_width
def sum_grid(
    typing: Any, x: Any, rows: Any, row_weights: Any, row: Any, n_rows: Any, columns: Any, column_weights: Any,
    column: Any, n_columns: Any, shift: Any, tile: Any, to: Any, width: Any
) -> Any:  # fmt: skip
    """``tile[to + c] = sum over row <= i < row + n_rows and column <= j < column + n_columns of
    row_weights[i] * column_weights[j] * x[rows[i] + columns[j] + shift + c]`` for c < width."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        block = _Block(context, builder, signature, values, _width(width))
        total = block.variable(block.zero)
        with block.grid(values) as (cell, weight):
            builder.store(block.multiply_add(weight, block.load(0, cell), builder.load(total)), total)
        block.store(builder.load(total), 10, values[11])
        return context.get_dummy_value()

    axes = (rows, row_weights, _COUNT, _COUNT, columns, column_weights, _COUNT, _COUNT)
    return types.void(x, *axes, _OFFSET, tile, _OFFSET, width), generate


@intrinsic_of_width
def add_grid(
    typing: Any, x: Any, rows: Any, row_weights: Any, row: Any, n_rows: Any, columns: Any, column_weights: Any,
    column: Any, n_columns: Any, shift: Any, tile: Any, at: Any, width: Any
) -> Any:  # fmt: skip
    """Add their weight times ``tile[at + c]`` to the cells that `sum_grid` reads: its transpose."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        block = _Block(context, builder, signature, values, _width(width))
        value = block.load(10, values[11])
        with block.grid(values) as (cell, weight):
            block.store(block.multiply_add(weight, value, block.load(0, cell)), 0, cell)
        return context.get_dummy_value()

    axes = (rows, row_weights, _COUNT, _COUNT, columns, column_weights, _COUNT, _COUNT)
    return types.void(x, *axes, _OFFSET, tile, _OFFSET, width), generate


@intrinsic_of_width
def maximum(
    typing: Any, x: Any, at: Any, row_step: Any, step: Any, rows: Any, columns: Any, tile: Any, to: Any, width: Any
) -> Any:
    """``tile[to + c] = max over i < rows and j < columns of x[at + i * row_step + j * step + c]`` for c < width; NaN
    where one of them is NaN. rows, columns: at least 1."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        block = _Block(context, builder, signature, values, _width(width))
        best, nan = block.maximum(values[1:6])
        block.store(builder.select(nan, block.spread(block.scalar(float("nan"))), best), 6, values[7])
        return context.get_dummy_value()

    return types.void(x, _OFFSET, *(_COUNT,) * 4, tile, _OFFSET, width), generate


@intrinsic_of_width
def add_to_maximum(
    typing: Any, x: Any, at: Any, row_step: Any, step: Any, rows: Any, columns: Any, grad_x: Any, grad_at: Any,
    grad_row_step: Any, grad_step: Any, tile: Any, to: Any, width: Any
) -> Any:  # fmt: skip
    """Add ``tile[to + c]`` to `grad_x` at the place of the maximum, for c < width: the transpose of `maximum`.

    Where several cells are the maximum, or NaN, it is added to the first, row by row. The gradient of the cell
    ``x[at + i * row_step + j * step + c]`` is ``grad_x[grad_at + i * grad_row_step + j * grad_step + c]``.
    """

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        block = _Block(context, builder, signature, values, _width(width))
        where, (grad_at, grad_row_step, grad_step) = values[1:6], values[7:10]
        (best, nan), value = block.maximum(where), block.load(10, values[11])
        count = block.vector.count
        searching = block.variable(ir.Constant(ir.VectorType(ir.IntType(1), count), [1] * count))
        with block.cells(*where) as (i, j, cell):
            candidate, held = block.load(0, cell), builder.load(searching)
            is_best = builder.and_(builder.not_(nan), builder.fcmp_ordered("==", candidate, best))
            first_nan = builder.and_(nan, builder.fcmp_unordered("uno", candidate, candidate))
            found = builder.and_(held, builder.or_(is_best, first_nan))
            builder.store(builder.and_(held, builder.not_(found)), searching)
            shift = builder.add(builder.mul(i, grad_row_step), builder.mul(j, grad_step))
            target = builder.add(grad_at, shift)
            block.store(builder.fadd(block.load(6, target), builder.select(found, value, block.zero)), 6, target)
        return context.get_dummy_value()

    places = (_OFFSET, _COUNT, _COUNT)
    return types.void(x, *places, _COUNT, _COUNT, grad_x, *places, tile, _OFFSET, width), generate


@intrinsic
def transpose_block(typing: Any, source: Any, at: Any, step: Any, target: Any, to: Any, target_step: Any) -> Any:
    """``target[to + j * target_step + i] = source[at + i * step + j]`` for i, j < SIDE."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        block = _Block(context, builder, signature, values, SIDE)
        _, at, step, _, to, target_step = values
        lines = [block.load(0, builder.add(at, builder.mul(step, _INDEX(i)))) for i in range(SIDE)]
        half = SIDE // 2
        # A perfect shuffle of lines i and i + SIDE / 2, log2(SIDE) times, is a transposition.
        masks = [
            ir.Constant(ir.VectorType(ir.IntType(32), SIDE), [first + k // 2 + SIDE * (k % 2) for k in range(SIDE)])
            for first in (0, half)
        ]
        for _ in range(SIDE.bit_length() - 1):
            lines = [builder.shuffle_vector(lines[i // 2], lines[i // 2 + half], masks[i % 2]) for i in range(SIDE)]
        for j, line in enumerate(lines):
            block.store(line, 3, builder.add(to, builder.mul(target_step, _INDEX(j))))
        return context.get_dummy_value()

    return types.void(source, _OFFSET, _OFFSET, target, _OFFSET, _OFFSET), generate


# Neighbouring cells of one channel: vectors of which some elements are masked out.


class _MaskedBlock(_Block):
    """Vectors of which some elements are neither read nor written, since they may lie outside the array.

    Elements of uint16 arrays are bfloat16 numbers.
    """

    def __init__(self, context: Any, builder: Any, signature: Any, values: Any, width: int) -> None:
        super().__init__(context, builder, signature, values, width)
        self.halves = {i for i, kind in enumerate(signature.args) if getattr(kind, "dtype", None) == types.uint16}

    def weights(self, array: int, at: Any) -> tuple[Any, Any]:
        """``array[at : at + width]``, and which of them are not zero."""
        weights = self.load(array, at)
        return weights, self.builder.fcmp_unordered("!=", weights, self.zero)

    @contextmanager
    def pieces(self, count: Any) -> Iterator[tuple[Any, Any]]:
        """A loop over the vectors that `count` elements make: the first element of each, and which there are."""
        builder, width = self.builder, self.vector.count
        number = builder.udiv(builder.add(count, _INDEX(width - 1)), _INDEX(width))
        with cgutils.for_range(builder, number) as loop:
            first = builder.mul(loop.index, _INDEX(width))
            left = _spread(builder, ir.VectorType(_INDEX, width), builder.sub(count, first))
            yield first, builder.icmp_unsigned("<", ir.Constant(left.type, list(range(width))), left)

    def read(self, array: int, at: Any, mask: Any) -> Any:
        """``array[at : at + width]`` where `mask` is set, and zero elsewhere."""
        if array not in self.halves:
            return self._read(self.vector, array, at, mask)
        builder, words = self.builder, self._words(32)
        half = self._read(self._words(16), array, at, mask)
        single = builder.bitcast(
            builder.shl(builder.zext(half, words), ir.Constant(words, [16] * words.count)), self._singles
        )
        return single if self._singles == self.vector else builder.fpext(single, self.vector)

    def write(self, value: Any, array: int, at: Any, mask: Any) -> None:
        """``array[at : at + width] = value`` where `mask` is set."""
        self._write(value if array not in self.halves else self._rounded(value), array, at, mask)

    def reduced(self, how: str, vector: Any) -> Any:
        """LLVM's reduction `how` of the elements, none of which is NaN."""
        name = f"llvm.vector.reduce.{how}.v{self.vector.count}{self.scalar.intrinsic_name}"
        function = cgutils.get_or_insert_function(
            self.builder.module, ir.FunctionType(self.scalar, (self.vector,)), name
        )
        return self.builder.call(function, [vector], fastmath=("nnan", "nsz"))

    def sum(self, vector: Any) -> Any:
        """The sum of the elements."""
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
        align = ir.IntType(32)(_MASK_ALIGN)
        arguments = [self._pointer(kind, array, at), align, mask, ir.Constant(kind, None)]
        return self.builder.call(self._function("load", kind, kind, arguments), arguments)

    def _write(self, value: Any, array: int, at: Any, mask: Any) -> None:
        arguments = [value, self._pointer(value.type, array, at), ir.IntType(32)(_MASK_ALIGN), mask]
        self.builder.call(self._function("store", value.type, ir.VoidType(), arguments), arguments)

    def _function(self, name: str, kind: Any, result: Any, arguments: Any) -> Any:
        """LLVM's masked load or store for vectors of type `kind`."""
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
    """Returns ``sum over j < pieces * WINDOW and row <= i < row + n_rows of
    weights[column + j] * row_weights[i] * x[at + rows[i] + j]``; where ``weights[column + j]`` is zero, x is not
    read."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        window = _MaskedBlock(context, builder, signature, values, WINDOW)
        _, at, _, _, row, n_rows, _, column, pieces = values
        total = window.variable(window.zero)
        with cgutils.for_range(builder, pieces) as outer:
            first = builder.mul(outer.index, _INDEX(WINDOW))
            column_weights, mask = window.weights(6, builder.add(column, first))
            line = window.variable(window.zero)
            with cgutils.for_range(builder, n_rows) as inner:
                i = builder.add(row, inner.index)
                cell = builder.add(builder.add(at, first), window.element(2, i))
                value, weight = window.read(0, cell, mask), window.spread(window.element(3, i))
                builder.store(window.multiply_add(weight, value, builder.load(line)), line)
            builder.store(window.multiply_add(column_weights, builder.load(line), builder.load(total)), total)
        return window.sum(builder.load(total))

    kinds = (x, _OFFSET, rows, row_weights, _COUNT, _COUNT, weights, _COUNT, _COUNT)
    return x.dtype(*kinds), generate


@intrinsic
def add_window(
    typing: Any, x: Any, at: Any, rows: Any, row_weights: Any, row: Any, n_rows: Any, weights: Any, column: Any,
    pieces: Any, value: Any
) -> Any:  # fmt: skip
    """Add their weight times `value` to the cells that `sum_window` reads: its transpose."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        window = _MaskedBlock(context, builder, signature, values, WINDOW)
        _, at, _, _, row, n_rows, _, column, pieces, value = values
        with cgutils.for_range(builder, pieces) as outer:
            first = builder.mul(outer.index, _INDEX(WINDOW))
            column_weights, mask = window.weights(6, builder.add(column, first))
            with cgutils.for_range(builder, n_rows) as inner:
                i = builder.add(row, inner.index)
                cell = builder.add(builder.add(at, first), window.element(2, i))
                share = window.spread(builder.fmul(window.element(3, i), value))
                window.write(window.multiply_add(column_weights, share, window.read(0, cell, mask)), 0, cell, mask)
        return context.get_dummy_value()

    kinds = (x, _OFFSET, rows, row_weights, _COUNT, _COUNT, weights, _COUNT, _COUNT, x.dtype)
    return types.void(*kinds), generate


# Whole maps of weights that are products of a term of the column, one of the row and one of the cell (`attend`).


class _WeightedMap(_MaskedBlock):
    """The weights of `weigh_map`, a row of cells at a time."""

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
    p = v * width + u of a map; returns their sum, of the products before they are rounded to bfloat16."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        weighted = _WeightedMap(context, builder, signature, values)
        total = weighted.variable(weighted.zero)
        with weighted.weighted_cells() as (p, mask, weight):
            weighted.write(weight, 6, builder.add(values[7], p), mask)
            builder.store(builder.fadd(builder.load(total), weight), total)
        return weighted.sum(builder.load(total))

    kinds = (column, _OFFSET, rows, _OFFSET, appearance, _OFFSET, out, _OFFSET, _COUNT, _COUNT)
    return column.dtype(*kinds), generate


@intrinsic
def dot_map(
    typing: Any, column: Any, at: Any, rows: Any, row_at: Any, appearance: Any, appearance_at: Any, products: Any,
    products_at: Any, height: Any, width: Any
) -> Any:  # fmt: skip
    """Returns the inner product of the weights of `weigh_map` with ``products[products_at + p]``."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        weighted = _WeightedMap(context, builder, signature, values)
        total = weighted.variable(weighted.zero)
        with weighted.weighted_cells() as (p, mask, weight):
            product = weighted.read(6, builder.add(values[7], p), mask)
            builder.store(weighted.multiply_add(weight, product, builder.load(total)), total)
        return weighted.sum(builder.load(total))

    kinds = (column, _OFFSET, rows, _OFFSET, appearance, _OFFSET, products, _OFFSET, _COUNT, _COUNT)
    return column.dtype(*kinds), generate


@intrinsic
def add_logits_of_row(
    typing: Any, column: Any, at: Any, factor: Any, appearance: Any, appearance_at: Any, products: Any,
    products_at: Any, mean: Any, to_column: Any, to_appearance: Any, width: Any
) -> Any:  # fmt: skip
    """Add ``factor * column[at + u] * appearance[appearance_at + u] * (products[products_at + u] - mean)``, the
    gradients of the logits of a row of cells, to ``to_column[at + u]`` and to ``to_appearance[appearance_at + u]`` for
    u < width; returns their sum."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        row = _MaskedBlock(context, builder, signature, values, SIDE)
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

    number = column.dtype
    kinds = (column, _OFFSET, number, appearance, _OFFSET, products, _OFFSET, number, to_column, to_appearance, _COUNT)
    return number(*kinds), generate


# Which cells have weights that count (`attend`).


def _range_of(builder: Any, mask: Any) -> tuple[Any, Any, Any]:
    """Whether any element of a mask is set, the first that is, and the one after the last (as 64-bit numbers)."""
    bits = builder.zext(builder.bitcast(mask, ir.IntType(mask.type.count)), _INDEX)
    first = builder.cttz(bits, ir.IntType(1)(0))
    stop = builder.sub(_INDEX(64), builder.ctlz(bits, ir.IntType(1)(0)))
    return builder.icmp_unsigned("!=", bits, _INDEX(0)), first, stop


@intrinsic
def largest(typing: Any, x: Any, at: Any, count: Any) -> Any:
    """Returns the largest of ``x[at : at + count]``, NaN not counted; -inf for none."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        row = _MaskedBlock(context, builder, signature, values, SIDE)
        _, at, count = values
        best = row.variable(row.spread(row.scalar(float("-inf"))))
        with row.pieces(count) as (u, mask):
            value, held = row.read(0, builder.add(at, u), mask), builder.load(best)
            above = builder.and_(mask, builder.fcmp_ordered(">", value, held))
            builder.store(builder.select(above, value, held), best)
        return row.reduced("fmax", builder.load(best))

    return x.dtype(x, _OFFSET, _COUNT), generate


@intrinsic
def span_not_below(typing: Any, x: Any, at: Any, count: Any, limit: Any) -> Any:
    """Returns the smallest range (first, stop) that has all i < count for which ``x[at + i]`` is not below `limit`, NaN
    among them; (count, 0) for none."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        row = _MaskedBlock(context, builder, signature, values, SIDE)
        _, at, count, limit = values
        limit = row.spread(limit)
        start, end = (cgutils.alloca_once_value(builder, value) for value in (count, _INDEX(0)))
        with row.pieces(count) as (u, mask):
            kept = builder.fcmp_unordered(">=", row.read(0, builder.add(at, u), mask), limit)
            any_kept, first, stop = _range_of(builder, builder.and_(mask, kept))
            nearer = builder.and_(any_kept, builder.icmp_signed("==", builder.load(start), count))
            builder.store(builder.select(nearer, builder.add(u, first), builder.load(start)), start)
            builder.store(builder.select(any_kept, builder.add(u, stop), builder.load(end)), end)
        return context.make_tuple(builder, signature.return_type, [builder.load(start), builder.load(end)])

    return types.UniTuple(_COUNT, 2)(x, _OFFSET, _COUNT, x.dtype), generate


@intrinsic
def keep_weights_of_row(
    typing: Any, column: Any, at: Any, factor: Any, appearance: Any, appearance_at: Any, least: Any, count: Any,
    cell: Any, weights: Any, cells: Any, to: Any
) -> Any:  # fmt: skip
    """Write the weights ``factor * column[at + u] * appearance[appearance_at + u]`` for u < count, and the numbers
    ``cell + u``, to weights and cells (int32) from `to` on; of each SIDE neighbours only those from the first to the
    last that is not below `least`. Returns where what was written ends."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        row = _MaskedBlock(context, builder, signature, values, SIDE)
        _, at, factor, _, appearance_at, least, count, cell, _, _, to = values
        factor, least, end = row.spread(factor), row.spread(least), cgutils.alloca_once_value(builder, to)
        words = row._words(32)
        places = ir.Constant(words, list(range(SIDE)))
        with row.pieces(count) as (u, mask):
            weight = builder.fmul(factor, row.read(0, builder.add(at, u), mask))
            weight = builder.fmul(weight, row.read(3, builder.add(appearance_at, u), mask))
            kept = builder.and_(mask, builder.fcmp_unordered(">=", weight, least))
            any_kept, first, stop = _range_of(builder, kept)
            with builder.if_then(any_kept):
                low, high = (_spread(builder, words, builder.trunc(i, ir.IntType(32))) for i in (first, stop))
                between = builder.and_(
                    builder.icmp_unsigned(">=", places, low), builder.icmp_unsigned("<", places, high)
                )
                place = builder.sub(builder.load(end), first)  # of an element before the first, where none is written
                number = builder.trunc(builder.add(cell, u), ir.IntType(32))
                row.write(weight, 8, place, between)
                row.write(builder.add(_spread(builder, words, number), places), 9, place, between)
                builder.store(builder.add(place, stop), end)
        return builder.load(end)

    number = column.dtype
    kinds = (column, _OFFSET, number, appearance, _OFFSET, number, _COUNT, _COUNT, weights, cells, _OFFSET)
    return _OFFSET(*kinds), generate


@compiled
def call_each() -> float:
    """Call every function above once: it cannot be compiled where one of them cannot be built."""
    x, y = np.zeros(512, np.float32), np.zeros(512, np.float32)
    at, one, halves, zero = np.zeros(1, U), np.ones(WINDOW, np.float32), np.zeros(512, np.uint16), U(0)
    sum_list(x, at, one, zero, 1, y, zero, WIDE)
    add_list(x, at, one, zero, 1, y, zero, NARROW)
    sum_grid(x, at, one, 0, 1, at, one, 0, 1, zero, y, zero, WIDE)
    add_grid(x, at, one, 0, 1, at, one, 0, 1, zero, y, zero, NARROW)
    maximum(x, zero, 0, 0, 1, 1, y, zero, WIDE)
    add_to_maximum(x, zero, 0, 0, 1, 1, x, zero, 0, 0, y, zero, NARROW)
    transpose_block(x, zero, U(SIDE), y, zero, U(SIDE))
    total = sum_window(x, zero, at, one, 0, 1, one, 0, 1)
    add_window(x, zero, at, one, 0, 1, one, 0, 1, total)
    total += weigh_map(x, zero, y, zero, x, zero, halves, zero, 1, 1)
    total += dot_map(x, zero, y, zero, x, zero, halves, zero, 1, 1)
    total += largest(x, zero, 1) + span_not_below(x, zero, 1, total)[0]
    keep_weights_of_row(x, zero, total, x, zero, total, 1, 0, y, np.zeros(512, np.int32), zero)
    return total + add_logits_of_row(x, zero, total, x, zero, halves, zero, total, y, y, 1)
