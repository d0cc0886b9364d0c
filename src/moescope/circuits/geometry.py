"""What a circuit looks like: functional columns, distinct coordinates, and the projection on the first component."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from moescope.circuits.features import Columns, Features
from moescope.stats import permutation_p, permute_labels


def functional_columns(x: np.ndarray, top: np.ndarray, columns: Columns, *, threshold: float = 0.9) -> dict[str, Any]:
    """Coordinates that recur over layers among the top neurons, and how many distinct things they are.

    A residual coordinate is carried by the skip connection, so that the same index in neighbouring layers is one thing seen
    several times. ``clusters`` counts connected components under |Pearson r| ≥ ``threshold``.

    Args:
        x: (N, D) activations. top: (K,) column numbers, best first.
    Returns:
        ``columns`` (list of (coordinate, layers) that occur in ≥ 2 layers), ``distinct_coordinates``, ``clusters``,
        ``largest`` (how many of the K lie in the largest column).
    """
    by_coordinate: dict[tuple[str, int], list[int]] = {}
    for column in top:
        neuron = columns.neuron(int(column))
        by_coordinate.setdefault((neuron.site.kind, neuron.index), []).append(neuron.site.layer)
    correlation = np.corrcoef(x[:, top].astype(np.float64), rowvar=False).reshape(len(top), len(top))
    linked = np.abs(np.nan_to_num(correlation)) >= threshold
    n_clusters = connected_components(csr_array(linked), directed=False)[0]
    repeated = [(index, sorted(layers)) for (_, index), layers in by_coordinate.items() if len(layers) > 1]
    return {
        "columns": sorted(repeated, key=lambda item: -len(item[1])),
        "distinct_coordinates": len(by_coordinate),
        "clusters": int(n_clusters),
        "largest": max(len(layers) for layers in by_coordinate.values()),
    }


def principal_component(
    features: Features, layer_columns: slice, *, n_permutations: int, seed: int
) -> tuple[dict[str, Any], np.ndarray]:
    """Class means on the first principal component of one site, with the null that the source lacks.

    That two balanced classes have exactly opposite means on a centred component is an identity. Evidence is that the
    component explains variance and that the class distance exceeds that of permuted labels.

    Returns:
        A dict with ``means`` and ``sds`` per class, ``distance`` (largest between two class means), ``explained`` (share
        of variance), ``null_distance`` (mean over permutations) and ``p``; and the (N, 2) projection.
    """
    x = features.x[:, layer_columns].astype(np.float64)
    centred = x - x.mean(0)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    projection = centred @ directions[:2].T  # (N, 2)
    classes = range(features.n_classes)

    def distance(labels: np.ndarray) -> float:
        means = [projection[labels == c, 0].mean() for c in classes]
        return float(max(means) - min(means))

    rng = np.random.default_rng(seed)
    null = np.asarray([distance(permute_labels(features.y, features.groups, rng)) for _ in range(n_permutations)], dtype=float)
    observed = distance(features.y)
    summary = {
        "means": [float(projection[features.y == c, 0].mean()) for c in classes],
        "sds": [float(projection[features.y == c, 0].std(ddof=1)) for c in classes],
        "distance": observed,
        "explained": float(singular[0] ** 2 / (singular**2).sum()),
        "null_distance": float(null.mean()) if len(null) else float("nan"),
        "p": float(permutation_p(observed, null)) if len(null) else float("nan"),
    }
    return summary, projection


def rotated(x: np.ndarray, columns: Columns, seed: int) -> np.ndarray:
    """The same activations in a random orthonormal basis, one rotation per width (shared by layers, as the skip path is).

    If "neurons" are special, the top K coordinates must carry less after rotation.
    """
    rng = np.random.default_rng(seed)
    bases: dict[int, np.ndarray] = {}
    out = np.empty_like(x)
    for position, width in enumerate(columns.widths):
        if width not in bases:
            q, r = np.linalg.qr(rng.standard_normal((width, width)))
            bases[width] = (q * np.sign(np.diag(r))).astype(np.float32)
        part = columns.slice_of(position)
        out[:, part] = x[:, part] @ bases[width]
    return out
