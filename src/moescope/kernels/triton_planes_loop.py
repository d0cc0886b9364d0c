"""The Triton kernels of :mod:`moescope.kernels.triton_planes`.

With TRITON_INTERPRET=1 in the environment before the import they run on CPU tensors in Triton's interpreter, where ``dp4a`` is
spelled out.
"""

from __future__ import annotations

import triton
import triton.language as tl

from moescope.kernels.triton_experts import _activate

INTERPRETED = triton.knobs.runtime.interpret
_SPELLED_OUT = tl.constexpr(INTERPRETED)
_NIBBLES = tl.constexpr(0x0F0F0F0F)


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
