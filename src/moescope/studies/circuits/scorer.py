"""From held-out hits to figures: classes counted alike, pairs compared by groups, intervals as wide as they must be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import bernoulli, norm
from scipy.stats import t as student

from moescope.stats import Difference, class_weights, group_bootstrap, paired_bootstrap_difference, wilson

_Z = float(norm.ppf(0.975))


@dataclass(frozen=True)
class Scorer:
    """Judges hits on the rows of one task.

    Attributes:
        y: (N,) int class; groups: (N,) what is independent.
        widening: of intervals, see :func:`moescope.select.widening.interval_widening`.
    """

    y: np.ndarray
    groups: np.ndarray
    seed: int = 0
    widening: float = 1.0

    @property
    def chance(self) -> float:
        """Balanced accuracy without knowledge: one over the number of classes."""
        return 1.0 / len(np.unique(self.y))

    def weighed(self, hits: np.ndarray) -> np.ndarray:
        """(N,) float whose mean is the balanced accuracy of ``hits`` (N,)."""
        return np.asarray(hits * class_weights(self.y))

    def balanced(self, hits: np.ndarray) -> float:
        """Mean over the classes of the share of hits."""
        return float(self.weighed(hits).mean())

    def interval(self, hits: np.ndarray) -> tuple[float, float]:
        """95 % interval of the share of hits (N,)."""
        value = float(hits.mean())
        low, high = group_bootstrap(hits, self.groups, seed=self.seed)
        return max(0.0, value - self.widening * (value - low)), min(1.0, value + self.widening * (high - value))

    def gap(self, hits: np.ndarray, others: np.ndarray | float, *, spread: float = 0.0) -> Difference:
        """By how much the balanced accuracy of ``hits`` (N,) exceeds that of ``others`` on the same rows.

        Args:
            others: (N,), a mean over draws for several, or one balanced accuracy.
            spread: standard deviation that comes on top, such as that over random draws of ``others``.

        The p-value is two-sided and follows from the interval.
        """
        first = self.weighed(hits)
        second = self.weighed(others) if isinstance(others, np.ndarray) else np.full(len(first), others)
        return self.difference(first, second, spread=spread)

    def spread(self, sets: np.ndarray) -> float:
        """Standard deviation of the balanced accuracy over sets of neurons or bases, from their hits (R, N).

        What comes of the rows being few is taken off: it is in the interval over groups already.
        """
        weighed = self.weighed(sets)
        own = weighed - weighed.mean(0)  # of a set, not of a row
        _, code = np.unique(self.groups, return_inverse=True)
        sums = np.zeros((len(sets), int(code.max()) + 1))
        np.add.at(sums.T, code, (own - own.mean(1, keepdims=True)).T)
        noise = float((sums**2).sum(1).mean()) / len(code) ** 2
        return float(np.sqrt(max(float(weighed.mean(1).var()) - noise, 0.0) * len(sets) / max(len(sets) - 1, 1)))

    def bits(self, gained: np.ndarray, alone: np.ndarray, margin: float) -> float:
        """What is gained a row (N,) in bits, classes counted alike, beyond those that ``margin`` more hits take.

        Above 0 the gain is not absent, though hits may be too few to show it. From hits ``alone`` (N,) to ``margin`` more, the
        entropy of a miss falls by as much; 0 where they leave no such room.
        """
        missed = 1 - self.balanced(alone)
        if missed <= margin:
            return 0.0
        return float(
            self.weighed(gained).mean() - np.log2(np.e) * (bernoulli.entropy(missed) - bernoulli.entropy(missed - margin))
        )

    def difference(self, first: np.ndarray, second: np.ndarray, *, spread: float = 0.0) -> Difference:
        """:meth:`gap` of two arrays (N,) that are weighed already."""
        found = paired_bootstrap_difference(first, second, self.groups, seed=self.seed)
        n_groups = len(np.unique(self.groups))
        below, above = found.value - found.low, found.high - found.value
        if np.ptp(first - second) == 0:  # resampling what does not vary claims certainty
            below = above = wilson(0, n_groups)[1]
        below, above = (float(np.hypot(self.widening * side, _Z * spread)) for side in (below, above))
        error = (below + above) / 2 / _Z
        p = float(2 * student.sf(abs(found.value) / error, n_groups - 1)) if error > 0 else 1.0
        return Difference(found.value, found.value - below, found.value + above, p)
