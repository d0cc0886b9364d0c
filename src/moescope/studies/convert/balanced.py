"""Clusters of equal size, fast: a greedy assignment under capacity, then swaps until none helps.

Balanced k-means needs an assignment with capacities at every step. The exact one is cubic in the number of neurons
(minutes for one layer of a 7B model); this one sorts neuron-cluster pairs and is checked against the exact one in
:mod:`tests.test_convert_balanced`.
"""

from __future__ import annotations

import numpy as np

from moescope.kernels.loops import compiled

FREE = -1


def balanced_assignment(similarity: np.ndarray, capacity: np.ndarray) -> np.ndarray:
    """Assign each of N rows to one of C clusters so that no cluster holds more than its capacity and the summed similarity
    is large (no exchange of two rows, and no move into free room, makes it larger).

    Args:
        similarity: (N, C) float.
        capacity: (C,) whole numbers, at least N in sum.

    Returns:
        (N,) int64 cluster numbers.
    """
    similarity = np.ascontiguousarray(similarity, np.float32)
    order = np.argsort(-similarity, axis=None, kind="stable")
    chosen = _greedy(order, len(similarity), capacity.astype(np.int64))
    _improve(similarity, chosen, capacity.astype(np.int64))
    return chosen


def balanced_kmeans(
    features: np.ndarray, n_clusters: int, capacity: int, *, fixed: np.ndarray | None = None, steps: int = 8, seed: int = 0
) -> np.ndarray:
    """Spherical k-means with clusters of ``capacity`` rows each.

    Args:
        features: (N, q) with N = n_clusters · capacity; rows are compared by cosine, a row of zeros is like no other.
        fixed: (N,) cluster of rows that must stay where they are, FREE (-1) elsewhere.

    Returns:
        (N,) int64 cluster numbers.
    """
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    fixed = np.full(len(unit), FREE) if fixed is None else fixed
    free = fixed == FREE
    room = capacity - np.bincount(fixed[~free], minlength=n_clusters)
    centres = _start(unit, fixed, n_clusters, np.random.default_rng(seed))
    labels = fixed.copy()
    for _ in range(steps):
        before = labels.copy()
        labels[free] = balanced_assignment(unit[free] @ centres.T, room)
        centres = np.stack([unit[labels == c].sum(0) for c in range(n_clusters)])
        centres /= np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-12)
        if (labels == before).all():
            break
    return labels.astype(np.int64)


def _start(unit: np.ndarray, fixed: np.ndarray, n_clusters: int, rng: np.random.Generator) -> np.ndarray:
    """Centres: the mean of a cluster's fixed rows, else a row drawn by its distance to the centres so far (k-means++)."""
    centres = np.zeros((n_clusters, unit.shape[1]), unit.dtype)
    distance = np.full(len(unit), 2.0)
    for c in sorted(range(n_clusters), key=lambda c: not (fixed == c).any()):
        rows = np.flatnonzero(fixed == c)
        if len(rows) == 0:
            weight = np.maximum(distance, 0) * (fixed == FREE)
            weight = weight if weight.sum() > 0 else (fixed == FREE).astype(float)
            rows = rng.choice(len(unit), 1, p=weight / weight.sum())
        centre = unit[rows].mean(0)
        centres[c] = centre / max(np.linalg.norm(centre), 1e-12)
        distance = np.minimum(distance, 1 - unit @ centres[c])
    return centres


@compiled()
def _greedy(order: np.ndarray, n: int, capacity: np.ndarray) -> np.ndarray:
    """Take pairs from the most similar on, where the row is free and the cluster has room."""
    chosen = np.full(n, FREE, np.int64)
    room = capacity.copy()
    left = n
    for pair in order:
        row, cluster = pair // len(capacity), pair % len(capacity)
        if chosen[row] == FREE and room[cluster] > 0:
            chosen[row] = cluster
            room[cluster] -= 1
            left -= 1
            if left == 0:
                break
    return chosen


@compiled()
def _improve(similarity: np.ndarray, chosen: np.ndarray, capacity: np.ndarray) -> None:
    """Move rows into room and exchange rows while the sum grows; at most ten passes."""
    n, n_clusters = similarity.shape
    room = capacity.copy()
    for row in range(n):
        room[chosen[row]] -= 1
    for _ in range(10):
        changed = False
        for i in range(n):
            for c in range(n_clusters):
                if room[c] > 0 and similarity[i, c] > similarity[i, chosen[i]] + 1e-6:
                    room[chosen[i]] += 1
                    room[c] -= 1
                    chosen[i] = c
                    changed = True
            for j in range(i):
                a, b = chosen[i], chosen[j]
                gain = similarity[i, b] + similarity[j, a] - similarity[i, a] - similarity[j, b]
                if gain > 1e-6:
                    chosen[i], chosen[j] = b, a
                    changed = True
        if not changed:
            break
