"""What each MLP does on calibration text, a few layers at a time so that memory stays flat."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from moescope.capture import capture
from moescope.models import LoadedModel
from moescope.studies.convert.text import Windows
from moescope.types import Site

_MEMORY = 2**30  # bytes of MLP inputs held at once


def mlp_inputs(
    model: LoadedModel, windows: Windows, report: Callable[[int, int], None] | None = None
) -> Iterator[tuple[int, Tensor]]:
    """(layer, x) for every layer in order, x (tokens, d) float32 on the CPU: what the layer's MLP receives."""
    sites = [Site("mlp_in", layer) for layer in range(model.n_layers)]
    size = max(1, _MEMORY // (windows.tokens * model.d_model * 4))
    for start in range(0, len(sites), size):
        group = sites[start : start + size]
        for site, x in _read(model, group, windows).items():
            yield site.layer, x
            if report is not None:
                report(site.layer + 1, len(sites))


def _read(model: LoadedModel, sites: Sequence[Site], windows: Windows) -> dict[Site, Tensor]:
    parts: dict[Site, list[Tensor]] = {site: [] for site in sites}
    with capture(model, sites) as session:
        for ids in windows.batches():
            for site, x in session.run(ids).items():
                parts[site].append(x.flatten(0, 1).float().cpu())
    return {site: torch.cat(tensors) for site, tensors in parts.items()}


def activations(
    x: Tensor, gate: Tensor, up: Tensor, activation: Callable[[Tensor], Tensor], tokens: int = 2048
) -> Iterator[Tensor]:
    """What the MLP's neurons do on x (T, d), piece by piece: h = act(gate x) · up x, each (≤ tokens, I)."""
    for part in x.split(tokens):
        yield activation(part @ gate.T) * (part @ up.T)


def contributions(h: Tensor, down: Tensor) -> Tensor:
    """|h| times the norm of each neuron's output direction: (T, I), how much each neuron writes."""
    return torch.mul(h.abs(), down.norm(dim=0))


def expert_masses(h: Tensor, down: Tensor, members: Tensor) -> Tensor:
    """The norm of each expert's output: (T, E) for members (E, w), the neurons of each expert.

    From the inner products of the neurons' output directions, so that no output (T, E, d) is made.
    """
    directions = down.T[members]  # (E, w, d)
    inner = directions @ directions.transpose(1, 2)  # (E, w, w)
    parts = h.T[members].transpose(1, 2)  # (E, T, w)
    return ((parts @ inner) * parts).sum(2).clamp_min(0).sqrt().T


def activation_of(mlp: Any, kind: str) -> Callable[[Tensor], Tensor]:
    """The elementwise function on the gate; relu² of a neuron's own up is relu times that up."""
    return torch.relu if kind == "relu" else mlp.act_fn
