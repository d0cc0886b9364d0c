"""Which experts, or neurons, are chosen together: beyond how often each is chosen and how many a token has.

A choice of k of E experts for each of T tokens is a table of noughts and ones. Its null deals choices out anew so that every
expert keeps its number of tokens and every token its number of experts: pairs of tokens trade what only one of them has
(curveball, Strona et al. 2014, doi:10.1038/ncomms5114, which visits all such tables alike). Trades among equal tokens alone
also keep what a token's identity decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moescope.kernels.loops import compiled
from moescope.routing.dense import balanced_groups
from moescope.routing.drawn import GOLDEN, below
from moescope.routing.trace import RoutingTrace

TRADES = 5  # for each token, before a draw counts (Strona et al. mix in fewer)


@dataclass(frozen=True)
class Together:
    """How alike two halves are in what is chosen together, one number for each: measured, or drawn.

    Attributes:
        pairs: correlation, over pairs of experts, of how the choice of the one goes with that of the other.
        groups: with experts grouped on one half, how much more two of one group go together on the other than two of
            different ones do: difference of mean correlations. The mean over both ways round.
    """

    pairs: float
    groups: float


class Halves:
    """One layer's choices in two halves of the texts.

    Args:
        ids: (T, K) chosen experts; ``n_experts`` or more where a slot is unused.
        halves: two arrays of row numbers.
        most: experts that are looked at, drawn at random where there are more; their choices are drawn with all others'.
        n_groups: of the experts looked at.
    """

    def __init__(
        self, ids: np.ndarray, n_experts: int, halves: tuple[np.ndarray, np.ndarray], *, n_groups: int, most: int, seed: int
    ) -> None:
        self.tables = tuple(_table(ids[rows], n_experts) for rows in halves)
        rates = np.stack([table.mean(0) for table in self.tables])
        # what is always chosen, or never, goes with nothing
        varied = np.flatnonzero(((rates > 0) & (rates < 1)).all(0))
        rng = np.random.default_rng(seed)
        self.experts = np.sort(rng.permutation(varied)[:most])
        self.left_out = n_experts - len(varied)
        self._seed = seed
        self.n_groups = min(n_groups, max(2, len(self.experts) // 2))

    @property
    def usable(self) -> bool:
        """Whether enough experts vary in both halves for pairs to be compared."""
        return len(self.experts) >= 2 * self.n_groups

    def measured(self) -> tuple[Together, list[np.ndarray]]:
        """The figures, and the groups (experts,) of each half."""
        groups = [balanced_groups(table[:, self.experts], self.n_groups, seed=self._seed) for table in self.tables]
        return self._of(self.tables, groups), groups

    def drawn(
        self, groups: list[np.ndarray], strata: tuple[np.ndarray, np.ndarray] | None, n: int, seed: int
    ) -> list[Together]:
        """``n`` draws of the null, of the same groups.

        Args:
            strata: of each half (rows,) token ids, among equal ones of which alone choices are traded.
        """
        rng, tables = np.random.default_rng(seed), [table.copy() for table in self.tables]
        found = []
        for _ in range(n):
            for half, table in enumerate(tables):
                trade(table, None if strata is None else strata[half], int(rng.integers(2**62)))
            found.append(self._of(tables, groups))
        return found

    def _of(self, tables: list[np.ndarray] | tuple[np.ndarray, ...], groups: list[np.ndarray]) -> Together:
        first, second = (_correlations(table[:, self.experts]) for table in tables)
        upper = np.triu_indices(len(self.experts), 1)
        pairs = float(np.corrcoef(first[upper], second[upper])[0, 1])
        return Together(pairs, (_within(groups[0], second, upper) + _within(groups[1], first, upper)) / 2)


def trade(table: np.ndarray, strata: np.ndarray | None, seed: int) -> None:
    """Deal the choices ``table`` uint8 (T, E) out anew, in place; see the module.

    Args:
        strata: (T,) labels, among equal ones of which rows trade; None: all.
    """
    labels = np.zeros(len(table), np.int64) if strata is None else strata
    order = np.argsort(labels, kind="stable")
    bounds = np.concatenate([[0], np.flatnonzero(np.diff(labels[order])) + 1, [len(order)]])
    size = np.repeat(np.diff(bounds), np.diff(bounds))
    start = np.repeat(bounds[:-1], np.diff(bounds))
    places = np.flatnonzero(size > 1)
    if len(places):
        _trade(table, order, places, start, size, TRADES * len(places), seed)


@compiled()
def _trade(
    table: np.ndarray, order: np.ndarray, places: np.ndarray, start: np.ndarray, size: np.ndarray, trades: int, seed: int
) -> None:
    state = np.uint64(seed)
    apart = np.empty(table.shape[1], np.int64)
    for _ in range(trades):
        state += GOLDEN
        place = places[below(state, len(places))]
        state += GOLDEN
        other = start[place] + below(state, size[place] - 1)
        if other >= place:
            other += 1
        a, b = order[place], order[other]
        n, own = 0, 0
        for e in range(table.shape[1]):
            if table[a, e] != table[b, e]:
                apart[n] = e
                n += 1
                own += table[a, e]
        for i in range(own):  # the first row takes as many as it had, any of them
            state += GOLDEN
            j = i + below(state, n - i)
            apart[i], apart[j] = apart[j], apart[i]
        for i in range(n):
            table[a, apart[i]] = i < own
            table[b, apart[i]] = i >= own


def _table(ids: np.ndarray, n_experts: int) -> np.ndarray:
    """uint8 (T, E) of choices (T, K)."""
    table = np.zeros((len(ids), n_experts + 1), np.uint8)
    np.put_along_axis(table, np.minimum(ids.astype(np.int64), n_experts), 1, axis=1)
    return np.ascontiguousarray(table[:, :n_experts])


def _correlations(table: np.ndarray) -> np.ndarray:
    """float32 (E, E)."""
    x = table.astype(np.float32)
    x -= x.mean(0)
    x /= np.linalg.norm(x, axis=0)
    return np.asarray(x.T @ x)


def _within(groups: np.ndarray, correlations: np.ndarray, upper: tuple[np.ndarray, np.ndarray]) -> float:
    same = groups[upper[0]] == groups[upper[1]]
    values = correlations[upper]
    return float(values[same].mean() - values[~same].mean())


def halves_of(trace: RoutingTrace, second: np.ndarray, tokens: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ``tokens`` random tokens, at most, of the sequences of the first half, and of the second.

    Args:
        second: bool (sequences,).
    """
    rng = np.random.default_rng(seed)
    of = second[trace.sequence]
    return tuple(np.sort(rng.permutation(np.flatnonzero(of == half))[:tokens]) for half in (False, True))  # type: ignore[return-value]
