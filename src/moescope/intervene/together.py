"""Several collections of interventions as one, so that what they have in common is computed once."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import reduce
from typing import Protocol

import numpy as np
from torch import Tensor

from moescope.intervene.edits import Edit
from moescope.intervene.replicas import Progress, Readout, Replicas, SetsOfEdits
from moescope.types import Site


class KeyedSets(SetsOfEdits, Protocol):
    """Interventions of which number 0 leaves the model as it is."""

    def key(self, number: int) -> Hashable:
        """Equal for interventions that do the same; () for one that does nothing."""
        ...


class Together:
    """The distinct interventions of several collections, the untouched model once for all.

    ``places[i][n]`` is where intervention n of collection i is found.
    """

    def __init__(self, collections: Sequence[KeyedSets]) -> None:
        self._collections = collections
        known: dict[Hashable, int] = {}
        self._own: list[tuple[int, int]] = []
        self.places: list[np.ndarray] = []
        for i, sets in enumerate(collections):
            places = []
            for number in range(len(sets)):
                key = sets.key(number)
                # what a set of neurons is replaced by is its collection's own
                whole = (i, key) if key != () else ()
                if whole not in known:
                    known[whole] = len(self._own)
                    self._own.append((i, number))
                places.append(known[whole])
            self.places.append(np.array(places, dtype=np.int64))

    def __len__(self) -> int:
        return len(self._own)

    def start(self, number: int) -> int:
        i, own = self._own[number]
        return self._collections[i].start(own)

    def edits(self, numbers: np.ndarray, examples: np.ndarray) -> dict[Site, Edit]:
        owners = [self._own[number] for number in numbers]
        found: dict[Site, list[Edit]] = {}
        for i in sorted({owner for owner, _ in owners}):
            # rows of other collections stand under number 0, which does nothing
            own = np.array([number if owner == i else 0 for owner, number in owners])
            for site, edit in self._collections[i].edits(own, examples).items():
                found.setdefault(site, []).append(edit)
        return {site: reduce(_then, edits) for site, edits in found.items()}


def _then(first: Edit, second: Edit) -> Edit:
    def edit(x: Tensor, chosen: Tensor) -> Tensor:
        return second(first(x, chosen), chosen)

    return edit


def run_together(
    replicas: Replicas, collections: Sequence[KeyedSets], readout: Readout, progress: Progress | None = None
) -> list[dict[str, np.ndarray]]:
    """Scores of every text under every intervention of each collection: name -> float32 (S_i, N)."""
    sets = Together(collections)
    scores = replicas.run(sets, readout, progress)
    return [{name: values[places] for name, values in scores.items()} for places in sets.places]
