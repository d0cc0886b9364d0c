"""Gated experts for few tokens on the CPU: the weights of the chosen experts are read once, by every core together.

One token needs 3·w·d weights of an expert of width w and does two flops with each, so the time is that of reading them:
:mod:`moescope.kernels.experts_loop` has the loop.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moescope.kernels.activations import ACTIVATIONS
from moescope.kernels.experts_loop import TOGETHER, functions, room
from moescope.kernels.openmp import Task, call, fork


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
    width_shared = len(shared[0])
    out = torch.empty(tokens, d, dtype=wide)
    work = Task(
        (
            x, index, scale.to(wide), gate_up, down, *shared,
            torch.empty(room(n_experts, tokens, k), dtype=torch.int64),
            torch.empty(tokens * (k + 1), dtype=wide),
            torch.empty(tokens, d, dtype=wide) if x.dtype == torch.bfloat16 else x,
            torch.empty(threads, tokens, max(width, width_shared) + TOGETHER, dtype=wide),
            torch.empty(threads, tokens, d, dtype=wide),
            out,
        ),
        (tokens, k, n_experts, width, width_shared, d, threads, ACTIVATIONS[activation]),
    )  # fmt: skip
    prepare, loop, finish = functions(x.dtype)
    call(prepare, work)
    fork(loop, work, threads)
    call(finish, work)
    return out.to(x.dtype)
