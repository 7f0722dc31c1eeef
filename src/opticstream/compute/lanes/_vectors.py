# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc, no-any-return, operator, arg-type"
"""Vectors as values inside compiled kernels: one instruction processes `LANES` neighbouring A-lines.

Kernels written with them read like scalar formulas and do not depend on what a compiler's
auto-vectorizer makes of a loop. A vector is loaded from and stored to a flat float32 array at an element index.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import binding, ir  # type: ignore[import-untyped]
from numba import extending, types
from numba.core import cgutils

from opticstream.compute.lanes import _plain_vectors as plain
from opticstream.system.compiled import DISABLED

# numba's stubs give an intrinsic the type of the function that generates its code, not of the generated function.
_numba: Any = extending
intrinsic, overload, register_model, models = _numba.intrinsic, _numba.overload, _numba.register_model, _numba.models

LANES = plain.LANES if DISABLED else 16 if binding.get_host_cpu_features().get("avx512f") else 8
"""A-lines per vector: one AVX-512 register, or two of AVX or four of SSE/NEON for 8."""

_FLOAT = ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, LANES)
_INTS = ir.VectorType(ir.IntType(32), LANES)
_FLAGS = ("contract",)  # a*b + c in one instruction; nothing is re-ordered, so results are the same on every machine


class _Vector(types.Type):
    def __init__(self) -> None:
        super().__init__(name=f"f32x{LANES}")


vector_type = _Vector()


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[name-defined]
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, _VECTOR)


def _element(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """Return the pointer to element `index` of a flat array, as a vector pointer."""
    structure = context.make_array(array_type)(context, builder, array)
    return builder.bitcast(builder.gep(structure.data, [index]), _VECTOR.as_pointer())


@intrinsic
def load(typingctx: Any, array: Any, index: Any) -> Any:
    """Load `LANES` consecutive elements from `index` on."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _element(context, builder, signature.args[0], *args)
        return builder.load(pointer, align=4)

    return vector_type(array, types.intp), codegen


@intrinsic
def store(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """Store a vector at `index`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _element(context, builder, signature.args[0], args[0], args[1])
        builder.store(args[2], pointer, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector_type), codegen


def _splat(builder: Any, scalar: Any) -> Any:
    single = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(_INTS, [0] * LANES)
    return builder.shuffle_vector(single, ir.Constant(_VECTOR, ir.Undefined), zeros)


@intrinsic
def splat(typingctx: Any, scalar: Any) -> Any:
    """Return a vector whose lanes are all `scalar`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _splat(builder, args[0])

    return vector_type(types.float32), codegen


@intrinsic
def spread_out(typingctx: Any, array: Any, index: Any) -> Any:
    """Return a vector whose lanes are all element `index` of a flat array."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        structure = context.make_array(signature.args[0])(context, builder, args[0])
        return _splat(builder, builder.load(builder.gep(structure.data, [args[1]])))

    return vector_type(array, types.intp), codegen


@intrinsic
def lane_numbers(typingctx: Any) -> Any:
    """Return 0, 1, 2, ... as floats."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(_VECTOR, [float(i) for i in range(LANES)])

    return vector_type(), codegen


def _binary(name: str) -> Any:
    @intrinsic
    def operation(typingctx: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return getattr(builder, name)(*args, flags=_FLAGS)

        return vector_type(vector_type, vector_type), codegen

    return operation


_add, _sub, _mul, _div = (_binary(name) for name in ("fadd", "fsub", "fmul", "fdiv"))


def _register(symbol: Any, operation: Any) -> None:
    @overload(symbol)
    def resolve(a, b):  # numba compares the two signatures, annotations and all
        if isinstance(a, _Vector) and isinstance(b, _Vector):
            return lambda a, b: operation(a, b)
        return None


for _symbol, _operation in (
    (operator.add, _add),
    (operator.sub, _sub),
    (operator.mul, _mul),
    (operator.truediv, _div),
):
    _register(_symbol, _operation)


def _call(name: str) -> Any:
    """Make an intrinsic of an LLVM function of one vector."""

    @intrinsic
    def unary(typingctx: Any, a: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            function_type = ir.FunctionType(_VECTOR, [_VECTOR])
            function = cgutils.get_or_insert_function(builder.module, function_type, f"{name}.v{LANES}f32")
            return builder.call(function, args)

        return vector_type(vector_type), codegen

    return unary


square_root = _call("llvm.sqrt")
absolute = _call("llvm.fabs")
floor = _call("llvm.floor")


def _selecting(predicate: str) -> Any:
    """Make `f(a, b, x, y)`: x where the comparison of a with b holds, y elsewhere."""

    @intrinsic
    def select(typingctx: Any, a: Any, b: Any, x: Any, y: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.select(builder.fcmp_ordered(predicate, args[0], args[1]), args[2], args[3])

        return vector_type(vector_type, vector_type, vector_type, vector_type), codegen

    return select


where_less = _selecting("<")
where_less_equal = _selecting("<=")
where_equal = _selecting("==")


@intrinsic
def mantissa_and_exponent(typingctx: Any, a: Any) -> Any:
    """Split positive normal numbers into a mantissa in [sqrt(1/2), sqrt(2)) and the power of two, both as floats."""
    pair = types.UniTuple(vector_type, 2)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def constant(value: int) -> Any:
            return ir.Constant(_INTS, [value] * LANES)

        bits = builder.bitcast(args[0], _INTS)
        shifted = builder.sub(bits, constant(0x3F3504F3))  # bits of sqrt(1/2)
        exponent = builder.ashr(shifted, constant(23))
        mantissa_bits = builder.sub(bits, builder.shl(exponent, constant(23)))
        mantissa = builder.bitcast(mantissa_bits, _VECTOR)
        return context.make_tuple(builder, pair, (mantissa, builder.sitofp(exponent, _VECTOR)))

    return pair(vector_type), codegen


def _reduction(name: str, start: float | None) -> Any:
    """Make an intrinsic that folds the lanes of a vector into one float."""

    @intrinsic
    def reduce(typingctx: Any, a: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            first = [] if start is None else [ir.Constant(_FLOAT, start)]
            function_type = ir.FunctionType(_FLOAT, [*(value.type for value in first), _VECTOR])
            function = cgutils.get_or_insert_function(
                builder.module, function_type, f"llvm.vector.reduce.{name}.v{LANES}f32"
            )
            # re-association only within this one instruction: a tree instead of a chain, the same on every machine
            return builder.call(function, [*first, *args], fastmath=("reassoc",))

        return types.float32(vector_type), codegen

    return reduce


lanes_sum = _reduction("fadd", -0.0)
lanes_minimum = _reduction("fmin", None)
lanes_maximum = _reduction("fmax", None)


def _shuffled(builder: Any, a: Any, b: Any, lanes: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(_INTS, lanes))


# Interleavings within every quarter (four lanes), each one instruction: a0 b0 a1 b1, a2 b2 a3 b3, a0 a1 b0 b1, ...
_LOW = [lane for q in range(0, LANES, 4) for lane in (q, q + LANES, q + 1, q + 1 + LANES)]
_HIGH = [lane + 2 for lane in _LOW]
_LOW_PAIRS = [lane for q in range(0, LANES, 4) for lane in (q, q + 1, q + LANES, q + 1 + LANES)]
_HIGH_PAIRS = [lane + 2 for lane in _LOW_PAIRS]
_QUARTERS = [list(range(first, first + 4)) for first in range(0, 2 * LANES, 4)]
_EVEN_QUARTERS = [lane for quarter in _QUARTERS[::2] for lane in quarter]
_ODD_QUARTERS = [lane for quarter in _QUARTERS[1::2] for lane in quarter]


def _quarters_transposed(builder: Any, vectors: list[Any]) -> list[Any]:
    """Transpose quarters: vector i of the result holds quarter i of every one of `vectors`."""
    if len(vectors) == 1:
        return vectors
    pairs = list(zip(vectors[::2], vectors[1::2], strict=True))
    columns: list[Any] = [None] * len(vectors)
    for start, lanes in enumerate((_EVEN_QUARTERS, _ODD_QUARTERS)):
        columns[start::2] = _quarters_transposed(builder, [_shuffled(builder, a, b, lanes) for a, b in pairs])
    return columns


def _transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """Transpose `LANES` vectors of 32-bit elements."""
    fours = []  # by group of four rows: their columns c, c + 4, c + 8, ... side by side
    for a, b, c, d in zip(*(iter(rows),) * 4, strict=True):
        halves = [(_shuffled(builder, a, b, lanes), _shuffled(builder, c, d, lanes)) for lanes in (_LOW, _HIGH)]
        fours.append([_shuffled(builder, x, y, lanes) for x, y in halves for lanes in (_LOW_PAIRS, _HIGH_PAIRS)])
    columns: list[Any] = [None] * LANES
    for c in range(4):
        columns[c::4] = _quarters_transposed(builder, [four[c] for four in fours])
    return columns


@intrinsic
def turn_counts(
    typingctx: Any, counts: Any, at: Any, stride: Any, last: Any, zero: Any, zero_at: Any, out: Any, to: Any, step: Any
) -> Any:
    """Lay `LANES` A-lines side by side: one vector per sample, less the background.

    Row r begins at element `at + min(r, last) * stride` of the flat `counts`, uint16 or float32. `LANES` samples are
    taken, or twice as many where they are 16 bits wide; vector i, less element `zero_at + i` of `zero`, goes to element
    `to + i * step` of `out`.
    """
    narrow = counts.dtype == types.uint16

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array, first, distance, final, level, level_at, target, target_at, target_step = args
        pointers = [
            context.make_array(kind)(context, builder, value).data
            for kind, value in zip(
                (signature.args[0], signature.args[4], signature.args[6]), (array, level, target), strict=True
            )
        ]
        word = first.type
        rows = []
        for r in range(LANES):
            number = ir.Constant(word, r)
            row = builder.select(builder.icmp_signed("<", number, final), number, final)
            pointer = builder.gep(pointers[0], [builder.add(first, builder.mul(row, distance))])
            rows.append(builder.load(builder.bitcast(pointer, _INTS.as_pointer()), align=2 if narrow else 4))
        columns = _transposed(builder, rows)
        if narrow:
            low, half = ir.Constant(_INTS, [0xFFFF] * LANES), ir.Constant(_INTS, [16] * LANES)
            whole = [part for pair in columns for part in (builder.and_(pair, low), builder.lshr(pair, half))]
            values = [builder.sitofp(part, _VECTOR) for part in whole]
        else:
            values = [builder.bitcast(column, _VECTOR) for column in columns]
        for i, value in enumerate(values):
            number = ir.Constant(word, i)
            background = builder.load(builder.gep(pointers[1], [builder.add(level_at, number)]))
            pointer = builder.gep(pointers[2], [builder.add(target_at, builder.mul(number, target_step))])
            clean = builder.fsub(value, _splat(builder, background))
            builder.store(clean, builder.bitcast(pointer, _VECTOR.as_pointer()), align=4)
        return context.get_dummy_value()

    integer = types.intp
    return types.void(counts, integer, integer, integer, zero, integer, out, integer, integer), codegen


@intrinsic
def sums_of_quarters(typingctx: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Return, in every quarter, the sums over that quarter (four lanes) of a, b, c and d."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a, b, c, d = args
        x, y = (
            builder.fadd(_shuffled(builder, x, y, _LOW), _shuffled(builder, x, y, _HIGH)) for x, y in ((a, b), (c, d))
        )
        return builder.fadd(_shuffled(builder, x, y, _LOW_PAIRS), _shuffled(builder, x, y, _HIGH_PAIRS))

    return vector_type(*(vector_type,) * 4), codegen


@intrinsic
def store_quarters(typingctx: Any, array: Any, index: Any, step: Any, value: Any) -> Any:
    """Store quarter q of a vector (four lanes) at `index + q * step`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array, index, step, value = args
        data = context.make_array(signature.args[0])(context, builder, array).data
        four = ir.VectorType(ir.IntType(32), 4)
        for q in range(LANES // 4):
            part = builder.shuffle_vector(value, value, ir.Constant(four, list(range(4 * q, 4 * q + 4))))
            pointer = builder.gep(data, [builder.add(index, builder.mul(ir.Constant(index.type, q), step))])
            builder.store(part, builder.bitcast(pointer, part.type.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, vector_type), codegen


@intrinsic
def keep_between(typingctx: Any, array: Any, index: Any, value: Any, low: Any, high: Any) -> Any:
    """Store the lanes within low..high one after the other from `index` on; return how many they are.

    All `LANES` elements from `index` on are overwritten.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array, index, value, low, high = args
        inside = builder.and_(builder.fcmp_ordered("<=", low, value), builder.fcmp_ordered("<=", value, high))
        compress = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(_VECTOR, [_VECTOR, inside.type, _VECTOR]),
            f"llvm.experimental.vector.compress.v{LANES}f32",
        )
        packed = builder.call(compress, [value, inside, ir.Constant(_VECTOR, ir.Undefined)])
        builder.store(packed, _element(context, builder, signature.args[0], array, index), align=4)
        bits = builder.bitcast(inside, ir.IntType(LANES))
        return builder.zext(builder.ctpop(bits), index.type)

    return types.intp(array, types.intp, vector_type, vector_type, vector_type), codegen


if DISABLED:
    for _name in (
        "load", "store", "splat", "spread_out", "lane_numbers", "square_root", "absolute", "floor", "where_less",
        "where_less_equal", "where_equal", "mantissa_and_exponent", "lanes_sum", "lanes_minimum", "lanes_maximum",
        "turn_counts", "sums_of_quarters", "store_quarters", "keep_between",
    ):  # fmt: skip
        globals()[_name] = getattr(plain, _name)
