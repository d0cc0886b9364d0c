"""What two circuits share, in distinct coordinates, beside permuted labels and beside what each shares with itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import t as student

from moescope.intervene.matched import STREAM
from moescope.select.ranking import Sigma
from moescope.select.sums import EPSILON
from moescope.stats import permuted_label_matrix
from moescope.studies.circuits.features import Columns, Features
from moescope.study.verdicts import beyond_draws

_BLOCK = 64  # permutations ranked at once

Halves = Sequence[tuple[np.ndarray, np.ndarray]]


def coordinates(columns: Columns) -> np.ndarray:
    """(D,) int: which coordinate each column is; the residual stream carries one index on from layer to layer."""
    space = [-1 if site.kind in STREAM else i for i, site in enumerate(columns.sites)]
    index = np.concatenate([np.arange(width) for width in columns.widths])
    pairs = np.stack([np.repeat(space, columns.widths), index], axis=1)
    return np.asarray(np.unique(pairs, axis=0, return_inverse=True)[1]).reshape(-1)


def shared(a: np.ndarray, b: np.ndarray, k: int) -> int:
    """Distinct coordinates among the first k of both rankings (of coordinates)."""
    return len(np.intersect1d(a[:k], b[:k]))


def permuted_rankings(features: Features, sigma: Sigma, *, n: int, k: int, seed: int) -> np.ndarray:
    """(n, k) columns that are best, best first, under ``n`` permutations of the labels within groups."""
    x, classes = features.x, features.n_classes
    rng = np.random.default_rng(seed)
    labels = permuted_label_matrix(features.y, features.groups, n, rng)
    centre, scale = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    live = scale > 1e-12 * np.abs(centre)
    spread = np.where(live, scale, 1.0).astype(np.float32)
    z = ((x - centre.astype(np.float32)) / spread).astype(np.float32, copy=False)
    best = np.empty((n, k), dtype=np.int64)
    for start in range(0, n, _BLOCK):
        block = labels[start : start + _BLOCK]
        one_hot = np.stack([block == c for c in range(classes)]).astype(np.float32)  # (C, P, N)
        counts = np.maximum(one_hot.sum(2), 1)[..., None]
        means = one_hot @ z / counts  # (C, P, D)
        gap = means.max(0) - means.min(0)
        if sigma == "pooled":
            variance = 1 - (counts * means**2).sum(0) / len(x)
        elif sigma == "negative":
            variance = one_hot[0] @ (z * z) / counts[0] - means[0] ** 2
        else:
            variance = np.ones(1, np.float32)
        score = np.where(live, gap / np.maximum(np.sqrt(np.maximum(variance, 0)), EPSILON), -1.0)
        for row, values in enumerate(score, start):
            top = np.argpartition(-values, k - 1)[:k] if k < len(values) else np.arange(len(values))
            best[row] = top[np.argsort(-values[top], kind="stable")]
    return best


def null_overlaps(a: np.ndarray, b: np.ndarray, drawn_a: np.ndarray, drawn_b: np.ndarray, k: int) -> np.ndarray:
    """(P,) coordinates shared where the labels of one of the two tasks, in turn, are permuted."""
    return np.array(
        [
            shared(a, other, k) if i % 2 else shared(mine, b, k)
            for i, (mine, other) in enumerate(zip(drawn_a, drawn_b, strict=True))
        ]
    )


def overlap_row(
    a: np.ndarray, b: np.ndarray, halves_a: Halves, halves_b: Halves, drawn_a: np.ndarray, drawn_b: np.ndarray, k: int
) -> dict[str, Any]:
    """One k of the table ``overlap``, from rankings of coordinates: on all rows, on halves, and under permuted labels (P, K).

    ``split_half_a`` and ``split_half_b`` are a task's overlap with itself, ``split_half_cross`` that of the two tasks,
    between halves of the data: means over several halvings, of the same number of rows and so comparable with each other. The
    spread over halvings stands for that over samples (half-samples, McCarthy 1969), with Student's t since halvings are few.
    """
    draws = null_overlaps(a, b, drawn_a, drawn_b, k)
    both = shared(a, b, k)
    own_a, own_b = (np.array([shared(x, y, k) for x, y in halves], dtype=float) for halves in (halves_a, halves_b))
    cross = np.array(
        [(shared(x, v, k) + shared(y, u, k)) / 2 for (x, y), (u, v) in zip(halves_a, halves_b, strict=True)], dtype=float
    )
    gaps = ((own_a + own_b) / 2 - cross) / k
    # a count has a grain: half a coordinate is not told from none
    few = float(student.ppf(0.975, max(len(gaps) - 1, 1)))
    half = few * max(float(gaps.std(ddof=1)) if len(gaps) > 1 else 0.0, 0.25 / k)
    return {
        "k": k,
        "distinct_a": len(np.unique(a[:k])),
        "distinct_b": len(np.unique(b[:k])),
        "overlap": both,
        "expected": float(draws.mean()),
        "p": beyond_draws(both, draws, "", 0.0).p,
        "p_disjoint": float((draws == 0).mean()),
        "split_half_a": float(own_a.mean()),
        "split_half_b": float(own_b.mean()),
        "split_half_cross": float(cross.mean()),
        "gap": float(gaps.mean()),
        "gap_low": float(gaps.mean() - half),
        "gap_high": float(gaps.mean() + half),
    }
