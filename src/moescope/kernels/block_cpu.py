"""A whole mixture-of-experts block of few tokens on the CPU: router, choice, routed and shared experts in compiled code.

At batch 1 a block is some forty small operations around two that read weights, and each of them begins with cold caches,
since the weights have just passed through. Here they are three compiled calls. For a model that is asked to, by name: ::

    model.set_experts_implementation("moescope")
    fuse(model)

Blocks are those of GLM-4-MoE (and what ``moescope convert`` writes): sigmoid scores, a bias that takes part in the choice
only, shared experts that every token has. The block's own forward goes on to serve what this one does not cover: many
tokens, training, GPUs, another experts implementation, and hooks on its parts, which this way would not see.
"""

from __future__ import annotations

from functools import cache
from types import MethodType
from typing import Any

import numpy as np
import torch
from numba import carray, njit
from torch import Tensor, nn

from moescope.errors import InputError
from moescope.kernels.experts import NAME, covers, pack, path
from moescope.kernels.experts_cpu import few_tokens
from moescope.kernels.openmp import Task, call, compiled, fork, take
from moescope.kernels.threads import FAST

_BLOCKS = ("Glm4MoeMoE",)


def fuse(model: nn.Module) -> int:
    """Let the model's blocks run as one, where that is covered; the number of blocks. Harmless to repeat.

    Nothing but the ``forward`` of these module objects changes; :func:`unfuse` takes it away again.

    Raises:
        InputError: the model has no such block.
    """
    blocks = [module for module in model.modules() if type(module).__name__ in _BLOCKS]
    if not blocks:
        raise InputError(f"{type(model).__name__} has no block of a kind that can be fused: {', '.join(_BLOCKS)}")
    for block in blocks:
        block.forward = MethodType(_forward, block)  # type: ignore[method-assign]
    return len(blocks)


def unfuse(model: nn.Module) -> None:
    """The model's own blocks again."""
    for module in model.modules():
        if getattr(module.__dict__.get("forward"), "__func__", None) is _forward:
            del module.forward


def _forward(self: Any, hidden_states: Tensor) -> Tensor:
    x = hidden_states.view(-1, hidden_states.shape[-1])
    if not _covers(self, x):
        return type(self).forward(self, hidden_states)
    experts, shared = self.experts, self.shared_experts
    pack(experts)
    if not shared.down_proj.weight.T.is_contiguous():  # by neuron, as pack does it
        shared.down_proj.weight.data = shared.down_proj.weight.data.T.contiguous().T
    index, scale = choose(x, self.gate)
    out = few_tokens(
        x, index, scale, experts.gate_up_proj, experts.down_proj.transpose(1, 2), experts.config.hidden_act,
        shared=(shared.gate_proj.weight, shared.up_proj.weight, shared.down_proj.weight.T),
    )  # fmt: skip
    return out.view_as(hidden_states)


def _covers(block: Any, x: Tensor) -> bool:
    experts, gate, shared = block.experts, block.gate, block.shared_experts
    if experts.config._experts_implementation != NAME or not covers(experts, x) or not x.is_contiguous():
        return False
    if x.dtype == torch.float64 or gate.num_group != 1 or gate.weight.dtype != torch.float32:
        return False
    weights = [projection.weight for projection in (shared.gate_proj, shared.up_proj, shared.down_proj)]
    if any(w.dtype != x.dtype for w in weights) or not all(w.is_contiguous() for w in weights[:2]):
        return False
    if torch.is_grad_enabled() and any(w.requires_grad for w in (*weights, gate.weight)):
        return False
    parts = (experts, gate, shared, shared.gate_proj, shared.up_proj, shared.down_proj)
    if any(part._forward_hooks or part._forward_pre_hooks for part in parts):
        return False
    return path(experts, len(x), gate.top_k) == "few"


def choose(x: Tensor, gate: Any) -> tuple[Tensor, Tensor]:
    """GLM-4-MoE's router with one group: the experts (T, k), and their factors (T, k) in float32, of tokens (T, d).

    Of equal scores the lower id is taken.
    """
    (tokens, d), n_experts, k = x.shape, len(gate.weight), gate.top_k
    logits = torch.empty(tokens, n_experts)
    index, scale = torch.empty(tokens, k, dtype=torch.int64), torch.empty(tokens, k)
    threads = torch.get_num_threads()
    factor = torch.tensor(float(gate.routed_scaling_factor))
    work = Task(
        (x.float(), gate.weight, gate.e_score_correction_bias, logits, index, scale, factor),
        (tokens, n_experts, d, k, int(gate.norm_topk_prob), threads),
    )
    score, take_best = _functions()
    fork(score, work, threads)
    call(take_best, work)
    return index, scale


@cache
def _functions() -> tuple[Any, Any]:
    def score(at: Any) -> None:
        numbers = carray(at[0], (7,), np.int64)
        _, tokens, n_experts, d, _, _, parts = numbers
        x, weight = carray(at[1], (tokens, d), np.float32), carray(at[2], (n_experts, d), np.float32)
        logits = carray(at[4], (tokens, n_experts), np.float32)
        while True:
            part = take(numbers)
            if part >= parts:
                return
            for e in range(n_experts * part // parts, n_experts * (part + 1) // parts):
                for t in range(tokens):
                    logits[t, e] = _dot(weight[e], x[t])

    def take_best(at: Any) -> None:
        _, tokens, n_experts, _, k, normalise, _ = carray(at[0], (7,), np.int64)
        bias, logits = carray(at[3], (n_experts,), np.float32), carray(at[4], (tokens, n_experts), np.float32)
        index, scale = carray(at[5], (tokens, k), np.int64), carray(at[6], (tokens, k), np.float32)
        factor = carray(at[7], (1,), np.float32)[0]
        for t in range(tokens):
            for e in range(n_experts):
                logits[t, e] = np.float32(1) / (np.float32(1) + np.exp(-logits[t, e]))
            total = np.float32(1e-20)
            for j in range(k):
                best = -1
                for e in range(n_experts):
                    if (best < 0 or logits[t, e] + bias[e] > logits[t, best] + bias[best]) and not _among(e, index[t, :j]):
                        best = e
                index[t, j] = best
                scale[t, j] = logits[t, best]
                total += logits[t, best]
            for j in range(k):
                scale[t, j] = (scale[t, j] / total if normalise else scale[t, j]) * factor

    return compiled(score), compiled(take_best)


@njit(fastmath=FAST)
def _dot(a: Any, b: Any) -> Any:
    total = np.float32(0)
    for i in range(len(a)):
        total += a[i] * b[i]
    return total


@njit
def _among(e: int, chosen: Any) -> bool:
    for other in chosen:  # noqa: SIM110 (numba compiles no generators)
        if other == e:
            return True
    return False
