"""How alike signatures are, within and across categories, with effect sizes whose unit is the prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.spatial.distance import cdist

Measure = Literal["cosine", "centred_cosine", "jensen_shannon", "weighted_jaccard"]
MEASURES: tuple[Measure, ...] = ("cosine", "centred_cosine", "jensen_shannon", "weighted_jaccard")
_BLOCK = 1 << 24  # entries of the permutation products held at once: 128 MiB


def similarity(values: np.ndarray, measure: Measure = "cosine") -> np.ndarray:
    """Similarity of every two signatures.

    Args:
        values: (N, D), rows of shares (one layer, or all layers side by side).
        measure: ``"cosine"`` as published; ``"centred_cosine"`` after taking the mean signature off, so that what all
            prompts share does not count; ``"jensen_shannon"``: 1 - Jensen-Shannon divergence in bits;
            ``"weighted_jaccard"``: shared over joint mass, sum of minima / sum of maxima.

    Returns:
        (N, N) float64, 1 on the diagonal.
    """
    if measure == "jensen_shannon":
        return np.asarray(1 - np.nan_to_num(cdist(values, values, "jensenshannon")) ** 2 / np.log(2))
    if measure == "weighted_jaccard":
        distance = cdist(values, values, "cityblock")
        total = values.sum(1)[:, None] + values.sum(1)[None]
        # min(a, b) = (a + b - |a - b|) / 2 and max likewise with +
        return np.asarray((total - distance) / np.maximum(total + distance, 1e-300))
    if measure == "centred_cosine":
        values = values - values.mean(0)
    length = np.linalg.norm(values, axis=1, keepdims=True)
    unit = np.divide(values, length, out=np.zeros(values.shape), where=length > 1e-12)
    return np.asarray(unit @ unit.T)


@dataclass(frozen=True)
class Separation:
    """Similarity of pairs within and across categories.

    ``d_pairs`` is Cohen's d over all pairs, as published: it treats pairs as independent, though every prompt is in N - 1
    of them. ``d_prompts`` has one value per prompt and kind of pair: its mean similarity to its own and to the other
    categories.
    """

    within: float
    within_sd: float
    across: float
    across_sd: float
    d_pairs: float
    d_prompts: float
    n_within: int
    n_across: int

    @property
    def gap(self) -> float:
        return self.within - self.across


def separation(s: np.ndarray, y: np.ndarray) -> Separation:
    """Compare pairs within a category with pairs across.

    Args:
        s: (N, N) symmetric similarities; the diagonal is left out.
        y: (N,) category codes; each category needs two members.
    """
    upper = np.triu_indices(len(y), 1)
    same = y[upper[0]] == y[upper[1]]
    within, across = s[upper][same], s[upper][~same]
    onehot = (y[:, None] == np.unique(y)).astype(float)  # (N, C)
    size = onehot.sum(0)
    to_each = (s - np.diag(np.diag(s))) @ onehot  # (N, C) sums
    own = (to_each * onehot).sum(1) / (onehot @ size - 1)
    other = (to_each * (1 - onehot)).sum(1) / (len(y) - onehot @ size)
    return Separation(
        within=float(within.mean()),
        within_sd=float(within.std(ddof=1)) if len(within) > 1 else 0.0,
        across=float(across.mean()),
        across_sd=float(across.std(ddof=1)) if len(across) > 1 else 0.0,
        d_pairs=_cohen(within, across),
        d_prompts=_cohen(own, other),
        n_within=len(within),
        n_across=len(across),
    )


def _cohen(a: np.ndarray, b: np.ndarray) -> float:
    """Difference of means over the pooled standard deviation (Cohen 1988)."""
    pooled = ((len(a) - 1) * a.var(ddof=1) + (len(b) - 1) * b.var(ddof=1)) / (len(a) + len(b) - 2) if len(a) > 1 < len(b) else 0
    return float((a.mean() - b.mean()) / np.sqrt(pooled)) if pooled > 1e-24 else 0.0


def permuted(s: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """``within``, ``across``, ``gap`` and ``d_pairs`` under other labels: the null in which a prompt's pairs move together.

    Args:
        s: (N, N) similarities.
        labels: (P, N) codes, each row a permutation of the categories (``moescope.stats.permuted_label_matrix``).

    Returns:
        by name (P,) float64.
    """
    n = len(s)
    bare = s - np.diag(np.diag(s))
    squares = bare**2
    total, total_squares = bare.sum() / 2, squares.sum() / 2
    codes = np.unique(labels)
    out = np.empty((3, len(labels)))
    step = max(1, _BLOCK // (n * len(codes)))
    for start in range(0, len(labels), step):
        onehot = (labels[start : start + step, None, :] == codes[:, None]).astype(float)  # (P, C, N)
        sums = ((onehot @ bare) * onehot).sum((1, 2)) / 2
        sums_of_squares = ((onehot @ squares) * onehot).sum((1, 2)) / 2
        size = onehot.sum(2)
        n_within = (size * (size - 1)).sum(1) / 2
        n_across = n * (n - 1) / 2 - n_within
        within, across = sums / n_within, (total - sums) / n_across
        spread_w = sums_of_squares - n_within * within**2
        spread_a = total_squares - sums_of_squares - n_across * across**2
        pooled = np.maximum(spread_w + spread_a, 0) / (n_within + n_across - 2)
        d = np.divide(within - across, np.sqrt(pooled), out=np.zeros(len(onehot)), where=pooled > 1e-24)
        out[:, start : start + step] = within, across, d
    return {"within": out[0], "across": out[1], "gap": out[0] - out[1], "d_pairs": out[2]}


def bootstrap_separation(s: np.ndarray, y: np.ndarray, *, n_boot: int = 1000, seed: int = 0) -> dict[str, tuple[float, float]]:
    """95 % intervals of ``within``, ``across``, ``gap`` and ``d_pairs`` from resampled prompts, category by category.

    A prompt drawn twice makes no pair with itself: its similarity to itself, 1, is not a finding.
    """
    rng = np.random.default_rng(seed)
    n = len(y)
    codes = np.unique(y)
    weight = np.zeros((n_boot, len(codes), n))  # (B, C, N): how often each prompt was drawn
    for c, code in enumerate(codes):
        members = np.flatnonzero(y == code)
        weight[:, c, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=n_boot)
    bare = s - np.diag(np.diag(s))
    sums, spread = [], []
    for power in (bare, bare**2):
        by_class = weight @ power  # (B, C, N)
        inside = (by_class * weight).sum((1, 2))
        whole = (by_class.sum(1) * weight.sum(1)).sum(1)
        sums.append((inside, whole - inside))
    size = weight.sum(2)
    repeats = (weight**2).sum(2)
    n_inside = (size**2 - repeats).sum(1)
    n_outside = n**2 - (size**2).sum(1)
    within, across = sums[0][0] / n_inside, sums[0][1] / n_outside
    spread = [sums[1][0] / n_inside - within**2, sums[1][1] / n_outside - across**2]
    pooled = (n_inside * spread[0] + n_outside * spread[1]) / (n_inside + n_outside)
    d = (within - across) / np.sqrt(np.maximum(pooled, 1e-24))
    draws = {"within": within, "across": across, "gap": within - across, "d_pairs": d}
    return {name: (float(np.quantile(v, 0.025)), float(np.quantile(v, 0.975))) for name, v in draws.items()}


def naive_interval(found: Separation) -> tuple[float, float]:
    """The 95 % interval of d that follows if all pairs were independent (Hedges & Olkin 1985): too narrow."""
    n, m = found.n_within, found.n_across
    half = 1.96 * np.sqrt((n + m) / (n * m) + found.d_pairs**2 / (2 * (n + m)))
    return float(found.d_pairs - half), float(found.d_pairs + half)


def by_category(s: np.ndarray, y: np.ndarray, n_categories: int) -> np.ndarray:
    """(C, C) mean similarity of pairs from every two categories, a prompt with itself left out."""
    onehot = (y[:, None] == np.arange(n_categories)).astype(float)
    sums = onehot.T @ (s - np.diag(np.diag(s))) @ onehot
    size = onehot.sum(0)
    return np.asarray(sums / np.maximum(np.outer(size, size) - np.diag(size), 1))


def null_corrected(s: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Cosine beyond what random routing of the same lengths gives: 0 for that, 1 for equal signatures (N, N)."""
    return np.asarray((s - expected) / np.maximum(1 - expected, 1e-12))


def similarities(flat: np.ndarray, expected: np.ndarray) -> dict[str, np.ndarray]:
    """All measures of signatures (N, D); ``expected`` (N, N) is the cosine of random routing."""
    found: dict[str, np.ndarray] = {measure: similarity(flat, measure) for measure in MEASURES}
    found["null_corrected"] = null_corrected(found["cosine"], expected)
    return found
