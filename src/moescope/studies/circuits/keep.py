"""Is a circuit enough? Replace everything else in the running model, beside other sets of as many neurons.

Every site of the study is replaced at once, in all its layers, at the final token; a text's earlier tokens are as they were.
What is kept is computed from what is left, so that a circuit has to hold its own inputs, as in the field's benchmarks. In the
residual stream the skip connection carries a coordinate through the layers, and what is kept is a coordinate in every layer of
the site: one layer's coordinate alone would be replaced again by the next. To replace one layer only, and let later layers read
what earlier tokens still know, name it (``--site resid:9``).

Faithfulness of k kept neurons under a metric m is ``(m(k) - m(none)) / (m(all) - m(none))``; its area over the share that is
kept is CPR, the area of ``|1 - faithfulness|`` is CMD (Mueller et al. 2025, "MIB: a mechanistic interpretability benchmark",
arXiv 2504.13151; trapezoids over the share, as there, but from 0 on). Faithfulness may exceed 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from moescope.intervene.gradients import gradients
from moescope.intervene.kept_sets import KeptSets
from moescope.intervene.matched import STREAM
from moescope.intervene.replicas import Reading
from moescope.stats import class_weights
from moescope.studies.circuits.causal_targets import true_odds
from moescope.studies.circuits.causal_values import Split
from moescope.studies.circuits.features import Columns
from moescope.studies.circuits.halves import Halved
from moescope.studies.circuits.trial import Trial
from moescope.types import Site

if TYPE_CHECKING:
    from torch import Tensor

    from moescope.models import LoadedModel

KeepMode = Literal["mean", "resample"]
ORDERS = ("circuit", "top_variance", "attribution")
"""In which units are kept, beside random orders."""
KEPT_SHARE = 0.9
"""Of the effect, that counts as kept."""


@dataclass(frozen=True)
class Units:
    """What is kept or replaced as one: in the residual stream a coordinate in every layer, elsewhere a neuron.

    Attributes:
        of_column: (D,) int, the unit of each column.
        space: (U,) int, equal for units from which a random counterpart may be drawn: those of one site, or of the stream.
    """

    columns: Columns
    of_column: np.ndarray
    space: np.ndarray

    @classmethod
    def of(cls, columns: Columns) -> Units:
        spaces: dict[Site | None, int] = {}
        of_column = np.empty(columns.n, np.int64)
        space: list[int] = []
        starts: dict[int, int] = {}
        for i, site in enumerate(columns.sites):
            number = spaces.setdefault(None if site.kind in STREAM else site, len(spaces))
            if number not in starts:
                starts[number] = len(space)
                space += [number] * columns.widths[i]
            of_column[columns.slice_of(i)] = starts[number] + np.arange(columns.widths[i])
        return cls(columns, of_column, np.array(space))

    @property
    def n(self) -> int:
        return len(self.space)

    @cached_property
    def neurons(self) -> np.ndarray:
        """(U,) how many neurons each is."""
        return np.bincount(self.of_column, minlength=self.n)

    def by_site(self) -> dict[Site, np.ndarray]:
        """The unit of each coordinate of each site."""
        return {site: self.of_column[self.columns.slice_of(i)] for i, site in enumerate(self.columns.sites)}

    def first_met(self, ranking: np.ndarray) -> np.ndarray:
        """(U,) units in the order in which a ranking (D,) of columns first names them."""
        units = self.of_column[ranking]
        return np.asarray(units[np.sort(np.unique(units, return_index=True)[1])])

    def mean_over(self, values: np.ndarray) -> np.ndarray:
        """(U,) mean over the columns of each unit."""
        return np.asarray(np.bincount(self.of_column, values, self.n) / self.neurons)

    def alike(self, order: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(U,) a random order that has a unit of the same space at every place."""
        drawn = np.empty(self.n, np.int64)
        spaces = self.space[order]
        for space in np.unique(self.space):
            drawn[spaces == space] = rng.permutation(np.flatnonzero(self.space == space))
        return drawn


def kept_sizes(k: int, n: int) -> tuple[int, ...]:
    """How many of n units are kept: 1, 2, 5, 10, … below n, and the study's own k."""
    series = {digit * 10**power for power in range(len(str(n))) for digit in (1, 2, 5)} | {k}
    return tuple(sorted(size for size in series if size < n))


class KeptCircuit:
    """One task's circuit kept alone, beside other orders, as interventions (number 0: none; number 1: everything replaced).

    Args:
        mode: what else is set to: ``"mean"`` over the selection texts, or ``"resample"``, the values of a random one of them,
            one for all neurons.
        n_random: random orders, alike in layers.
    """

    def __init__(
        self, model: LoadedModel, task: Halved, importance: np.ndarray, *, k: int, mode: KeepMode, n_random: int, seed: int = 0
    ) -> None:
        self.task, self.mode = task, mode
        self.units = units = Units.of(task.columns)
        self.sizes = kept_sizes(k, units.n)
        order = units.first_met(task.ranking)
        rng = np.random.default_rng([seed, 3])
        self.random = [units.alike(order, rng) for _ in range(n_random)]
        variance = np.argsort(-units.mean_over(task.variance), kind="stable")
        self.orders = [order, variance, np.argsort(-units.mean_over(importance), kind="stable"), *self.random]
        places = np.argsort(np.stack(self.orders), axis=1).astype(np.int32)
        kept = [(0, units.n), (0, 0), *((number, size) for number in range(len(places)) for size in self.sizes)]
        trial = task.trial
        donors = balanced_donors(trial.split, np.random.default_rng([seed, 4]))
        values = {
            site: torch.from_numpy(x.mean(0, dtype=np.float64) if mode == "mean" else x[donors]).float()
            for site, x in ((site, trial.vectors[site]) for site in task.columns.sites)
        }
        self.sets = KeptSets(model, units.by_site(), places, kept, values)

    def proof(self, k: int) -> dict[str, Any]:
        """That the random orders do not begin as the circuit does; of few neurons one may by chance."""
        own = set(self.orders[0][:k].tolist())
        shared = [len(own & set(order[:k].tolist())) for order in self.random]
        said = f"of {k} the random orders begin with {max(shared)} of the circuit's at most, {np.mean(shared):.2g} on average"
        return {"differs": float(np.mean(shared)) < k, "evidence": said}

    def curves(self, scores: Mapping[str, np.ndarray]) -> dict[str, KeptScores]:
        """By target, from the scores (S, N) of ``sets``; classes are counted alike."""
        weights = class_weights(self.task.trial.split.labels)
        shape = (len(self.orders), len(self.sizes), len(weights))
        found = {}
        for target, score in scores.items():
            weighed = score.astype(np.float64) * weights
            found[target] = KeptScores(weighed[0], weighed[1], weighed[2:].reshape(shape))
        return found


@dataclass(frozen=True)
class KeptScores:
    """What a target was with all neurons (N,), with none (N,), and with the first of each order (O, K, N)."""

    everything: np.ndarray
    none: np.ndarray
    kept: np.ndarray


def balanced_donors(split: Split, rng: np.random.Generator) -> np.ndarray:
    """(E,) selection text whose values each judging text is given: to the texts of a class, texts of all classes in turn, so
    that what is replaced says nothing of the class.
    """
    donors = np.empty(len(split.labels), np.int64)
    for c in range(split.n_classes):
        own = rng.permutation(np.flatnonzero(split.labels == c))
        for turn in range(split.n_classes):
            given = own[turn :: split.n_classes]
            donors[given] = rng.choice(np.flatnonzero(split.fit_labels == turn), len(given))
    return donors


def importance_of(task: Halved, *, texts: int, seed: int = 0, batch_tokens: int = 8192) -> np.ndarray:
    """(D,) what replacing each column by its mean would cost the right class, to first order: the mean over selection texts of
    gradient times activation less its mean (attribution patching: Nanda 2023; Syed, Rager and Conmy 2023, arXiv 2310.10348).

    The outcome is the odds of the right answer, or of the right class by the probe where the task has no answers.

    Args:
        texts: at most so many, drawn at random from those on which the circuit is ranked.
    """
    trial = task.trial
    rows = np.sort(np.random.default_rng([seed, 5]).permutation(len(trial.fitted))[:texts])
    replicas = trial.replicas(of=[trial.fitted[i] for i in rows], batch_tokens=batch_tokens)
    slopes = gradients(replicas, task.columns.sites, _odds(trial, trial.split.fit_labels[rows]))
    away = {site: trial.vectors[site][rows] - trial.vectors[site].mean(0, dtype=np.float64) for site in slopes}
    return np.concatenate([(slopes[site] * away[site]).mean(0) for site in task.columns.sites])


def _odds(trial: Trial, labels: np.ndarray) -> Any:
    def outcome(reading: Reading) -> Tensor:
        true = torch.from_numpy(labels[reading.examples]).to(reading.hidden.device)[:, None]
        if trial.answers and reading.logits is not None:
            return true_odds(reading.logits[..., list(trial.answers)].float(), true)
        return true_odds(trial.probe.scores(reading.hidden), true)

    return outcome


def areas(faithfulness: np.ndarray, sizes: Sequence[int], n: int) -> tuple[np.ndarray, np.ndarray]:
    """CPR and CMD (...,) of faithfulness (..., K) with ``sizes`` (K,) of n units, 0 where none is kept and 1 where all are."""
    f = _ended(np.asarray(faithfulness))
    shares = np.array([0, *sizes, n]) / n
    return np.trapezoid(f, shares, axis=-1), np.trapezoid(np.abs(1 - f), shares, axis=-1)


def share_that_keeps(faithfulness: np.ndarray, sizes: Sequence[int], n: int, least: float = KEPT_SHARE) -> np.ndarray:
    """(...,) the smallest share from which on faithfulness (..., K) stays at ``least`` or above: whole units, on the lines
    between the sizes.
    """
    f = _ended(np.asarray(faithfulness))
    at = np.array([0, *sizes, n])
    last = f.shape[-1] - 1 - np.argmax(f[..., ::-1] < least, axis=-1)  # of those below; none is kept is always below
    below, above = (np.take_along_axis(f, i[..., None], -1)[..., 0] for i in (last, last + 1))
    crossed = at[last] + (least - below) / (above - below) * (at[last + 1] - at[last])
    return np.asarray(np.ceil(crossed - 1e-9) / n)


def _ended(f: np.ndarray) -> np.ndarray:
    ends = np.zeros((*f.shape[:-1], 1))
    return np.concatenate([ends, f, ends + 1], axis=-1)
