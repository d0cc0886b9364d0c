"""Gated experts for few tokens on a GPU, in Triton: the weights of each chosen expert are read once, in one pass.

One program takes NB neurons of one expert: their gate and up rows against every token, the activation, and their down
rows; nothing of size (tokens, w) goes to memory. Which tokens chose the expert is found by comparing the few ids, so that
nothing is sorted and the host waits for nothing. Programs of one token write their sums apart and a second kernel adds them in
a fixed order, so that every run gives the same bits: for each NB neurons, d numbers are written and read again.

Not timed on a GPU yet: :data:`LARGEST`, beyond which ``grouped_mm`` is left to it, is what one tile of a matrix unit holds.
With TRITON_INTERPRET=1 in the environment before the import, the kernels run on CPU tensors in Triton's interpreter.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from moescope.kernels.activations import ACTIVATIONS

LARGEST = 16  # tokens
# What matrix units are given. The interpreter computes with numpy, which has no bfloat16.
_INTERPRETED = triton.knobs.runtime.interpret
_DOT = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.float32 if _INTERPRETED else tl.bfloat16}


def few_tokens(x: Tensor, index: Tensor, scale: Tensor, gate_up: Tensor, down: Tensor, activation: str) -> Tensor:
    """``out[t] = Σ_j scale[t, j] · down[e] (act(gate[e] x[t]) · up[e] x[t])`` with e = index[t, j]: (T, d) in x's dtype.

    Sums are float32. With several tokens the activated values are rounded to the weights' dtype before ``down``, as they
    are in transformers' implementations; with one token they are not.

    Args:
        x: (T, d), T at most :data:`LARGEST`, float32, bfloat16 or float16, that of the weights.
        index: (T, k) int64; an id of E or more is an empty slot.
        scale: (T, k).
        gate_up: (E, 2w, d) contiguous, the gate's rows first.
        down: (E, d, w), contiguous or with its last two dimensions stored the other way round.
        activation: one of ``moescope.kernels.activations.ACTIVATIONS``.
    """
    (tokens, d), k, (n_experts, _, width) = x.shape, index.shape[1], down.shape
    rows = 1 if tokens == 1 else LARGEST
    neurons, columns = (16, 256) if rows == 1 else (32, 64)
    blocks = triton.cdiv(width, neurons)
    sums = torch.empty(tokens * k, blocks, d, dtype=torch.float32, device=x.device)
    out = x.new_empty(tokens, d)
    index, slots = index.contiguous(), triton.next_power_of_2(k)
    with torch.cuda.device_of(x):  # the current device need not be the one that this layer is on
        experts_kernel[(tokens * k, blocks)](
            x.contiguous(), index, scale.contiguous(), gate_up, down, sums, tokens, k, n_experts, width, d, down.stride(2),
            down.stride(1), ACT=ACTIVATIONS[activation], DOT=_DOT[x.dtype], TB=rows, KB=slots, NB=neurons, DB=columns,
        )  # fmt: skip
        add_kernel[(tokens, triton.cdiv(d, 128))](sums, index, out, k, n_experts, blocks, d, KB=slots, BB=16, DB=128)
    return out


@triton.jit
def experts_kernel(
    x, index, scale, gate_up, down, sums, tokens, k, n_experts, width, d, to_neuron, to_column,
    ACT: tl.constexpr, DOT: tl.constexpr, TB: tl.constexpr, KB: tl.constexpr, NB: tl.constexpr, DB: tl.constexpr,
):  # fmt: skip
    """sums[slot, block] of each slot that chose the expert of slot ``program_id(0)``, by the first such slot's program."""
    slot = tl.program_id(0)
    block = tl.program_id(1)
    expert = tl.load(index + slot)
    token = tl.arange(0, TB)
    choice = tl.arange(0, KB)
    place = token[:, None] * k + choice[None, :]
    there = (token < tokens)[:, None] & (choice < k)[None, :]
    same = there & (tl.load(index + place, mask=there, other=-1) == expert)
    leader = tl.min(tl.min(tl.where(same, place, tokens * k), axis=1), axis=0)
    if (leader != slot) | (expert >= n_experts):
        return
    factor = tl.sum(tl.where(same, tl.load(scale + place, mask=there, other=0.0).to(tl.float32), 0.0), axis=1)
    first = tl.min(tl.where(same, choice[None, :], KB), axis=1)  # the token's slot of this expert, KB if it has none

    neuron = block * NB + tl.arange(0, NB)
    gate_rows = gate_up + expert * 2 * width * d + neuron[:, None] * d
    up_rows = gate_rows + width * d
    gate = tl.zeros((TB, NB), tl.float32)
    up = tl.zeros((TB, NB), tl.float32)
    for start in range(0, d, DB):
        column = start + tl.arange(0, DB)
        inside = (neuron < width)[:, None] & (column < d)[None, :]
        part = tl.load(
            x + token[:, None] * d + column[None, :], mask=(token < tokens)[:, None] & (column < d)[None, :], other=0.0
        )
        gate_tile = tl.load(gate_rows + column[None, :], mask=inside, other=0.0)
        up_tile = tl.load(up_rows + column[None, :], mask=inside, other=0.0)
        if TB == 1:
            gate += tl.sum(gate_tile.to(tl.float32) * part.to(tl.float32), axis=1)[None, :]
            up += tl.sum(up_tile.to(tl.float32) * part.to(tl.float32), axis=1)[None, :]
        else:
            gate = tl.dot(part.to(DOT), tl.trans(gate_tile.to(DOT)), gate, input_precision="ieee")
            up = tl.dot(part.to(DOT), tl.trans(up_tile.to(DOT)), up, input_precision="ieee")
    hidden = _activate(gate, ACT) * up * factor[:, None]

    down_rows = down + expert * width * d + neuron[:, None] * to_neuron
    for start in range(0, d, DB):
        column = start + tl.arange(0, DB)
        inside = (neuron < width)[:, None] & (column < d)[None, :]
        tile = tl.load(down_rows + column[None, :] * to_column, mask=inside, other=0.0)
        if TB == 1:
            total = tl.sum(tl.trans(hidden) * tile.to(tl.float32), axis=0)[None, :]
        else:
            total = tl.dot(hidden.to(DOT), tile.to(DOT), input_precision="ieee")
        goal = ((token * k + first) * tl.num_programs(1) + block)[:, None] * d + column[None, :]
        tl.store(sums + goal, total, mask=((first < KB)[:, None]) & (column < d)[None, :])


@triton.jit
def _activate(g, ACT: tl.constexpr):
    """By the numbers of ACTIVATIONS."""
    if ACT == 0:
        return g * tl.sigmoid(g)
    if ACT == 1:
        return tl.maximum(g, 0.0)
    if ACT == 2:  # (1 + tanh z) / 2 is the sigmoid of 2 z
        return g * tl.sigmoid(1.5957691216057308 * (g + 0.044715 * g * g * g))
    return g * (1 + tl.erf(g * 0.7071067811865476)) / 2


@triton.jit
def add_kernel(sums, index, out, k, n_experts, blocks, d, KB: tl.constexpr, BB: tl.constexpr, DB: tl.constexpr):
    """out[t] = Σ_j Σ_b sums[t·k + j, b]; slots without an expert, and repetitions of an earlier slot's, hold nothing."""
    token = tl.program_id(0)
    column = tl.program_id(1) * DB + tl.arange(0, DB)
    choice = tl.arange(0, KB)
    chosen = tl.load(index + token * k + choice, mask=choice < k, other=-1)
    total = tl.zeros((DB,), tl.float32)
    for j in range(0, k):
        expert = tl.load(index + token * k + j)
        before = tl.sum(((chosen == expert) & (choice < j)).to(tl.int32), axis=0)
        if (before == 0) & (expert < n_experts):
            for start in range(0, blocks, BB):
                block = start + tl.arange(0, BB)
                inside = (block < blocks)[:, None] & (column < d)[None, :]
                rows = ((token * k + j) * blocks + block)[:, None] * d
                total += tl.sum(tl.load(sums + rows + column[None, :], mask=inside, other=0.0), axis=0)
    tl.store(out + token * d + column, total, mask=column < d)
