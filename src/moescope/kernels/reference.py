"""What the expert kernels compute, in plain torch: the truth that the fast ones are tested against.

Both operations gather rows of a weight by an index per token; autograd does the rest. They hold (tokens, k, d) once each,
so a layer of single-neuron experts, which needs both, holds it twice: fine for tests and small sizes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def gathered_dot(x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    """``out[b, j] = x[b] · weight[index[b, j]]``: float (B, k) from x (B, d), weight (m, d) and int64 index (B, k)."""
    return torch.einsum("bd,bkd->bk", x, weight[index])


def gathered_sum(scale: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    """``out[b] = Σ_j scale[b, j] · weight[index[b, j]]``: float (B, d) from scale (B, k), weight (m, d), index (B, k)."""
    return torch.einsum("bk,bkd->bd", scale, weight[index])


def top_rows(x: Tensor, weight: Tensor, k: int, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The ``k`` rows of ``weight`` with the largest ``x[b] · weight[i] + bias[i]``, largest first: values and int64 index,
    both (B, k). Holds all (B, m) scores."""
    scores = x @ weight.T
    if bias is not None:
        scores = scores + bias
    values, index = torch.topk(scores, k, dim=1)
    return values, index


def single_neuron_experts(
    x: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    index: Tensor,
    gate: Tensor,
    *,
    bias: Tensor | None = None,
    activation: Callable[[Tensor], Tensor] = torch.relu,
) -> Tensor:
    """``y[b] = Σ_j gate[b, j] · w_out[i] · activation(w_in[i] · x[b] + bias[i])`` with ``i = index[b, j]``: (B, d_out).

    The expert layer of "Secret mixtures of experts inside your LLM" (arXiv 2512.18452) for given choices and gates.
    w_in is (m, d), w_out (m, d_out), bias (m,), gate (B, k).
    """
    hidden = gathered_dot(x, w_in, index)  # (B, k)
    if bias is not None:
        hidden = hidden + bias[index]
    return gathered_sum(gate * activation(hidden), w_out, index)
