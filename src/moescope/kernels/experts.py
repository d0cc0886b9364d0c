"""moescope's expert kernel under a name that transformers knows: ``model.set_experts_implementation("moescope")``.

Any mixture of experts whose experts module goes through transformers' ``ExpertsInterface`` gains on the CPU, not only
converted checkpoints. One token, or few, takes :func:`moescope.kernels.experts_cpu.few_tokens`; many tokens take one
matrix product for each expert and projection. Where one ends and the other begins is measured on the machine at hand.
What the kernel does not cover (training, GPUs, biases, experts of other shapes) goes to transformers' own ``grouped_mm``.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.integrations.moe import ExpertsInterface, _default_apply_gate, grouped_mm_experts_forward

from moescope.kernels.experts_cpu import ACTIVATIONS, as_words, gather_sum, run

NAME = "moescope"
_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
_LARGEST = 64  # tokens up to which the crossover is sought
_crossovers: dict[tuple[Any, ...], int] = {}


def register() -> None:
    """Make :data:`NAME` known to transformers. Done when this module is imported; harmless to repeat."""
    ExpertsInterface.register(NAME, experts_forward)


def experts_forward(self: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """What an experts module returns for tokens (T, d) sent to experts (T, k) with factors (T, k): (T, d)."""
    if not covers(self, hidden_states):
        return grouped_mm_experts_forward(self, hidden_states, top_k_index, top_k_weights)
    tokens = len(hidden_states)
    if tokens > 1 and tokens > crossover(self, top_k_index.shape[1]):
        return many_tokens(self, hidden_states, top_k_index, top_k_weights)
    return _few(self, hidden_states, top_k_index, top_k_weights)


def covers(experts: Any, hidden_states: Tensor) -> bool:
    """Whether the compiled kernel can do this call: inference on the CPU with gated experts of the common layout."""
    if hidden_states.device.type != "cpu" or hidden_states.dtype not in _DTYPES or torch.compiler.is_compiling():
        return False
    if not experts.has_gate or experts.has_bias or experts.is_transposed or not experts.is_concatenated:
        return False
    if experts.has_post_expert_norm or type(experts)._apply_gate is not _default_apply_gate:
        return False
    gate_up, down = experts.gate_up_proj, experts.down_proj
    if torch.is_grad_enabled() and (hidden_states.requires_grad or gate_up.requires_grad or down.requires_grad):
        return False
    even = hidden_states.dtype != torch.bfloat16 or hidden_states.shape[1] % 2 == 0
    return even and gate_up.dtype == down.dtype == hidden_states.dtype and experts.config.hidden_act in ACTIVATIONS


def pack(experts: Any) -> tuple[np.ndarray, np.ndarray]:
    """Store ``down_proj`` by neuron, once: the parameter keeps its shape and values, only its strides change.

    Nothing is held twice, and every other implementation, saving included, goes on working with the same weights.

    Returns:
        gate_up and the transposed down as the compiled kernel takes them: views of the same memory.
    """
    gate_up, down = experts.gate_up_proj, experts.down_proj
    place = (gate_up.data_ptr(), down.data_ptr())
    views = experts.__dict__.get("_moescope_views")
    if views is not None and views[0] == place:
        return views[1]
    if not gate_up.is_contiguous():
        gate_up.data = gate_up.data.contiguous()
    if not down.transpose(1, 2).is_contiguous():
        down.data = down.data.transpose(1, 2).contiguous().transpose(1, 2)
    arrays = as_words(gate_up.detach()), as_words(down.detach().transpose(1, 2))
    experts.__dict__["_moescope_views"] = ((gate_up.data_ptr(), down.data_ptr()), arrays)
    return arrays


def many_tokens(experts: Any, x: Tensor, index: Tensor, scale: Tensor) -> Tensor:
    """The same for many tokens: each hit expert's tokens together, two matrix products."""
    pack(experts)  # both ways on the same layout, whichever comes first
    n_experts, width = len(experts.gate_up_proj), experts.down_proj.shape[2]
    wide = torch.promote_types(x.dtype, torch.float32)
    flat = index.reshape(-1)
    order = torch.argsort(flat, stable=True)
    ends = torch.cumsum(torch.bincount(flat, minlength=n_experts), 0)[:n_experts].tolist()
    order = order[: ends[-1]]  # slots of no expert come last
    if len(order) == 0:
        return torch.zeros_like(x)
    rows = x[order // index.shape[1]]
    written = torch.empty(len(order), x.shape[1], dtype=wide)
    start = 0
    for e, end in enumerate(ends):
        if end == start:
            continue
        gate, up = torch.mm(rows[start:end], experts.gate_up_proj[e].T).split(width, 1)
        written[start:end] = torch.mm(experts.act_fn(gate) * up, experts.down_proj[e].T)
        start = end
    # back to the tokens by reading; torch's index_add_ takes many times as long
    place = torch.zeros_like(flat)
    place[order] = torch.arange(len(order))
    factor = torch.where(index < n_experts, scale, 0).to(wide)
    return gather_sum(written, place.view_as(index), factor).to(x.dtype)


def crossover(experts: Any, k: int) -> int:
    """The most tokens for which reading neuron by neuron beats matrix products, measured once for each shape.

    A fraction of a second with the module's own weights and random routing, then remembered for the process.
    """
    weights = experts.gate_up_proj
    key = (*weights.shape, weights.dtype, k, experts.config.hidden_act, torch.get_num_threads())
    if key not in _crossovers:
        generator = torch.Generator().manual_seed(0)
        best, tokens = 1, 2
        while tokens <= _LARGEST:
            x = torch.randn(tokens, weights.shape[2], generator=generator).to(weights.dtype)
            index = torch.rand(tokens, weights.shape[0], generator=generator).topk(k).indices
            scale = torch.ones(tokens, k, dtype=weights.dtype)
            if _seconds(_few, experts, x, index, scale) > _seconds(many_tokens, experts, x, index, scale):
                break
            best, tokens = tokens, 2 * tokens
        _crossovers[key] = best
    return _crossovers[key]


def _few(experts: Any, x: Tensor, index: Tensor, scale: Tensor) -> Tensor:
    return run(x.contiguous(), index.contiguous(), scale.contiguous(), *pack(experts), experts.config.hidden_act)


def _seconds(function: Any, *arguments: Any) -> float:
    times = []
    with torch.no_grad():
        for _ in range(3):  # the first one warms up
            began = time.perf_counter()
            function(*arguments)
            times.append(time.perf_counter() - began)
    return min(times[1:])


register()
