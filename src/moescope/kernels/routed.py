"""Which experts each token goes to, the same pairs sorted by expert, which the gradients of expert weights need, and the two
differentiable operations on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from moescope.errors import InputError
from moescope.kernels.dense import capturing
from moescope.kernels.loops import compiled


@dataclass
class Routed:
    """Chosen experts ``index``, int64 (B, k), among ``experts``; several operations on the same choice share one sorting.

    Raises:
        InputError: an index is outside 0..experts-1 (compiled loops must not be handed one).
    """

    index: Tensor
    experts: int
    _groups: Groups | None = field(default=None, init=False, repr=False)
    _sorted: tuple[Tensor, Tensor, Tensor] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.index = self.index.contiguous()
        if capturing(self.index) or not self.index.numel():
            return
        if int(self.index.min()) < 0 or int(self.index.max()) >= self.experts:
            raise InputError(
                f"expert index {int(self.index.max())} or {int(self.index.min())} is outside 0..{self.experts - 1}"
            )

    def groups(self) -> Groups:
        """The (token, slot) pairs of each expert that has any; computed once. CPU only."""
        if self._groups is None:
            rows, offsets, pairs = _group(self.index.numpy().reshape(-1), self.experts)
            self._groups = Groups(rows, offsets, pairs)
        return self._groups

    def sorted(self) -> tuple[Tensor, Tensor, Tensor]:
        """The rows, offsets and pairs of :class:`Groups` as tensors on the index's device; computed once."""
        if self._sorted is None:
            flat = self.index.reshape(-1)
            pairs = torch.argsort(flat, stable=True)
            rows, counts = torch.unique_consecutive(flat[pairs], return_counts=True)
            self._sorted = rows, torch.cat([counts.new_zeros(1), counts.cumsum(0)]), pairs
        return self._sorted


@dataclass(frozen=True)
class Groups:
    """Pairs sorted by expert: those of ``rows[g]`` are ``pairs[offsets[g]:offsets[g + 1]]``, pair = token · k + slot."""

    rows: np.ndarray
    """int64 (G,), ascending: experts with at least one token"""
    offsets: np.ndarray
    """int64 (G + 1,)"""
    pairs: np.ndarray
    """int64 (B · k,)"""

    def row_gradient(self, values: Tensor, shape: torch.Size) -> Tensor:
        """The (G, d) gradients of the chosen rows as a coalesced sparse tensor of the weight's shape (m, d)."""
        where = torch.from_numpy(self.rows)[None]
        # its invariants hold by construction; checking them would cost a pass over the indices
        return torch.sparse_coo_tensor(where, values, shape, is_coalesced=True, check_invariants=False)


Kernel = Callable[..., Tensor]


def gathered(dot: Kernel, weighted_sum: Kernel, row_sums: Kernel) -> tuple[type[Function], type[Function]]:
    """The operations GatheredDot and GatheredSum, differentiable in both inputs, of one device's three kernels.

    Args:
        dot: ``(x, weight, index)`` -> (B, k): x[b] · weight[index[b, j]].
        weighted_sum: ``(scale, weight, index)`` -> (B, d): Σ_j scale[b, j] · weight[index[b, j]].
        row_sums: ``(scale, x, shape, routed)`` -> row-sparse (m, d): at each chosen expert, the sum of scale[b, j] · x[b]
            over the pairs that chose it.
    """

    def operation(forward: Kernel, backward: Kernel, rows: Kernel) -> type[Function]:
        class Gathered(Function):
            @staticmethod
            def forward(ctx: Any, a: Tensor, weight: Tensor, routed: Routed) -> Tensor:
                ctx.save_for_backward(a, weight)
                ctx.routed = routed
                return forward(a, weight, routed.index)

            @staticmethod
            @once_differentiable
            def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
                a, weight = ctx.saved_tensors
                grad = grads[0].contiguous()
                to_a = backward(grad, weight, ctx.routed.index) if ctx.needs_input_grad[0] else None
                to_weight = rows(a, grad, weight.shape, ctx.routed) if ctx.needs_input_grad[1] else None
                return to_a, to_weight, None

        return Gathered

    of_dot = operation(dot, weighted_sum, lambda x, grad, shape, routed: row_sums(grad, x, shape, routed))
    return of_dot, operation(weighted_sum, dot, row_sums)


@compiled()
def _group(index: np.ndarray, experts: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A counting sort, which keeps the order of the tokens within an expert: sums are the same in every run."""
    count = np.zeros(experts + 1, np.int64)
    for p in range(index.size):
        count[index[p] + 1] += 1
    used = 0
    for e in range(experts):
        if count[e + 1]:
            used += 1
    rows = np.empty(used, np.int64)
    offsets = np.zeros(used + 1, np.int64)
    g = 0
    for e in range(experts):
        if count[e + 1]:
            rows[g] = e
            offsets[g + 1] = offsets[g] + count[e + 1]
            g += 1
        count[e + 1] += count[e]
    pairs = np.empty(index.size, np.int64)
    for p in range(index.size):
        e = index[p]
        pairs[count[e]] = p
        count[e] += 1
    return rows, offsets, pairs
