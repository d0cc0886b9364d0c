"""The compiled loops of gated experts on the CPU: see :mod:`moescope.kernels.experts_cpu`, which prepares what they work on.

Everything compiled stands in this one file: numba keeps machine code as long as the outermost function's file is unchanged.

A core takes a range of an expert's neurons: first their gate and up rows, then their down rows, each once for all tokens that
chose the expert. ``down`` is read by neuron and therefore transposed. Eight rows are read at a time, from which a core reads
fastest, and their successors' first lines are fetched ahead, since a processor notices only after a few lines that a row is
being read. bfloat16 is widened in registers, two values from each 32-bit word, and summed in float32.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit, types
from numba.extending import overload

from moescope.kernels.openmp import array_at, compiled, mark_of, prefetch, take
from moescope.kernels.threads import FAST

_MARK = mark_of(__file__)

TOGETHER = 8  # rows of weights that are read at a time
_AHEAD = 8  # cache lines of each row that are fetched before it is read
_LINE = 64  # bytes


class Functions(NamedTuple):
    """What comes before the loop, the loop, and what comes after it, for a :class:`moescope.kernels.openmp.Task`."""

    prepare: Any
    loop: Any
    finish: Any


@cache
def functions(dtype: torch.dtype) -> Functions:
    """Compiled for weights of this dtype.

    The task's numbers: tokens T, k, E, w, width of the shared experts, d, parts, activation. Its memory: x (T, d); index and
    scale (T, k); gate_up (E, 2w, d); down (E, w, d); gate, up and down of the shared experts (their width, d); out (T, d);
    tokens (T, halves, n), which is x unless x is bfloat16; int64 room for :func:`_groups`; factors (T·k + T,); hidden
    (parts, T, w + 8) with the larger of the two widths; sums (parts, T, halves, n).
    """
    element, wide = {
        torch.float32: (np.float32, np.float32),
        torch.float64: (np.float64, np.float64),
        torch.bfloat16: (np.uint32, np.float32),
    }[dtype]
    halves = 2 if dtype == torch.bfloat16 else 1  # of a word; tokens are held as (halves, words)

    def prepare(at: Any) -> None:
        _, tokens, k, n_experts, _, _, d, _, _ = array_at(at[0], (9,), np.int64)
        index, scale = array_at(at[2], (tokens * k,), np.int64), array_at(at[3], (tokens * k,), wide)
        experts, offsets, owners, place = _groups(at[11], n_experts, tokens, k)
        factors = array_at(at[12], (tokens * k + tokens,), wide)
        _group(index, scale, k, experts, offsets, owners, place, factors)
        if halves == 2:
            _unpack(array_at(at[1], (tokens, d // 2), np.uint32), array_at(at[10], (tokens, 2, d // 2), np.float32))

    def loop(at: Any) -> None:
        numbers = array_at(at[0], (9,), np.int64)
        _, tokens, k, n_experts, width, shared, d, parts, activation = numbers
        n = d // halves
        experts, offsets, owners, _ = _groups(at[11], n_experts, tokens, k)
        factors = array_at(at[12], (tokens * k + tokens,), wide)
        gate_up, down = array_at(at[4], (n_experts, 2 * width, n), element), array_at(at[5], (n_experts, width, n), element)
        shared_gate, shared_up = array_at(at[6], (shared, n), element), array_at(at[7], (shared, n), element)
        shared_down = array_at(at[8], (shared, n), element)
        x = array_at(at[10], (tokens, halves, n), wide)
        hidden = array_at(at[13], (parts, tokens, max(width, shared) + TOGETHER), wide)
        sums = array_at(at[14], (parts, tokens, halves, n), wide)
        while True:
            part = take(numbers)
            if part >= parts:
                return
            sums[part] = 0
            _part(
                part, parts, experts, offsets, owners, factors, gate_up, down, shared_gate, shared_up, shared_down,
                activation, x, hidden[part], sums[part],
            )  # fmt: skip

    def finish(at: Any) -> None:
        _, tokens, _, _, _, _, d, parts, _ = array_at(at[0], (9,), np.int64)
        n = d // halves
        sums, out = array_at(at[14], (parts, tokens, halves, n), wide), array_at(at[9], (tokens, d), wide)
        for part in range(1, parts):
            sums[0] += sums[part]
        for t in range(tokens):
            for p in range(halves):
                for i in range(n):
                    out[t, halves * i + p] = sums[0, t, p, i]

    return Functions(compiled(prepare, _MARK), compiled(loop, _MARK), compiled(finish, _MARK))


def room(n_experts: int, tokens: int, k: int) -> int:
    """How many int64 :func:`_groups` needs."""
    return 3 * n_experts + 2 + tokens * k + tokens


@njit(inline="always")
def _groups(memory: Any, n_experts: int, tokens: int, k: int) -> Any:
    """The hit experts; where each one's slots begin and end; the tokens of the slots, after them all tokens; room to count."""
    slots = tokens * k + tokens
    whole = array_at(memory, (3 * n_experts + 2 + slots,), np.int64)
    a, b = n_experts, 2 * n_experts + 1
    return whole[:a], whole[a:b], whole[b : b + slots], whole[b + slots :]


@njit
def _group(index: Any, scale: Any, k: int, experts: Any, offsets: Any, owners: Any, place: Any, factors: Any) -> None:
    """Sort the slots t·k + j by expert, keeping their order; after the last hit expert the offsets stay where they are."""
    n_experts = len(experts)
    place[:] = 0
    for e in index:
        place[min(e, n_experts)] += 1
    hit, start = 0, 0
    for e in range(n_experts):
        count = place[e]
        place[e] = start
        if count:
            experts[hit] = e
            offsets[hit] = start
            hit += 1
            start += count
    offsets[hit:] = start
    for slot, e in enumerate(index):
        if e < n_experts:
            owners[place[e]] = slot // k
            factors[place[e]] = scale[slot]
            place[e] += 1
    for t in range(len(owners) - len(index)):  # the shared experts have every token
        owners[len(index) + t] = t
        factors[len(index) + t] = 1


@njit(fastmath=FAST)
def _part(
    part: int, parts: int, experts: Any, offsets: Any, owners: Any, factors: Any, gate_up: Any, down: Any,
    shared_gate: Any, shared_up: Any, shared_down: Any, activation: int, x: Any, hidden: Any, y: Any,
) -> None:  # fmt: skip
    """Add to y (T, halves, n) what this part's neurons put out; ``hidden`` (T, w + 8) is for what is between."""
    width = down.shape[1]
    units = (width + TOGETHER - 1) // TOGETHER
    units_shared = (len(shared_down) + TOGETHER - 1) // TOGETHER
    # A unit costs the reading of its weights, like about four tokens' arithmetic, and its tokens' arithmetic.
    total = units_shared * (4 + len(x))
    hit = 0
    while hit < len(experts) and offsets[hit + 1] > offsets[hit]:
        total += units * (4 + offsets[hit + 1] - offsets[hit])
        hit += 1
    low, high = total * part // parts, total * (part + 1) // parts
    before = 0
    for h in range(-1, hit):
        if h < 0:
            start, stop = len(owners) - len(x), len(owners)
            gate, up, out, mine = shared_gate, shared_up, shared_down, units_shared
        else:
            start, stop = offsets[h], offsets[h + 1]
            both = gate_up[experts[h]]
            gate, up, out, mine = both[:width], both[width:], down[experts[h]], units
        cost = 4 + stop - start
        first = TOGETHER * min(mine, max(0, -((before - low) // cost)))
        last = min(len(out), TOGETHER * min(mine, max(0, -((before - high) // cost))))
        before += mine * cost
        for a in range(first, last, TOGETHER // 2):
            _hidden(a, gate, up, owners[start:stop], factors[start:stop], activation, x, hidden)
        for a in range(first, last, TOGETHER):
            _output(a, out, owners[start:stop], hidden, y)


@njit(fastmath=FAST)
def _hidden(a: int, gate: Any, up: Any, owners: Any, factors: Any, activation: int, x: Any, hidden: Any) -> None:
    """``hidden[s, i] = factor · act(gate[i] x) · up[i] x`` for neurons a to a + 3 and every slot s of the expert."""
    end = len(gate) - 1  # after an expert's last neuron: that one again, to nowhere
    b, c, d = min(a + 1, end), min(a + 2, end), min(a + 3, end)
    ga, gb, gc, gd = gate[a], gate[b], gate[c], gate[d]
    ua, ub, uc, ud = up[a], up[b], up[c], up[d]
    for i in _ahead(4, ga):
        prefetch(ga, i)
        prefetch(gb, i)
        prefetch(gc, i)
        prefetch(gd, i)
        prefetch(ua, i)
        prefetch(ub, i)
        prefetch(uc, i)
        prefetch(ud, i)
    for s in range(len(owners)):
        factor = factors[s]
        pa, pb, pc, pd, qa, qb, qc, qd = _dots(ga, gb, gc, gd, ua, ub, uc, ud, x[owners[s]])
        h = hidden[s]
        h[a] = factor * qa * _activate(activation, pa)
        h[a + 1] = factor * qb * _activate(activation, pb) if b > a else 0
        h[a + 2] = factor * qc * _activate(activation, pc) if c > b else 0
        h[a + 3] = factor * qd * _activate(activation, pd) if d > c else 0
        h[a + 4 : a + 8] = 0  # stays so where the expert ends here; otherwise the next call writes it


@njit(fastmath=FAST)
def _output(a: int, down: Any, owners: Any, hidden: Any, y: Any) -> None:
    """``y[token] += hidden[s, i] · down[i]`` for neurons a to a + 7 and every slot s of the expert."""
    end = len(down) - 1
    da, db, dc, dd = down[a], down[min(a + 1, end)], down[min(a + 2, end)], down[min(a + 3, end)]
    de, df, dg, dh = down[min(a + 4, end)], down[min(a + 5, end)], down[min(a + 6, end)], down[min(a + 7, end)]
    for i in _ahead(8, da):
        prefetch(da, i)
        prefetch(db, i)
        prefetch(dc, i)
        prefetch(dd, i)
        prefetch(de, i)
        prefetch(df, i)
        prefetch(dg, i)
        prefetch(dh, i)
    for s in range(len(owners)):
        _add(hidden[s, a : a + 8], da, db, dc, dd, de, df, dg, dh, y[owners[s]])


@njit(inline="always")
def _ahead(rows: int, row: Any) -> Any:
    """Places of the first cache lines of the row that many rows on."""
    step = _LINE // row.itemsize
    return range(rows * len(row), rows * len(row) + _AHEAD * step, step)


@njit(fastmath=FAST)
def _activate(kind: int, g: Any) -> Any:
    if kind == 0:
        return g / (1 + np.exp(-g))
    if kind == 1:
        return max(g, 0)
    if kind == 2:
        return g * (1 + np.tanh(np.sqrt(2 / np.pi) * (g + g * g * g * 0.044715))) / 2
    return g * (1 + math.erf(g * np.sqrt(0.5))) / 2


@njit(inline="always")
def _low(word: Any) -> Any:
    """The first bfloat16 of two in a uint32, as float32: a bfloat16 is the upper half of a float32."""
    return np.uint32(word << np.uint32(16)).view(np.float32)


@njit(inline="always")
def _high(word: Any) -> Any:
    return np.uint32(word & np.uint32(0xFFFF0000)).view(np.float32)


@njit
def _unpack(words: Any, apart: Any) -> None:
    """(T, n) pairs of bfloat16 to float32 (T, 2, n), the even columns before the odd ones."""
    for t in range(words.shape[0]):
        for i in range(words.shape[1]):
            apart[t, 0, i] = _low(words[t, i])
            apart[t, 1, i] = _high(words[t, i])


def _dots(*rows_and_x: Any) -> tuple[Any, ...]:
    """Eight rows (n,) of weights, each times x (halves, n)."""
    raise NotImplementedError("compiled only")


def _add(*factors_rows_and_y: Any) -> None:
    """``y += h[0] · da + … + h[7] · dh``, rows (n,) of weights into y (halves, n)."""
    raise NotImplementedError("compiled only")


@overload(_dots, jit_options={"fastmath": FAST})
def _dots_of(ga: Any, gb: Any, gc: Any, gd: Any, ua: Any, ub: Any, uc: Any, ud: Any, x: Any) -> Any:
    def widening(ga: Any, gb: Any, gc: Any, gd: Any, ua: Any, ub: Any, uc: Any, ud: Any, x: Any) -> Any:
        pa = pb = pc = pd = qa = qb = qc = qd = np.float32(0)
        for i in range(len(ga)):
            even, odd = x[0, i], x[1, i]
            pa += _low(ga[i]) * even + _high(ga[i]) * odd
            pb += _low(gb[i]) * even + _high(gb[i]) * odd
            pc += _low(gc[i]) * even + _high(gc[i]) * odd
            pd += _low(gd[i]) * even + _high(gd[i]) * odd
            qa += _low(ua[i]) * even + _high(ua[i]) * odd
            qb += _low(ub[i]) * even + _high(ub[i]) * odd
            qc += _low(uc[i]) * even + _high(uc[i]) * odd
            qd += _low(ud[i]) * even + _high(ud[i]) * odd
        return pa, pb, pc, pd, qa, qb, qc, qd

    def same(ga: Any, gb: Any, gc: Any, gd: Any, ua: Any, ub: Any, uc: Any, ud: Any, x: Any) -> Any:
        row = x[0]
        pa = pb = pc = pd = qa = qb = qc = qd = x.dtype.type(0)
        for i in range(len(ga)):
            pa += ga[i] * row[i]
            pb += gb[i] * row[i]
            pc += gc[i] * row[i]
            pd += gd[i] * row[i]
            qa += ua[i] * row[i]
            qb += ub[i] * row[i]
            qc += uc[i] * row[i]
            qd += ud[i] * row[i]
        return pa, pb, pc, pd, qa, qb, qc, qd

    return widening if isinstance(ga.dtype, types.Integer) else same


@overload(_add, jit_options={"fastmath": FAST})
def _add_of(h: Any, da: Any, db: Any, dc: Any, dd: Any, de: Any, df: Any, dg: Any, dh: Any, y: Any) -> Any:
    def widening(h: Any, da: Any, db: Any, dc: Any, dd: Any, de: Any, df: Any, dg: Any, dh: Any, y: Any) -> None:
        even, odd = y[0], y[1]
        a, b, c, d, e, f, g, z = h[0], h[1], h[2], h[3], h[4], h[5], h[6], h[7]
        for i in range(len(da)):
            even[i] += (a * _low(da[i]) + b * _low(db[i]) + c * _low(dc[i]) + d * _low(dd[i])) + (
                e * _low(de[i]) + f * _low(df[i]) + g * _low(dg[i]) + z * _low(dh[i])
            )
            odd[i] += (a * _high(da[i]) + b * _high(db[i]) + c * _high(dc[i]) + d * _high(dd[i])) + (
                e * _high(de[i]) + f * _high(df[i]) + g * _high(dg[i]) + z * _high(dh[i])
            )

    def same(h: Any, da: Any, db: Any, dc: Any, dd: Any, de: Any, df: Any, dg: Any, dh: Any, y: Any) -> None:
        row = y[0]
        a, b, c, d, e, f, g, z = h[0], h[1], h[2], h[3], h[4], h[5], h[6], h[7]
        for i in range(len(da)):
            row[i] += (a * da[i] + b * db[i] + c * dc[i] + d * dd[i]) + (e * de[i] + f * df[i] + g * dg[i] + z * dh[i])

    return widening if isinstance(da.dtype, types.Integer) else same
