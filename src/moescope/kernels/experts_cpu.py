"""Gated experts for few tokens on the CPU: the weights of the chosen experts are read once, by every core together.

One token needs 3·w·d weights of an expert of width w and does two flops with each, so the time is that of reading them.
Each neuron's gate, up and down rows are read side by side, once for all tokens that chose its expert, and nothing of size
(tokens, w) is written. Two neurons go together, which halves the reads of the token and of its output; ``down`` is read
by neuron and therefore transposed. bfloat16 is widened in registers, two values from each 32-bit word, and summed in
float32.

The loop is numba's own parallel one on OpenMP: with GNU's library the threads are torch's. A thread pool of ours would
wait for torch's threads, which spin for a while after each operation; that doubled the time of a layer.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
import torch
from numba import config, get_num_threads, njit, prange, set_num_threads, types
from numba.extending import overload
from torch import Tensor

from moescope.kernels.threads import FAST

config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]  # type: ignore[attr-defined]
_THREADS = get_num_threads()  # numba starts no more

# How a neuron's gate is activated, by the names that configurations use.
ACTIVATIONS = {"silu": 0, "swish": 0, "relu": 1, "gelu_pytorch_tanh": 2, "gelu_new": 2, "gelu": 3}
# One of numba's threading layers must not be entered by two threads at once.
_LOCK = threading.Lock()


def few_tokens(
    x: Tensor, index: Tensor, scale: Tensor, gate_up: Tensor, down: Tensor, activation: str, *, threads: int | None = None
) -> Tensor:
    """``out[t] = Σ_j scale[t, j] · down[e]ᵀ (act(gate[e] x[t]) · up[e] x[t])`` with e = index[t, j]: (T, d) in x's dtype.

    The lower half of a 32-bit word is taken for the first of its two bfloat16 values, as on every machine torch runs on.

    Args:
        x: (T, d) contiguous; float32, float64, or bfloat16 with an even d; the dtype of the weights.
        index: (T, k) contiguous int64; an id of E or more is an empty slot (as in expert parallelism).
        scale: (T, k) contiguous.
        gate_up: (E, 2w, d) contiguous, the gate's rows first.
        down: (E, w, d) contiguous: the down projection transposed.
        activation: one of :data:`ACTIVATIONS`.
        threads: as many as torch uses by default.
    """
    return run(x, index, scale, as_words(gate_up), as_words(down), activation, threads=threads)


def as_words(tensor: Tensor) -> np.ndarray:
    """The same memory as numpy can hold it: bfloat16 as pairs in uint32."""
    return (tensor.view(torch.uint32) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def run(
    x: Tensor,
    index: Tensor,
    scale: Tensor,
    gate_up: np.ndarray,
    down: np.ndarray,
    activation: str,
    *,
    threads: int | None = None,
) -> Tensor:
    """:func:`few_tokens` on weights that :func:`as_words` has prepared, which a layer does once."""
    wide = torch.float32 if x.dtype == torch.bfloat16 else x.dtype
    threads = min(threads or torch.get_num_threads(), _THREADS)
    out = torch.empty(x.shape, dtype=wide)
    with _LOCK:
        set_num_threads(threads)
        _few_tokens(
            as_words(x), index.numpy(), scale.to(wide).numpy(), gate_up, down, ACTIVATIONS[activation], threads, out.numpy()
        )
    return out.to(x.dtype)


def gather_sum(rows: Tensor, place: Tensor, scale: Tensor) -> Tensor:
    """``out[t] = Σ_j scale[t, j] · rows[place[t, j]]``: (T, d) from rows (S, d) in float32 or float64, place and scale (T, k).

    Where ``scale`` is nought no row is read.
    """
    out = torch.empty(len(place), rows.shape[1], dtype=rows.dtype)
    with _LOCK:
        set_num_threads(min(torch.get_num_threads(), _THREADS))
        _gather_sum(rows.numpy(), place.numpy(), scale.numpy(), out.numpy())
    return out


@njit(parallel=True, cache=True, fastmath=FAST)
def _gather_sum(rows: np.ndarray, place: np.ndarray, scale: np.ndarray, out: np.ndarray) -> None:
    for t in prange(len(out)):
        out[t] = 0
        for j in range(place.shape[1]):
            factor = scale[t, j]
            if factor != 0:
                row = rows[place[t, j]]
                for i in range(len(row)):
                    out[t, i] += factor * row[i]


@njit(parallel=True, cache=True, fastmath=FAST)
def _few_tokens(
    x: np.ndarray,
    index: np.ndarray,
    scale: np.ndarray,
    gate_up: np.ndarray,
    down: np.ndarray,
    activation: int,
    threads: int,
    out: np.ndarray,
) -> None:
    """As :func:`few_tokens`; bfloat16 comes as pairs in uint32."""
    experts, offsets, slots = _group(index, len(gate_up))
    k = index.shape[1]
    width = down.shape[1]
    units = (width + 1) // 2  # of two neurons; the last one of an odd width has its neuron twice, once with factor 0
    tokens = _unpack(x, out)  # (T, parts, n)
    sums = np.empty((threads, *tokens.shape), out.dtype)
    # A unit costs the reading of its weights, like about four tokens' arithmetic, and its tokens' arithmetic.
    total = 0
    for h in range(len(experts)):
        total += units * (4 + offsets[h + 1] - offsets[h])
    for part in prange(threads):
        sums[part] = 0
        low, high = total * part // threads, total * (part + 1) // threads
        before = 0
        for h in range(len(experts)):
            cost = 4 + offsets[h + 1] - offsets[h]
            first = min(units, max(0, -((before - low) // cost)))
            last = min(units, max(0, -((before - high) // cost)))
            before += units * cost
            e = experts[h]
            for unit in range(first, last):
                a = 2 * unit
                b = min(a + 1, width - 1)
                for s in range(offsets[h], offsets[h + 1]):
                    t, j = slots[s] // k, slots[s] % k
                    factor = scale[t, j]
                    ga, ua, gb, ub = _dots(
                        gate_up[e, a], gate_up[e, width + a], gate_up[e, b], gate_up[e, width + b], tokens[t]
                    )
                    ha = out.dtype.type(factor * ua * _activate(activation, ga))
                    hb = out.dtype.type(factor * ub * _activate(activation, gb) if b > a else 0)
                    _add(ha, down[e, a], hb, down[e, b], sums[part, t])
    for part in range(1, threads):
        sums[0] += sums[part]
    parts = tokens.shape[1]
    for t in range(len(out)):
        for p in range(parts):
            for i in range(tokens.shape[2]):
                out[t, parts * i + p] = sums[0, t, p, i]


@njit(cache=True)
def _group(index: np.ndarray, n_experts: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The hit experts (H,), where each one's slots begin and end (H + 1,), and those slots t·k + j in order."""
    counts = np.zeros(n_experts + 1, np.int64)
    for e in index.flat:
        counts[min(e, n_experts)] += 1
    hit = np.flatnonzero(counts[:n_experts])
    offsets = np.zeros(len(hit) + 1, np.int64)
    offsets[1:] = np.cumsum(counts[hit])
    place = np.zeros(n_experts + 1, np.int64)
    place[hit] = offsets[:-1]
    slots = np.empty(offsets[-1], np.int64)
    for slot, e in enumerate(index.flat):
        if e < n_experts:
            slots[place[e]] = slot
            place[e] += 1
    return hit, offsets, slots


@njit(inline="always")
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


def _unpack(x: np.ndarray, out: np.ndarray) -> np.ndarray:
    """x as (T, parts, n) in the dtype of ``out``: one part, or the even and the odd columns of bfloat16 pairs."""
    raise NotImplementedError("compiled only")


def _dots(ga: np.ndarray, ua: np.ndarray, gb: np.ndarray, ub: np.ndarray, x: np.ndarray) -> tuple[Any, ...]:
    """Four rows (n,) of weights, each times x (parts, n)."""
    raise NotImplementedError("compiled only")


def _add(ha: Any, da: np.ndarray, hb: Any, db: np.ndarray, y: np.ndarray) -> None:
    """``y += ha · da + hb · db``, rows (n,) of weights into y (parts, n)."""
    raise NotImplementedError("compiled only")


@overload(_unpack)
def _unpack_of(x: Any, out: Any) -> Any:
    def widening(x: Any, out: Any) -> Any:
        parts = np.empty((x.shape[0], 2, x.shape[1]), np.float32)
        for t in range(x.shape[0]):
            for i in range(x.shape[1]):
                parts[t, 0, i] = _low(x[t, i])
                parts[t, 1, i] = _high(x[t, i])
        return parts

    def same(x: Any, out: Any) -> Any:
        return x.reshape(x.shape[0], 1, x.shape[1])

    return widening if isinstance(x.dtype, types.Integer) else same


@overload(_dots, inline="always")
def _dots_of(ga: Any, ua: Any, gb: Any, ub: Any, x: Any) -> Any:
    def widening(ga: Any, ua: Any, gb: Any, ub: Any, x: Any) -> Any:
        p = q = r = s = np.float32(0)
        even, odd = x[0], x[1]
        for i in range(len(ga)):
            p += _low(ga[i]) * even[i] + _high(ga[i]) * odd[i]
            q += _low(ua[i]) * even[i] + _high(ua[i]) * odd[i]
            r += _low(gb[i]) * even[i] + _high(gb[i]) * odd[i]
            s += _low(ub[i]) * even[i] + _high(ub[i]) * odd[i]
        return p, q, r, s

    def same(ga: Any, ua: Any, gb: Any, ub: Any, x: Any) -> Any:
        row = x[0]
        p = q = r = s = x.dtype.type(0)
        for i in range(len(ga)):
            p += ga[i] * row[i]
            q += ua[i] * row[i]
            r += gb[i] * row[i]
            s += ub[i] * row[i]
        return p, q, r, s

    return widening if isinstance(ga.dtype, types.Integer) else same


@overload(_add, inline="always")
def _add_of(ha: Any, da: Any, hb: Any, db: Any, y: Any) -> Any:
    def widening(ha: Any, da: Any, hb: Any, db: Any, y: Any) -> None:
        even, odd = y[0], y[1]
        for i in range(len(da)):
            even[i] += ha * _low(da[i]) + hb * _low(db[i])
            odd[i] += ha * _high(da[i]) + hb * _high(db[i])

    def same(ha: Any, da: Any, hb: Any, db: Any, y: Any) -> None:
        row = y[0]
        for i in range(len(da)):
            row[i] += ha * da[i] + hb * db[i]

    return widening if isinstance(da.dtype, types.Integer) else same
