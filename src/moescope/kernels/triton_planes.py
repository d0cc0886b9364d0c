"""MLPs in few bits on a GPU, whose neurons are chosen for each token by the first bits of their weights, in Triton.

What :mod:`moescope.kernels.planes` does on the CPU, with its meaning: the first four of eight bits of all gate and up rows are
read as a stream and give a score to each neuron; of the best, the other four bits and the row of down are read. A token's
numbers are rounded in each group of 32, to 16 bits or to 8, and multiplied by codes as whole numbers, four at once (``dp4a``).
Six launches: round, score, choose, gate and up of the
chosen, their rows of down, add. The choice is exact; of equal scores the lower neuron comes first. Programs
write their sums apart and the last kernel adds them in a fixed order, so that every run gives the same bits.

Beside it the same MLP with every weight in eight bits, or in four.

With TRITON_INTERPRET=1 in the environment before the import, the kernels run on CPU tensors in Triton's interpreter, where
``dp4a`` is spelled out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from moescope.errors import InputError
from moescope.kernels.activations import ACTIVATIONS
from moescope.kernels.planes import CHOOSING, check_codes
from moescope.kernels.reference import Codes
from moescope.kernels.triton_experts import _activate

GROUP = 32
LARGEST = 8  # tokens that the kernels take at once; more are computed in parts
_SPELLED_OUT = tl.constexpr(triton.knobs.runtime.interpret)
_NIBBLES = tl.constexpr(0x0F0F0F0F)
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
    if choose_bits != CHOOSING:
        raise InputError(f"must be {CHOOSING}, got {choose_bits}", "choose_bits")
    for name, weight in (("gate", gate), ("up", up), ("down_t", down_t)):
        check_codes(name, weight, 8)
        if weight.codes.shape != gate.codes.shape:
            raise InputError(f"has shape {tuple(weight.codes.shape)}, gate {tuple(gate.codes.shape)}", name)
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
    for name, weight in (("gate", gate), ("up", up), ("down", down)):
        check_codes(name, weight, gate.bits)
    n, d = gate.codes.shape
    if up.codes.shape != (n, d) or down.codes.shape != (d, n):
        raise InputError(f"must be ({d}, {n}) beside gate and up of ({n}, {d}), got {tuple(down.codes.shape)}", "down")
    parts = [pack_rows(weight) for weight in (gate, up, down)]
    return Rows(tuple(p.codes[0] for p in parts), tuple(p.scales[0] for p in parts), gate.bits)


def sparse_mlp(x: Tensor, planes: Planes, count: int | Sequence[int], activation: str, *, bytes_each: int = 2) -> Tensor:
    """``Σ_n down[n] · act(gate[n] x) · up[n] x`` over the ``count`` neurons with the largest ``|act(ĝ) û| · ‖down[n]‖``, ĝ and
    û from the first four bits: (T, d) in x's dtype, with the arguments of :func:`moescope.kernels.planes.sparse_mlp`.

    Raises:
        InputError: a shape, a count, or a name that does not fit.
    """
    _check_call(x, planes.width, activation, bytes_each)
    tokens, n = len(x), planes.neurons
    each = [count] * tokens if isinstance(count, int) else [int(c) for c in count]
    if len(each) != tokens or any(not 0 <= c <= n for c in each):
        raise InputError(f"must be from 0 to {n}, one or {tokens} of them, got {count}", "count")
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
    if x.ndim != 2 or x.shape[1] != width or (x.device.type != "cuda" and not _SPELLED_OUT.value):
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


@triton.jit
def round_kernel(x, words, step, total, tokens, groups, BYTES: tl.constexpr, MOST: tl.constexpr, GB: tl.constexpr):
    """A program for each token and GB groups."""
    token = tl.program_id(0)
    group = tl.program_id(1) * GB + tl.arange(0, GB)
    inside = group < groups
    word, byte = tl.arange(0, 8), tl.arange(0, 4)
    at = group[:, None, None] * 32 + word[None, :, None] * 4 + byte[None, None, :]
    given = tl.load(x + token * groups * 32 + at, mask=inside[:, None, None], other=0.0).to(tl.float32)
    most = tl.max(tl.max(tl.abs(given), axis=2), axis=1)
    scaled = given * tl.where(most > 0, MOST / most, 0.0)[:, None, None]
    whole = tl.floor(scaled + 0.5).to(tl.int32)
    # what is no number makes its group none
    none = tl.sum(tl.sum(given * 0.0, axis=2), axis=1)
    tl.store(step + token * groups + group, most / MOST + none, mask=inside)
    tl.store(total + token * groups + group, tl.sum(tl.sum(whole, axis=2), axis=1), mask=inside)
    to = (token * groups + group[:, None]) * 8 + word[None, :]
    shift = (8 * byte)[None, None, :]
    if BYTES == 1:
        tl.store(words + to, tl.sum((whole & 255) << shift, axis=2), mask=inside[:, None])
    else:
        upper = (whole + 128) >> 8
        tl.store(words + to, tl.sum((upper & 255) << shift, axis=2), mask=inside[:, None])
        # of two's complement the lower byte is the signed rest
        tl.store(words + tokens * groups * 8 + to, tl.sum((whole & 255) << shift, axis=2), mask=inside[:, None])


@triton.jit
def _four(codes, numbers, before):
    """``before`` and the products of four unsigned bytes with four signed ones, of int32 words."""
    if _SPELLED_OUT:
        total = before + (codes & 255) * ((numbers << 24) >> 24)
        total += ((codes >> 8) & 255) * ((numbers << 16) >> 24)
        total += ((codes >> 16) & 255) * ((numbers << 8) >> 24)
        return total + ((codes >> 24) & 255) * (numbers >> 24)
    return tl.inline_asm_elementwise(
        "dp4a.u32.s32 $0, $1, $2, $3;", "=r,r,r,r", [codes, numbers, before], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def _numbers(words, plane, mask, BITS: tl.constexpr, BYTES: tl.constexpr):
    """The words of a token's numbers beside those of codes, whose last axis ``words`` has: upper bytes, then lower; with four
    bits of a code those of the lower halves first, then those of the upper."""
    second = words + (4 if BITS == 4 else 0)
    lower = words + (plane if BYTES == 2 else 0)
    return (
        tl.load(words, mask=mask, other=0),
        tl.load(second, mask=mask, other=0),
        tl.load(lower, mask=mask, other=0),
        tl.load(lower + (4 if BITS == 4 else 0), mask=mask, other=0),
    )


@triton.jit
def _products(codes, first, second, third, fourth, BITS: tl.constexpr, BYTES: tl.constexpr):
    """int32, a group's sum of codes times a token's numbers."""
    if BITS == 4:
        lower, upper = codes & _NIBBLES, (codes >> 4) & _NIBBLES
        found = _four(upper, second, _four(lower, first, codes * 0))
        if BYTES == 2:
            found = _four(upper, fourth, _four(lower, third, found * 256))
    else:
        found = _four(codes, first, codes * 0)
        if BYTES == 2:
            found = _four(codes, third, found * 256)
    return tl.sum(found, axis=-1)


@triton.jit
def rows_kernel(
    words, step, total, first_codes, second_codes, first_scale, second_scale, out, tokens, rows, groups, ACT: tl.constexpr,
    PAIR: tl.constexpr, BITS: tl.constexpr, BYTES: tl.constexpr, TB: tl.constexpr, GB: tl.constexpr,
):  # fmt: skip
    """out[t, n] = first[n] · x[t]; with PAIR ``act`` of it, times second[n] · x[t]."""
    token, word = tl.arange(0, TB), tl.arange(0, BITS)
    plane = tokens * groups * 8
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        first = tl.zeros((TB, GB), tl.float32)
        second = tl.zeros((TB, GB), tl.float32)
        for start in range(0, groups, GB):
            group = start + tl.arange(0, GB)
            here = group < groups
            of_x = (token < tokens)[:, None] & here[None, :]
            from_x = token[:, None] * groups + group[None, :]
            worth = tl.load(step + from_x, mask=of_x, other=0.0)
            bias = tl.load(total + from_x, mask=of_x, other=0) * (2**BITS - 1)
            a, b, c, e = _numbers(words + from_x[:, :, None] * 8 + word[None, None, :], plane, of_x[:, :, None], BITS, BYTES)
            place = row * groups + group.to(tl.int64)
            at = place[None, :, None] * BITS + word[None, None, :]
            codes = tl.load(first_codes + at, mask=here[None, :, None], other=0)
            scale = tl.load(first_scale + place, mask=here, other=0.0).to(tl.float32)
            if PAIR:
                more = tl.load(second_codes + at, mask=here[None, :, None], other=0)
                factor = tl.load(second_scale + place, mask=here, other=0.0).to(tl.float32)
                sums = 2 * _products(more, a, b, c, e, BITS, BYTES) - bias
                second += sums.to(tl.float32) * (0.5 * worth * factor[None, :])
            sums = 2 * _products(codes, a, b, c, e, BITS, BYTES) - bias
            first += sums.to(tl.float32) * (0.5 * worth * scale[None, :])
        value = tl.sum(first, axis=1)
        if PAIR:
            value = _activate(value, ACT) * tl.sum(second, axis=1)
        tl.store(out + token * rows + row, value, mask=token < tokens)


@triton.jit
def score_kernel(
    words, step, total, high, scales, norms, gate_out, up_out, scores, tokens, neurons, groups, ACT: tl.constexpr,
    BYTES: tl.constexpr, TB: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """What the first bits give: gate and up of each neuron and token, and how much the neuron would put out."""
    token, word, group = tl.arange(0, TB), tl.arange(0, 4), tl.arange(0, G)
    here = group < groups
    of_x = (token < tokens)[:, None] & here[None, :]
    from_x = token[:, None] * groups + group[None, :]
    worth = 8 * tl.load(step + from_x, mask=of_x, other=0.0)
    bias = tl.load(total + from_x, mask=of_x, other=0) * 15
    plane = tokens * groups * 8
    a, b, c, e = _numbers(words + from_x[:, :, None] * 8 + word[None, None, :], plane, of_x[:, :, None], 4, BYTES)
    for neuron in range(tl.program_id(0), neurons, tl.num_programs(0)):
        place = neuron * 2 * groups + group.to(tl.int64)
        codes = high + place[None, :, None] * 4 + word[None, None, :]
        of_gate = tl.load(codes, mask=here[None, :, None], other=0)
        of_up = tl.load(codes + groups * 4, mask=here[None, :, None], other=0)
        gate_scale = tl.load(scales + place, mask=here, other=0.0).to(tl.float32)
        up_scale = tl.load(scales + place + groups, mask=here, other=0.0).to(tl.float32)
        sums = 2 * _products(of_gate, a, b, c, e, 4, BYTES) - bias
        gate = tl.sum(sums.to(tl.float32) * worth * gate_scale[None, :], axis=1)
        sums = 2 * _products(of_up, a, b, c, e, 4, BYTES) - bias
        up = tl.sum(sums.to(tl.float32) * worth * up_scale[None, :], axis=1)
        to = token * neurons + neuron
        tl.store(gate_out + to, gate, mask=token < tokens)
        tl.store(up_out + to, up, mask=token < tokens)
        tl.store(scores + to, tl.abs(_activate(gate, ACT) * up) * tl.load(norms + neuron), mask=token < tokens)


@triton.jit
def choose_kernel(scores, counts, order, neurons, most, N: tl.constexpr):
    """The numbers of the counts[t] largest scores of token t, in ascending order. A program for each token looks for the score
    from which on there are so many, between the least and the largest, in quarters. Of numbers that are not negative the bits
    are ordered as they are; NaN comes first."""
    token = tl.program_id(0)
    count = tl.load(counts + token)
    neuron = tl.arange(0, N)
    score = tl.load(scores + token * neurons + neuron, mask=neuron < neurons, other=0.0)
    key = tl.minimum(score.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 0x7FC00000)
    key = tl.where(neuron < neurons, key, -1)
    # from `least` on there are `found`, which are enough; from `beyond` on there are too few
    least = 0
    found = neurons
    beyond = tl.max(key, axis=0) + 1
    while (beyond - least > 1) & (found != count):
        half = least + (beyond - least) // 2
        quarter = least + (half - least) // 2
        rest = half + (beyond - half) // 2
        some = (key >= half).to(tl.int64)
        all_three = tl.sum(some + ((key >= quarter).to(tl.int64) << 20) + ((key >= rest).to(tl.int64) << 40), axis=0)
        of_half = (all_three & 0xFFFFF).to(tl.int32)
        of_quarter = ((all_three >> 20) & 0xFFFFF).to(tl.int32)
        of_rest = (all_three >> 40).to(tl.int32)
        if of_rest >= count:
            least = rest
            found = of_rest
        elif of_half >= count:
            least = half
            found = of_half
            beyond = rest
        elif of_quarter >= count:
            least = quarter
            found = of_quarter
            beyond = half
        else:
            beyond = quarter
    chosen = key >= least
    if found != count:
        equal = key == least
        spare = found - count  # of the equal ones the last are left out
        behind = tl.sum(equal.to(tl.int32), axis=0) - tl.cumsum(equal.to(tl.int32), 0)
        chosen = chosen & ((key > least) | (behind >= spare))
    place = tl.cumsum(chosen.to(tl.int32), 0) - 1
    tl.store(order + token * most + place, neuron, mask=chosen & (place < count))


@triton.jit
def hidden_kernel(
    words, step, total, low, scales, gate_in, up_in, order, counts, hidden, tokens, neurons, most, groups, ACT: tl.constexpr,
    BYTES: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """What each chosen neuron of a token puts out, by what its other bits add to gate and up."""
    token = tl.program_id(1)
    count = tl.load(counts + token)
    word, group = tl.arange(0, 4), tl.arange(0, G)
    here = group < groups
    from_x = token * groups + group
    worth = 0.5 * tl.load(step + from_x, mask=here, other=0.0)
    bias = tl.load(total + from_x, mask=here, other=0) * 15
    plane = tokens * groups * 8
    a, b, c, e = _numbers(words + from_x[:, None] * 8 + word[None, :], plane, here[:, None], 4, BYTES)
    for slot in range(tl.program_id(0), count, tl.num_programs(0)):
        neuron = tl.load(order + token * most + slot)
        place = neuron * 2 * groups + group.to(tl.int64)
        codes = low + place[:, None] * 4 + word[None, :]
        of_gate = tl.load(codes, mask=here[:, None], other=0)
        of_up = tl.load(codes + groups * 4, mask=here[:, None], other=0)
        gate_scale = tl.load(scales + place, mask=here, other=0.0).to(tl.float32)
        up_scale = tl.load(scales + place + groups, mask=here, other=0.0).to(tl.float32)
        gate, up = tl.load(gate_in + token * neurons + neuron), tl.load(up_in + token * neurons + neuron)
        sums = 2 * _products(of_gate, a, b, c, e, 4, BYTES) - bias
        gate += tl.sum(sums.to(tl.float32) * worth * gate_scale, axis=0)
        sums = 2 * _products(of_up, a, b, c, e, 4, BYTES) - bias
        up += tl.sum(sums.to(tl.float32) * worth * up_scale, axis=0)
        tl.store(hidden + token * most + slot, _activate(gate, ACT) * up)


@triton.jit
def down_kernel(down, scales, order, counts, hidden, sums, most, groups, NB: tl.constexpr, GB: tl.constexpr):
    """sums[t, part]: GB groups of the rows of down that this program takes, times what their neurons put out."""
    part, token = tl.program_id(1), tl.program_id(2)
    count = tl.load(counts + token)
    group, column = tl.program_id(0) * GB + tl.arange(0, GB), tl.arange(0, 32)
    within = (group < groups)[None, :]
    out = tl.zeros((GB, 32), tl.float32)
    for at in range(part * NB, count, tl.num_programs(1) * NB):
        slot = at + tl.arange(0, NB)
        there = slot < count
        neuron = tl.load(order + token * most + slot, mask=there, other=0)
        place = neuron[:, None].to(tl.int64) * groups + group[None, :]
        row = tl.load(
            down + place[:, :, None] * 32 + column[None, None, :], mask=(there[:, None] & within)[:, :, None], other=0
        )
        scale = tl.load(scales + place, mask=there[:, None] & within, other=0.0).to(tl.float32)
        factor = scale * tl.load(hidden + token * most + slot, mask=there, other=0.0)[:, None]
        out += tl.sum((row.to(tl.float32) - 127.5) * factor[:, :, None], axis=0)
    to = (token * tl.num_programs(1) + part) * groups + group[:, None]
    tl.store(sums + to * 32 + column[None, :], out, mask=(group < groups)[:, None])


@triton.jit
def add_kernel(sums, out, parts, width, PB: tl.constexpr, DB: tl.constexpr):
    """out[t] = Σ of its parts, in a fixed order."""
    token = tl.program_id(0)
    column = tl.program_id(1) * DB + tl.arange(0, DB)
    total = tl.zeros((PB, DB), tl.float32)
    for start in range(0, parts, PB):
        part = start + tl.arange(0, PB)
        inside = (part < parts)[:, None] & (column < width)[None, :]
        total += tl.load(sums + (token * parts + part[:, None]).to(tl.int64) * width + column[None, :], mask=inside, other=0.0)
    tl.store(out + token * width + column, tl.sum(total, axis=0), mask=column < width)
