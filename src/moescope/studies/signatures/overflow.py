"""Which choices go to experts that are full: experts with a capacity, batches of tokens, beside a uniform router."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from moescope.routing.cache import uniform_trace
from moescope.routing.load import dropped
from moescope.routing.separation import Cells, estimate
from moescope.routing.trace import RoutingTrace

_BATCHES = 32


def overflow_table(
    trace: RoutingTrace, cells: Cells, factors: Sequence[float], batches: Sequence[int], n: int, seed: int
) -> pd.DataFrame:
    """Table ``overflow``: batches of random tokens, whose choices count in the order of their numbers alone.

    Args:
        n: uniform routers drawn.
    """
    rng = np.random.default_rng(seed)
    sizes = [min(size, len(trace)) for size in batches]
    picks = [np.concatenate([rng.choice(len(trace), size, replace=False) for _ in range(_BATCHES)]) for size in sizes]
    drawn: list[list[np.ndarray]] = [[] for _ in sizes]
    for i in range(n):
        ids = uniform_trace(trace, seed + i).ids
        for kept, tokens, picked in zip(drawn, sizes, picks, strict=True):
            kept.append(_counts(ids[picked], trace, np.repeat(np.arange(_BATCHES), tokens), None)[:, 0])
    rows = []
    for tokens, picked, uniform in zip(sizes, picks, drawn, strict=True):
        batch = np.repeat(np.arange(_BATCHES), tokens)
        block = cells.groups[trace.sequence[picked]]
        own = _counts(trace.ids[picked], trace, batch, block)
        whole = own.sum(1)
        left = whole[:, None] - own  # (B, U, L, E), a block of prompts left out
        for factor in factors:
            found = estimate(_mean(whole, trace, factor), _mean_of_each(left, trace, factor), cells)
            null = np.array([_mean(one, trace, factor) for one in uniform])
            low, high = np.quantile(null, [0.025, 0.975])
            rows.append(
                {
                    "tokens": tokens,
                    "capacity_factor": factor,
                    "dropped": found.value,
                    "low": found.low,
                    "high": found.high,
                    "uniform": float(null.mean()),
                    "uniform_low": float(low),
                    "uniform_high": float(high),
                }
            )
    return pd.DataFrame(rows)


def _counts(ids: np.ndarray, trace: RoutingTrace, batch: np.ndarray, block: np.ndarray | None) -> np.ndarray:
    """(B, U, L, E) choices of the tokens' ids (T, L, K)."""
    units = 1 if block is None else int(block.max()) + 1
    width = max(trace.n_experts)
    at = (batch * units + (0 if block is None else block))[:, None] * width
    counts = np.zeros((_BATCHES * units * width, len(trace.layers)))
    for i in range(len(trace.layers)):
        used = ids[:, i] != trace.empty
        counts[:, i] = np.bincount((at + ids[:, i])[used], minlength=len(counts))
    return np.moveaxis(counts.reshape(_BATCHES, units, width, -1), 3, 2)


def _mean(counts: np.ndarray, trace: RoutingTrace, factor: float) -> float:
    """Of counts (B, L, E): the share of all choices that is dropped."""
    return float(_mean_of_each(counts[:, None], trace, factor)[0])


def _mean_of_each(counts: np.ndarray, trace: RoutingTrace, factor: float) -> np.ndarray:
    lost = [dropped(counts[:, :, i, :n], factor).sum(0) for i, n in enumerate(trace.n_experts)]
    return np.asarray(np.sum(lost, 0) / np.maximum(counts.sum((0, 2, 3)), 1))
