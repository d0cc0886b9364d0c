"""How a layer turns its router's scores into experts and weights, measured on what it did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Function = Literal["softmax", "sigmoid", "sqrt softplus", "other"]
_FUNCTIONS: dict[Function, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: x.softmax(-1),
    "sigmoid": torch.sigmoid,
    "sqrt softplus": lambda x: F.softplus(x).sqrt(),
}


@dataclass(frozen=True)
class Gating:
    """The rule that fits a layer's logits, ids and weights."""

    function: Function
    """what makes weights of logits"""
    renormalised: bool
    """weights are divided by their sum over the chosen experts. With softmax that is the same as a softmax over the chosen
    logits alone."""
    scale: float
    """constant factor on the weights"""
    top_k_of_scores: bool
    """the chosen experts are those with the highest scores; else a bias, a group limit or a table has a say"""

    def __str__(self) -> str:
        if self.function == "other":
            weights = "other weights"
        else:
            weights = f"{self.function}{', renormalised' if self.renormalised else ''}"
            weights += f", x{self.scale:.3g}" if abs(self.scale - 1) > 1e-3 else ""
        return f"{weights}; {'top-k of the scores' if self.top_k_of_scores else 'not the top-k of the scores'}"


def describe_gating(logits: Tensor, ids: Tensor, weights: Tensor, tolerance: float = 1e-3) -> Gating:
    """Find the gating that gives ``weights`` (N, K) at ``ids`` (N, K; -1: no expert) from ``logits`` (N, E).

    Args:
        tolerance: largest relative error of a weight at which a rule still fits; 1e-3 for fp32, more for bf16.
    """
    used = ids >= 0
    rows = used.all(1)
    logits, ids, weights = logits[rows].float(), ids[rows].long(), weights[rows].float()
    if not len(ids):
        return Gating("other", False, 1.0, False)
    top = torch.zeros_like(logits, dtype=torch.bool).scatter(1, logits.topk(ids.shape[1], dim=-1).indices, True)
    same = bool(top.gather(1, ids).all())
    # renormalised last: with one expert per token every rule fits it, and the plain one says more
    for renormalised in (False, True):
        for name, function in _FUNCTIONS.items():
            value = function(logits).gather(1, ids)
            if renormalised:
                value = value / value.sum(1, keepdim=True)
            ratio = weights / value.clamp_min(1e-20)
            scale = float(ratio.median())
            if bool(((weights - scale * value).abs() <= tolerance * weights.abs().max()).all()):
                return Gating(name, renormalised, scale, same)
    return Gating("other", False, 1.0, same)
