"""Routing drawn at random, and counted; compiled. Numbers are those of splitmix64 (Steele et al. 2014)."""

from __future__ import annotations

import numpy as np

from moescope.kernels.loops import compiled

GOLDEN, _FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S27, _S30, _S31, _S32 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(32)


@compiled()
def below(state: np.uint64, n: int) -> int:
    """A number from 0 to n - 1 (n < 2**32), by the generator's ``state``, which the caller moves on by ``GOLDEN``."""
    z = (state ^ (state >> _S30)) * _FIRST
    z = (z ^ (z >> _S27)) * _SECOND
    z = z ^ (z >> _S31)
    return np.int64(((z >> _S32) * np.uint64(n)) >> _S32)  # type: ignore[return-value]


@compiled()
def uniform_ids(used: np.ndarray, n_experts: int, seed: int, ids: np.ndarray) -> None:
    """Fill ``ids`` (T, K): as many distinct experts of a token as it ``used`` (T,), any set as likely as any other.

    The first steps of a Fisher-Yates shuffle.
    """
    order = np.arange(n_experts)
    state = np.uint64(seed)
    for t in range(len(used)):
        for k in range(used[t]):
            state += GOLDEN
            j = k + below(state, n_experts - k)
            order[k], order[j] = order[j], order[k]
            ids[t, k] = order[k]


@compiled()
def shuffled_rows(order: np.ndarray, bounds: np.ndarray, seed: int, source: np.ndarray) -> None:
    """Fill ``source`` (T,): a row's new content is that of row ``source``; rows change places within each run of
    ``order[bounds[s]:bounds[s + 1]]`` alone, every order of them as likely as any other."""
    state = np.uint64(seed)
    dealt = order.copy()
    for s in range(len(bounds) - 1):
        start = bounds[s]
        for i in range(bounds[s + 1] - 1, start, -1):
            state += GOLDEN
            j = start + below(state, i - start + 1)
            dealt[i], dealt[j] = dealt[j], dealt[i]
    for i in range(len(order)):
        source[order[i]] = dealt[i]


@compiled()
def tally(ids: np.ndarray, source: np.ndarray, sequence: np.ndarray, n_experts: int, counts: np.ndarray) -> None:
    """Add to ``counts`` (N, E) how often each sequence's tokens reach each expert, by the choices ``ids[source[t]]`` (K,).

    A slot of ``n_experts`` or more is unused.
    """
    for t in range(len(source)):
        for k in range(ids.shape[1]):
            e = ids[source[t], k]
            if e < n_experts:
                counts[sequence[t], e] += 1
