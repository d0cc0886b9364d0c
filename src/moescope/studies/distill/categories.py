"""Whether experts prefer kinds of text: beyond what documents give by chance, and beyond the same student before training.

A document is the unit: an expert that answers one document is no expert of its category. An untrained router already sends
kinds of text to different experts, since their inputs differ; only what training adds is a finding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from moescope.stats import benjamini_hochberg, permuted_label_matrix
from moescope.study.verdicts import Case, Effect, beyond_draws, significant
from moescope.types import Control

_RESAMPLES = 400


@dataclass(frozen=True, eq=False)
class Uses:
    """In how many tokens of each document each expert ran."""

    experts: NDArray[np.int64]
    """(E,), their numbers"""
    counts: NDArray[np.float64]
    """(E, D)"""
    tokens: NDArray[np.float64]
    """(D,), of all"""
    categories: NDArray[np.int64]
    """(D,), of C"""

    def lifts(self, labels: NDArray[np.int64], weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """(P, E, C): each expert's rate in each category over its rate in all, for labels (P, D), documents counted ``weights``
        (D,) times. An expert that never ran has lift 1."""
        weight = np.ones(len(self.tokens)) if weights is None else weights
        member = (labels[:, :, None] == np.arange(self.categories.max() + 1)) * weight[:, None]
        inside = self.counts @ member  # (P, E, C)
        share = (self.tokens @ member) / (self.tokens @ weight)
        own = inside / np.maximum(self.counts @ weight, 1e-12)[:, None]
        lift = own / np.maximum(share, 1e-12)[:, None]
        return np.where((self.counts @ weight > 0)[:, None], lift, 1.0)


@dataclass(frozen=True, eq=False)
class Preferences:
    """The largest lift of each expert."""

    category: NDArray[np.int64]
    """(E,)"""
    lift: NDArray[np.float64]
    """(E,)"""
    p: NDArray[np.float64]
    """(E,), of as large a lift in any category with categories shuffled among documents"""
    mean: float
    """of the logarithms"""
    draws: NDArray[np.float64]
    """(P,): the same, shuffled"""

    @property
    def found(self) -> int:
        """Experts that prefer a category at a false discovery rate of 5 %."""
        return sum(map(significant, benjamini_hochberg(self.p))) if len(self.p) else 0


def preferences(uses: Uses, n_permutations: int = 999, seed: int = 0) -> Preferences:
    """Which category each expert prefers, and by how much."""
    shuffled = permuted_label_matrix(uses.categories, None, n_permutations, np.random.default_rng(seed))
    own = uses.lifts(uses.categories[None])[0]
    best = own.max(1)
    null = uses.lifts(shuffled).max(2)  # (P, E)
    return Preferences(
        category=own.argmax(1),
        lift=best,
        p=(1 + (null >= best).sum(0)) / (1 + n_permutations),
        mean=float(np.log(best).mean()) if len(best) else 0.0,
        draws=np.log(null).mean(1) if len(best) else np.zeros(n_permutations),
    )


def category_case(
    name: str, trained: Uses, untrained: Uses, margin: float, family: str, *, n_permutations: int = 999, seed: int = 0
) -> Case:
    """That the experts of ``name`` tell categories apart, against shuffled documents and against the untrained student.

    Args:
        margin: smallest mean log lift of interest.
    """
    own, other = (preferences(u, n_permutations, seed) for u in (trained, untrained))
    excess, excess_untrained = own.mean - own.draws.mean(), other.mean - other.draws.mean()
    drawn = _resampled(trained, untrained, seed)
    half = float(stats.t.ppf(0.975, len(trained.tokens) - 1) * drawn.std(ddof=1))
    value = float(excess - excess_untrained)
    return Case(
        f"mean log lift of the preferred category, {len(own.lift)} most used experts of {name}: they tell kinds of text apart",
        own.mean,
        beyond_draws(own.mean, own.draws, "with categories shuffled among documents", margin, share=False),
        id="M7",
        interval=None,
        control=Control("the same student untrained", other.mean),
        rivals=(
            Effect(value, value - half, value + half, "the same student untrained", margin, kind="trivial cue", share=False),
        ),
        family=family,
        words=f"{own.found} of {len(own.p)} experts prefer a category at a false discovery rate of 5 %, {other.found} of "
        f"{len(other.p)} untrained; the interval is of the difference from the shuffles",
    )


def _resampled(one: Uses, other: Uses, seed: int) -> NDArray[np.float64]:
    """(B,) differences of the two students' mean log lifts, documents of each category drawn anew, the same for both."""
    rng = np.random.default_rng([seed, 1])
    strata = [np.flatnonzero(one.categories == c) for c in np.unique(one.categories)]
    found = np.empty(_RESAMPLES)
    for b in range(_RESAMPLES):
        weight = np.zeros(len(one.tokens))
        for members in strata:
            weight[members] = np.bincount(rng.integers(len(members), size=len(members)), minlength=len(members))
        means = [np.log(u.lifts(u.categories[None], weight)[0].max(1)).mean() for u in (one, other)]
        found[b] = means[0] - means[1]
    return found
