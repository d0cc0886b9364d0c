"""The two operations of routed single-neuron experts on a GPU, forward and backward, in Triton.

No (tokens, k, d) tensor exists: a program gathers the weight rows that it needs, a tile at a time, and adds up in float32
(float64 for float64). Weight gradients are row-sparse, as on the CPU: the (token, slot) pairs are sorted by expert, and one
program sums those of one expert, in the order of the tokens, so that every run gives the same bits.

With TRITON_INTERPRET=1 in the environment before the import, the kernels run on CPU tensors in Triton's interpreter.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from moescope.kernels.routed import Routed, gathered


@triton.jit
def dot_kernel(x, weight, index, out, k, d, ACC: tl.constexpr, KB: tl.constexpr, DB: tl.constexpr):
    """out[b, j] = x[b] · weight[index[b, j]]; a program for each token and KB slots."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.program_id(1) * KB + tl.arange(0, KB)
    row = tl.load(index + token * k + slot, mask=slot < k, other=0)
    total = tl.zeros((KB,), ACC)
    for first in range(0, d, DB):
        column = first + tl.arange(0, DB)
        part = tl.load(x + token * d + column, mask=column < d, other=0.0).to(ACC)
        inside = (slot < k)[:, None] & (column < d)[None, :]
        tile = tl.load(weight + row[:, None] * d + column[None, :], mask=inside, other=0.0).to(ACC)
        total += tl.sum(tile * part[None, :], axis=1)
    tl.store(out + token * k + slot, total, mask=slot < k)


@triton.jit
def sum_kernel(scale, weight, index, out, k, d, ACC: tl.constexpr, KB: tl.constexpr, DB: tl.constexpr):
    """out[b] = Σ_j scale[b, j] · weight[index[b, j]]; a program for each token and DB columns."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * DB + tl.arange(0, DB)
    total = tl.zeros((DB,), ACC)
    for first in range(0, k, KB):
        slot = first + tl.arange(0, KB)
        row = tl.load(index + token * k + slot, mask=slot < k, other=0)
        factor = tl.load(scale + token * k + slot, mask=slot < k, other=0.0).to(ACC)
        inside = (slot < k)[:, None] & (column < d)[None, :]
        tile = tl.load(weight + row[:, None] * d + column[None, :], mask=inside, other=0.0).to(ACC)
        total += tl.sum(tile * factor[:, None], axis=0)
    tl.store(out + token * d + column, total, mask=column < d)


@triton.jit
def rows_kernel(scale, x, pairs, offsets, out, k, d, ACC: tl.constexpr, PB: tl.constexpr, DB: tl.constexpr):
    """out[g] = Σ over the pairs p of expert g of scale[p] · x[p // k]; a program for each expert and DB columns."""
    group = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * DB + tl.arange(0, DB)
    start = tl.load(offsets + group)
    stop = tl.load(offsets + group + 1)
    total = tl.zeros((DB,), ACC)
    for first in range(start, stop, PB):
        at = first + tl.arange(0, PB)
        pair = tl.load(pairs + at, mask=at < stop, other=0)
        factor = tl.load(scale + pair, mask=at < stop, other=0.0).to(ACC)
        inside = (at < stop)[:, None] & (column < d)[None, :]
        tile = tl.load(x + (pair // k)[:, None] * d + column[None, :], mask=inside, other=0.0).to(ACC)
        total += tl.sum(tile * factor[:, None], axis=0)
    tl.store(out + group * d + column, total, mask=column < d)


def _dot(x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    (tokens, k), d = index.shape, weight.shape[1]
    out = x.new_empty(tokens, k)
    acc, kb, db = _tiles(x, k, d)
    if tokens:
        dot_kernel[(tokens, triton.cdiv(k, kb))](x.contiguous(), weight.contiguous(), index, out, k, d, ACC=acc, KB=kb, DB=db)
    return out


def _sum(scale: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    (tokens, k), d = index.shape, weight.shape[1]
    out = scale.new_empty(tokens, d)
    acc, kb, db = _tiles(scale, k, d)
    if tokens:
        sum_kernel[(tokens, triton.cdiv(d, db))](
            scale.contiguous(), weight.contiguous(), index, out, k, d, ACC=acc, KB=kb, DB=db
        )
    return out


def _rows(scale: Tensor, x: Tensor, shape: torch.Size, routed: Routed) -> Tensor:
    """The weight's gradient: a coalesced sparse tensor (m, d) of the rows that any token chose."""
    rows, offsets, pairs = routed.sorted()
    k, d = routed.index.shape[1], x.shape[1]
    out = x.new_empty(len(rows), d)
    acc, pb, db = _tiles(x, 16, d)
    if len(rows):
        rows_kernel[(len(rows), triton.cdiv(d, db))](
            scale.contiguous(), x.contiguous(), pairs, offsets, out, k, d, ACC=acc, PB=pb, DB=db
        )
    return torch.sparse_coo_tensor(rows[None], out, shape, is_coalesced=True, check_invariants=False)


def _tiles(x: Tensor, rows: int, columns: int) -> tuple[Any, int, int]:
    """Type of the sums, and a tile of at most 16 × 128: 16 registers a thread for four warps."""
    acc = tl.float64 if x.dtype == torch.float64 else tl.float32
    return acc, min(16, triton.next_power_of_2(rows)), min(128, triton.next_power_of_2(columns))


GatheredDot, GatheredSum = gathered(_dot, _sum, _rows)
