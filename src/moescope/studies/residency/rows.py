"""Which requests a policy or a placement is fitted on, and which judge it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moescope.errors import InputError
from moescope.routing.trace import RoutingTrace
from moescope.study.rows import Rows, halves
from moescope.tasks.prompts import split_group

LEAST = 8
"""Groups of requests that can be halved and give an interval."""


@dataclass(frozen=True, eq=False)
class Halves:
    """A trace in two parts that share no group."""

    rows: Rows
    fit: RoutingTrace
    judge: RoutingTrace
    groups: np.ndarray
    """of the judging sequences (N,): what is independent, the topic, else the request"""

    @property
    def categories(self) -> np.ndarray:
        """(N,) of the judging sequences; empty where none is known."""
        return _categories(self.judge)


def split(trace: RoutingTrace, seed: int) -> Halves:
    """Half of the groups of each category fit, the others judge.

    Raises:
        InputError: fewer than eight groups.
    """
    groups = groups_of(trace)
    if len(np.unique(groups)) < LEAST:
        raise InputError(
            f"the trace has requests of {len(np.unique(groups))} topics (or as many requests), too few: of at least {LEAST}, "
            "half fit what the others judge"
        )
    rng = np.random.default_rng(seed)
    chosen, dealt = np.zeros(len(groups), bool), np.zeros(0, groups.dtype)
    categories = _categories(trace)
    late = 0
    for category in np.unique(categories):
        names = rng.permutation(np.setdiff1d(groups[categories == category], dealt))
        dealt = np.concatenate([dealt, names])
        first = names[: (len(names) + late) // 2]  # of an odd number the smaller half, and the next time the larger
        late = (len(names) + late) % 2
        chosen |= np.isin(groups, first)
    rows = halves("requests", groups, chosen)
    return Halves(rows, trace.select(rows.fit.tolist()), trace.select(rows.judge.tolist()), groups[rows.judge])


def groups_of(trace: RoutingTrace) -> np.ndarray:
    """(N,) what is independent: each sequence's topic, else itself."""
    return np.array([split_group(s.group)[0] or s.id for s in trace.sequences])


def _categories(trace: RoutingTrace) -> np.ndarray:
    return np.array([s.category or "" for s in trace.sequences])


def of_category(trace: RoutingTrace, category: str, *, others: bool = False) -> RoutingTrace:
    """The requests of a category alone, or all others."""
    wanted = [n for n, s in enumerate(trace.sequences) if ((s.category or "") == category) != others]
    return trace.select(wanted)


def laid_out(counts: np.ndarray, trace: RoutingTrace) -> np.ndarray:
    """Counts (N, L, max E) summed over sequences, -1 where a layer has no such expert."""
    total = counts.sum(0)
    for i, n in enumerate(trace.n_experts):
        total[i, n:] = -1
    return np.asarray(total)
