"""Everything but some neurons replaced in the running model: what those neurons carry by themselves."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from moescope.intervene.edits import Edit
from moescope.intervene.neuron_sets import first_change, masked_edit
from moescope.types import Site

if TYPE_CHECKING:
    from moescope.models import LoadedModel


class KeptSets:
    """Interventions that keep the first k units of an order, and set every other coordinate of the sites to ``replacement``.

    A unit is whatever is kept or replaced as one: a neuron, or a coordinate of the stream through all its layers. What is kept
    is not held at any value: the model computes it from what it is now given.

    Args:
        unit_of: for each site (width,) int, the unit that each coordinate belongs to; all these sites are replaced together.
        places: (O, U) int, at which place each unit stands in each order.
        kept: of each intervention the order and k; with k = U nothing is replaced, with k = 0 everything.
        replacement: for each site (D,) or, per text, (N, D).
    """

    def __init__(
        self,
        model: LoadedModel,
        unit_of: Mapping[Site, np.ndarray],
        places: np.ndarray,
        kept: Sequence[tuple[int, int]],
        replacement: Mapping[Site, Tensor],
    ) -> None:
        self._unit_of, self._places, self._kept, self._replacement = unit_of, places, list(kept), replacement
        self._last = model.n_layers - 1
        self._first = min(first_change(site) for site in unit_of)

    def __len__(self) -> int:
        return len(self._kept)

    def key(self, number: int) -> Hashable:
        order, k = self._kept[number]
        if k >= self._places.shape[1]:
            return ()
        return (order, k) if k else (0, 0)

    def start(self, number: int) -> int:
        return self._first if self.key(number) else self._last

    def edits(self, numbers: np.ndarray, examples: np.ndarray) -> dict[Site, Edit]:
        chosen = [self._kept[number] for number in numbers]
        kept = np.stack([self._places[order] < k for order, k in chosen])  # (R, U)
        edits = {}
        for site, unit_of in self._unit_of.items():
            values = self._replacement[site]
            values = values if values.dim() == 1 else values[torch.from_numpy(examples)]
            edits[site] = masked_edit(site, torch.from_numpy(~kept[:, unit_of]), values)
        return edits
