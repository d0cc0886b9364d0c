"""Which experts carry a category: how much more of its tokens than of the others' they receive, whichever texts stand for it.

The unit is the cell (category and document, template or topic; :mod:`moescope.routing.separation`). Under the null whole cells
change their categories, and the largest value over all experts, layers and categories gives family-wise p (Westfall and Young
1993). Beside it stands what the tokens alone would give: each token's choices as they are elsewhere, outside its cell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from moescope.routing.separation import Cells, Estimate, cells_of, estimate
from moescope.routing.trace import RoutingTrace
from moescope.stats import permutation_p

HALVES = 2


@dataclass(frozen=True, eq=False)
class CellShares:
    """Of each of G cells the share of its tokens that reach each of M experts, layer after layer."""

    cells: Cells
    layer: np.ndarray
    """(M,) place of each expert's layer among those traced"""
    number: np.ndarray
    """(M,) its number there"""
    shares: np.ndarray
    """(G, M)"""
    beyond: np.ndarray | None
    """(G, M) shares of tokens that stand in other cells too, less what they reach there; None without token ids, or where no
    token recurs"""


def cell_shares(trace: RoutingTrace, cells: Cells) -> CellShares:
    """The shares of every expert; each of a cell's tokens counts alike."""
    n_cells, of = len(cells.y), cells.of[trace.sequence]
    size = np.bincount(of, minlength=n_cells)
    counts = trace.counts()  # (N, L, E)
    summed = np.zeros((n_cells, *counts.shape[1:]))
    np.add.at(summed, cells.of, counts)
    shares = summed / np.maximum(size, 1)[:, None, None]
    true, number = trace.experts
    layer = np.searchsorted(trace.layers, true)
    extra = None if trace.tokens is None else _beyond_tokens(trace, of, n_cells)
    return CellShares(cells, layer, number, shares[:, layer, number], None if extra is None else extra[:, layer, number])


def _beyond_tokens(trace: RoutingTrace, of: np.ndarray, n_cells: int) -> np.ndarray | None:
    """(G, L, E): what recurring tokens reach in a cell less what the same tokens reach outside it."""
    assert trace.tokens is not None
    _, code = np.unique(trace.tokens, return_inverse=True)
    n_tokens = int(code.max()) + 1
    inside = sparse.csr_matrix((np.ones(len(code)), (of, code)), shape=(n_cells, n_tokens))
    everywhere = np.bincount(code, minlength=n_tokens)
    place = inside.tocoo()
    outside = everywhere[place.col] - place.data
    weight = np.divide(place.data, outside, out=np.zeros(len(outside)), where=outside > 0)
    weights = sparse.csr_matrix((weight, (place.row, place.col)), shape=inside.shape)
    recurs = np.asarray(weights[of, code]).ravel()  # (T,) 0 where a token stands in this cell alone
    if not recurs.any():
        return None
    size = np.bincount(of, recurs > 0, minlength=n_cells)
    width = max(trace.n_experts)
    found = np.zeros((n_cells, len(trace.layers), width))
    for at in range(len(trace.layers)):
        ids = trace.ids[:, at]
        used = ids != trace.empty
        row, slot = np.nonzero(used)
        expert = ids[row, slot].astype(np.int64)
        chosen = np.bincount(code[row] * width + expert, minlength=n_tokens * width).reshape(n_tokens, width)
        cell = of[row] * width + expert
        kept = recurs[row] > 0
        own, again = (
            np.bincount(cell, part, minlength=n_cells * width).reshape(n_cells, width) for part in (kept, recurs[row])
        )
        found[:, at] = own - (weights @ chosen - again)
    return found / np.maximum(size, 1)[:, None, None]


def advantage(values: np.ndarray, labels: np.ndarray, n_classes: int) -> np.ndarray:
    """(C, M): mean of values (G, M) in each category less that in the others, over the error that chance gives it."""
    onehot = (labels == np.arange(n_classes)[:, None]).astype(float)  # (C, G)
    inside = onehot.sum(1, keepdims=True)
    outside = len(labels) - inside
    sums = onehot @ values
    gap = sums / inside - (values.sum(0) - sums) / outside
    error = values.std(0, ddof=1) * np.sqrt(1 / inside + 1 / outside)
    return np.asarray(np.divide(gap, error, out=np.zeros(gap.shape), where=error > 1e-12))


@dataclass(frozen=True, eq=False)
class Carriers:
    """What each of M experts has to do with each of C categories."""

    rate: np.ndarray
    """(C, M) share of the category's tokens"""
    lift: np.ndarray
    """(C, M) that over the share of the others' tokens"""
    p: np.ndarray
    """(C, M) family-wise: that whichever cells stand for the category, an expert has so much more of them"""
    p_beyond: np.ndarray | None
    """(C, M) likewise of what goes beyond the tokens' identity"""


def carriers(found: CellShares, labels: np.ndarray) -> Carriers:
    """Every expert and category.

    Args:
        labels: (P, G) permuted categories of the cells.
    """
    y, n = found.cells.y, int(found.cells.y.max()) + 1
    rate = np.stack([found.shares[y == c].mean(0) for c in range(n)])
    others = np.stack([found.shares[y != c].mean(0) for c in range(n)])
    lift = np.divide(rate, others, out=np.where(rate > 0, np.inf, 1.0), where=others > 0)
    return Carriers(
        rate, lift, _family(found.shares, y, labels), None if found.beyond is None else _family(found.beyond, y, labels)
    )


def _family(values: np.ndarray, y: np.ndarray, labels: np.ndarray) -> np.ndarray:
    n = int(y.max()) + 1
    null = np.array([advantage(values, row, n).max() for row in labels])
    return np.asarray(permutation_p(advantage(values, y, n), null))


@dataclass(frozen=True, eq=False)
class HeldOut:
    """How much more of a category's tokens than of the others' goes to the experts that the other half of the cells chose."""

    gap: np.ndarray
    """(C,) mean over them of the difference of shares"""
    null: np.ndarray
    """(P, C) the same, experts chosen and judged under permuted categories"""
    beyond: tuple[Estimate, ...] | None
    """of each category, what goes beyond the tokens' identity, of experts chosen by the first half and judged by the second"""


def held_out(found: CellShares, labels: np.ndarray, per_layer: int, seed: int) -> HeldOut | None:
    """Choose ``per_layer`` experts of each layer by one half of the cells and judge them by the other, both ways round; None
    where a category has too few cells to be halved."""
    cells, rng = found.cells, np.random.default_rng(seed)
    half = _half(cells.y, cells, rng)
    if any(len(np.unique(cells.y[half == part])) < int(cells.y.max()) + 1 for part in range(HALVES)):
        return None
    gap, chosen = _halved(found, cells.y, half, per_layer)
    null = np.array([_halved(found, row, _half(row, cells, rng), per_layer)[0] for row in labels])
    if found.beyond is None:
        return HeldOut(gap, null, None)
    return HeldOut(gap, null, tuple(_estimated(found, chosen, half, c) for c in range(len(gap))))


def _half(y: np.ndarray, cells: Cells, rng: np.random.Generator) -> np.ndarray:
    """(G,) which half a cell is of, whole blocks in one: every other one of a category's cells or, where categories share
    blocks, of the blocks."""
    order = rng.permutation(len(y))
    half = np.empty(len(y), dtype=np.int64)
    if len(np.unique(cells.block)) < len(y):
        return np.asarray(rng.permutation(int(cells.block.max()) + 1)[cells.block] % HALVES)
    for c in np.unique(y):
        rows = order[y[order] == c]
        half[rows] = np.arange(len(rows)) % HALVES
    return half


def _halved(found: CellShares, y: np.ndarray, half: np.ndarray, per_layer: int) -> tuple[np.ndarray, np.ndarray]:
    """(C,) the gap, and (2, C, M) which experts were chosen, by the half that judges."""
    n, n_layers = int(y.max()) + 1, int(found.layer.max()) + 1
    chosen = np.zeros((HALVES, n, found.shares.shape[1]), dtype=bool)
    gaps = np.empty((HALVES, n))
    for part in range(HALVES):
        train, judge = half != part, half == part
        size = advantage(found.shares[train], y[train], n)
        for layer in range(n_layers):
            members = np.flatnonzero(found.layer == layer)
            best = np.argsort(-size[:, members], axis=1, kind="stable")[:, :per_layer]
            np.put_along_axis(chosen[part], members[best], True, 1)
        for c in range(n):
            share = found.shares[judge][:, chosen[part, c]].mean(1)
            own = y[judge] == c
            gaps[part, c] = share[own].mean() - share[~own].mean()
    return gaps.mean(0), chosen


def _estimated(found: CellShares, chosen: np.ndarray, half: np.ndarray, c: int) -> Estimate:
    """What the experts chosen for a category by the first half have beyond the tokens' identity in the second, with an interval
    that leaves out whole blocks: both ways round, the two parts would lean the same way by chance."""
    assert found.beyond is not None
    judge = half == 1
    value, y, block = found.beyond[judge][:, chosen[1, c]].mean(1), found.cells.y[judge], found.cells.block[judge]

    def gap(kept: np.ndarray) -> float:
        own = y[kept] == c
        return float(value[kept][own].mean() - value[kept][~own].mean()) if 0 < own.sum() < len(own) else float("nan")

    left = np.array([gap(block != one) for one in np.unique(block)])
    judged = cells_of(y, block, found.cells.unit)
    return estimate(gap(np.ones(len(value), bool)), left, judged)
