"""What a router, and what the grouping, cost: the dense model with its neurons chosen by more than a linear router can see.

None of these is a checkpoint that loads anywhere: to choose so, the neurons must be computed first, or a copy of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from moescope.models import LoadedModel
from moescope.models.rounding import rounded
from moescope.studies.convert.calibration import activation_of, contributions, expert_masses
from moescope.studies.convert.layers import Layers
from moescope.studies.convert.settings import Counts
from moescope.studies.convert.target import Target, layer_tensors

ORACLE, FOUR, NEURONS = "oracle routing", "4-bit routing", "oracle neurons"
BOUNDS = (ORACLE, FOUR, NEURONS)
"""The experts whose outputs are largest; those for which a copy of gate and up of 4 bits says so; the single neurons that
contribute most, as many as the experts would have."""

Factors = Callable[[Tensor, Tensor], Tensor]
"""Of what an MLP reads (T, d) and its neurons' activations (T, I) a factor of one or nought for each (T, I)."""


def bounds_of(
    model: LoadedModel, target: Target, counts: Counts, layers: Layers
) -> dict[str, Callable[[], AbstractContextManager[None]]]:
    """Kind -> context in which the dense model's neurons are chosen so, in every layer, at the conversion's share."""
    mlps: list[Any] = [layer.mlp for layer in model.structure.layers]
    return {kind: partial(_chosen, mlps, partial(_factors, kind, target, counts), layers) for kind in BOUNDS}


def _factors(kind: str, target: Target, counts: Counts, mlp: Any, members: Tensor) -> Factors:
    gate, up, down = (t.float() for t in layer_tensors(target, mlp))
    members = members.to(down.device)
    neurons = down.shape[1] * counts.active // counts.experts
    coarse = (rounded(gate, 4), rounded(up, 4)) if kind == FOUR else None
    activate = activation_of(mlp, target.activation)

    def factors(x: Tensor, h: Tensor) -> Tensor:
        if kind == NEURONS:
            written = contributions(h, down)
            return torch.zeros_like(h).scatter_(1, written.topk(neurons, 1).indices, 1.0)
        if coarse is not None:
            h = activate(x @ coarse[0].T) * (x @ coarse[1].T)
        experts = expert_masses(h, down, members).topk(counts.active - counts.shared, 1).indices  # (T, k)
        found = torch.ones_like(h)
        found[:, members.flatten()] = 0.0
        return found.scatter_(1, members[experts].flatten(1), 1.0)

    return factors


@contextmanager
def _chosen(mlps: Sequence[nn.Module], of: Callable[[Any, Tensor], Factors], layers: Layers) -> Iterator[None]:
    handles = []
    try:
        for mlp, (split, _) in zip(mlps, layers, strict=True):
            seen: list[Tensor] = []
            factors = of(mlp, torch.from_numpy(split.routed))

            def before(_mlp: nn.Module, args: tuple[Tensor, ...], seen: list[Tensor] = seen) -> None:
                seen[:] = [args[0].flatten(0, -2).float()]

            def inside(
                _down: nn.Module, args: tuple[Tensor, ...], seen: list[Tensor] = seen, factors: Factors = factors
            ) -> tuple[Tensor]:
                h = args[0]
                return (h * factors(seen[0], h.flatten(0, -2).float()).view_as(h).to(h.dtype),)

            handles.append(mlp.register_forward_pre_hook(before))
            down: Any = mlp.down_proj
            handles.append(down.register_forward_pre_hook(inside))
        yield
    finally:
        for handle in handles:
            handle.remove()
