"""How far routing separates categories, with the cell (category and template) as the unit.

Prompts of one template are no independent evidence: they are alike because they are worded alike. So pairs of one template are
left out, whole cells change places under the null, and the interval leaves out whole templates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

from moescope.stats import permuted_label_matrix, wilson

MEASURED = ("within", "across", "gap", "d")
_BLOCK = 1 << 24  # entries of the permutation products held at once: 128 MiB


@dataclass(frozen=True, eq=False)
class Cells:
    """The cells of N prompts: one for every block (a template, else a topic, else the prompt itself) of every category."""

    of: np.ndarray
    """(N,) int64: the cell of each prompt"""
    y: np.ndarray
    """(G,) the category of each cell"""
    block: np.ndarray
    """(G,) int64: the block of each cell, 0 .. U - 1; several categories may share one"""
    unit: str
    """what a block is, in one word"""

    @property
    def groups(self) -> np.ndarray:
        """(N,) the block of each prompt."""
        return np.asarray(self.block[self.of])

    @property
    def confounded(self) -> bool:
        """Whether no category has a second block, so that category and block are one."""
        return len(self.y) == len(np.unique(self.y))

    def labels(self, n: int, seed: int) -> np.ndarray:
        """(n, G) categories of whole cells, changed within the blocks that hold several, else between blocks."""
        return permuted_label_matrix(self.y, self.block, n, np.random.default_rng(seed))


def cells_of(y: np.ndarray, blocks: np.ndarray | None, unit: str) -> Cells:
    """Cells of categories ``y`` (N,) in ``blocks`` (N,), each prompt its own where None."""
    _, block = np.unique(np.arange(len(y)) if blocks is None else blocks, return_inverse=True)
    cells, of = np.unique(np.stack([np.asarray(y), block]), axis=1, return_inverse=True)
    return Cells(np.asarray(of).ravel(), cells[0], cells[1], unit)


class Estimate(NamedTuple):
    """A value with its 95 % interval and two-sided p against 0; NaN where the cells do not allow one."""

    value: float
    low: float
    high: float
    p: float


Pairs = np.ndarray
"""(3, G, G) of ordered pairs of prompts between every two cells: how many, the sums of their similarities and of the
squares."""


def pairs_between(s: np.ndarray, cells: Cells, *, apart: bool = True) -> Pairs:
    """Sums over the pairs of prompts of every two cells, a prompt with itself left out.

    Args:
        s: (N, N) symmetric similarities.
        apart: leave out pairs of one block, and let every two cells count alike, however many prompts they hold: a category
            that fills some blocks more than others is not told by those blocks.
    """
    member = np.zeros((len(s), len(cells.y)))
    member[np.arange(len(s)), cells.of] = 1
    bare = s - np.diag(np.diag(s))
    size = member.sum(0)
    found = np.stack([np.outer(size, size) - np.diag(size), *(member.T @ part @ member for part in (bare, bare**2))])
    if not apart:
        return found
    kept = (cells.block[:, None] != cells.block) & (found[0] > 0)
    weight = np.divide(found[0].mean(where=kept) if kept.any() else 0, found[0], out=np.zeros(kept.shape), where=kept)
    return np.asarray(found * weight)


def separated(pairs: Pairs, labels: np.ndarray) -> dict[str, np.ndarray]:
    """``within``, ``across``, ``gap`` and Cohen's ``d`` (pooled standard deviation) under categories (P, G) of the cells: (P,).

    NaN where a kind of pair does not exist.
    """
    codes = np.unique(labels)
    whole = pairs.sum((1, 2))
    inside = np.empty((3, len(labels)))
    step = max(1, _BLOCK // (labels.shape[1] * len(codes)))
    for start in range(0, len(labels), step):
        onehot = (labels[start : start + step, None, :] == codes[:, None]).astype(float)  # (P, C, G)
        for i, part in enumerate(pairs):
            inside[i, start : start + step] = ((onehot @ part) * onehot).sum((1, 2))
    return _compared(inside, whole[:, None] - inside)


def without_each(pairs: Pairs, cells: Cells) -> dict[str, np.ndarray]:
    """:func:`separated` under the true categories when each block is left out in turn: (U,)."""
    same = cells.y[:, None] == cells.y
    own = cells.block[:, None] == cells.block
    left = []
    for kind in (same, ~same):
        of_cell = (pairs * kind).sum(2) * 2 - (pairs * kind * own).sum(2)  # pairs that go when the cell's block goes
        gone = np.stack([np.bincount(cells.block, weights=row) for row in of_cell])
        left.append((pairs * kind).sum((1, 2))[:, None] - gone)
    return _compared(left[0], left[1])


def _compared(inside: np.ndarray, outside: np.ndarray) -> dict[str, np.ndarray]:
    with np.errstate(divide="ignore", invalid="ignore"):
        counts = [np.where(np.round(part[0]) > 0, part[0] / 2, np.nan) for part in (inside, outside)]
        means = [part[1] / 2 / n for part, n in zip((inside, outside), counts, strict=True)]
        spread = sum(part[2] / 2 - n * m**2 for part, n, m in zip((inside, outside), counts, means, strict=True))
        pooled = np.maximum(spread, 0) / np.maximum(counts[0] + counts[1] - 2, 1)
        gap = means[0] - means[1]
        d = np.where(pooled > 1e-24, gap / np.sqrt(pooled), np.where(np.isnan(gap), np.nan, 0.0))
    return {"within": means[0], "across": means[1], "gap": gap, "d": d}


def estimate(value: float, replicates: np.ndarray, cells: Cells) -> Estimate:
    """Jackknife over blocks (Arvesen 1969), with Student's t; stratified by category where no block is shared.

    Args:
        replicates: (U,), the value when each block is left out in turn.
    """
    stratum = np.zeros(len(replicates), dtype=np.int64)
    if len(cells.y) == len(replicates):  # every block belongs to one category
        stratum[cells.block] = cells.y
        if np.bincount(np.unique(stratum, return_inverse=True)[1]).min() < 2:
            stratum[:] = 0
    variance, freedom = 0.0, 0
    for code in np.unique(stratum):
        part = replicates[stratum == code]
        variance += (len(part) - 1) / len(part) * float(((part - part.mean()) ** 2).sum())
        freedom += len(part) - 1
    error = float(np.sqrt(variance))
    if not freedom or np.isnan(error) or np.isnan(value):
        return Estimate(value, float("nan"), float("nan"), float("nan"))
    half = error * float(student.ppf(0.975, freedom))
    p = 1.0 if value == 0 else 0.0 if error == 0 else float(2 * student.sf(abs(value) / error, freedom))
    return Estimate(value, value - half, value + half, p)


def with_and_without(values: np.ndarray, cells: Cells) -> tuple[np.ndarray, np.ndarray]:
    """Sums over prompts of ``values`` (N, ...): of all (...), and without each block in turn (U, ...)."""
    by_block = np.zeros((len(np.unique(cells.block)), *values.shape[1:]))
    np.add.at(by_block, cells.groups, values)
    whole = by_block.sum(0)
    return whole, whole - by_block


def estimates(pairs: Pairs, cells: Cells) -> dict[str, Estimate]:
    """All of :data:`MEASURED` with their intervals."""
    value, left = separated(pairs, cells.y[None]), without_each(pairs, cells)
    return {name: estimate(float(value[name][0]), left[name], cells) for name in MEASURED}


def beyond(pairs: Pairs, others: list[Pairs], cells: Cells) -> dict[str, Estimate]:
    """All of :data:`MEASURED` less their mean over ``others``, similarities of the same prompts; paired by block."""
    value, left = separated(pairs, cells.y[None]), without_each(pairs, cells)
    rest: list[tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]] = [
        (separated(other, cells.y[None]), without_each(other, cells)) for other in others
    ]
    out = {}
    for name in MEASURED:
        middle = np.mean([found[name][0] for found, _ in rest])
        leaving = left[name] - np.mean([lost[name] for _, lost in rest], axis=0)
        out[name] = estimate(float(value[name][0] - middle), leaving, cells)
    return out


def two_sided(observed: float, null: np.ndarray) -> float:
    """p of a figure among its draws (P,), by the distance from the mean of all: exact, and never below 1 / (P + 1)."""
    if np.isnan(observed) or np.isnan(null).any():
        return float("nan")
    middle = (null.sum() + observed) / (len(null) + 1)
    far = abs(observed - middle)
    return float((1 + (np.abs(null - middle) >= far - 1e-9 * max(1.0, far)).sum()) / (1 + len(null)))


def clustered(values: np.ndarray, groups: np.ndarray) -> Estimate:
    """The mean of ``values`` (N,) with an interval that leaves out whole ``groups`` (N,).

    Where all values are one, the interval is as wide as Wilson's for none among N: that no row differs does not prove that none
    would.
    """
    cells = cells_of(np.zeros(len(values), dtype=np.int64), groups, "group")
    sums, sizes = np.bincount(cells.of, weights=values), np.bincount(cells.of)
    value = float(values.mean())
    if np.ptp(values) == 0:
        half = wilson(0, len(values))[1]
        return Estimate(value, value - half, value + half, 2 * float(norm.sf(abs(value) / half * norm.ppf(0.975))))
    if len(sizes) < 2:
        return Estimate(value, float("nan"), float("nan"), float("nan"))
    return estimate(value, (sums.sum() - sums) / (sizes.sum() - sizes), cells)


def centred_pairs(s: np.ndarray, *others: np.ndarray) -> np.ndarray:
    """What a linear fit on other similarities of the same prompts (each (N, N)) leaves of ``s`` (N, N)."""
    upper = np.triu_indices(len(s), 1)
    design = np.column_stack([np.ones(len(upper[0])), *(other[upper] for other in others)])
    weights, *_ = np.linalg.lstsq(design, s[upper], rcond=None)
    return np.asarray(s - weights[0] - sum(w * other for w, other in zip(weights[1:], others, strict=True)))
