"""A layer's routed output from its recorded dispatch alone, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from moescope.errors import InputError
from moescope.models.experts.layers import ExpertLayer
from moescope.models.experts.recorder import Dispatch


def routed_output(layer: ExpertLayer, dispatch: Dispatch) -> Tensor:
    """What the chosen experts give together, (N, D): the sum over slots of weight times expert(hidden), expert by expert.

    Shared experts are no part of the dispatch, and not of this sum.

    Raises:
        InputError: the dispatch was recorded without hidden states or weights.
    """
    if dispatch.hidden is None or dispatch.weights is None:
        raise InputError(f"{layer}: record hidden states and weights to recompute its output")
    hidden, weights = dispatch.hidden, dispatch.weights
    total = torch.zeros_like(hidden, dtype=torch.float32)
    for number in range(layer.n_experts):
        token, slot = torch.where(dispatch.ids == number)
        if not len(token):
            continue
        factor = weights[token, slot, None].to(hidden.dtype)
        if layer.rule.weight_on == "input":
            part = layer.rule.expert(layer.module, number, hidden[token] * factor)
        else:
            part = layer.rule.expert(layer.module, number, hidden[token]) * factor
        total.index_add_(0, token, part.float())
    return total
