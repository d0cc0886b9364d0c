"""What a router scored its experts with, and what those numbers are.

A router's output is not taken at its word: transformers 5.0 to 5.5 returned probabilities under the name of logits. What is
recorded is compared with the router's own weights on its own input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

Meaning = Literal["logits", "softmax probabilities", "sigmoid scores", "unverified"]
"""``logits``: the router's linear map of its input, before softmax or sigmoid, bias, groups and top-k."""


def listen_scores(router: nn.Module, n_experts: int, emit: Callable[[Tensor, Meaning], None]) -> list[RemovableHandle]:
    """Call ``emit(scores (N, E), meaning)`` at each forward pass; no handle where the router has no scores per expert.

    E may be larger than ``n_experts`` where the router also scores shared experts or a skip; only the first ``n_experts``
    are given.
    """
    layer = _scoring_layer(router, n_experts)
    if layer is not None and layer is not router:
        return [
            layer.register_forward_hook(
                lambda _, args, out: emit(out.reshape(-1, out.shape[-1])[:, :n_experts].float(), "logits")
            )
        ]
    known: list[Meaning] = []

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        scores = _pick(output, n_experts)
        if scores is None:
            return
        scores = scores.reshape(-1, scores.shape[-1]).float()
        if not known:
            known.append(meaning(scores, module, args))
        emit(scores[:, :n_experts], known[0])

    return [router.register_forward_hook(after)]


def meaning(scores: Tensor, router: nn.Module, args: tuple[Any, ...]) -> Meaning:
    """What scores (N, E) are, by the router's weight (E, D) and bias on its input."""
    weight, bias = getattr(router, "weight", None), getattr(router, "bias", None)
    if not isinstance(weight, Tensor) or not args or args[0].shape[-1] != weight.shape[-1]:
        return "unverified"
    x = args[0].reshape(-1, weight.shape[-1])
    logits = F.linear(x.float(), weight.float(), bias.float() if isinstance(bias, Tensor) else None)
    if logits.shape != scores.shape:
        return "unverified"
    # the router may compute in bf16; a wrong meaning is off by far more than its rounding
    close = 1e-3 if x.dtype == torch.float32 else 5e-2
    candidates: tuple[tuple[Meaning, Tensor], ...] = (
        ("logits", logits),
        ("softmax probabilities", logits.softmax(-1)),
        ("sigmoid scores", logits.sigmoid()),
    )
    errors = {name: float((scores - value).abs().max() / value.abs().max().clamp_min(1e-6)) for name, value in candidates}
    best = min(errors, key=lambda name: errors[name])
    return best if errors[best] < close else "unverified"


def _scoring_layer(router: nn.Module, n_experts: int) -> nn.Module | None:
    """The linear map from the hidden state to one number per expert."""
    maps = [m for m in router.modules() if isinstance(m, nn.Linear) and n_experts <= m.out_features <= n_experts + 8]
    return maps[-1] if maps else None


def _pick(output: Any, n_experts: int) -> Tensor | None:
    for item in output if isinstance(output, tuple | list) else (output,):
        if isinstance(item, Tensor) and item.is_floating_point() and item.shape[-1] >= n_experts:
            return item
    return None
