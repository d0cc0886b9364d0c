"""Ablate, resample, patch or scale named neurons of a running model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from moescope.errors import InputError
from moescope.intervene.edits import Edit, Intervention, Positions, editing, tap_of
from moescope.types import Neuron, Site

if TYPE_CHECKING:
    from moescope.models import LoadedModel

Mode = Literal["zero", "mean", "resample", "patch", "scale"]
MODES: tuple[Mode, ...] = ("zero", "mean", "resample", "patch", "scale")


@contextmanager
def intervene(
    model: LoadedModel,
    neurons: Sequence[Neuron],
    mode: Mode = "mean",
    *,
    values: Any = None,
    positions: Positions = "all",
    seed: int = 0,
) -> Iterator[Intervention]:
    """Replace M neurons wherever ``model`` runs inside the block, ``generate`` with its cache included; one hook per
    site.

    A coordinate of the residual stream replaced at layer l is replaced in that layer's *output*: layers after l read
    the new value and may write to the coordinate again, and what earlier layers or attention to unedited tokens carry
    is untouched. To hold a coordinate down throughout, name it at every layer.

    Args:
        neurons: M different neurons, at any mixture of sites.
        mode: ``"zero"`` sets 0. ``"mean"`` sets each neuron's mean, ``values`` (M,), over a data set of the caller's
            choice. ``"resample"`` sets the value of another random example: ``values`` (N, M), a row per example; the
            i-th row run inside the block gets row ``cycle[i % N]`` of a seeded random cycle, so when examples run in
            the order of ``values`` none gets its own. One donor serves a row's prompt and what is generated from it.
            ``"patch"`` sets chosen values: ``values`` (M,) or, per row of the batch, (B, M) or, per token, (B, T, M).
            ``"scale"`` multiplies: ``values`` a number or (M,).
        positions: see :func:`moescope.intervene.editing`; padding is never touched.

    Raises:
        InputError: a neuron the model does not have or that is named twice, values missing, of the wrong shape or not
            finite.
    """
    held = _check_values(mode, values, len(neurons))
    by_site = group_by_site(model, neurons)
    cycle = _random_cycle(len(held), seed) if mode == "resample" and held is not None else None
    opened: list[Intervention] = []

    def new_values(columns: Tensor, old: Tensor) -> Tensor:
        """``old`` (B, T, m) -> what goes in its place, broadcastable to it."""
        if held is None:
            return torch.zeros((), dtype=old.dtype, device=old.device)
        if mode == "scale":
            return old * held[columns].to(old)
        if mode == "resample":
            assert cycle is not None
            rows = cycle[(opened[0].rows_before + torch.arange(len(old))) % len(cycle)]
            return held[rows][:, None, columns].to(old)
        if held.dim() > 1 and len(held) != len(old):
            raise InputError(f"values have {len(held)} rows and the batch has {len(old)}: give one row of values per row")
        if held.dim() == 3 and held.shape[1] != old.shape[1]:
            raise InputError(f"values have {held.shape[1]} tokens and the batch has {old.shape[1]}: give (B, M) or all tokens")
        picked = held[..., columns].to(old)
        return picked[:, None] if held.dim() == 2 else picked

    edits = {site: _replace(index, columns, new_values) for site, (index, columns) in by_site.items()}
    with editing(model, edits, positions=positions) as state:
        opened.append(state)
        yield state


def _replace(index: Tensor, columns: Tensor, new_values: Callable[[Tensor, Tensor], Tensor]) -> Edit:
    def edit(x: Tensor, chosen: Tensor) -> Tensor:
        where = index.to(x.device)
        old = x[..., where]  # (B, T, m)
        out = x.clone()
        out[..., where] = torch.where(chosen[..., None], new_values(columns, old), old)
        return out

    return edit


def group_by_site(model: LoadedModel, neurons: Sequence[Neuron]) -> dict[Site, tuple[Tensor, Tensor]]:
    """Site -> (coordinates (m,), their places (m,) in ``neurons``), both int64.

    Raises:
        InputError: a neuron that does not exist, or one named twice.
    """
    columns: dict[Site, list[int]] = defaultdict(list)
    seen: set[Neuron] = set()
    for place, neuron in enumerate(neurons):
        if neuron in seen:
            raise InputError(f"neuron {neuron} is named twice: name it once")
        seen.add(neuron)
        columns[neuron.site].append(place)
    for site, places in columns.items():
        tap_of(model, site)
        width = model.width(site)
        for place in places:
            if not 0 <= neurons[place].index < width:
                raise InputError(f"neuron {neurons[place]}: {site} of {model.name} has coordinates 0 to {width - 1}")
    return {s: (torch.tensor([neurons[p].index for p in ps]), torch.tensor(ps)) for s, ps in columns.items()}


def _check_values(mode: Mode, values: Any, count: int) -> Tensor | None:
    if mode not in MODES:
        raise InputError(f"mode={mode!r}: choose from {', '.join(MODES)}")
    if mode == "zero":
        if values is not None:
            raise InputError("values: mode='zero' takes none; use mode='patch' to set values")
        return None
    if values is None:
        raise InputError(f"values: mode={mode!r} needs them; see the documentation of intervene for their shape")
    held = torch.as_tensor(np.asarray(values, dtype=np.float32) if not isinstance(values, Tensor) else values).detach()
    held = held.to(torch.float32)
    if mode == "scale" and held.dim() == 0:
        held = held.expand(count)
    shapes = {"mean": (1,), "scale": (1,), "resample": (2,), "patch": (1, 2, 3)}[mode]
    if held.dim() not in shapes or held.shape[-1] != count:
        raise InputError(
            f"values have shape {tuple(held.shape)}: mode={mode!r} with {count} neurons needs {count} in the last axis "
            f"and {' or '.join(map(str, shapes))} axes"
        )
    if mode == "resample" and len(held) < 2:
        raise InputError("values: mode='resample' needs the values of at least two examples")
    if not bool(torch.isfinite(held).all()):
        raise InputError("values: not all are finite; drop the rows that are not numbers")
    return held


def _random_cycle(size: int, seed: int) -> Tensor:
    """A uniformly random cyclic permutation (Sattolo 1986): no element is its own image."""
    order = np.random.default_rng(seed).permutation(size)
    cycle = np.empty(size, dtype=np.int64)
    cycle[order] = np.roll(order, -1)
    return torch.from_numpy(cycle)
