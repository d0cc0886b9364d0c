"""MLPs in few bits on a GPU, whose neurons are chosen for each token by the first bits of their weights, in Triton.

What :mod:`moescope.kernels.planes` does on the CPU, with its meaning: the first four of eight bits of all gate and up rows are
read as a stream and give a score to each neuron; of the best, the other four bits and the row of down are read. A token's
numbers are rounded in each group of 32, to 16 bits or to 8, and multiplied by codes as whole numbers, four at once (``dp4a``).
Six launches: round, score, choose, gate and up of the chosen, their rows of down, add. The choice is exact; of equal scores the
lower neuron comes first. Programs write their sums apart and the last kernel adds them in a fixed order, so that every run
gives the same bits. Measured on an H200 it is slower than plain eight bits (benchmarks/README.md).

Beside it the same MLP with every weight in eight bits, or in four.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
from torch import Tensor

from moescope.errors import InputError
from moescope.kernels.activations import ACTIVATIONS
from moescope.kernels.planes import CHOOSING, check_codes, check_gated, check_nested, counts_of
from moescope.kernels.reference import Codes
from moescope.kernels.triton_planes_loop import (
    INTERPRETED,
    add_kernel,
    choose_kernel,
    down_kernel,
    hidden_kernel,
    round_kernel,
    rows_kernel,
    score_kernel,
)

GROUP = 32
LARGEST = 8  # tokens that the kernels take at once; more are computed in parts
_MOST = {1: 127, 2: 32639}  # so that the upper of two bytes, the lower being signed, is no more than 127


@dataclass(frozen=True, eq=False)
class Planes:
    """A gated MLP of N neurons and width d with weights of eight bits, of which four choose; made by :func:`pack`. Words hold
    eight codes of four bits: of a group of 32, word w has numbers 4w to 4w + 3 in the lower halves of its bytes and those 16
    further in the upper ones."""

    high: Tensor
    """int32 (N, 2, d / 32, 4): the first bits of gate and up"""
    low: Tensor
    """int32 (N, 2, d / 32, 4): the other bits"""
    scale: Tensor
    """float16 (N, 2, d / 32)"""
    down: Tensor
    """uint8 (N, d)"""
    down_scale: Tensor
    """float16 (N, d / 32)"""
    norm: Tensor
    """float32 (N): lengths of the down rows"""

    @property
    def neurons(self) -> int:
        return len(self.high)

    @property
    def width(self) -> int:
        return self.down.shape[1]

    def bytes_read(self, count: int) -> int:
        """By one token that ``count`` neurons are computed for; scales of gate and up are read twice."""
        n, d = self.neurons, self.width
        return n * (d + d // 8 + 4) + count * (2 * d + 3 * d // 16)


@dataclass(frozen=True, eq=False)
class Rows:
    """Matrices that are read whole: made by :func:`pack_rows` and :func:`pack_gated`."""

    codes: tuple[Tensor, ...]
    """int32 (M, K / 32, 4 or 8) each: of a matrix; or gate, up and down"""
    scales: tuple[Tensor, ...]
    """float16 (M, K / 32) each"""
    bits: int

    @property
    def outputs(self) -> int:
        return len(self.codes[-1])

    def bytes_read(self) -> int:
        return sum(t.numel() * t.element_size() for t in (*self.codes, *self.scales))


def pack(gate: Codes, up: Codes, down_t: Codes, choose_bits: int = CHOOSING) -> Planes:
    """Lay out gate and up (N, d) and the transposed down projection (N, d), all of eight bits, for :func:`sparse_mlp`, on the
    device that they are on.

    Raises:
        InputError: bits that are not supported, shapes that differ, or a d that is no multiple of 32.
    """
    check_nested(gate, up, down_t, choose_bits, 8)
    both = [gate.codes, up.codes]
    high, low = torch.stack([_words(c >> 4, 4) for c in both], 1), torch.stack([_words(c & 15, 4) for c in both], 1)
    scale = torch.stack([gate.scale, up.scale], 1)
    return Planes(high, low, scale, down_t.codes.contiguous(), down_t.scale.contiguous(), down_t.prefix().norm(dim=1))


def pack_rows(weight: Codes) -> Rows:
    """Lay out a matrix (M, K) of four or eight bits, K a multiple of 32, for :func:`linear`."""
    check_codes("weight", weight, 4, 8)
    return Rows((_words(weight.codes, weight.bits),), (weight.scale.contiguous(),), weight.bits)


def pack_gated(gate: Codes, up: Codes, down: Codes) -> Rows:
    """Lay out gate and up (N, d) and down (d, N), all of four or of eight bits, for :func:`dense_mlp`."""
    check_gated(gate, up, down)
    parts = [pack_rows(weight) for weight in (gate, up, down)]
    return Rows(tuple(p.codes[0] for p in parts), tuple(p.scales[0] for p in parts), gate.bits)


def sparse_mlp(x: Tensor, planes: Planes, count: int | Sequence[int], activation: str, *, bytes_each: int = 2) -> Tensor:
    """``Σ_n down[n] · act(gate[n] x) · up[n] x`` over the ``count`` neurons with the largest ``|act(ĝ) û| · ‖down[n]‖``, ĝ and
    û from the first four bits: (T, d) in x's dtype, with the arguments of :func:`moescope.kernels.planes.sparse_mlp`.

    Raises:
        InputError: a shape, a count, or a name that does not fit.
    """
    _check_call(x, planes.width, activation, bytes_each)
    tokens = len(x)
    each = counts_of(count, tokens, planes.neurons)
    if not any(each):
        return torch.zeros_like(x)
    with torch.cuda.device_of(x):
        made = [
            _sparse(x[i : i + LARGEST], planes, each[i : i + LARGEST], ACTIVATIONS[activation], bytes_each)
            for i in range(0, tokens, LARGEST)
        ]
        return made[0] if len(made) == 1 else torch.cat(made)


def dense_mlp(x: Tensor, rows: Rows, activation: str, *, bytes_each: int = 2) -> Tensor:
    """``down (act(gate x) · up x)`` with all weights read: (T, d) from x (T, d). Hidden values are rounded like x's."""
    if len(rows.codes) != 3:
        raise InputError("are of a matrix alone: pack_gated makes those of an MLP", "rows")
    _check_call(x, rows.codes[0].shape[1] * GROUP, activation, bytes_each)
    gate, up, down = (Rows((c,), (s,), rows.bits) for c, s in zip(rows.codes, rows.scales, strict=True))

    def run(part: Tensor) -> Tensor:
        hidden = _multiplied(_rounded(part, bytes_each), gate, torch.float32, up, ACTIVATIONS[activation])
        return _multiplied(_rounded(hidden, bytes_each), down, x.dtype)

    return _in_parts(x, run)


def linear(x: Tensor, rows: Rows, *, bytes_each: int = 2) -> Tensor:
    """``weight x``: (T, M) from x (T, K)."""
    _check_call(x, rows.codes[0].shape[1] * GROUP, "relu", bytes_each)
    return _in_parts(x, lambda part: _multiplied(_rounded(part, bytes_each), rows, x.dtype))


def _in_parts(x: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
    with torch.cuda.device_of(x):
        return run(x) if len(x) <= LARGEST else torch.cat([run(part) for part in x.split(LARGEST)])


def _check_call(x: Tensor, width: int, activation: str, bytes_each: int) -> None:
    if x.ndim != 2 or x.shape[1] != width or (x.device.type != "cuda" and not INTERPRETED):
        raise InputError(f"must be (tokens, {width}) on a GPU, got {tuple(x.shape)} on {x.device}", "x")
    if activation not in ACTIVATIONS:
        raise InputError(f"must be one of {', '.join(ACTIVATIONS)}, got {activation!r}", "activation")
    if bytes_each not in _MOST:
        raise InputError(f"must be 1 or 2, got {bytes_each}", "bytes_each")


def _words(codes: Tensor, bits: int) -> Tensor:
    """int32 (M, K / 32, bits) of codes (M, K): four numbers a word, or eight with four bits."""
    groups = codes.reshape(len(codes), -1, GROUP)
    packed = groups if bits == 8 else groups[..., : GROUP // 2] | groups[..., GROUP // 2 :] << 4
    return packed.contiguous().view(torch.int32)


@dataclass(frozen=True, eq=False)
class _Rounded:
    """A token's numbers, whole in each group: int32 words (B, T, K / 32, 8) of four signed bytes, the upper ones first; float32
    (T, K / 32) that one is worth; int32 (T, K / 32) sums."""

    words: Tensor
    step: Tensor
    total: Tensor

    @property
    def given(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.words, self.step, self.total


def _rounded(x: Tensor, bytes_each: int) -> _Rounded:
    tokens, groups = len(x), x.shape[1] // GROUP
    words = torch.empty(bytes_each, tokens, groups, 8, dtype=torch.int32, device=x.device)
    step = torch.empty(tokens, groups, dtype=torch.float32, device=x.device)
    total = torch.empty(tokens, groups, dtype=torch.int32, device=x.device)
    at_once = 4
    round_kernel[(tokens, triton.cdiv(groups, at_once))](
        x.contiguous(), words, step, total, tokens, groups, BYTES=bytes_each, MOST=_MOST[bytes_each], GB=at_once, num_warps=1
    )
    return _Rounded(words, step, total)


def _multiplied(x: _Rounded, rows: Rows, dtype: torch.dtype, up: Rows | None = None, act: int = 0) -> Tensor:
    """(T, M): one matrix, or ``act(rows x) · up x``."""
    tokens, groups = x.step.shape
    m = len(rows.codes[0])
    out = torch.empty(tokens, m, dtype=dtype, device=x.step.device)
    other = rows if up is None else up
    warps = 4 if up is None else 2
    rows_kernel[(_programs(out, m, 64 // warps),)](
        *x.given, rows.codes[0], other.codes[0], rows.scales[0], other.scales[0], out, tokens, m, groups, ACT=act,
        PAIR=up is not None, BITS=rows.bits, BYTES=len(x.words), TB=triton.next_power_of_2(tokens),
        GB=min(64, triton.next_power_of_2(groups)), num_warps=warps,
    )  # fmt: skip
    return out


def _sparse(x: Tensor, planes: Planes, each: list[int], act: int, bytes_each: int) -> Tensor:
    numbers, counts = _rounded(x, bytes_each), _counts(tuple(each), x.device)
    gate, up, scores = _scored(numbers, planes, act)
    order = _chosen(scores, counts, max(each))
    hidden = _hidden(numbers, planes, gate, up, order, counts, act)
    return _added(_written(planes, order, counts, hidden), x.dtype)


def _scored(x: _Rounded, planes: Planes, act: int) -> tuple[Tensor, Tensor, Tensor]:
    """float32 (T, N) each, of the first bits: gate, up, and what they would put out."""
    tokens, groups = x.step.shape
    n = planes.neurons
    gate, up, scores = (torch.empty(tokens, n, dtype=torch.float32, device=x.step.device) for _ in range(3))
    score_kernel[(_programs(gate, n, 16),)](
        *x.given, planes.high, planes.scale, planes.norm, gate, up, scores, tokens, n, groups, ACT=act, BYTES=len(x.words),
        TB=triton.next_power_of_2(tokens), **_a_row(groups, tokens),
    )  # fmt: skip
    return gate, up, scores


def _chosen(scores: Tensor, counts: Tensor, most: int) -> Tensor:
    """int32 (T, most): of each token counts[t] neurons, what follows is not written."""
    tokens, n = scores.shape
    order = torch.empty(tokens, most, dtype=torch.int32, device=scores.device)
    padded = max(256, triton.next_power_of_2(n))
    choose_kernel[(tokens,)](scores, counts, order, n, most, N=padded, num_warps=8 if padded <= 16384 else 16)
    return order


def _hidden(x: _Rounded, planes: Planes, gate: Tensor, up: Tensor, order: Tensor, counts: Tensor, act: int) -> Tensor:
    """float32 (T, most): act(gate) · up of each chosen neuron, by all bits."""
    tokens, most = order.shape
    groups = x.step.shape[1]
    hidden = torch.empty(tokens, most, dtype=torch.float32, device=order.device)
    hidden_kernel[(_programs(gate, most, 16), tokens)](
        *x.given, planes.low, planes.scale, gate, up, order, counts, hidden, tokens, planes.neurons, most, groups, ACT=act,
        BYTES=len(x.words), **_a_row(groups),
    )  # fmt: skip
    return hidden


def _written(planes: Planes, order: Tensor, counts: Tensor, hidden: Tensor) -> Tensor:
    """float32 (T, parts, d): sums of the chosen rows of down."""
    tokens, most = order.shape
    groups = planes.width // GROUP
    across, rows = min(16, triton.next_power_of_2(groups)), 4
    slices = triton.cdiv(groups, across)
    parts = max(1, _programs(hidden, triton.cdiv(most, rows) * slices, 8) // slices)
    sums = torch.empty(tokens, parts, planes.width, dtype=torch.float32, device=order.device)
    down_kernel[(slices, parts, tokens)](
        planes.down, planes.down_scale, order, counts, hidden, sums, most, groups, NB=rows, GB=across, num_warps=4
    )
    return sums


def _added(sums: Tensor, dtype: torch.dtype) -> Tensor:
    tokens, parts, d = sums.shape
    out = torch.empty(tokens, d, dtype=dtype, device=sums.device)
    add_kernel[(tokens, triton.cdiv(d, 32))](sums, out, parts, d, PB=min(64, triton.next_power_of_2(parts)), DB=32)
    return out


@lru_cache(maxsize=256)
def _counts(each: tuple[int, ...], device: torch.device) -> Tensor:
    """Kept, since a copy from the host waits and no graph can hold it."""
    return torch.tensor(each, dtype=torch.int32, device=device)


def _a_row(groups: int, tokens: int = 1) -> dict[str, int]:
    """A program takes a neuron's whole row at once; few warps, of which many programs fit, were the fastest on an H200."""
    across = triton.next_power_of_2(groups)
    return {"G": across, "num_warps": min(8, (2 if across <= 64 else 1) * triton.next_power_of_2(tokens))}


def _programs(like: Tensor, blocks: int, each: int = 8) -> int:
    """So many that each multiprocessor has ``each``; fewer where there are fewer blocks."""
    return min(blocks, each * (_processors(like.device.index) if like.device.type == "cuda" else 2))


@lru_cache
def _processors(index: int | None) -> int:
    return int(torch.cuda.get_device_properties(index).multi_processor_count)
