"""Fast forms of what expert layers compute, each tested against :mod:`moescope.kernels.reference`.

The functions here choose: compiled CPU loops for float32 and float64 on the CPU; on CUDA products over all rows where that is
cheaper than gathering them, or while a graph is captured, Triton where it is installed; plain torch elsewhere.
"""

from __future__ import annotations

from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

from moescope.kernels import cpu, dense, reference, topk
from moescope.kernels.dense import capturing
from moescope.kernels.routed import Routed

_HAS_TRITON = find_spec("triton") is not None
__all__ = ["Routed", "gathered_dot", "gathered_sum", "top_rows"]


def gathered_dot(x: Tensor, weight: Tensor, routed: Routed) -> Tensor:
    """``out[b, j] = x[b] · weight[index[b, j]]``: (B, k) from x (B, d) and weight (m, d), differentiable in both.

    From compiled loops and Triton the weight's gradient is row-sparse: a sparse tensor whose rows are distinct and ascending.
    """
    if dense.cheaper(weight, routed.index):
        return dense.gathered_dot(x, weight, routed.index)
    fast = _fast(x, weight)
    return fast.GatheredDot.apply(x, weight, routed) if fast else reference.gathered_dot(x, weight, routed.index)


def gathered_sum(scale: Tensor, weight: Tensor, routed: Routed) -> Tensor:
    """``out[b] = Σ_j scale[b, j] · weight[index[b, j]]``: (B, d) from scale (B, k) and weight (m, d), differentiable in
    both; gradient as in :func:`gathered_dot`."""
    if dense.cheaper(weight, routed.index):
        return dense.gathered_sum(scale, weight, routed.index)
    fast = _fast(scale, weight)
    return fast.GatheredSum.apply(scale, weight, routed) if fast else reference.gathered_sum(scale, weight, routed.index)


@torch.no_grad()
def top_rows(x: Tensor, weight: Tensor, k: int, bias: Tensor | None = None, *, half: bool = False) -> tuple[Tensor, Tensor]:
    """The ``k`` rows of ``weight`` with the largest ``x[b] · weight[i] + bias[i]``, largest first: values and index (B, k).

    No gradient flows. ``half`` scores in bfloat16.

    Raises:
        FloatingPointError: scores are NaN.
    """
    if _compiled(x, weight):
        return topk.top_rows(x, weight, k, bias, half=half)
    values, index = reference.top_rows(x, weight, k, bias)
    if not capturing(x) and not bool(torch.isfinite(values).all()):
        raise FloatingPointError("router scores are not finite")
    return values, index


def _compiled(a: Tensor, b: Tensor) -> bool:
    return a.device.type == "cpu" == b.device.type and a.dtype == b.dtype and a.dtype in (torch.float32, torch.float64)


def _fast(a: Tensor, b: Tensor) -> ModuleType | None:
    if _compiled(a, b):
        return cpu
    if a.device.type == "cuda" == b.device.type and a.dtype == b.dtype and _HAS_TRITON:
        from moescope.kernels import triton_routed

        return triton_routed
    return None
