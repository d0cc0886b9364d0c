"""What the routing looks like beyond its separation: its trend with depth, its clusters, its experts and its load."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd

from moescope.routing.load import effective_share, entropy, gini, shares
from moescope.routing.nulls import Router
from moescope.routing.separation import Cells, Estimate, estimate, two_sided, with_and_without
from moescope.routing.signatures import Signatures
from moescope.routing.trace import RoutingTrace
from moescope.studies.signatures.experts import real_experts

_EXACT = 8  # layers up to which every order is enumerated
_CLUSTERED = 999  # permutations of the silhouette, which no sum over cells gives


def depth_trend(d: np.ndarray, left: np.ndarray, cells: Cells) -> Estimate:
    """Correlation of d with depth, in layers (of their values: ranks jump when a block is left out).

    The interval leaves out blocks of cells (on Fisher's scale). p is two-sided, the larger of that of the layers' order (exact
    for few layers) and that of the interval: errors that neighbouring layers share look like a trend in the order alone.

    Args:
        d: (L,) by layer.
        left: (L, U) d when each block is left out in turn.
    """
    rho = _correlation(d[:, None])[0]
    scale = np.arctanh(np.clip([rho, *_correlation(left)], -0.999, 0.999))
    found = estimate(float(scale[0]), scale[1:], cells)
    return Estimate(float(rho), float(np.tanh(found.low)), float(np.tanh(found.high)), max(_order_p(d, rho), found.p))


def _correlation(d: np.ndarray) -> np.ndarray:
    """Of each column of (L, M) with its row's number; 0 for a constant column."""
    centred = d - d.mean(0)
    depth = np.arange(len(d)) - (len(d) - 1) / 2
    length = np.sqrt((centred**2).sum(0) * (depth @ depth))
    return np.asarray(np.divide(depth @ centred, length, out=np.zeros(d.shape[1]), where=length > 0))


def _order_p(d: np.ndarray, rho: float) -> float:
    """Two-sided p of the layers' order: exact for few layers, else from 9,999 permutations."""
    n = len(d)
    if n <= _EXACT:
        orders = np.array(list(itertools.permutations(range(n))))
    else:
        rng = np.random.default_rng(0)
        orders = rng.permuted(np.tile(np.arange(n), (9_999, 1)), axis=1)
    null = _correlation(d[orders].T)
    at_least = int((np.abs(null) >= abs(rho) - 1e-9).sum())
    # The enumeration holds the observed order itself; a sample does not.
    return at_least / len(orders) if n <= _EXACT else (1 + at_least) / (1 + len(orders))


def silhouette(similarity: np.ndarray, cells: Cells, labels: np.ndarray) -> Estimate:
    """How much nearer each prompt lies to its own category than to the nearest other, on average (Rousseeuw 1987, -1 to 1).

    Prompts of one block count as neither near nor far.

    Args:
        similarity: (N, N), of which 1 minus is the distance.
        labels: (P, G) permuted categories of the cells, of which 999 are used.
    """
    member = np.zeros((len(similarity), len(cells.y)))
    member[np.arange(len(member)), cells.of] = 1
    away = (cells.groups[:, None] != cells.block).astype(float)  # (N, G)
    size = member.sum(0)
    distance = (1 - similarity) @ member / size * away  # to the cells, each of which counts alike

    def widths(y: np.ndarray, kept: np.ndarray) -> float:
        onehot = (y[:, None] == np.unique(cells.y)).astype(float) * kept[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = (distance @ onehot) / (away @ onehot)  # (N, C)
        own = np.searchsorted(np.unique(cells.y), y)
        inside = np.take_along_axis(mean, own[cells.of, None], 1)[:, 0]
        np.put_along_axis(mean, own[cells.of, None], np.inf, 1)
        other = np.where(np.isnan(mean), np.inf, mean).min(1)
        rows = kept[cells.of] & np.isfinite(other) & ~np.isnan(inside)
        if not rows.any():
            return float("nan")
        largest = np.maximum(np.maximum(inside, other)[rows], 1e-12)
        return float(np.average((other - inside)[rows] / largest, weights=1 / size[cells.of[rows]]))

    everything = np.ones(len(cells.y), dtype=bool)
    value = widths(cells.y, everything)
    left = np.array([widths(cells.y, cells.block != u) for u in np.unique(cells.block)])
    null = np.array([widths(row, everything) for row in labels[:_CLUSTERED]])
    return estimate(value, left, cells)._replace(p=two_sided(value, null))


def preference(signatures: Signatures, cells: Cells) -> tuple[float, np.ndarray]:
    """:func:`mean_preference` of all experts of the signatures."""
    return mean_preference(signatures.flat()[:, real_experts(signatures)], cells)


def mean_preference(used: np.ndarray, cells: Cells) -> tuple[float, np.ndarray]:
    """Mean eta squared over experts, and (U,) the same when each block of cells is left out in turn.

    Args:
        used: (N, E) how much each prompt uses each expert.
    """
    size = np.bincount(cells.of)[:, None]
    centred = used - used.mean(0)
    codes, code = np.unique(cells.y, return_inverse=True)
    blocks = len(np.unique(cells.block))
    sums = np.zeros((blocks, len(codes), used.shape[1]))  # of the cells' means, by block and category
    squares = np.zeros((blocks, used.shape[1]))
    count = np.zeros((blocks, len(codes)))
    np.add.at(sums, (cells.block[cells.of], code[cells.of]), centred / size[cells.of])
    np.add.at(squares, cells.block[cells.of], centred**2 / size[cells.of])
    np.add.at(count, (cells.block, code), 1)

    def explained(sums: np.ndarray, squares: np.ndarray, count: np.ndarray) -> np.ndarray:
        """(U,) from (U, C, E), (U, E) and (U, C)."""
        n = count.sum(-1)[:, None]
        middle = n * (sums.sum(1) / n) ** 2
        total = squares - middle
        with np.errstate(divide="ignore", invalid="ignore"):
            between = (sums**2 / count[..., None]).sum(1) - middle
        return np.asarray(np.divide(between, total, out=np.zeros(total.shape), where=total > 1e-20).mean(1))

    whole = [part.sum(0) for part in (sums, squares, count)]
    left = [every - part for every, part in zip(whole, (sums, squares, count), strict=True)]
    return float(explained(*(part[None] for part in whole))[0]), explained(*left)


def load_table(trace: RoutingTrace, cells: Cells, balanced: Router, n: int, seed: int) -> tuple[pd.DataFrame, Estimate]:
    """How each layer's tokens are spread over its experts, beside balanced routing of as many tokens.

    Returns:
        table ``routing_load``; and the mean over layers of ``effective`` less that of balanced routing.
    """
    counts = trace.counts()  # (N, L, E)
    whole, left = with_and_without(counts, cells)
    rng = np.random.default_rng(seed)
    null = np.stack([balanced(rng).sum(0) for _ in range(n)])
    rows, gaps = [], []
    for i, (layer, experts) in enumerate(zip(trace.layers, trace.n_experts, strict=True)):
        load, without, drawn = (shares(v[..., i, :experts]) for v in (whole, left, null))
        busiest = int(load.argmax())
        most = estimate(float(load[busiest] * experts), without[:, busiest] * experts, cells)
        effective = estimate(float(effective_share(load)), effective_share(without), cells)
        chance = float(effective_share(drawn).mean())
        unequal = estimate(float(gini(load)), gini(without), cells)
        even = gini(drawn)
        gaps.append(effective_share(np.concatenate([load[None], without])) - chance)
        rows.append(
            {
                "layer": layer,
                "experts": experts,
                "entropy": float(entropy(load) / np.log(experts)) if experts > 1 else 1.0,
                "effective": effective.value,
                "effective_low": effective.low,
                "effective_high": effective.high,
                "balanced_effective": chance,
                "gini": unequal.value,
                "gini_low": unequal.low,
                "gini_high": unequal.high,
                "balanced_gini": float(even.mean()),
                "balanced_gini_low": float(np.quantile(even, 0.025)),
                "balanced_gini_high": float(np.quantile(even, 0.975)),
                "busiest": busiest,
                "most": most.value,
                "most_low": most.low,
                "most_high": most.high,
                "balanced_most": float((drawn.max(-1) * experts).mean()),
                "idle": int((load == 0).sum()),
            }
        )
    gap = np.mean(gaps, axis=0)
    return pd.DataFrame(rows), estimate(float(gap[0]), gap[1:], cells)


def spread(counts: np.ndarray, null: np.ndarray, cells: Cells) -> Estimate:
    """Effective share of the experts beyond balanced routing, of one layer: counts (N, 1, E), balanced draws (B, 1, E)."""
    whole, left = with_and_without(counts, cells)
    gap = effective_share(shares(np.concatenate([whole[None], left])[:, 0])) - effective_share(shares(null[:, 0])).mean()
    return estimate(float(gap[0]), gap[1:], cells)
