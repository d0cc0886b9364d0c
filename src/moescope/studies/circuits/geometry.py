"""What a circuit looks like: functional columns, distinct coordinates, and the projection on the first component."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import ArpackError, svds

from moescope.files.memory import empty_array
from moescope.stats import permutation_p, permuted_label_matrix
from moescope.studies.circuits.features import Columns, Features

_TIE = 1e-9  # relative: labels that a permutation restores must count as ties whatever the order of summation


def functional_columns(x: np.ndarray, top: np.ndarray, columns: Columns, *, threshold: float = 0.9) -> dict[str, Any]:
    """Coordinates that recur over layers among the top neurons, and how many distinct things they are.

    A residual coordinate is carried by the skip connection, so that the same index in neighbouring layers is one thing seen
    several times. ``clusters`` counts connected components under |Pearson r| ≥ ``threshold``.

    Args:
        x: (N, D) activations. top: (K,) column numbers, best first.
    Returns:
        ``columns`` (list of (coordinate, layers) that occur in ≥ 2 layers), ``distinct_coordinates`` and
        ``clusters``.
    """
    by_coordinate = coordinates(top, columns)
    correlation = np.corrcoef(x[:, top].astype(np.float64), rowvar=False).reshape(len(top), len(top))
    linked = np.abs(np.nan_to_num(correlation)) >= threshold
    n_clusters = connected_components(csr_array(linked), directed=False)[0]
    repeated = [(index, sorted(layers)) for (_, index), layers in by_coordinate.items() if len(layers) > 1]
    return {
        "columns": sorted(repeated, key=lambda item: -len(item[1])),
        "distinct_coordinates": len(by_coordinate),
        "clusters": int(n_clusters),
    }


def principal_component(
    features: Features, layer_columns: slice, *, n_permutations: int, n_shuffles: int = 39, seed: int = 0
) -> tuple[dict[str, Any], np.ndarray]:
    """Class means on the first principal component of one site, with the nulls that the source lacks.

    That two balanced classes have exactly opposite means on a centred component is an identity. Evidence is that the
    component explains more variance than that of independent columns does (parallel analysis: Horn 1965, "A rationale and
    test for the number of factors in factor analysis"), and that classes differ along it more than permuted labels do.
    A few massive coordinates can make up PC1 by themselves, so the class share is also given for standardised columns.

    Returns:
        A dict with ``means`` and ``sds`` per class; ``distance`` (largest between two class means) and ``null_distance``
        (mean over label permutations); ``explained`` (share of variance), ``explained_null`` (mean over ``n_shuffles``
        shuffles of each column) and ``explained_p``; ``class_share`` (share of PC1's variance between classes), of permuted
        labels its mean ``null_share`` and the range of 95 % ``null_low`` to ``null_high``, and ``p``, two-sided;
        ``class_share_standardised`` and ``p_standardised``, the same on standardised columns. And the (N, 2) projection.
    """
    x = features.x[:, layer_columns].astype(np.float64)
    centred = x - x.mean(0)
    rng = np.random.default_rng(seed)
    explained, projection = _components(centred)
    shuffled = np.asarray([_components(rng.permuted(centred, axis=0))[0] for _ in range(n_shuffles)])
    sd = centred.std(0)
    labels = permuted_label_matrix(features.y, features.groups, n_permutations, rng)
    means = _class_means(projection[:, 0], features.y[None], features.n_classes)[0]
    distance, null = float(np.ptp(means)), np.ptp(_class_means(projection[:, 0], labels, features.n_classes), axis=1)
    standardised = _components(centred / np.where(sd > 0, sd, 1.0))[1][:, 0]
    share, share_null = _shares(projection[:, 0], features, labels)
    level, level_null = _shares(standardised, features, labels)
    low, high = np.quantile(share_null, [0.025, 0.975])
    summary = {
        "means": means.tolist(),
        "sds": [float(projection[features.y == c, 0].std(ddof=1)) for c in range(features.n_classes)],
        "distance": distance,
        "explained": explained,
        "null_distance": float(null.mean()),
        "explained_null": float(shuffled.mean()),
        "explained_p": float(permutation_p(explained, shuffled)),
        "class_share": share,
        "null_share": float(share_null.mean()),
        "null_low": float(low),
        "null_high": float(high),
        "p": two_sided(share, share_null),
        "class_share_standardised": level,
        "p_standardised": two_sided(level, level_null),
    }
    return summary, projection


def _shares(values: np.ndarray, features: Features, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """Of the variance of values (N,) between the classes, and between those of labellings (P, N)."""
    own = _between_share(values, features.y[None], features.n_classes)
    return float(own[0]), _between_share(values, labels, features.n_classes)


def two_sided(observed: float, null: np.ndarray) -> float:
    """p of a figure that may lie on either side of its null (P,): how often the null is as far from its own mean."""
    centre = float(null.mean())
    return float(permutation_p(abs(observed - centre) * (1 - _TIE), np.abs(null - centre)))


def _components(centred: np.ndarray) -> tuple[float, np.ndarray]:
    """Share of variance of the first principal component, and the projection (N, 2) on the first two."""
    total = float((centred * centred).sum())
    if total <= 1e-12 * centred.size:  # constant activations have no directions
        return 0.0, np.zeros((len(centred), 2))
    # Lanczos for two directions: at N = 5,000 and d = 4,096 a full decomposition would take a minute, 40 times over.
    v0 = np.random.default_rng(0).standard_normal(min(centred.shape))  # not of ones, which centred columns turn to nought
    try:
        _, singular, directions = svds(centred, k=2, v0=v0)
    except ArpackError:  # a few texts repeated leave too few directions for it
        _, singular, directions = np.linalg.svd(centred, full_matrices=False)
        singular, directions = singular[:2], directions[:2]
    order = np.argsort(-singular)
    directions = directions[order]
    # The sign of a component is arbitrary: its largest loading is made positive, so that a run repeats itself.
    directions *= np.sign(directions[np.arange(2), np.abs(directions).argmax(axis=1)])[:, None]
    return float(singular.max() ** 2 / total) if total > 0 else 0.0, centred @ directions.T


def _class_means(values: np.ndarray, labels: np.ndarray, n_classes: int) -> np.ndarray:
    """Class means (P, C) of values (N,) under each of P labellings (P, N)."""
    inside = [labels == c for c in range(n_classes)]
    return np.stack([m @ values / m.sum(1) for m in inside], axis=1)


def _between_share(values: np.ndarray, labels: np.ndarray, n_classes: int) -> np.ndarray:
    """Share of the variance of centred values (N,) that lies between classes, (P,) for labellings (P, N)."""
    total = float(values @ values)
    means = _class_means(values, labels, n_classes)
    counts = np.stack([(labels == c).sum(1) for c in range(n_classes)], axis=1)
    return (counts * means**2).sum(1) / total if total > 0 else np.zeros(len(labels))


def coordinates(top: np.ndarray, columns: Columns) -> dict[tuple[str, int], list[int]]:
    """Layers in which each distinct coordinate (kind of site, index) of the columns ``top`` occurs, best first."""
    found: dict[tuple[str, int], list[int]] = {}
    for column in top:
        neuron = columns.neuron(int(column))
        found.setdefault((neuron.site.kind, neuron.index), []).append(neuron.site.layer)
    return found


def layer_null(top: np.ndarray, columns: Columns, n_draws: int, rng: np.random.Generator) -> np.ndarray:
    """Mean layer (n_draws,) of the columns ``top`` (K,) when each coordinate, its layers together, is moved to a random place.

    A residual coordinate that recurs in ten layers is one thing: ten random neurons would promise too narrow a null.
    """
    last = len(columns.layers) - 1
    total = np.zeros(n_draws)
    for layers in coordinates(top, columns).values():
        places = np.searchsorted(columns.layers, layers)
        start = rng.integers(0, last - (places.max() - places.min()) + 1, n_draws)
        moved = start[:, None] + (places - places.min())
        total += np.asarray(columns.layers)[moved].sum(1)
    return total / len(top)


def rotations(columns: Columns, seed: int) -> dict[int, np.ndarray]:
    """A random orthonormal basis (width, width), float32, for each width of ``columns``."""
    rng = np.random.default_rng(seed)
    bases: dict[int, np.ndarray] = {}
    for width in dict.fromkeys(columns.widths):
        q, r = np.linalg.qr(rng.standard_normal((width, width)))
        bases[width] = (q * np.sign(np.diag(r))).astype(np.float32)
    return bases


def standardised(x: np.ndarray, columns: Columns) -> np.ndarray:
    """Each column about its mean, in its standard deviations (a constant one: nought); a site at a time, for x may be large."""
    out = empty_array(len(x), columns.n, "standardised activations")
    for position in range(len(columns.sites)):
        part = columns.slice_of(position)
        sd = x[:, part].std(0)
        out[:, part] = (x[:, part] - x[:, part].mean(0)) / np.where(sd > 0, sd, 1.0)
    return out


def rotated(x: np.ndarray, columns: Columns, bases: dict[int, np.ndarray]) -> np.ndarray:
    """The same activations in another orthonormal basis, one per width (shared by layers, as the skip path is).

    If "neurons" are special, the top K coordinates must carry less after rotation. Standardise first: a coordinate of a wide
    spread that knows nothing would be in every rotated one.
    """
    out = empty_array(len(x), columns.n, "rotated activations")
    for position, width in enumerate(columns.widths):
        part = columns.slice_of(position)
        out[:, part] = x[:, part] @ bases[width]
    return out
