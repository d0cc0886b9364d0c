"""Gated experts for few tokens on the CPU: the weights of the chosen experts are read once, by every core together.

One token needs 3·w·d weights of an expert of width w and does two flops with each, so the time is that of reading them:
:mod:`moescope.kernels.experts_loop` has the loop.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moescope.kernels.activations import ACTIVATIONS
from moescope.kernels.experts_loop import TOGETHER, functions, room
from moescope.kernels.openmp import PerThread, Task, call, fork

_REMEMBERED = 16  # tokens up to which a thread keeps the memory of a call for the next one


def few_tokens(
    x: Tensor,
    index: Tensor,
    scale: Tensor,
    gate_up: Tensor,
    down: Tensor,
    activation: str,
    *,
    shared: tuple[Tensor, Tensor, Tensor] | None = None,
    threads: int | None = None,
) -> Tensor:
    """``out[t] = Σ_j scale[t, j] · down[e]ᵀ (act(gate[e] x[t]) · up[e] x[t])`` with e = index[t, j]: (T, d) in x's dtype.

    The lower half of a 32-bit word is taken for the first of its two bfloat16 values, as on every machine torch runs on.
    Sums are added in an order that depends on the number of threads only.

    Args:
        x: (T, d) contiguous; float32, float64, or bfloat16 with an even d; the dtype of the weights.
        index: (T, k) contiguous int64; an id of E or more is an empty slot (as in expert parallelism).
        scale: (T, k) contiguous.
        gate_up: (E, 2w, d) contiguous, the gate's rows first.
        down: (E, w, d) contiguous: the down projection transposed.
        activation: one of ``moescope.kernels.activations.ACTIVATIONS``.
        shared: gate, up and the transposed down, (any width, d) contiguous, of experts that every token has, added with a
            factor of one.
        threads: as many as torch uses by default.
    """
    (tokens, d), k, (n_experts, width, _) = x.shape, index.shape[1], down.shape
    wide = torch.float32 if x.dtype == torch.bfloat16 else x.dtype
    threads = threads or torch.get_num_threads()
    shared = shared or (gate_up[:0], gate_up[:0], down[:0])
    scale, out = scale.to(wide), torch.empty(tokens, d, dtype=wide)
    kind = ACTIVATIONS[activation]
    key = x.dtype, tokens, k, n_experts, width, len(shared[0]), d, threads, kind
    work, apart = _tasks.get(_task, *key) if tokens <= _REMEMBERED else _task(*key)
    work.give(x, index, scale, gate_up, down, *shared, out, x if apart is None else apart)
    prepare, loop, finish = functions(x.dtype)
    call(prepare, work)
    fork(loop, work, threads)
    call(finish, work)
    return out.to(x.dtype)


def _task(
    dtype: torch.dtype, tokens: int, k: int, n_experts: int, width: int, shared: int, d: int, threads: int, kind: int
) -> Any:
    """The task with its own memory, and what of that holds bfloat16 tokens as they are computed with."""
    wide = torch.float32 if dtype == torch.bfloat16 else dtype
    apart = torch.empty(tokens, d, dtype=wide) if dtype == torch.bfloat16 else None
    own = (
        torch.empty(room(n_experts, tokens, k), dtype=torch.int64),
        torch.empty(tokens * (k + 1), dtype=wide),
        torch.empty(threads, tokens, max(width, shared) + TOGETHER, dtype=wide),
        torch.empty(threads, tokens, d, dtype=wide),
    )
    return Task((tokens, k, n_experts, width, shared, d, threads, kind), (*[None] * 10, *own)), apart


_tasks = PerThread()
