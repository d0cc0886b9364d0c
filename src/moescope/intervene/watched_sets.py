"""Neurons replaced in the running model, and others watched: where does the change arrive?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from moescope.intervene.edits import Edit
from moescope.intervene.neuron_sets import NeuronSets
from moescope.types import Neuron, Site


class WatchedSets:
    """S interventions on neurons, of each of which M neurons of its own are watched at the final token.

    Args:
        watched: (S, M) neurons, in layers that follow the first that is replaced; others are not computed again.
        n_texts: N.
    """

    def __init__(self, sets: NeuronSets, watched: Sequence[Sequence[Neuron]], n_texts: int) -> None:
        self._sets, self._watched = sets, watched
        self.values = np.full((len(watched), n_texts, len(watched[0])), np.nan, dtype=np.float32)
        """(S, N, M), as far as the interventions have been run"""

    def __len__(self) -> int:
        return len(self._sets)

    def start(self, number: int) -> int:
        return self._sets.start(number)

    def edits(self, numbers: np.ndarray, examples: np.ndarray) -> dict[Site, Edit]:
        edits = self._sets.edits(numbers, examples)
        at: dict[Site, list[tuple[int, int, int]]] = {}
        for row, number in enumerate(numbers):
            for place, neuron in enumerate(self._watched[number]):
                at.setdefault(neuron.site, []).append((row, neuron.index, place))
        for site, found in at.items():
            edits[site] = self._watching(edits.get(site), np.array(found), numbers, examples)
        return edits

    def _watching(self, edit: Edit | None, at: np.ndarray, numbers: np.ndarray, examples: np.ndarray) -> Edit:
        rows, index, places = at.T

        def watch(x: Tensor, chosen: Tensor) -> Tensor:
            new = x if edit is None else edit(x, chosen)
            final = new[:, -1].reshape(len(examples), len(numbers), -1)
            seen = final[:, rows, index].float().cpu().numpy()  # (E, found)
            self.values[numbers[rows][None], examples[:, None], places[None]] = seen
            return new

        return watch
