"""What the expert kernels compute, in plain torch: the truth that the fast ones are tested against.

Both operations gather rows of a weight by an index per token; autograd does the rest. They hold (tokens, k, d) once each,
so a layer of single-neuron experts, which needs both, holds it twice: fine for tests and small sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


class Codes(Protocol):
    """Weights in codes of which any first bits are codes of the same weights: :class:`moescope.models.rounding.Nested`."""

    @property
    def codes(self) -> Tensor:
        """uint8 (N, d)"""

    @property
    def scale(self) -> Tensor:
        """float16 (N, d / 32)"""

    @property
    def bits(self) -> int:
        """Of a code."""

    def prefix(self, bits: int | None = None) -> Tensor:
        """float32 (N, d): the weights by the first bits of their codes."""


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


def sparse_mlp(
    x: Tensor,
    gate: Codes,
    up: Codes,
    down_t: Codes,
    counts: list[int],
    activation: Callable[[Tensor], Tensor],
    bits: int = 4,
) -> tuple[Tensor, Tensor]:
    """``Σ_n down_t[n] · act(gate[n] x) · up[n] x`` over the counts[t] neurons of token t that score best by the first bits of
    gate and up, ``|act(ĝ) û| · ‖down_t[n]‖``, of equal ones the first; float64 (T, d), and the scores (T, N). From x (T, d),
    weights (N, d)."""
    wide = x.double()
    down = down_t.prefix().double()
    rough = activation(wide @ gate.prefix(bits).double().T) * (wide @ up.prefix(bits).double().T)
    scores = rough.abs() * down.norm(dim=1)
    rank = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    chosen = rank < torch.tensor(counts)[:, None]
    hidden = activation(wide @ gate.prefix().double().T) * (wide @ up.prefix().double().T)
    return torch.where(chosen, hidden, 0) @ down, scores
