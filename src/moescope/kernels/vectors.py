"""Vectors of fixed width for compiled loops: 64 bytes, 16 whole numbers, 16 floats.

Numba leaves it to LLVM to find vectors in loops over scalars, and products of bytes that are summed by fours (``vpdpbusd``) it
does not find. Here a loop says which vectors it wants. A processor with narrower registers gets several instructions for
each; only :func:`dot` is told what the processor has, by a tuple of that length (:data:`WAYS`): numba compiles a function
for each type of its arguments, and the length of a tuple is part of its type.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import config
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model

LANES = 16
BYTE, WORD, HALF, FLOAT = ir.IntType(8), ir.IntType(32), ir.HalfType(), ir.FloatType()

WAYS = {"plain": (0,), "avx2": (0, 0), "vnni": (0, 0, 0)}
"""How :func:`dot` multiplies. All sum whole numbers without rounding or overflow, so their results are the same."""


def _features() -> Any:
    """Of the processor, where numba compiles for this one and not for another that its settings name."""
    settings: Any = config
    told = settings.CPU_NAME or settings.CPU_FEATURES is not None or not settings.ENABLE_AVX
    return {} if told else binding.get_host_cpu_features()


_HAS_HALVES = bool(_features().get("f16c"))


@cache
def way() -> str:
    """The fastest of :data:`WAYS` that this processor has."""
    features = _features()
    return "vnni" if features.get("avx512vnni") else "avx2" if features.get("avx2") else "plain"


class Vector(types.Type):
    """Of numba's types: ``count`` numbers in a register."""

    def __init__(self, name: str, element: Any, count: int) -> None:
        self.form = ir.VectorType(element, count)
        super().__init__(name=name)


@register_model(Vector)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, kind.form)  # type: ignore[no-untyped-call]


BYTES = Vector("bytes64", BYTE, 4 * LANES)
WHOLES = Vector("wholes16", WORD, LANES)
FLOATS = Vector("floats16", FLOAT, LANES)


def _place(builder: Any, values: Any, kinds: Any, context: Any, form: Any) -> Any:
    """The address of ``array[place]`` as a vector's."""
    start = context.make_array(kinds[0])(context, builder, values[0]).data
    return builder.bitcast(builder.gep(start, [values[1]]), form.as_pointer())


def _read(form: Any, builder: Any, values: Any, kinds: Any, context: Any) -> Any:
    return builder.load(_place(builder, values, kinds, context, form), align=1)


def _widened(builder: Any, halves: Any) -> Any:
    """16-bit floats as 32-bit ones. Without an instruction for it LLVM would call a function that need not be there: the bits
    are moved, and the exponent mended by a product, which is exact for all that is finite."""
    if _HAS_HALVES:
        return builder.fpext(halves, ir.VectorType(FLOAT, halves.type.count))
    form = ir.VectorType(WORD, halves.type.count)
    bits = builder.zext(builder.bitcast(halves, ir.VectorType(ir.IntType(16), halves.type.count)), form)
    sign = builder.shl(builder.and_(bits, _constant(form, 0x8000)), _constant(form, 16))
    rest = builder.shl(builder.and_(bits, _constant(form, 0x7FFF)), _constant(form, 13))
    floats = ir.VectorType(FLOAT, halves.type.count)
    return builder.fmul(builder.bitcast(builder.or_(sign, rest), floats), _constant(floats, 2.0**112))


def _constant(form: Any, number: float) -> Any:
    return ir.Constant(form, [number] * form.count)


@intrinsic
def load_bytes(typing: Any, array: Any, place: Any) -> Any:
    """64 bytes from ``array[place]`` on."""

    def lower(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return _read(BYTES.form, builder, values, signature.args, context)

    return BYTES(array, types.int64), lower


@intrinsic
def repeat_bytes(typing: Any, array: Any, place: Any) -> Any:
    """The four bytes from ``array[place]`` on, 16 times."""

    def lower(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        word = builder.load(_place(builder, values, signature.args, context, WORD), align=1)
        return builder.bitcast(_splat(builder, word, WHOLES.form), BYTES.form)

    return BYTES(array, types.int64), lower


@intrinsic
def low_halves(typing: Any, codes: Any) -> Any:
    """The lower four bits of each byte."""

    def lower(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.and_(values[0], _constant(BYTES.form, 15))

    return BYTES(codes), lower


@intrinsic
def high_halves(typing: Any, codes: Any) -> Any:
    """The upper four bits of each byte."""

    def lower(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.lshr(values[0], _constant(BYTES.form, 4))

    return BYTES(codes), lower


@intrinsic
def load_floats(typing: Any, array: Any, place: Any) -> Any:
    """16 floats from ``array[place]`` on: of float32, of float16 (as uint16), or of int8."""
    kind = array.dtype

    def lower(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        if kind == types.float32:
            return _read(FLOATS.form, builder, values, signature.args, context)
        if kind == types.uint16:
            return _widened(builder, _read(ir.VectorType(HALF, LANES), builder, values, signature.args, context))
        few = _read(ir.VectorType(BYTE, LANES), builder, values, signature.args, context)
        return builder.sitofp(builder.sext(few, WHOLES.form), FLOATS.form)

    return FLOATS(array, types.int64), lower


@intrinsic
def load_pairs(typing: Any, array: Any, place: Any) -> Any:
    """Eight float16 (as uint16) from ``array[place]`` on, each twice."""

    def lower(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        few = _read(ir.VectorType(HALF, 8), builder, values, signature.args, context)
        return _widened(builder, _shuffled(builder, few, few, [lane // 2 for lane in range(LANES)]))

    return FLOATS(array, types.int64), lower


@intrinsic
def repeat_pair(typing: Any, array: Any, place: Any) -> Any:
    """The two numbers of 32 bits from ``array[place]`` on, eight times: bytes of int32, floats of float32."""
    result, element = (FLOATS, FLOAT) if array.dtype == types.float32 else (BYTES, WORD)

    def lower(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        few = _read(ir.VectorType(element, 2), builder, values, signature.args, context)
        return builder.bitcast(_shuffled(builder, few, few, [lane % 2 for lane in range(LANES)]), result.form)

    return result(array, types.int64), lower


@intrinsic
def store_floats(typing: Any, array: Any, place: Any, value: Any) -> Any:
    """To ``array[place]`` and on, float32."""
    return types.void(array, types.int64, FLOATS), _store


@intrinsic
def store_wholes(typing: Any, array: Any, place: Any, value: Any) -> Any:
    """To ``array[place]`` and on, int32."""
    return types.void(array, types.int64, WHOLES), _store


def _store(context: Any, builder: Any, signature: Any, values: Any) -> Any:
    builder.store(values[2], _place(builder, values, signature.args, context, values[2].type), align=4)
    return context.get_dummy_value()


@intrinsic
def store_as_bytes(typing: Any, array: Any, place: Any, apart: Any, wholes: Any) -> Any:
    """Numbers from -128 to 127, four to ``array[place]`` and on, four to ``array[place + apart]`` and on, and so forth."""

    def lower(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        few = builder.trunc(values[3], ir.VectorType(BYTE, LANES))
        fours = builder.bitcast(few, ir.VectorType(WORD, 4))
        start = builder.gep(context.make_array(signature.args[0])(context, builder, values[0]).data, [values[1]])
        for i in range(4):
            goal = builder.gep(start, [builder.mul(values[2], ir.Constant(values[2].type, i))])
            builder.store(builder.extract_element(fours, WORD(i)), builder.bitcast(goal, WORD.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64, WHOLES), lower


@intrinsic
def repeat(typing: Any, number: Any) -> Any:
    """A float32, 16 times."""

    def lower(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return _splat(builder, values[0], FLOATS.form)

    return FLOATS(types.float32), lower


@intrinsic
def no_wholes(typing: Any) -> Any:
    """16 noughts."""

    def lower(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return _constant(WHOLES.form, 0)

    return WHOLES(), lower


@intrinsic
def times_plus(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """``a · b + c``, rounded once where the processor can."""

    def lower(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return _call(builder, "llvm.fmuladd.v16f32", FLOATS.form, *values)

    return FLOATS(a, b, c), lower


@intrinsic
def times(typing: Any, a: Any, b: Any) -> Any:
    return FLOATS(a, b), lambda context, builder, signature, values: builder.fmul(*values)


@intrinsic
def over(typing: Any, a: Any, b: Any) -> Any:
    return FLOATS(a, b), lambda context, builder, signature, values: builder.fdiv(*values)


@intrinsic
def plus(typing: Any, a: Any, b: Any) -> Any:
    return FLOATS(a, b), lambda context, builder, signature, values: builder.fadd(*values)


@intrinsic
def larger(typing: Any, a: Any, b: Any) -> Any:
    """Of each two floats; of a number and NaN either."""

    def lower(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *values), *values)

    return FLOATS(a, b), lower


@intrinsic
def smaller(typing: Any, a: Any, b: Any) -> Any:
    """Of each two floats; of a number and NaN either."""

    def lower(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.select(builder.fcmp_ordered("<", *values), *values)

    return FLOATS(a, b), lower


@intrinsic
def size(typing: Any, floats: Any) -> Any:
    """Without the sign."""
    return FLOATS(floats), lambda context, builder, signature, values: _call(builder, "llvm.fabs.v16f32", FLOATS.form, *values)


@intrinsic
def as_floats(typing: Any, wholes: Any) -> Any:
    return FLOATS(wholes), lambda context, builder, signature, values: builder.sitofp(values[0], FLOATS.form)


@intrinsic
def as_wholes(typing: Any, floats: Any) -> Any:
    """The nearest whole numbers; anything of what is none, or too large."""

    def lower(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.fptosi(_call(builder, "llvm.rint.v16f32", FLOATS.form, values[0]), WHOLES.form)

    return WHOLES(floats), lower


@intrinsic
def power_of_two(typing: Any, wholes: Any) -> Any:
    """As floats, of exponents from -126 to 127."""

    def lower(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        shifted = builder.shl(builder.add(values[0], _constant(WHOLES.form, 127)), _constant(WHOLES.form, 23))
        return builder.bitcast(shifted, FLOATS.form)

    return FLOATS(wholes), lower


@intrinsic
def upper_byte(typing: Any, wholes: Any) -> Any:
    """``a`` such that what is left of ``whole - 256 · a`` is from -128 to 127."""

    def lower(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.ashr(builder.add(values[0], _constant(WHOLES.form, 128)), _constant(WHOLES.form, 8))

    return WHOLES(wholes), lower


@intrinsic
def join(typing: Any, upper: Any, lower_: Any) -> Any:
    """``256 · upper + lower``."""

    def lower(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.add(builder.shl(values[0], _constant(WHOLES.form, 8)), values[1])

    return WHOLES(upper, lower_), lower


@intrinsic
def less(typing: Any, a: Any, b: Any) -> Any:
    """``a - 256 · b``."""

    def lower(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.sub(values[0], builder.shl(values[1], _constant(WHOLES.form, 8)))

    return WHOLES(a, b), lower


@intrinsic
def sum_of_wholes(typing: Any, a: Any, b: Any) -> Any:
    return WHOLES(a, b), lambda context, builder, signature, values: builder.add(*values)


@intrinsic
def four_bytes(typing: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """In each lane the low bytes of a, b, c and d, a's first."""

    def lower(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        result = builder.shl(values[3], _constant(WHOLES.form, 24))
        for i, value in enumerate(values[:3]):
            low = builder.and_(value, _constant(WHOLES.form, 255))
            result = builder.or_(result, builder.shl(low, _constant(WHOLES.form, 8 * i)))
        return result

    return WHOLES(a, b, c, d), lower


def _zipped(high: bool, width: int) -> Any:
    """Which bytes of two vectors: in each 16 bytes, the lower or upper eight of a and b by turns, ``width`` at a time."""
    places = []
    for start in range(0, 4 * LANES, 16):
        for k in range(8 // width):
            first = start + (8 if high else 0) + k * width
            places += [*range(first, first + width), *range(64 + first, 64 + first + width)]
    return places


@intrinsic
def zip_low_bytes(typing: Any, a: Any, b: Any) -> Any:
    """In each 16 bytes: a's first eight and b's by turns."""
    return BYTES(a, b), lambda context, builder, signature, values: _shuffled(builder, values[0], values[1], _zipped(False, 1))


@intrinsic
def zip_high_bytes(typing: Any, a: Any, b: Any) -> Any:
    """In each 16 bytes: a's last eight and b's by turns."""
    return BYTES(a, b), lambda context, builder, signature, values: _shuffled(builder, values[0], values[1], _zipped(True, 1))


@intrinsic
def zip_low_twos(typing: Any, a: Any, b: Any) -> Any:
    """In each 16 bytes: a's first eight and b's by turns, two at a time."""
    return BYTES(a, b), lambda context, builder, signature, values: _shuffled(builder, values[0], values[1], _zipped(False, 2))


@intrinsic
def zip_high_twos(typing: Any, a: Any, b: Any) -> Any:
    """In each 16 bytes: a's last eight and b's by turns, two at a time."""
    return BYTES(a, b), lambda context, builder, signature, values: _shuffled(builder, values[0], values[1], _zipped(True, 2))


@intrinsic
def how_many(typing: Any, array: Any, place: Any, least: Any) -> Any:
    """Of the 16 numbers from ``array[place]`` on (uint32), those that are ``least`` or more."""

    def lower(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        keys = _read(WHOLES.form, builder, values, signature.args, context)
        least_of = _splat(builder, builder.trunc(values[2], WORD), WHOLES.form)
        bits = builder.bitcast(builder.icmp_unsigned(">=", keys, least_of), ir.IntType(16))
        return builder.ctpop(builder.zext(bits, ir.IntType(64)))

    return types.int64(array, types.int64, types.int64), lower


@intrinsic
def read_now(typing: Any, array: Any) -> Any:
    """``array[0]``, int64, as another thread may have written it just now."""

    def lower(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        start = context.make_array(signature.args[0])(context, builder, values[0]).data
        return builder.load_atomic(start, "acquire", 8)

    return types.int64(array), lower


def _reduced(builder: Any, value: Any, combine: Any) -> Any:
    """One number of the 16: halves are combined with halves."""
    count = LANES
    while count > 1:
        count //= 2
        halves = [_shuffled(builder, value, value, list(range(a, a + count))) for a in (0, count)]
        value = combine(*halves)
    return builder.extract_element(value, WORD(0))


@intrinsic
def total(typing: Any, floats: Any) -> Any:
    """The sum of the 16."""
    return types.float32(floats), lambda context, builder, signature, values: _reduced(builder, values[0], builder.fadd)


@intrinsic
def largest(typing: Any, floats: Any) -> Any:
    """Of the 16; NaN counts as nothing, or as all."""

    def lower(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return _reduced(builder, values[0], lambda a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b))

    return types.float32(floats), lower


@intrinsic
def dot(typing: Any, how: Any, bits: Any, sums: Any, codes: Any, numbers: Any) -> Any:
    """``sums[l] + Σ_i codes[4l + i] · numbers[4l + i]``, numbers from -128 to 127, codes from nought: of four bits where the
    tuple ``bits`` has one element, of eight where it has two."""

    def lower(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        sums, codes, numbers = values[2:]
        if how.count == len(WAYS["avx2"]) and bits.count == 2:
            # Sums of two products must fit into 16 bits, so the code's halves are multiplied apart.
            upper = _dot_avx2(builder, _constant(WHOLES.form, 0), builder.lshr(codes, _constant(BYTES.form, 4)), numbers)
            sums = builder.add(sums, builder.shl(upper, _constant(WHOLES.form, 4)))
            codes = builder.and_(codes, _constant(BYTES.form, 15))
        return _DOTS[how.count](builder, sums, codes, numbers)

    return WHOLES(how, bits, sums, codes, numbers), lower


def _dot_plain(builder: Any, sums: Any, codes: Any, numbers: Any) -> Any:
    wide = ir.VectorType(WORD, 4 * LANES)
    products = builder.mul(builder.zext(codes, wide), builder.sext(numbers, wide))
    for i in range(4):
        sums = builder.add(sums, _shuffled(builder, products, products, [4 * lane + i for lane in range(LANES)]))
    return sums


def _dot_avx2(builder: Any, sums: Any, codes: Any, numbers: Any) -> Any:
    parts = []
    for start in (0, 32):
        a, b = (_shuffled(builder, vector, vector, list(range(start, start + 32))) for vector in (codes, numbers))
        pairs = _call(builder, "llvm.x86.avx2.pmadd.ub.sw", ir.VectorType(ir.IntType(16), 16), a, b)
        ones = ir.Constant(pairs.type, [1] * 16)
        parts.append(_call(builder, "llvm.x86.avx2.pmadd.wd", ir.VectorType(WORD, 8), pairs, ones))
    return builder.add(sums, _shuffled(builder, parts[0], parts[1], list(range(LANES))))


def _dot_vnni(builder: Any, sums: Any, codes: Any, numbers: Any) -> Any:
    a, b = (builder.bitcast(v, WHOLES.form) for v in (codes, numbers))
    return _call(builder, "llvm.x86.avx512.vpdpbusd.512", WHOLES.form, sums, a, b)


_DOTS = {1: _dot_plain, 2: _dot_avx2, 3: _dot_vnni}


def _call(builder: Any, name: str, form: Any, *values: Any) -> Any:
    kind = ir.FunctionType(form, [value.type for value in values])
    return builder.call(builder.module.declare_intrinsic(name, (), kind), values)


def _shuffled(builder: Any, a: Any, b: Any, places: list[int]) -> Any:
    """Elements of a, and after them of b."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(WORD, len(places)), places))


def _splat(builder: Any, value: Any, form: Any) -> Any:
    first = builder.insert_element(ir.Constant(form, ir.Undefined), value, WORD(0))
    return _shuffled(builder, first, first, [0] * form.count)
