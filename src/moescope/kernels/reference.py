"""What the expert kernels compute, in plain torch: the truth that the fast ones are tested against.

Both operations gather rows of a weight by an index per token; autograd does the rest. They hold (tokens, k, d) once each,
so a layer of single-neuron experts, which needs both, holds it twice: fine for tests and small sizes.
"""

from __future__ import annotations

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
