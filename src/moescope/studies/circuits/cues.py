"""Trivial cues as rivals: learnt and chosen in the training folds, and what a circuit adds to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

import numpy as np

from moescope.select.nested import Classifier, fitted
from moescope.studies.circuits.depth import probe_scores
from moescope.studies.circuits.features import Features
from moescope.studies.circuits.scorer import Scorer
from moescope.tasks import surface_cues
from moescope.tasks.answered import ANSWER, DIFFICULTY

_LEAST = 0.01  # probability: one row that was sure and wrong must not outweigh many
EMBEDDING = "embedding_layer"


@dataclass(frozen=True)
class Cues:
    """What each trivial cue says of each row.

    ``said[cue][f, n]``: the class that the cue names for row ``n``, learnt without fold ``f`` and without the row's own fold;
    for a row of fold ``f`` its held-out prediction. Classes weigh alike in learning.
    """

    said: Mapping[str, np.ndarray]
    y: np.ndarray
    folds: np.ndarray

    @property
    def surface(self) -> list[str]:
        """Those that are read off the text, neither off the model nor off its answer."""
        return [cue for cue in self.said if cue not in (EMBEDDING, DIFFICULTY) and not cue.startswith(ANSWER)]

    def held_out(self, cue: str) -> np.ndarray:
        """(N,) int."""
        return np.asarray(self.said[cue][self.folds, np.arange(len(self.y))])

    def hits(self, cue: str) -> np.ndarray:
        """(N,) bool."""
        return np.asarray(self.held_out(cue) == self.y)

    def chosen(self) -> list[str]:
        """For each fold the cue that is right most often, classes counted alike, inside the other folds."""
        best = []
        for f in range(int(self.folds.max()) + 1):
            train = self.folds != f
            scorer = Scorer(self.y[train], self.y[train])
            best.append(max(self.said, key=lambda cue: scorer.balanced(self.said[cue][f, train] == self.y[train])))
        return best

    def chosen_hits(self) -> np.ndarray:
        """(N,) bool: held-out hits of each fold's chosen cue."""
        return np.asarray(self.chosen_said() == self.y)

    def chosen_said(self) -> np.ndarray:
        """(N,) int: the class that each fold's chosen cue names for its held-out rows."""
        said = np.stack([self.held_out(cue) for cue in self.chosen()])
        return np.asarray(said[self.folds, np.arange(len(self.y))])

    def with_circuit(self, x: np.ndarray, selected: np.ndarray, classifier: Classifier) -> tuple[np.ndarray, np.ndarray]:
        """The chosen cue and a circuit read together (conditional probing, Hewitt et al. 2021).

        Args:
            x: (N, D) activations. selected: (F, K) columns, for each fold those chosen in its training folds.
            classifier: of two classes; more are read by logistic regression.

        Returns:
            (N,) bool, held-out hits; and (N,) float, by how many bits the class is likelier than by the cue alone, which
            shows what accuracy is too coarse for.
        """
        hits, bits = np.zeros(len(self.y), dtype=bool), np.zeros(len(self.y))
        classes = np.arange(int(self.y.max()) + 1)
        if len(classes) > 2:  # what a good cue names hardly varies within a class, and LDA divides by that
            classifier = "logistic"
        for f, cue in enumerate(self.chosen()):
            held = self.folds == f
            # training rows hold what a cue said that had not learnt them, else the cue would be trusted too much
            named = (self.said[cue][f][:, None] == classes[1:]).astype(np.float64)
            both = np.hstack([x[:, selected[f]].astype(np.float64), named])
            shares = np.bincount(self.y[~held], minlength=len(classes)) / (~held).sum()
            (scores,) = fitted(both[~held], self.y[~held], both[held], (both.shape[1],), classifier)
            hits[held] = (scores / shares).argmax(axis=1) == self.y[held]
            (alone,) = fitted(named[~held], self.y[~held], named[held], (named.shape[1],), classifier)
            likely = (np.maximum(s[np.arange(held.sum()), self.y[held]], _LEAST) for s in (scores, alone))
            bits[held] = np.subtract(*map(np.log2, likely))
        return hits, bits


def read_cues(features: Features, tokenizer: Any) -> Cues:
    """Learn every surface cue, and a probe of the embedding layer where that is known, without each fold and each two folds.

    Where nothing can be read off the rows, the majority class stands alone.
    """
    y, folds = features.y, features.folds
    n_folds = int(folds.max()) + 1
    surface = surface_cues(features.task, tokenizer)
    if len(surface) > 1:
        surface.pop("majority class")
    embed = features.embed
    names = [*surface, *([] if embed is None else [EMBEDDING])]
    said = {name: np.zeros((n_folds, len(y)), dtype=np.int64) for name in names}
    for f, g in combinations_with_replacement(range(n_folds), 2):
        train, held = np.flatnonzero((folds != f) & (folds != g)), np.flatnonzero((folds == f) | (folds == g))
        counts = np.bincount(y[train], minlength=features.n_classes)
        if (counts > 0).sum() < 2:  # so few groups that two folds hold all of a class: there is nothing to learn
            continue
        alike = np.repeat(train, np.rint(counts.max() / np.maximum(counts, 1)).astype(np.int64)[y[train]])
        found = {name: cue(alike, held, y) for name, cue in surface.items()}
        if embed is not None:
            found[EMBEDDING] = probe_scores(embed, y, train, held)[1].argmax(axis=1)
        for name, classes in found.items():
            said[name][f, held[folds[held] == g]] = classes[folds[held] == g]
            said[name][g, held[folds[held] == f]] = classes[folds[held] == f]
    return Cues(said, y, folds)
