"""The compiled loops of weights in few bits on the CPU: see :mod:`moescope.kernels.planes`, which prepares what they work on.

Numbers of a token become whole numbers of 16 bits (or 8) for each group of 32, as one or two bytes (:func:`_cut`), and bytes
are multiplied with codes. Those sums are exact, whatever the processor; rounded are a group's sum times its two scales, and
the sum over groups.

Rows that are all read lie by sixteens: four neighbours of each of the 16 rows make a vector of 64 bytes, so that a lane is a
row and nothing is summed across lanes. Rows that are read or left out lie by themselves: there a lane is half a group. Down
rows are added into the output: four of them, byte beside byte, make products of four again, for factors of 16 bits.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from numba import njit
from numba.extending import overload

from moescope.kernels import vectors
from moescope.kernels.openmp import array_at, compiled, mark_of, prefetch, take

_MARK = mark_of(__file__) + mark_of(vectors.__file__)
v: Any = vectors  # compiled code, in which a type checker cannot follow numba's types

GROUP, LANES, LINE = 32, 16, 64  # inputs that share a scale; rows side by side; bytes of a cache line
PIECE = 256  # inputs of a row by itself whose codes make two vectors
TOGETHER = 16  # chosen neurons whose down rows are read together
FOUR, EIGHT = (0,), (0, 0)  # bits of a code; a tuple's length is part of its type
_AHEAD = 8192  # bytes that are fetched ahead of what is read in one go


# --- tokens ---------------------------------------------------------------------------------------------------------------


@njit(forceinline=True)
def _store_cut(whole: Any, cut: Any, place: int, apart: int) -> Any:
    """One byte or two of each of 16 whole numbers, to ``cut`` (bytes, n)."""
    if len(cut) == 2:
        upper = v.upper_byte(whole)
        v.store_as_bytes(cut[0], place, apart, upper)
        v.store_as_bytes(cut[1], place, apart, v.less(whole, upper))
    else:
        v.store_as_bytes(cut[0], place, apart, whole)


@njit
def _cut(x: Any, middle: float, by_row: bool, cut: Any, factor: Any, offset: Any) -> None:
    """One token's x (n,) as bytes (1 or 2, n) and a factor for each group, with ``offset = -middle · factor · Σ bytes``; by
    rows, in the order of :func:`_low_dots`, one for each half of a group. What is not finite makes its factor NaN."""
    most = np.float32(32512) if len(cut) == 2 else np.float32(127)
    if by_row:
        cut[:] = 0
        factor[:] = 0
        offset[:] = 0
    for g in range(len(x) // GROUP):
        a, b = v.load_floats(x, g * GROUP), v.load_floats(x, g * GROUP + LANES)
        largest = v.largest(v.larger(v.size(a), v.size(b)))
        nought = v.total(v.times(v.plus(a, b), v.repeat(np.float32(0))))  # or NaN
        inverse = v.repeat(most / largest if largest > 0 else np.float32(0))
        step = largest / most + nought
        a_whole, b_whole = v.as_wholes(v.times(a, inverse)), v.as_wholes(v.times(b, inverse))
        if by_row:
            place = g // 8 * PIECE + g % 8 * 8
            _store_cut(a_whole, cut, place, LINE)
            _store_cut(b_whole, cut, place + 4, LINE)
            factor[2 * g] = factor[2 * g + 1] = step
            # a lane's four numbers of each of four steps are a half group's sixteen
            offset[2 * g] = -np.float32(middle) * step * v.total(v.as_floats(a_whole))
            offset[2 * g + 1] = -np.float32(middle) * step * v.total(v.as_floats(b_whole))
        else:
            _store_cut(a_whole, cut, g * GROUP, 4)
            _store_cut(b_whole, cut, g * GROUP + LANES, 4)
            factor[g] = step
            offset[g] = -np.float32(middle) * step * v.total(v.as_floats(v.sum_of_wholes(a_whole, b_whole)))


@njit(forceinline=True)
def _exp(x: Any) -> Any:
    """To two in ten millions; from e⁻⁸⁷ to e⁸⁸."""
    x = v.smaller(v.larger(x, v.repeat(np.float32(-87))), v.repeat(np.float32(88)))
    n = v.as_wholes(v.times(x, v.repeat(np.float32(1.44269504))))
    r = v.times_plus(v.as_floats(n), v.repeat(np.float32(-0.693359375)), x)
    r = v.times_plus(v.as_floats(n), v.repeat(np.float32(2.12194440e-4)), r)
    p = v.times_plus(v.repeat(np.float32(1.9875691500e-4)), r, v.repeat(np.float32(1.3981999507e-3)))
    p = v.times_plus(p, r, v.repeat(np.float32(8.3334519073e-3)))
    p = v.times_plus(p, r, v.repeat(np.float32(4.1665795894e-2)))
    p = v.times_plus(p, r, v.repeat(np.float32(1.6666665459e-1)))
    p = v.times_plus(p, r, v.repeat(np.float32(5.0000001201e-1)))
    p = v.plus(v.times_plus(p, v.times(r, r), r), v.repeat(np.float32(1)))
    return v.times(p, v.power_of_two(n))


@njit
def _hidden(kind: int, gate: Any, up: Any, room: Any) -> Any:
    """``act(gate) · up`` of sixteen, by the numbers of ACTIVATIONS; ``room`` (16,) is for what has no vectors."""
    one = v.repeat(np.float32(1))
    if kind == 0:
        act = v.over(gate, v.plus(one, _exp(v.times(gate, v.repeat(np.float32(-1))))))
    elif kind == 1:
        nought = v.repeat(np.float32(0))
        act = v.plus(v.larger(gate, nought), v.times(gate, nought))  # NaN stays
    elif kind == 2:  # (1 + tanh z) / 2 is the sigmoid of 2 z
        cube = v.times_plus(v.times(v.times(gate, gate), gate), v.repeat(np.float32(0.044715)), gate)
        act = v.over(gate, v.plus(one, _exp(v.times(cube, v.repeat(np.float32(-1.5957691216))))))
    else:
        v.store_floats(room, 0, gate)
        for i in range(LANES):
            room[i] *= np.float32(0.5) * np.float32(1 + math.erf(room[i] * 0.7071067811865476))
        act = v.load_floats(room, 0)
    return v.times(act, up)


# --- rows that are all read -----------------------------------------------------------------------------------------------


def _codes(bits: Any, memory: Any, place: int) -> Any:
    """Those of one group of 16 rows: eight vectors of four inputs each."""
    raise NotImplementedError("compiled only")


@overload(_codes, jit_options={"forceinline": True})
def _codes_of(bits: Any, memory: Any, place: Any) -> Any:
    def four(bits: Any, memory: Any, place: Any) -> Any:
        a, b = v.load_bytes(memory, place), v.load_bytes(memory, place + 64)
        c, d = v.load_bytes(memory, place + 128), v.load_bytes(memory, place + 192)
        first = v.low_halves(a), v.high_halves(a), v.low_halves(b), v.high_halves(b)
        return (*first, v.low_halves(c), v.high_halves(c), v.low_halves(d), v.high_halves(d))

    def eight(bits: Any, memory: Any, place: Any) -> Any:
        a, b = v.load_bytes(memory, place), v.load_bytes(memory, place + 64)
        c, d = v.load_bytes(memory, place + 128), v.load_bytes(memory, place + 192)
        e, f = v.load_bytes(memory, place + 256), v.load_bytes(memory, place + 320)
        return (a, b, c, d, e, f, v.load_bytes(memory, place + 384), v.load_bytes(memory, place + 448))

    return four if bits.count == 1 else eight


@njit(forceinline=True)
def _eight_dots(how: Any, bits: Any, codes: Any, x: Any, k: int) -> Any:
    one = v.dot(how, bits, v.no_wholes(), codes[0], v.repeat_bytes(x, k))
    one = v.dot(how, bits, one, codes[1], v.repeat_bytes(x, k + 4))
    one = v.dot(how, bits, one, codes[2], v.repeat_bytes(x, k + 8))
    one = v.dot(how, bits, one, codes[3], v.repeat_bytes(x, k + 12))
    one = v.dot(how, bits, one, codes[4], v.repeat_bytes(x, k + 16))
    one = v.dot(how, bits, one, codes[5], v.repeat_bytes(x, k + 20))
    one = v.dot(how, bits, one, codes[6], v.repeat_bytes(x, k + 24))
    return v.dot(how, bits, one, codes[7], v.repeat_bytes(x, k + 28))


@njit
def _rows(how: Any, bits: Any, memory: Any, words: Any, cut: Any, factor: Any, offset: Any, sums: Any) -> None:
    """``sums[t] = rows · x[t]`` (T, 32) of twice sixteen rows, which lie group beside group, codes before scales."""
    tokens, parts, _ = cut.shape
    groups = factor.shape[1]
    size = 256 * len(bits)
    if tokens > 1:
        sums[:] = 0
    s0 = s1 = v.repeat(np.float32(0))
    for g in range(groups):
        place = g * 2 * (size + 32)
        for line in range(0, 2 * (size + 32), LINE):
            prefetch(memory, place + _AHEAD + line)
        first, second = _codes(bits, memory, place), _codes(bits, memory, place + size + 32)
        scale_0, scale_1 = v.load_floats(words, (place + size) >> 1), v.load_floats(words, (place + 2 * size + 32) >> 1)
        k = g * GROUP
        for t in range(tokens):
            x = cut[t, 0]
            one, two = _eight_dots(how, bits, first, x, k), _eight_dots(how, bits, second, x, k)
            if parts == 2:
                x = cut[t, 1]
                one = v.join(one, _eight_dots(how, bits, first, x, k))
                two = v.join(two, _eight_dots(how, bits, second, x, k))
            step, less = v.repeat(factor[t, g]), v.repeat(offset[t, g])
            part_0, part_1 = v.times_plus(v.as_floats(one), step, less), v.times_plus(v.as_floats(two), step, less)
            if tokens == 1:
                s0, s1 = v.times_plus(scale_0, part_0, s0), v.times_plus(scale_1, part_1, s1)
            else:
                v.store_floats(sums[t], 0, v.times_plus(scale_0, part_0, v.load_floats(sums[t], 0)))
                v.store_floats(sums[t], 16, v.times_plus(scale_1, part_1, v.load_floats(sums[t], 16)))
    if tokens == 1:
        v.store_floats(sums[0], 0, s0)
        v.store_floats(sums[0], 16, s1)


# --- the choice -----------------------------------------------------------------------------------------------------------


@njit
def _wait(counter: Any, number: int) -> None:
    """Until that many have been counted; each of those is being worked on, so the wait ends."""
    while v.read_now(counter) < number:
        pass


@njit
def _choose(keys: Any, count: int, width: int, mask: Any) -> None:
    """Mark the ``count`` largest of the first ``width`` keys, the bits of floats that are not negative (the keys after them are
    nought); of equal ones the first. The range in which the least of them lies is halved until it is one key."""
    if count <= 0 or count >= width:
        mask[:] = np.uint8(count > 0)
        return
    low: Any = np.int64(0)
    high = np.int64(1) << 31  # `count` keys are `low` or more, fewer are `high` or more
    above = np.int64(0)
    while high - low > 1:
        middle = (low + high) >> 1
        found = np.int64(0)
        for i in range(0, len(keys), LANES):
            found += v.how_many(keys, i, middle)
        if found >= count:
            low = middle
        else:
            high, above = middle, found
        if found == count:
            break
    least = np.uint32(low)
    if _found(keys, low) == count:
        for i in range(width):
            mask[i] = keys[i] >= least
        return
    left = count - above
    for i in range(width):
        equal = keys[i] == least
        mask[i] = keys[i] > least or (equal and left > 0)
        left -= np.int64(equal)


@njit
def _found(keys: Any, least: Any) -> Any:
    found = np.int64(0)
    for i in range(0, len(keys), LANES):
        found += v.how_many(keys, i, least)
    return found


# --- rows that are read or left out ---------------------------------------------------------------------------------------


@njit(forceinline=True)
def _middle(bits: int, last: int) -> Any:
    """Between the least and the greatest level of the ``last`` of eight bits, where a code has ``bits`` and the others are
    nought."""
    return np.float32((1 << (last - 1)) - 0.5 * (1 << (8 - bits)))


@njit(forceinline=True)
def _four_dots(how: Any, a: Any, b: Any, c: Any, d: Any, x: Any, k: int) -> Any:
    one = v.dot(how, FOUR, v.dot(how, FOUR, v.no_wholes(), a, v.load_bytes(x, k)), b, v.load_bytes(x, k + 64))
    return v.dot(how, FOUR, v.dot(how, FOUR, one, c, v.load_bytes(x, k + 128)), d, v.load_bytes(x, k + 192))


@njit(forceinline=True)
def _low_dots(
    how: Any, memory: Any, words: Any, place: int, ends: Any, cut: Any, factor: Any, offset: Any, lines: int
) -> Any:  # fmt: skip
    """What the low bits of gate and up of the neuron at ``place`` add to their products with one token, each in 16 parts. Its
    down row is fetched meanwhile, ``lines`` cache lines a piece."""
    up, gate_scale, up_scale, down, last = ends
    pieces = cut.shape[1] // PIECE
    s0 = s1 = v.repeat(np.float32(0))
    for q in range(pieces):
        for i in range(lines):
            prefetch(memory, place + min(down + (q * lines + i) * LINE, last))
        at = place + q * (PIECE // 2)
        ab, cd = v.load_bytes(memory, at), v.load_bytes(memory, at + 64)
        ef, gh = v.load_bytes(memory, at + up), v.load_bytes(memory, at + up + 64)
        a, b, c, d = v.low_halves(ab), v.high_halves(ab), v.low_halves(cd), v.high_halves(cd)
        e, f, g, h = v.low_halves(ef), v.high_halves(ef), v.low_halves(gh), v.high_halves(gh)
        k = q * PIECE
        one, two = _four_dots(how, a, b, c, d, cut[0], k), _four_dots(how, e, f, g, h, cut[0], k)
        if len(cut) == 2:
            one = v.join(one, _four_dots(how, a, b, c, d, cut[1], k))
            two = v.join(two, _four_dots(how, e, f, g, h, cut[1], k))
        step, less = v.load_floats(factor, q * LANES), v.load_floats(offset, q * LANES)
        first, second = (place + gate_scale) // 2 + q * 8, (place + up_scale) // 2 + q * 8
        s0 = v.times_plus(v.load_pairs(words, first), v.times_plus(v.as_floats(one), step, less), s0)
        s1 = v.times_plus(v.load_pairs(words, second), v.times_plus(v.as_floats(two), step, less), s1)
    return s0, s1


@njit(forceinline=True)
def _factor_of(words: Any, places: Any, h: Any, j: int, k: int) -> Any:
    return v.times(v.repeat(h[j]), v.load_floats(words, places[j] + k))


@njit
def _factors(words: Any, places: Any, h: Any, groups: int, middle: float, quads: Any, step: Any, offset: Any) -> None:
    """What sixteen down rows are multiplied by, h · scale, as two bytes for each group of outputs: quads (2, 4, groups), four
    rows' bytes in each; a step for each group; and ``offset = -middle · step · Σ``. ``places`` of scales in ``words``."""
    sound = np.float32(0)
    for j in range(TOGETHER):
        sound += h[j] * np.float32(0)
    for k in range(0, groups, LANES):
        most = v.repeat(np.float32(1e-30))
        for j in range(TOGETHER):
            most = v.larger(most, v.size(_factor_of(words, places, h, j, k)))
        inverse = v.over(v.repeat(np.float32(32512)), most)
        each = v.plus(v.times(most, v.repeat(np.float32(1 / 32512))), v.repeat(sound))
        total = v.no_wholes()
        for q in range(4):
            a = v.as_wholes(v.times(_factor_of(words, places, h, 4 * q, k), inverse))
            b = v.as_wholes(v.times(_factor_of(words, places, h, 4 * q + 1, k), inverse))
            c = v.as_wholes(v.times(_factor_of(words, places, h, 4 * q + 2, k), inverse))
            d = v.as_wholes(v.times(_factor_of(words, places, h, 4 * q + 3, k), inverse))
            total = v.sum_of_wholes(total, v.sum_of_wholes(v.sum_of_wholes(a, b), v.sum_of_wholes(c, d)))
            e, f, g, i = v.upper_byte(a), v.upper_byte(b), v.upper_byte(c), v.upper_byte(d)
            v.store_wholes(quads[0, q], k, v.four_bytes(e, f, g, i))
            v.store_wholes(quads[1, q], k, v.four_bytes(v.less(a, e), v.less(b, f), v.less(c, g), v.less(d, i)))
        v.store_floats(step, k, each)
        v.store_floats(offset, k, v.times(v.times(each, v.repeat(-np.float32(middle))), v.as_floats(total)))


@njit(forceinline=True)
def _mixed(memory: Any, places: Any, j: int, k: int) -> Any:
    """64 bytes of each of four rows, byte beside byte: four vectors of 16 outputs."""
    a, b = v.load_bytes(memory, places[j] + k), v.load_bytes(memory, places[j + 1] + k)
    c, d = v.load_bytes(memory, places[j + 2] + k), v.load_bytes(memory, places[j + 3] + k)
    low, high = v.zip_low_bytes(a, b), v.zip_high_bytes(a, b)
    low_2, high_2 = v.zip_low_bytes(c, d), v.zip_high_bytes(c, d)
    return v.zip_low_twos(low, low_2), v.zip_high_twos(low, low_2), v.zip_low_twos(high, high_2), v.zip_high_twos(high, high_2)


@njit(forceinline=True)
def _down_dots(how: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any) -> Any:
    one = v.dot(how, EIGHT, v.dot(how, EIGHT, v.no_wholes(), a, e), b, f)
    return v.dot(how, EIGHT, v.dot(how, EIGHT, one, c, g), d, h)


@njit
def _add_down(
    how: Any, memory: Any, places: Any, ahead: Any, ahead_bytes: int, active: Any, quads: Any, steps: Any, offsets: Any, y: Any
) -> None:
    """Add to y (T, lines · 64) sixteen down rows, whose codes begin at ``places``, times each active token's factors. The first
    ``ahead_bytes`` from ``ahead`` are fetched meanwhile."""
    lines = y.shape[1] // LINE
    row_lines = (ahead_bytes + LINE - 1) // LINE
    each = (TOGETHER * row_lines + lines - 1) // lines
    far_row = far_line = 0
    for line in range(lines):
        k = line * LINE
        for _ in range(each):
            prefetch(memory, ahead[far_row] + far_line * LINE)
            far_line += 1
            if far_line == row_lines:
                far_row, far_line = min(far_row + 1, TOGETHER - 1), 0
        a, b, c, d = (
            _mixed(memory, places, 0, k),
            _mixed(memory, places, 4, k),
            _mixed(memory, places, 8, k),
            _mixed(memory, places, 12, k),
        )
        for t in range(len(y)):
            if not active[t]:
                continue
            upper, lower, row = quads[t, 0], quads[t, 1], y[t]
            e, f = v.repeat_pair(upper[0], 2 * line), v.repeat_pair(upper[1], 2 * line)
            g, h = v.repeat_pair(upper[2], 2 * line), v.repeat_pair(upper[3], 2 * line)
            m, n = v.repeat_pair(lower[0], 2 * line), v.repeat_pair(lower[1], 2 * line)
            o, p = v.repeat_pair(lower[2], 2 * line), v.repeat_pair(lower[3], 2 * line)
            step, offset = v.repeat_pair(steps[t], 2 * line), v.repeat_pair(offsets[t], 2 * line)
            w = v.join(_down_dots(how, a[0], b[0], c[0], d[0], e, f, g, h), _down_dots(how, a[0], b[0], c[0], d[0], m, n, o, p))
            v.store_floats(row, k, v.plus(v.load_floats(row, k), v.times_plus(v.as_floats(w), step, offset)))
            w = v.join(_down_dots(how, a[1], b[1], c[1], d[1], e, f, g, h), _down_dots(how, a[1], b[1], c[1], d[1], m, n, o, p))
            v.store_floats(row, k + 16, v.plus(v.load_floats(row, k + 16), v.times_plus(v.as_floats(w), step, offset)))
            w = v.join(_down_dots(how, a[2], b[2], c[2], d[2], e, f, g, h), _down_dots(how, a[2], b[2], c[2], d[2], m, n, o, p))
            v.store_floats(row, k + 32, v.plus(v.load_floats(row, k + 32), v.times_plus(v.as_floats(w), step, offset)))
            w = v.join(_down_dots(how, a[3], b[3], c[3], d[3], e, f, g, h), _down_dots(how, a[3], b[3], c[3], d[3], m, n, o, p))
            v.store_floats(row, k + 48, v.plus(v.load_floats(row, k + 48), v.times_plus(v.as_floats(w), step, offset)))


@njit
def _rest(
    how: Any, chosen: Any, mask: Any, rough: Any, low: Any, words: Any, record: int, starts: Any, cut: Any, factor: Any,
    offset: Any, kind: int, bits: int, room: Any, active: Any, quads: Any, steps: Any, offsets: Any, y: Any,
) -> None:  # fmt: skip
    """Add to y what the chosen neurons put out; rough (2, T, N) is what the first bits of gate and up gave."""
    tokens, groups = len(y), steps.shape[1]
    places, ahead, scales = np.empty(TOGETHER, np.int64), np.empty(TOGETHER, np.int64), np.empty(TOGETHER, np.int64)
    gate, up, h, spare = room[0], room[1], room[2], room[3]
    down, down_scale = starts[4], starts[5]
    ends = starts[1], starts[2], starts[3], down, record - LINE
    pieces = cut.shape[2] // PIECE
    lines = ((record - down) // LINE + pieces - 1) // pieces
    last = len(chosen) - 1
    for first in range(0, len(chosen), TOGETHER):
        for j in range(TOGETHER):
            place = np.int64(chosen[min(first + j, last)]) * record
            places[j] = place + down
            scales[j] = (place + down_scale) >> 1
            ahead[j] = np.int64(chosen[min(first + TOGETHER + j, last)]) * record
        there = min(TOGETHER, last + 1 - first)
        for t in range(tokens):
            x, step, less = cut[t], factor[t], offset[t]
            gate[:] = 0
            up[:] = 0
            some = False
            for j in range(there):
                n = chosen[first + j]
                if mask[t, n]:
                    one, two = _low_dots(how, low, words, places[j] - down, ends, x, step, less, lines)
                    gate[j], up[j] = rough[0, t, n] + v.total(one), rough[1, t, n] + v.total(two)
                    some = True
            active[t] = some
            if some:
                v.store_floats(h, 0, _hidden(kind, v.load_floats(gate, 0), v.load_floats(up, 0), spare))
                _factors(words, scales, h, groups, _middle(bits, 8), quads[t], steps[t], offsets[t])
        _add_down(how, low, places, ahead, down, active, quads, steps, offsets, y)


# --- what is called -------------------------------------------------------------------------------------------------------


@cache
def sparse_functions(way: str) -> tuple[Any, Any, Any]:
    """Compiled for one of ``vectors.WAYS``: what comes before the loop, the loop, what comes after it.

    The task's numbers: tokens T, bytes B of a token's number, d, N neurons, activation, parts, bytes of a record, bits of a
    code. Its memory:
    x (T, d) float32; counts (T,) int64; blocks of rows; records; norms; where a record's parts begin; out (T, d); int64 room
    for counters; and what :func:`moescope.kernels.planes._task` lists.
    """
    how = v.WAYS[way]

    def before(at: Any) -> None:
        _, tokens, each, d, _, _, _, _, bits = array_at(at[0], (9,), np.int64)
        padded = (d + PIECE - 1) // PIECE * PIECE
        array_at(at[8], (64,), np.int64)[:] = 0
        x = array_at(at[1], (tokens, d), np.float32)
        cut, cut_by_row = array_at(at[9], (tokens, each, d), np.int8), array_at(at[10], (tokens, each, padded), np.int8)
        factor = array_at(at[11], (2, tokens, d // GROUP), np.float32)
        factor_by_row = array_at(at[12], (2, tokens, padded // LANES), np.float32)
        for t in range(tokens):
            _cut(x[t], 7.5, False, cut[t], factor[0, t], factor[1, t])
            _cut(x[t], _middle(bits, 4), True, cut_by_row[t], factor_by_row[0, t], factor_by_row[1, t])

    def loop(at: Any) -> None:
        _, tokens, each, d, width, kind, parts, record, bits = array_at(at[0], (9,), np.int64)
        groups, blocks, padded = d // GROUP, (width + LANES - 1) // LANES, (d + PIECE - 1) // PIECE * PIECE
        wide, lines, stride = blocks * LANES, (d + LINE - 1) // LINE, groups * 576
        counters = array_at(at[8], (8, 8), np.int64)
        counts = array_at(at[2], (tokens,), np.int64)
        high, high_words = array_at(at[3], (blocks, stride), np.uint8), array_at(at[3], (blocks, stride // 2), np.uint16)
        low = array_at(at[4], (width * record + LINE,), np.uint8)
        words = array_at(at[4], ((width * record + LINE) // 2,), np.uint16)
        norm, starts = array_at(at[5], (wide,), np.float32), array_at(at[6], (7,), np.int64)
        cut, cut_by_row = array_at(at[9], (tokens, each, d), np.int8), array_at(at[10], (tokens, each, padded), np.int8)
        factor = array_at(at[11], (2, tokens, groups), np.float32)
        factor_by_row = array_at(at[12], (2, tokens, padded // LANES), np.float32)
        rough = array_at(at[13], (2, tokens, wide), np.float32)
        scores, keys = array_at(at[14], (tokens, wide), np.float32), array_at(at[14], (tokens, wide), np.uint32)
        mask, chosen = array_at(at[15], (tokens, width), np.uint8), array_at(at[16], (width + 1,), np.int32)
        room = array_at(at[17], (parts, 4 + 2 * tokens, LANES), np.float32)
        quads = array_at(at[18], (parts, tokens, 2, 4, lines * 2 + LANES), np.int32)
        steps = array_at(at[19], (2, parts, tokens, lines * 2 + LANES), np.float32)
        y, active = array_at(at[20], (parts, tokens, lines * LINE), np.float32), array_at(at[21], (parts, tokens), np.uint8)

        me = take(counters[0]) % parts
        sums = room[me, 4:].reshape(tokens, 2 * LANES)
        # The first bits of gate and up, of all neurons.
        chunks = (blocks + 15) // 16
        while True:
            chunk = take(counters[1])
            if chunk >= chunks:
                break
            for b in range(16 * chunk, min(16 * chunk + 16, blocks)):
                _rows(how, FOUR, high[b], high_words[b], cut, factor[0], factor[1], sums)
                for t in range(tokens):
                    sixteen, a = v.repeat(np.float32(16)), b * LANES  # a step of the first four bits is 16 of all eight
                    gate, up = v.times(v.load_floats(sums[t], 0), sixteen), v.times(v.load_floats(sums[t], 16), sixteen)
                    v.store_floats(rough[0, t], a, gate)
                    v.store_floats(rough[1, t], a, up)
                    score = v.times(v.size(_hidden(kind, gate, up, room[me, 3])), v.load_floats(norm, a))
                    v.store_floats(scores[t], a, score)
            take(counters[2])
        _wait(counters[2], chunks)
        # The choice; who ends it makes the list of what any token chose.
        while True:
            t = take(counters[3])
            if t >= tokens:
                break
            _choose(keys[t], counts[t], width, mask[t])
            if take(counters[4]) == tokens - 1:
                any_token = mask[0]
                if tokens > 1:
                    any_token = any_token.copy()
                    for other in range(1, tokens):
                        any_token |= mask[other]
                found: Any = 0
                for n in range(width):
                    chosen[found] = n
                    found += np.int64(any_token[n])
                counters[6, 0] = found
                take(counters[5])
        _wait(counters[5], 1)
        found = counters[6, 0]
        # All bits of the chosen.
        while True:
            part = take(counters[7])
            if part >= parts:
                return
            y[part] = 0
            _rest(
                how, chosen[found * part // parts : found * (part + 1) // parts], mask, rough, low, words, record, starts,
                cut_by_row, factor_by_row[0], factor_by_row[1], kind, bits, room[part], active[part], quads[part],
                steps[0, part, :, : lines * 2], steps[1, part, :, : lines * 2], y[part],
            )  # fmt: skip

    def after(at: Any) -> None:
        _, tokens, _, d, _, _, parts, _, _ = array_at(at[0], (9,), np.int64)
        lines = (d + LINE - 1) // LINE
        y = array_at(at[20], (parts, tokens, lines * LINE), np.float32)
        out = array_at(at[7], (tokens, d), np.float32)
        for part in range(1, parts):
            y[0] += y[part]
        for t in range(tokens):
            for line in range(lines):
                for i in range(LINE):  # lane of one of four vectors -> byte of the line -> output: see planes.by_neuron
                    byte = (i % LANES) // 4 * 16 + i // LANES * 4 + i % 4
                    goal = line * LINE + byte % 2 * GROUP + byte // 2
                    if goal < d:
                        out[t, goal] = y[0, t, line * LINE + i]

    for function in (before, loop, after):
        function.__qualname__ += f"_{way}"
    return compiled(before, _MARK), compiled(loop, _MARK), compiled(after, _MARK)


@cache
def dense_functions(way: str) -> tuple[Any, Any]:
    """Compiled for one of ``vectors.WAYS``: what comes before the loop, and the loop, of a matrix or of a whole gated MLP.

    The task's numbers: tokens T, bytes of a token's number, inputs K, neurons N (nought for a matrix alone), outputs M, bits of
    a code, activation, parts. Its memory: x (T, K) float32; blocks of gate and up rows; blocks of down rows, or of the matrix;
    out (T, M); and what :func:`moescope.kernels.planes._dense_task` lists.
    """
    how = v.WAYS[way]

    def before(at: Any) -> None:
        _, tokens, each, inputs, _, _, bits, _, _ = array_at(at[0], (9,), np.int64)
        array_at(at[5], (64,), np.int64)[:] = 0
        x, cut = array_at(at[1], (tokens, inputs), np.float32), array_at(at[6], (tokens, each, inputs), np.int8)
        factor = array_at(at[7], (2, tokens, inputs // GROUP), np.float32)
        for t in range(tokens):
            _cut(x[t], (2**bits - 1) / 2, False, cut[t], factor[0, t], factor[1, t])

    def loop(at: Any) -> None:
        _, tokens, each, inputs, width, outputs, bits, kind, parts = array_at(at[0], (9,), np.int64)
        counters = array_at(at[5], (8, 8), np.int64)
        cut = array_at(at[6], (tokens, each, inputs), np.int8)
        factor = array_at(at[7], (2, tokens, inputs // GROUP), np.float32)
        wide = (width + GROUP - 1) // GROUP * GROUP
        hidden, hidden_cut = array_at(at[8], (tokens, wide), np.float32), array_at(at[9], (tokens, each, wide), np.int8)
        hidden_factor = array_at(at[10], (2, tokens, wide // GROUP), np.float32)
        me = take(counters[0]) % parts
        room = array_at(at[11], (parts, 2 * tokens + 1, LANES), np.float32)[me]
        sums, out = room[1:].reshape(tokens, 2 * LANES), array_at(at[4], (tokens, outputs), np.float32)
        if width > 0:
            blocks = wide // LANES
            stride = inputs // GROUP * (128 * bits + 64)
            first, words = array_at(at[2], (blocks, stride), np.uint8), array_at(at[2], (blocks, stride // 2), np.uint16)
            chunks = (blocks + 15) // 16
            while True:
                chunk = take(counters[1])
                if chunk >= chunks:
                    break
                for b in range(16 * chunk, min(16 * chunk + 16, blocks)):
                    _rows_of(how, bits, first[b], words[b], cut, factor[0], factor[1], sums)
                    for t in range(tokens):
                        gate, up = v.load_floats(sums[t], 0), v.load_floats(sums[t], 16)
                        v.store_floats(hidden[t], b * LANES, _hidden(kind, gate, up, room[0]))
                take(counters[2])
            _wait(counters[2], chunks)
            while True:
                t = take(counters[3])
                if t >= tokens:
                    break
                _cut(hidden[t], (2**bits - 1) / 2, False, hidden_cut[t], hidden_factor[0, t], hidden_factor[1, t])
                take(counters[4])
            _wait(counters[4], tokens)
            cut, factor, inputs = hidden_cut, hidden_factor, wide
        blocks = (outputs + 2 * LANES - 1) // (2 * LANES)
        stride = inputs // GROUP * (128 * bits + 64)
        second, words = array_at(at[3], (blocks, stride), np.uint8), array_at(at[3], (blocks, stride // 2), np.uint16)
        chunks = (blocks + 3) // 4
        while True:
            chunk = take(counters[5])
            if chunk >= chunks:
                return
            for b in range(4 * chunk, min(4 * chunk + 4, blocks)):
                _rows_of(how, bits, second[b], words[b], cut, factor[0], factor[1], sums)
                for t in range(tokens):
                    for i in range(min(2 * LANES, outputs - b * 2 * LANES)):
                        out[t, b * 2 * LANES + i] = sums[t, i]

    for function in (before, loop):
        function.__qualname__ += f"_dense_{way}"
    return compiled(before, _MARK), compiled(loop, _MARK)


@njit(forceinline=True)
def _rows_of(how: Any, bits: int, memory: Any, words: Any, cut: Any, factor: Any, offset: Any, sums: Any) -> None:
    if bits == 4:
        _rows(how, FOUR, memory, words, cut, factor, offset, sums)
    else:
        _rows(how, EIGHT, memory, words, cut, factor, offset, sums)


def record_parts(d: int) -> tuple[int, ...]:
    """Where in a neuron's record its parts begin, and its size: low bits of gate and up, their scales, down and its scales."""
    padded, outputs = -(-d // PIECE) * PIECE, -(-d // LINE) * LINE
    sizes = padded // 2, padded // 2, padded // GROUP * 2, padded // GROUP * 2, outputs, d // GROUP * 2
    starts = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    return *starts[:-1], -(-starts[-1] // LINE) * LINE
