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

from collections.abc import Callable
from functools import cache
from types import MethodType
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor, nn

from moescope.errors import InputError
from moescope.kernels.experts import NAME, covers, pack, path
from moescope.kernels.experts_cpu import few_tokens
from moescope.kernels.openmp import PerThread, Task, array_at, call, compiled, fork, mark_of, take
from moescope.kernels.threads import FAST

_MARK = mark_of(__file__)

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
        block.forward = MethodType(_forward, block)
    return len(blocks)


def unfuse(model: nn.Module) -> None:
    """The model's own blocks again."""
    for module in model.modules():
        module.__dict__.pop("_moescope_plan", None)
        if getattr(module.__dict__.get("forward"), "__func__", None) is _forward:
            del module.forward


def _forward(self: Any, hidden_states: Tensor) -> Tensor:
    own: Callable[[Any, Tensor], Tensor] = type(self).forward
    if torch.compiler.is_compiling():
        return own(self, hidden_states)
    x = hidden_states.view(-1, hidden_states.shape[-1])
    plan = self.__dict__.get("_moescope_plan")
    if plan is None or not plan.holds():
        plan = self.__dict__["_moescope_plan"] = _Plan(self)
    if not plan.covers(x):
        return own(self, hidden_states)
    index, scale = choose(x, plan.gate)
    gate_up, down = plan.weights
    return few_tokens(x, index, scale, gate_up, down, plan.activation, shared=plan.shared).view_as(hidden_states)


class _Plan:
    """What a block's forward would ask its modules for, asked once: with cold caches that takes as long as an expert."""

    @torch.no_grad()
    def __init__(self, block: Any) -> None:
        experts, shared, self.gate = block.experts, block.shared_experts, block.gate
        projections = shared.gate_proj, shared.up_proj, shared.down_proj
        parameters = [experts.gate_up_proj, experts.down_proj, *[p.weight for p in projections]]
        self.sound = (
            self.gate.num_group == 1
            and self.gate.weight.dtype == self.gate.e_score_correction_bias.dtype == torch.float32
            and parameters[0].dtype in (torch.float32, torch.bfloat16)
            and parameters[0].device.type == "cpu"
            and all(p.dtype == parameters[0].dtype for p in parameters)
            and covers(experts, parameters[0].new_empty(1, parameters[0].shape[2]).detach())
        )
        if self.sound:
            pack(experts)
            for projection in projections[:2]:
                projection.weight.data = projection.weight.data.contiguous()
            projections[2].weight.data = projections[2].weight.data.T.contiguous().T  # by neuron, as pack does it
        self._experts, self.activation = experts, experts.config.hidden_act
        self._places = [(p, p.data_ptr()) for p in (*parameters, self.gate.weight, self.gate.e_score_correction_bias)]
        modules = (experts, self.gate, shared, *projections)
        self._hooks = [hooks for module in modules for hooks in (module._forward_hooks, module._forward_pre_hooks)]
        gate_up, down, gate, up, shared_down = (p.detach() for p in parameters)
        self.weights, self.shared = (gate_up, down.transpose(1, 2)), (gate, up, shared_down.T)

    def holds(self) -> bool:
        """Whether the weights are still where they were."""
        return all(parameter.data_ptr() == place for parameter, place in self._places)

    def covers(self, x: Tensor) -> bool:
        """Whether the fused way may serve these tokens."""
        if not self.sound or any(self._hooks) or self._experts.config._experts_implementation != NAME:
            return False
        if x.dtype != self.weights[0].dtype or x.device.type != "cpu" or not x.is_contiguous():
            return False
        if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p, _ in self._places)):
            return False
        return len(x) == 1 or path(self._experts, len(x), self.gate.top_k) == "few"


def choose(x: Tensor, gate: Any) -> tuple[Tensor, Tensor]:
    """GLM-4-MoE's router with one group: the experts (T, k), and their factors (T, k) in float32, of tokens (T, d).

    Of equal scores the lower id is taken.
    """
    (tokens, d), n_experts, k = x.shape, len(gate.weight), gate.top_k
    key = tokens, n_experts, d, k, bool(gate.norm_topk_prob), float(gate.routed_scaling_factor), torch.get_num_threads()
    work = _tasks.get(_task, *key)
    index, scale = torch.empty(tokens, k, dtype=torch.int64), torch.empty(tokens, k)
    x = x.float()
    work.give(x, gate.weight, gate.e_score_correction_bias, index, scale)
    score, take_best = _functions()
    fork(score, work, key[-1])
    call(take_best, work)
    return index, scale


def _task(tokens: int, n_experts: int, d: int, k: int, normalise: bool, factor: float, threads: int) -> Task:
    own = torch.empty(tokens, n_experts), torch.tensor([factor])
    return Task((tokens, n_experts, d, k, int(normalise), threads), (*[None] * 5, *own))


_tasks = PerThread()


@cache
def _functions() -> tuple[Any, Any]:
    def score(at: Any) -> None:
        numbers = array_at(at[0], (7,), np.int64)
        _, tokens, n_experts, d, _, _, parts = numbers
        x, weight = array_at(at[1], (tokens, d), np.float32), array_at(at[2], (n_experts, d), np.float32)
        logits = array_at(at[6], (tokens, n_experts), np.float32)
        while True:
            part = take(numbers)
            if part >= parts:
                return
            for e in range(n_experts * part // parts, n_experts * (part + 1) // parts):
                for t in range(tokens):
                    logits[t, e] = _dot(weight[e], x[t])

    def take_best(at: Any) -> None:
        _, tokens, n_experts, _, k, normalise, _ = array_at(at[0], (7,), np.int64)
        bias, logits = array_at(at[3], (n_experts,), np.float32), array_at(at[6], (tokens, n_experts), np.float32)
        index, scale = array_at(at[4], (tokens, k), np.int64), array_at(at[5], (tokens, k), np.float32)
        factor = array_at(at[7], (1,), np.float32)[0]
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

    return compiled(score, _MARK), compiled(take_best, _MARK)


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
