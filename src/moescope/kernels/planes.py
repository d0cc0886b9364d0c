"""MLPs in few bits on the CPU, whose neurons are chosen for each token by the first bits of their weights.

Of a code of eight bits (or fewer, which are held as the first of eight) the first four are a coarser copy of the same weight
(:mod:`moescope.models.rounding`). For each token the first bits of all gate and up rows are read, as a stream; neurons are
scored by what they would put out, ``|act(ĝ) û| · ‖down‖``; and of the best only the other four bits and the down row are read,
which lie together, a neuron beside the next. Nothing is stored twice but the scales of gate and up, one for the stream and one
for the neuron. No gradient flows. The form for GPUs is :mod:`moescope.kernels.triton_planes`.

Beside it, on the same loops, is what it must beat: the same MLP with every weight in eight bits, or in four.

A token's numbers are rounded before they are multiplied, in each group of 32 to 16 bits (``bytes_each=2``: against float64 of
the same weights the result differs by some 3 in 10⁵) or to 8 (``bytes_each=1``, by some 6 in 10³, about as much as rounding
the weights themselves; it spares arithmetic, not bytes). The scores come from the rounded numbers too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from moescope.errors import InputError
from moescope.kernels import vectors
from moescope.kernels.activations import ACTIVATIONS
from moescope.kernels.openmp import PerThread, Task, call, fork
from moescope.kernels.planes_loop import GROUP, LANES, LINE, PIECE, dense_functions, record_parts, sparse_functions
from moescope.kernels.reference import Codes

CHOOSING = 4  # bits
RUNNING = (8, 7, 6, 5, 4)
"""bits of a code of which four choose; fewer than eight are held, and read, as the first of eight"""
_REMEMBERED = 16  # tokens up to which a thread keeps the memory of a call for the next one


@dataclass(frozen=True, eq=False)
class Planes:
    """A gated MLP of N neurons and width d with weights of up to eight bits, of which four choose; made by :func:`pack`."""

    high: Tensor
    """uint8: for each 16 neurons and each 32 inputs, codes and scales of gate, then of up"""
    low: Tensor
    """uint8: for each neuron, the lower bits of gate and up, their scales, the down row and its scales"""
    norm: Tensor
    """float32 (N, padded to sixteens): lengths of the down rows"""
    starts: Tensor
    """int64: where in a neuron's record its parts begin, and its size"""
    neurons: int
    width: int
    bits: int = 8
    """that a code has, the first of the eight that are held"""

    def bytes_read(self, count: int) -> int:
        """By one token that ``count`` neurons are computed for."""
        groups = self.width // GROUP
        return -(-self.neurons // LANES) * groups * 576 + 4 * self.neurons + count * int(self.starts[-1])


@dataclass(frozen=True, eq=False)
class Rows:
    """Matrices that are read whole: made by :func:`pack_rows` and :func:`pack_gated`."""

    first: Tensor | None
    """uint8: gate and up by sixteens; none for a matrix alone"""
    second: Tensor
    """uint8: the matrix, or the down projection, by twice sixteen rows"""
    inputs: int
    neurons: int
    outputs: int
    bits: int

    def bytes_read(self) -> int:
        return sum(memory.numel() - LINE for memory in (self.first, self.second) if memory is not None)


def pack(gate: Codes, up: Codes, down_t: Codes, choose_bits: int = CHOOSING) -> Planes:
    """Lay out gate and up (N, d) and the transposed down projection (N, d), all of eight bits or all of as many less, four at
    least, for :func:`sparse_mlp`.

    Codes of fewer bits are held as the first of eight, the others nought, and their levels are those that they have: no code
    is rounded again, and no byte is spared.

    Raises:
        InputError: bits that are not supported, shapes that differ, or a d that is no multiple of 32.
    """
    check_nested(gate, up, down_t, choose_bits, *RUNNING)
    n, d = gate.codes.shape
    left = 8 - gate.bits
    codes, scale = zip(*((w.codes << left, w.scale / 2**left) for w in (gate, up, down_t)), strict=True)
    high = torch.cat([_by_sixteens(c >> 4, s, 4, LANES) for c, s in zip(codes[:2], scale[:2], strict=True)], 2)
    scales = [F.pad(s, (0, -d % PIECE // GROUP)).contiguous().view(torch.uint8) for s in scale[:2]]
    down = _by_turns(codes[2]), scale[2].contiguous().view(torch.uint8)
    low = torch.cat([_by_steps(codes[0] & 15), _by_steps(codes[1] & 15), *scales, *down], 1)
    starts = record_parts(d)
    low = F.pad(low, (0, starts[-1] - low.shape[1]))
    norm = F.pad(down_t.prefix().norm(dim=1), (0, -n % LANES))
    return Planes(_aligned(high), _aligned(low), norm, torch.tensor(starts), n, d, gate.bits)


def pack_rows(weight: Codes) -> Rows:
    """Lay out a matrix (M, K) of four or eight bits, K a multiple of 32, for :func:`linear`."""
    check_codes("weight", weight, 4, 8)
    m, k = weight.codes.shape
    return Rows(None, _pairs(weight), k, 0, m, weight.bits)


def pack_gated(gate: Codes, up: Codes, down: Codes) -> Rows:
    """Lay out gate and up (N, d) and down (d, N), all of four or of eight bits, for :func:`dense_mlp`; N and d are multiples
    of 32. The down projection has its scales along the neurons."""
    n, d = check_gated(gate, up, down)
    both = torch.cat([_by_sixteens(w.codes, w.scale, w.bits, LANES) for w in (gate, up)], 2)
    return Rows(_aligned(both), _pairs(down), d, n, d, gate.bits)


def sparse_mlp(
    x: Tensor,
    planes: Planes,
    count: int | Sequence[int] | Tensor,
    activation: str,
    *,
    bytes_each: int = 2,
    way: str | None = None,
    threads: int | None = None,
) -> Tensor:
    """``Σ_n down[n] · act(gate[n] x) · up[n] x`` over the ``count`` neurons with the largest ``|act(ĝ) û| · ‖down[n]‖``, ĝ and
    û from the first four bits: (T, d) in x's dtype, summed in an order that depends on the number of threads only.

    The choice is exact: with equal scores the lower neuron comes first. NaN in a token makes its output NaN, if any neuron is
    computed. Several tokens at once read what any of them chose, once.

    Args:
        x: (T, d) float32 or bfloat16.
        count: of neurons, 0 to N, for all tokens or for each.
        activation: one of ``moescope.kernels.activations.ACTIVATIONS``.
        bytes_each: of a token's numbers, 1 or 2, as they are multiplied.
        way: one of ``vectors.WAYS`` (default: the fastest of this processor). Sums of codes are whole numbers, so that the ways
            differ only where fused multiplication is missing.
        threads: as many as torch uses by default.

    Raises:
        InputError: a shape, a count, or a name that does not fit.
    """
    _check_call(x, planes.width, activation, bytes_each)
    tokens, d = x.shape
    each = counts_of(count, tokens, planes.neurons)
    threads = threads or torch.get_num_threads()
    key = tokens, bytes_each, d, planes.neurons, ACTIVATIONS[activation], threads, int(planes.starts[-1]), planes.bits
    work = _tasks.get(_task, *key) if tokens <= _REMEMBERED else _task(*key)
    out, wide, counts = torch.empty(tokens, d), x.detach().float().contiguous(), torch.tensor(each)
    if tokens:
        work.give(wide, counts, planes.high, planes.low, planes.norm, planes.starts, out)
        before, loop, after = sparse_functions(way or vectors.way())
        call(before, work)
        fork(loop, work, threads)
        call(after, work)
    return out.to(x.dtype)


def dense_mlp(x: Tensor, rows: Rows, activation: str, *, bytes_each: int = 2, way: str | None = None) -> Tensor:
    """``down (act(gate x) · up x)`` with all weights read: (T, d) from x (T, d). Hidden values are rounded like x's."""
    _check_call(x, rows.inputs, activation, bytes_each)
    if rows.first is None:
        raise InputError("are of a matrix alone: pack_gated makes those of an MLP", "rows")
    return _dense(x, rows, ACTIVATIONS[activation], bytes_each, way)


def linear(x: Tensor, rows: Rows, *, bytes_each: int = 2, way: str | None = None) -> Tensor:
    """``weight x``: (T, M) from x (T, K)."""
    _check_call(x, rows.inputs, "relu", bytes_each)
    return _dense(x, rows, 0, bytes_each, way)


def _dense(x: Tensor, rows: Rows, kind: int, bytes_each: int, way: str | None) -> Tensor:
    tokens, threads = len(x), torch.get_num_threads()
    key = tokens, bytes_each, rows.inputs, rows.neurons, rows.outputs, rows.bits, kind, threads
    work = _tasks.get(_dense_task, *key) if tokens <= _REMEMBERED else _dense_task(*key)
    out, wide = torch.empty(tokens, rows.outputs), x.detach().float().contiguous()
    if tokens:
        work.give(wide, rows.second if rows.first is None else rows.first, rows.second, out)
        before, loop = dense_functions(way or vectors.way())
        call(before, work)
        fork(loop, work, threads)
    return out.to(x.dtype)


def check_nested(gate: Codes, up: Codes, down_t: Codes, choose_bits: int, *bits: int) -> None:
    """What :func:`pack` takes: codes of one of ``bits``, all alike.

    Raises:
        InputError: bits that are not supported, shapes that differ, or a d that is no multiple of 32.
    """
    if choose_bits != CHOOSING:
        raise InputError(f"must be {CHOOSING}, got {choose_bits}", "choose_bits")
    check_codes("gate", gate, *bits)
    for name, weight in (("up", up), ("down_t", down_t)):
        check_codes(name, weight, gate.bits)
        if weight.codes.shape != gate.codes.shape:
            raise InputError(f"has shape {tuple(weight.codes.shape)}, gate {tuple(gate.codes.shape)}", name)


def check_gated(gate: Codes, up: Codes, down: Codes) -> tuple[int, int]:
    """What :func:`pack_gated` takes; N and d.

    Raises:
        InputError: other bits, or shapes that do not fit.
    """
    for name, weight in (("gate", gate), ("up", up), ("down", down)):
        check_codes(name, weight, gate.bits)
    n, d = gate.codes.shape
    if up.codes.shape != (n, d) or down.codes.shape != (d, n):
        raise InputError(f"must be ({d}, {n}) beside gate and up of ({n}, {d}), got {tuple(down.codes.shape)}", "down")
    return n, d


def counts_of(count: int | Sequence[int] | Tensor, tokens: int, neurons: int) -> list[int]:
    """How many neurons each token has.

    Raises:
        InputError: not one number for all or for each, or one that is not from 0 to ``neurons``.
    """
    each = [count] * tokens if isinstance(count, int) else [int(c) for c in count]
    if len(each) != tokens or any(not 0 <= c <= neurons for c in each):
        raise InputError(f"must be from 0 to {neurons}, one or {tokens} of them, got {count}", "count")
    return each


def check_codes(name: str, weight: Codes, *bits: int) -> None:
    if weight.bits not in bits:
        raise InputError(f"must have {' or '.join(map(str, bits))} bits, got {weight.bits}", name)
    if weight.codes.shape[1] % GROUP or weight.scale.shape[1] * GROUP != weight.codes.shape[1]:
        raise InputError(f"must have rows of a multiple of {GROUP} numbers, got {weight.codes.shape[1]}", name)


def _check_call(x: Tensor, width: int, activation: str, bytes_each: int) -> None:
    if x.ndim != 2 or x.shape[1] != width or x.device.type != "cpu":
        raise InputError(f"must be (tokens, {width}) on the CPU, got {tuple(x.shape)} on {x.device}", "x")
    if activation not in ACTIVATIONS:
        raise InputError(f"must be one of {', '.join(ACTIVATIONS)}, got {activation!r}", "activation")
    if bytes_each not in (1, 2):
        raise InputError(f"must be 1 or 2, got {bytes_each}", "bytes_each")


# --- layout ---------------------------------------------------------------------------------------------------------------


def _by_sixteens(codes: Tensor, scale: Tensor, bits: int, multiple: int) -> Tensor:
    """(N / 16, d / 32, bytes): of each 16 rows and 32 inputs the codes, four inputs of a row side by side, and the scales."""
    n, d = codes.shape
    more, groups = -n % multiple, d // GROUP
    steps = F.pad(codes, (0, 0, 0, more)).view(-1, LANES, groups, GROUP // 4, 4).permute(0, 2, 3, 1, 4)
    if bits == 4:
        steps = steps[:, :, 0::2] | (steps[:, :, 1::2] << 4)
    scales = F.pad(scale, (0, 0, 0, more)).view(-1, LANES, groups).transpose(1, 2).contiguous()
    return torch.cat([steps.reshape(len(steps), groups, -1), scales.view(torch.uint8)], 2)


def _pairs(weight: Codes) -> Tensor:
    """Blocks of twice sixteen rows."""
    sixteens = _by_sixteens(weight.codes, weight.scale, weight.bits, 2 * LANES)
    return _aligned(torch.cat([sixteens[0::2], sixteens[1::2]], 2))


def _by_steps(codes: Tensor) -> Tensor:
    """(N, d / 2): rows by themselves. A step takes four inputs of each half group of 256; two steps share a byte."""
    n = len(codes)
    halves = F.pad(codes, (0, -codes.shape[1] % PIECE)).view(n, -1, LANES, 4, 4)  # piece, half group, step, input
    steps = halves.transpose(2, 3).reshape(n, -1, 2, 2, LINE)
    return (steps[:, :, :, 0] | (steps[:, :, :, 1] << 4)).reshape(n, -1)


def _by_turns(codes: Tensor) -> Tensor:
    """(N, d, padded to 64): of each 64 outputs the first and second 32 by turns."""
    return F.pad(codes, (0, -codes.shape[1] % LINE)).view(len(codes), -1, 2, GROUP).transpose(2, 3).reshape(len(codes), -1)


def _aligned(content: Tensor) -> Tensor:
    """The bytes from the beginning of a cache line on, with a line after them that may be read."""
    memory = torch.zeros(content.numel() + 2 * LINE, dtype=torch.uint8)
    start = -memory.data_ptr() % LINE
    memory[start : start + content.numel()] = content.reshape(-1)
    return memory[start : start + content.numel() + LINE]


# --- what the loops work with ---------------------------------------------------------------------------------------------


def _task(tokens: int, each: int, d: int, neurons: int, kind: int, threads: int, record: int, bits: int) -> Task:
    padded, wide, lines = -(-d // PIECE) * PIECE, -(-neurons // LANES) * LANES, -(-d // LINE)
    byte, whole = torch.uint8, torch.int32
    own = (
        torch.zeros(64, dtype=torch.int64),  # counters, a cache line each
        torch.empty(tokens, each, d, dtype=torch.int8),
        torch.empty(tokens, each, padded, dtype=torch.int8),  # in the order of neurons' records
        torch.empty(2, tokens, d // GROUP),  # factors and offsets
        torch.empty(2, tokens, padded // LANES),
        torch.empty(2, tokens, wide),  # gate and up by their first bits
        torch.empty(tokens, wide),  # scores
        torch.empty(tokens, neurons, dtype=byte),  # which are chosen
        torch.empty(neurons + 1, dtype=whole),  # by any token
        torch.empty(threads, 4 + 2 * tokens, LANES),
        torch.empty(threads, tokens, 2, 4, 2 * lines + LANES, dtype=whole),  # factors of down rows
        torch.empty(2, threads, tokens, 2 * lines + LANES),
        torch.empty(threads, tokens, LINE * lines),  # sums
        torch.empty(threads, tokens, dtype=byte),
    )
    return Task((tokens, each, d, neurons, kind, threads, record, bits), (*[None] * 7, *own))


def _dense_task(
    tokens: int, each: int, inputs: int, neurons: int, outputs: int, bits: int, kind: int, threads: int
) -> Task:  # fmt: skip
    own = (
        torch.zeros(64, dtype=torch.int64),  # counters, a cache line each
        torch.empty(tokens, each, inputs, dtype=torch.int8),
        torch.empty(2, tokens, inputs // GROUP),  # factors and offsets
        torch.empty(tokens, neurons),
        torch.empty(tokens, each, neurons, dtype=torch.int8),
        torch.empty(2, tokens, neurons // GROUP),
        torch.empty(threads, 2 * tokens + 1, LANES),
    )
    return Task((tokens, each, inputs, neurons, outputs, bits, kind, threads), (*[None] * 4, *own))


_tasks = PerThread()
