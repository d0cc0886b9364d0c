"""What each MLP does on calibration text, a few layers at a time so that memory stays flat."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moescope.capture import Encoded, capture
from moescope.capture.encode import Batch
from moescope.capture.spread import read_batches
from moescope.intervene.held_out import Windows
from moescope.models import LoadedModel
from moescope.types import Site

_MEMORY = 2**30  # bytes of MLP inputs held at once


def mlp_inputs(model: LoadedModel, windows: Windows, layers: Sequence[int]) -> Iterator[list[tuple[int, Tensor]]]:
    """(layer, x) for every layer in order, some layers at a time; x (tokens, d) float32 on the CPU: what the layer's MLP
    receives."""
    processes = 1 if model.spread is None else model.spread.engine.processes
    size = max(processes, _MEMORY // (windows.tokens * model.d_model * 4))
    for start in range(0, len(layers), size):
        group = layers[start : start + size]
        yield list(zip(group, _read(model, [Site("mlp_in", layer) for layer in group], windows), strict=True))


def _read(model: LoadedModel, sites: Sequence[Site], windows: Windows) -> list[Tensor]:
    length = windows.ids.shape[1]
    found = [torch.empty(windows.tokens, model.width(site)) for site in sites]
    ends = np.cumsum([len(ids) for ids in windows.batches()])
    groups = np.split(np.arange(len(windows)), ends[:-1])
    encoded = Encoded.from_ids(list(windows.ids.numpy()))
    for rows, parts in read_batches(model, encoded, groups, "right", partial(_inputs, sites=tuple(sites))):
        for x, part in zip(found, parts, strict=True):
            x[rows[0] * length : (rows[-1] + 1) * length] = part
    return found


def _inputs(model: LoadedModel, batches: Iterable[Batch], *, sites: Sequence[Site]) -> Iterator[list[Tensor]]:
    """Of windows, which are of one length, so that nothing is padded."""
    with capture(model, sites) as session:
        for batch in batches:
            seen = session.run(batch.ids)
            yield [seen[site].flatten(0, 1).float().cpu() for site in sites]


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
    return torch.relu if kind == "relu" else mlp.act_fn if hasattr(mlp, "act_fn") else mlp.activation_fn
