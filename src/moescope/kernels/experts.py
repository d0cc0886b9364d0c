"""moescope's expert kernels under a name that transformers knows: ``model.set_experts_implementation("moescope")``.

Any mixture of experts whose experts module goes through transformers' ``ExpertsInterface`` gains, not only converted
checkpoints. On the CPU one token, or few, takes :func:`moescope.kernels.experts_cpu.few_tokens`, and many tokens take matrix
products; which is which is measured on the machine at hand, see :mod:`moescope.kernels.choice`. On a GPU few tokens take
:func:`moescope.kernels.triton_experts.few_tokens`. What is not covered (training, biases, experts of other shapes, many
tokens on a GPU) goes to transformers' own ``grouped_mm``.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.integrations.moe import ExpertsInterface, _default_apply_gate, grouped_mm_experts_forward

from moescope.kernels.activations import ACTIVATIONS
from moescope.kernels.choice import fastest
from moescope.kernels.experts_cpu import few_tokens
from moescope.kernels.gather_cpu import gather_sum

NAME = "moescope"
STEADY = "moescope-steady"
"""the same by one path whatever the clock says, so that what is measured repeats to the last digit"""
_DTYPES = {
    "cpu": (torch.float32, torch.float64, torch.bfloat16),
    "cuda": (torch.float32, torch.bfloat16, torch.float16) if find_spec("triton") is not None else (),
}


def register() -> None:
    """Make both names known to transformers. Done when this module is imported; harmless to repeat."""
    ExpertsInterface.register(NAME, experts_forward)
    ExpertsInterface.register(STEADY, steady_forward)


def experts_forward(self: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """What an experts module returns for tokens (T, d) sent to experts (T, k) with factors (T, k): (T, d)."""
    if not covers(self, hidden_states):
        return grouped_mm_experts_forward(self, hidden_states, top_k_index, top_k_weights)
    if hidden_states.device.type == "cuda":
        return _on_gpu(self, hidden_states, top_k_index, top_k_weights)
    return PATHS[path(self, len(hidden_states), top_k_index.shape[1])](self, hidden_states, top_k_index, top_k_weights)


def steady_forward(self: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """As :func:`experts_forward`, on the CPU by matrix products alone."""
    if not covers(self, hidden_states) or hidden_states.device.type == "cuda":
        return experts_forward(self, hidden_states, top_k_index, top_k_weights)
    pack(self)
    return one_by_one(self, hidden_states, top_k_index, top_k_weights)


def covers(experts: Any, hidden_states: Tensor) -> bool:
    """Whether the kernels can do this call: inference with gated experts of the common layout."""
    if hidden_states.dtype not in _DTYPES.get(hidden_states.device.type, ()) or torch.compiler.is_compiling():
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


def pack(experts: Any) -> None:
    """Store ``down_proj`` by neuron, once: the parameter keeps its shape and values, only its strides change.

    Nothing is held twice, and every other implementation, saving included, goes on working with the same weights.
    """
    gate_up, down = experts.gate_up_proj, experts.down_proj
    if not gate_up.is_contiguous():
        gate_up.data = gate_up.data.contiguous()
    if not down.transpose(1, 2).is_contiguous():
        down.data = down.data.transpose(1, 2).contiguous().transpose(1, 2)


def path(experts: Any, tokens: int, k: int) -> str:
    """Which of :data:`PATHS` is the fastest for so many tokens with k experts each, on the CPU."""
    if tokens <= 1:
        return "few"
    pack(experts)  # every path on the same layout, whichever comes first
    return fastest(PATHS, experts, tokens, k)


def few(experts: Any, x: Tensor, index: Tensor, scale: Tensor) -> Tensor:
    """Neuron by neuron, each read once for all tokens that chose its expert."""
    pack(experts)
    gate_up, down = experts.gate_up_proj, experts.down_proj.transpose(1, 2)
    return few_tokens(x.contiguous(), index.contiguous(), scale.contiguous(), gate_up, down, experts.config.hidden_act)


def one_by_one(experts: Any, x: Tensor, index: Tensor, scale: Tensor) -> Tensor:
    """A matrix product for each hit expert and projection."""

    def product(rows: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
        out, start = rows.new_empty(len(rows), weights.shape[1]), 0
        for e, end in enumerate(ends.tolist()):
            if end > start:
                torch.mm(rows[start:end], weights[e].T, out=out[start:end])
            start = end
        return out

    return _by_products(product, experts, x, index, scale)


def grouped(experts: Any, x: Tensor, index: Tensor, scale: Tensor) -> Tensor:
    """torch's ``grouped_mm`` for each projection, which it does not have in float64."""
    if x.dtype == torch.float64:
        return one_by_one(experts, x, index, scale)
    return _by_products(
        lambda rows, weights, ends: F.grouped_mm(rows, weights.transpose(1, 2), offs=ends), experts, x, index, scale
    )


PATHS = {"few": few, "one_by_one": one_by_one, "grouped": grouped}


def _by_products(
    product: Callable[[Tensor, Tensor, Tensor], Tensor], experts: Any, x: Tensor, index: Tensor, scale: Tensor
) -> Tensor:
    """Tokens sorted by expert, two products, and back by reading: copies and sums of (T, k, d) would take as long again.

    ``product(rows, weights, ends)``: rows (S, m) times each expert's weights (E, n, m), whose rows end at ``ends``, int32.
    """
    n_experts, k = len(experts.gate_up_proj), index.shape[1]
    flat = index.reshape(-1)
    order = torch.argsort(flat, stable=True)
    ends = torch.cumsum(torch.bincount(flat, minlength=n_experts), 0, dtype=torch.int32)[:n_experts]
    order = order[: int(ends[-1])]  # slots of no expert come last
    gate, up = product(x[order // k], experts.gate_up_proj, ends).chunk(2, 1)
    rows = product(experts.act_fn(gate) * up, experts.down_proj, ends)
    place = torch.zeros_like(flat)
    place[order] = torch.arange(len(order))
    wide = torch.promote_types(x.dtype, torch.float32)
    factor = torch.where(index < n_experts, scale, 0).to(wide)
    return gather_sum(rows.to(wide), place.view_as(index), factor).to(x.dtype)


def _on_gpu(experts: Any, x: Tensor, index: Tensor, scale: Tensor) -> Tensor:
    from moescope.kernels import triton_experts

    down = experts.down_proj
    stored = down.is_contiguous() or down.transpose(1, 2).is_contiguous()
    if len(x) > triton_experts.LARGEST or not stored or not experts.gate_up_proj.is_contiguous():
        return grouped_mm_experts_forward(experts, x, index, scale)
    return triton_experts.few_tokens(x, index, scale, experts.gate_up_proj, down, experts.config.hidden_act)


register()
