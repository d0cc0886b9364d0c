"""Many interventions in one forward pass: each row of the batch is one example under one set of neurons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from moescope.errors import InputError
from moescope.intervene.edits import Edit, Intervention, Positions, editing
from moescope.intervene.intervene import group_by_site
from moescope.types import Neuron, Site

if TYPE_CHECKING:
    from moescope.models import LoadedModel


@contextmanager
def intervene_many(
    model: LoadedModel,
    sets: Sequence[Sequence[Neuron]],
    replacement: Mapping[Site, Tensor] | None = None,
    *,
    positions: Positions = "all",
) -> Iterator[Intervention]:
    """Run R sets of neurons at once: row ``e * R + r`` of every batch is example e with the neurons of set r replaced.

    Feed ``ids.repeat_interleave(R, 0)`` and the mask alike. An empty set leaves its rows as they are (a baseline for
    free).

    Args:
        sets: R sets of neurons; they may differ in size and sites.
        replacement: for each site what its neurons are set to: (D,) for all rows, (E, D) per example, or (E, T, D) per
            example and token. None sets 0.
        positions: see :func:`moescope.intervene.editing`.

    Raises:
        InputError: an unknown neuron, a site without replacement, or a batch whose rows are no multiple of R.
    """
    with editing(model, neuron_edits(model, sets, replacement), positions=positions) as state:
        yield state


def neuron_edits(
    model: LoadedModel, sets: Sequence[Sequence[Neuron]], replacement: Mapping[Site, Tensor] | None = None
) -> dict[Site, Edit]:
    """The edits of :func:`intervene_many`, one per site, for callers that mix them with others."""
    if not sets:
        raise InputError("sets: none given; give at least one set of neurons (it may be empty)")
    masks: dict[Site, Tensor] = {}
    for row, neurons in enumerate(sets):
        for site, (index, _) in group_by_site(model, neurons).items():
            if site not in masks:
                masks[site] = torch.zeros(len(sets), model.width(site), dtype=torch.bool)
            masks[site][row, index] = True
    edits: dict[Site, Edit] = {}
    for site, mask in masks.items():
        if replacement is not None and site not in replacement:
            raise InputError(f"replacement: none for {site}; give an array of {model.width(site)} values")
        values = torch.zeros(mask.shape[1]) if replacement is None else replacement[site]
        edits[site] = masked_edit(site, mask, values)
    return edits


def masked_edit(site: Site, mask: Tensor, values: Tensor) -> Edit:
    """Set the coordinates ``mask`` (R, D) bool to ``values`` (D,), (E, D) or (E, T, D) in a batch of E x R rows."""
    if values.dim() not in (1, 2, 3) or values.shape[-1] != mask.shape[1]:
        raise InputError(f"replacement for {site} has shape {tuple(values.shape)}: its last axis must be {mask.shape[1]}")

    def edit(x: Tensor, chosen: Tensor) -> Tensor:
        rows, length, width = x.shape
        if rows % len(mask):
            raise InputError(f"the batch has {rows} rows, no multiple of the {len(mask)} sets: repeat each example per set")
        examples = rows // len(mask)
        new = values.to(x)
        if new.dim() == 1:
            new = new[None]
        if new.dim() == 2:
            new = new[:, None]
        if len(new) not in (1, examples) or new.shape[1] not in (1, length):
            raise InputError(
                f"replacement for {site} has shape {tuple(values.shape)} and the batch {examples} examples of {length} tokens"
            )
        split = x.view(examples, len(mask), length, width)
        at = mask.to(x.device)[None, :, None] & chosen.view(examples, len(mask), length, 1)
        return torch.where(at, new[:, None], split).view(rows, length, width)

    return edit
