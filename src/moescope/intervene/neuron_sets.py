"""Many sets of neurons, each to be replaced in the running model: each row of a batch is one example under one set."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from moescope.errors import InputError
from moescope.intervene.edits import Edit
from moescope.types import Neuron, Site

if TYPE_CHECKING:
    from moescope.models import LoadedModel


class NeuronSets:
    """S sets of neurons, each set to ``replacement`` of its site: (D,), per text (N, D), or per text and token (N, T,
    D).
    """

    def __init__(self, model: LoadedModel, sets: Sequence[Sequence[Neuron]], replacement: Mapping[Site, Tensor]) -> None:
        self._widths = {site: model.width(site) for site in replacement}
        self._replacement = replacement
        self._last = model.n_layers - 1
        self._indices: list[dict[Site, np.ndarray]] = []
        for neurons in sets:
            by_site: dict[Site, list[int]] = {}
            for neuron in neurons:
                by_site.setdefault(neuron.site, []).append(neuron.index)
            self._indices.append({site: np.array(index) for site, index in by_site.items()})

    def __len__(self) -> int:
        return len(self._indices)

    def key(self, number: int) -> Hashable:
        return tuple(sorted((str(site), tuple(sorted(index.tolist()))) for site, index in self._indices[number].items()))

    def start(self, number: int) -> int:
        return min((first_change(site) for site in self._indices[number]), default=self._last)

    def edits(self, numbers: np.ndarray, examples: np.ndarray) -> dict[Site, Edit]:
        masks: dict[Site, np.ndarray] = {}
        for row, number in enumerate(numbers):
            for site, index in self._indices[number].items():
                if site not in masks:
                    masks[site] = np.zeros((len(numbers), self._widths[site]), dtype=bool)
                masks[site][row, index] = True
        edits = {}
        for site, mask in masks.items():
            values = self._replacement[site]
            edits[site] = masked_edit(
                site, torch.from_numpy(mask), values if values.dim() == 1 else values[torch.from_numpy(examples)]
            )
        return edits


def first_change(site: Site) -> int:
    """The last layer whose output may be taken from a clean run when ``site`` is edited (-1: none)."""
    if site.kind == "resid":
        return site.layer  # the edit applies to that output
    return -1 if site.kind == "embed" else site.layer - 1


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
        return torch.where(at, new[:, None], split).reshape(rows, length, width)

    return edit
