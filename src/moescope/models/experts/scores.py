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
"""``logits``: the router's linear map of its input, up to a constant factor, before softmax or sigmoid, bias, groups, top-k"""


def listen_scores(router: nn.Module, n_experts: int, emit: Callable[[Tensor, Meaning], None]) -> list[RemovableHandle]:
    """Call ``emit(scores (N, E), meaning)`` at each forward pass in which the router gives scores per expert.

    E may be larger than ``n_experts`` where the router also scores shared experts or a skip: they come last.
    """
    inner = [m for m in router.modules() if isinstance(m, nn.Linear) and n_experts <= m.out_features <= n_experts + 8]
    linear = inner[-1] if inner else None
    if linear is not None and linear is not router:
        # most routers with such a part call it; what it gives are logits by its nature
        called: list[bool] = []

        def inside(_: nn.Module, args: Any, output: Tensor) -> None:
            called.append(True)
            emit(output.reshape(-1, output.shape[-1]).float(), "logits")

        def otherwise(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if not called:
                _emit_output(linear, n_experts, args, output, emit, known)
            called.clear()

        known: list[tuple[int, Meaning]] = []
        return [linear.register_forward_hook(inside), router.register_forward_hook(otherwise)]

    picked: list[tuple[int, Meaning]] = []
    return [
        router.register_forward_hook(lambda module, args, output: _emit_output(module, n_experts, args, output, emit, picked))
    ]


def _emit_output(
    weights: nn.Module,
    n_experts: int,
    args: tuple[Any, ...],
    output: Any,
    emit: Callable[[Tensor, Meaning], None],
    known: list[tuple[int, Meaning]],
) -> None:
    """Emit that part of a router's output which is its logits, else the first that has a number per expert."""
    items = list(output) if isinstance(output, tuple | list) else [output]
    numbers = [i for i, t in enumerate(items) if isinstance(t, Tensor) and t.is_floating_point() and t.shape[-1] >= n_experts]
    if not numbers:
        return
    if not known:
        # told once, from the first pass: what a place in the output holds does not change
        meanings = [(i, meaning(items[i], weights, args)) for i in numbers]
        known.append(next((pair for pair in meanings if pair[1] == "logits"), meanings[0]))
    place, what = known[0]
    emit(items[place].reshape(-1, items[place].shape[-1]).float(), what)


def meaning(scores: Tensor, weights: nn.Module, args: tuple[Any, ...]) -> Meaning:
    """What scores (..., E) are, by a router's ``weight`` (E or more, D) and ``bias`` on its input ``args[0]``."""
    weight, bias = getattr(weights, "weight", None), getattr(weights, "bias", None)
    if not isinstance(weight, Tensor) or not args or args[0].shape[-1] != weight.shape[-1]:
        return "unverified"
    x = args[0].reshape(-1, weight.shape[-1])
    scores = scores.reshape(-1, scores.shape[-1]).float()
    logits = F.linear(x.float(), weight.float(), bias.float() if isinstance(bias, Tensor) else None)
    if len(logits) != len(scores) or logits.shape[1] < scores.shape[1]:
        return "unverified"
    logits = logits[:, : scores.shape[1]]
    factor = (scores * logits).sum() / logits.square().sum().clamp_min(1e-12)
    # the router may compute in bf16; a wrong meaning is off by far more than its rounding
    close = 1e-3 if x.dtype == torch.float32 else 5e-2
    candidates: tuple[tuple[Meaning, Tensor], ...] = (
        ("logits", factor * logits),
        ("softmax probabilities", logits.softmax(-1)),
        ("sigmoid scores", logits.sigmoid()),
    )
    errors = {name: float((scores - value).abs().max() / value.abs().max().clamp_min(1e-6)) for name, value in candidates}
    best = min(errors, key=lambda name: errors[name])
    return best if errors[best] < close else "unverified"
