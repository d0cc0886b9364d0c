"""The converted model as it is trained: the dense model's own modules, each neuron's output switched by its expert.

A token's mixture of experts is the dense MLP with the neurons of the other experts left out. So the model is tuned in that
form, where every source type keeps its modelling code and adapters sit on ordinary linear layers, and is cut into experts
afterwards. It costs the multiply-adds of the dense MLP, and with many small experts still less time than they do (forwards
and backwards on one core, 1,024 tokens, 20 of 80 experts of 8 neurons: 0.2 s; grouped_mm 0.56 s, batched_mm 3.9 s).
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moescope.intervene.held_out import Windows
from moescope.studies.convert.calibration import activation_of
from moescope.studies.convert.layers import Converted, Layers, kept_neurons
from moescope.studies.convert.router import LinearRouter
from moescope.studies.convert.settings import Counts
from moescope.studies.convert.split import Split
from moescope.studies.convert.target import Target

_SOFTNESS = 0.5  # of the sigmoid that stands for the choice backwards, in spreads of a token's scores


class TopK(nn.Module):
    """Which neurons work on a token, by a linear router over experts.

    Forwards a factor of one or nought, as in the checkpoint. Backwards the straight-through estimator (Bengio, Léonard &
    Courville 2013, arXiv:1308.3432): the derivative of a sigmoid around the midpoint between the last score chosen and the
    first that is not. The checkpoint's gates are one by construction and would pass no gradient to the router; here those of
    experts that were left out do too, since their neurons' activations are known.
    """

    place: Tensor

    def __init__(self, split: Split, router: LinearRouter, k: int) -> None:
        super().__init__()
        self.k = k
        self.start = router
        self.spread = 1.0
        scale = router.scale(1.0)
        self.weight = nn.Parameter(router.weight.float() * scale)  # (E, d)
        self.bias = nn.Parameter(router.bias.float() * scale)  # (E,)
        place = np.full(split.shared.size + split.routed.size, len(split.routed))  # shared neurons: the place after the last
        place[split.routed] = np.arange(len(split.routed))[:, None]
        self.register_buffer("place", torch.from_numpy(place), persistent=False)  # (I,)

    def forward(self, x: Tensor) -> Tensor:
        """x (…, d) to factors (…, I)."""
        scores = nn.functional.linear(x.float(), self.weight, self.bias)  # (…, E)
        if self.k < scores.shape[-1]:
            best = scores.topk(self.k + 1, -1)
            hard = torch.zeros_like(scores).scatter_(-1, best.indices[..., : self.k], 1.0)
            middle = best.values[..., -2:].mean(-1, keepdim=True).detach()
            soft = ((scores - middle) / _SOFTNESS).sigmoid()
            factor = hard + (soft - soft.detach())
        else:
            factor = torch.ones_like(scores)
        always = torch.ones_like(factor[..., :1])
        return torch.cat([factor, always], -1)[..., self.place].to(x.dtype)

    def router(self) -> LinearRouter:
        """The router as it is now; its shares of mass are those from before the training."""
        weight, bias = (p.detach().float().cpu() for p in (self.weight, self.bias))
        return dataclasses.replace(self.start, weight=weight, bias=bias, spread=self.spread)


class Fixed(nn.Module):
    """The same neurons on every token: static pruning."""

    keep: Tensor

    def __init__(self, keep: Tensor) -> None:
        super().__init__()
        self.register_buffer("keep", keep.float(), persistent=False)  # (I,)

    def forward(self, x: Tensor) -> Tensor:
        return self.keep.to(x.dtype)


class RoutedMLP(nn.Module):
    """A dense MLP whose neurons work where ``choice`` lets them."""

    def __init__(self, mlp: Any, activation: str, choice: nn.Module) -> None:
        super().__init__()
        self.mlp = mlp
        self.choice = choice
        self._activate = activation_of(mlp, activation)

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self.mlp, "gate_up_proj"):
            gate, up = self.mlp.gate_up_proj(x).chunk(2, -1)
        else:
            up = self.mlp.up_proj(x)
            gate = self.mlp.gate_proj(x) if hasattr(self.mlp, "gate_proj") else up
        out: Tensor = self.mlp.down_proj(self._activate(gate) * up * self.choice(x))
        return out


def students_of(found: Converted, counts: Counts, how: str) -> dict[str, Callable[[], list[nn.Module]]]:
    """What makes, for the conversion and those of its controls that there are, the choice of neurons of every layer.

    Args:
        how: what becomes of them: the kind of the conversion, and the second word of the controls'.
    """
    k = counts.active - counts.shared

    def routed(layers: Layers) -> Callable[[], list[nn.Module]]:
        return lambda: [TopK(split, router, k) for split, router in layers]

    students = {how: routed(found.chosen)}
    if found.random:
        keep = kept_neurons(found.importance, counts.active / counts.experts)
        students |= {f"random {how}": routed(found.random), f"static {how}": lambda: [Fixed(mask) for mask in keep]}
    return students


def twin_of(module: nn.Module) -> Any:
    """A model of the same structure whose parameters are objects of its own over the same memory: nothing is copied until
    a parameter is given other data, and modules may be replaced without touching the original."""
    shared: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in module.parameters()}
    return copy.deepcopy(module, shared | {id(b): b for b in module.buffers()})


def route(twin: Any, target: Target, choices: Sequence[nn.Module]) -> None:
    """Put a choice of neurons into every MLP of ``twin``."""
    for layer, choice in zip(twin.model.layers, choices, strict=True):
        layer.mlp = RoutedMLP(layer.mlp, target.activation, choice.to(next(layer.parameters()).device))


def unroute(twin: Any) -> None:
    """Take the choices out again: the dense model with whatever weights it has now."""
    for layer in twin.model.layers:
        layer.mlp = layer.mlp.mlp


@torch.no_grad()
def measure_spread(twin: Any, choices: Sequence[nn.Module], windows: Windows, device: torch.device) -> None:
    """Set every router's spread (see :class:`LinearRouter`) to what it is on ``windows``."""
    sums: dict[nn.Module, float] = dict.fromkeys(choices, 0.0)

    def see(choice: Any, args: tuple[Tensor, ...]) -> None:
        logits = nn.functional.linear(args[0].float(), choice.weight)
        sums[choice] += float((logits - logits.mean(-1, keepdim=True)).square().mean(-1).sum())

    routers = [choice for choice in choices if isinstance(choice, TopK)]
    handles = [choice.register_forward_pre_hook(see) for choice in routers]
    try:
        for ids in windows.batches():
            twin(input_ids=ids.to(device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    for choice in routers:
        choice.spread = math.sqrt(sums[choice] / windows.tokens)
