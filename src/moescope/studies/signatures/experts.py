"""Which layers and experts tell the categories apart, with family-wise control."""

from __future__ import annotations

import numpy as np
import pandas as pd

from moescope.routing.separation import MEASURED, Cells, estimates, pairs_between, separated, without_each
from moescope.routing.signatures import Signatures
from moescope.routing.similarity import similarity
from moescope.routing.subject import Subject
from moescope.stats import permutation_p

_ENTRIES = 1 << 24  # of shares of variance held at once


def variance_explained(values: np.ndarray, labels: np.ndarray, cells: Cells | None = None) -> np.ndarray:
    """Eta squared: the share of each column's variance over prompts that lies between the categories.

    Args:
        values: (N, D).
        labels: (N,) codes, or (P, N) for P labelings at once; of cells, (G,) or (P, G), where those are given.
        cells: each counts alike, however many prompts it holds.

    Returns:
        (D,) or (P, D) in [0, 1]; 0 for a constant column.
    """
    labels2 = np.atleast_2d(labels)
    of = np.arange(len(values)) if cells is None else cells.of
    weight = (1 / np.bincount(of)[of])[:, None]  # each cell weighs 1
    centred = values - (weight * values).sum(0) / weight.sum()
    total = (weight * centred**2).sum(0)
    sums = np.zeros((labels2.shape[1], values.shape[1]))
    np.add.at(sums, of, weight * centred)
    out = np.empty((len(labels2), values.shape[1]))
    codes = np.unique(labels2)
    for i, row in enumerate(labels2):
        onehot = (row == codes[:, None]).astype(float)  # (C, G)
        between = ((onehot @ sums) ** 2 / onehot.sum(1, keepdims=True)).sum(0)
        out[i] = np.divide(between, total, out=np.zeros(len(total)), where=total > 1e-20)
    return out if np.ndim(labels) == 2 else out[0]


def real_experts(signatures: Signatures) -> np.ndarray:
    """Columns of ``flat()`` that stand for an expert, rather than fill a layer that has fewer."""
    width = signatures.values.shape[2]
    return np.concatenate([i * width + np.arange(n) for i, n in enumerate(signatures.n_experts)])


def expert_table(signatures: Signatures, subject: Subject, labels: np.ndarray) -> tuple[pd.DataFrame, np.ndarray]:
    """Table ``experts``.

    ``p_family`` is that of the maximum over all experts of all layers (Westfall & Young 1993).

    Args:
        labels: (P, G) permuted categories of the cells.

    Returns:
        the table, and (P,) the mean over experts of the permuted eta squared.
    """
    flat = signatures.flat()
    y, categories, cells = subject.y, subject.categories, subject.cells()
    width, real = signatures.values.shape[2], real_experts(signatures)
    # some labelings at a time: single neurons are many experts, and of each labeling only the largest and the mean count
    step = max(1, _ENTRIES // len(real))
    parts = (variance_explained(flat[:, real], labels[at : at + step], cells) for at in range(0, len(labels), step))
    largest, mean = (np.concatenate(found) for found in zip(*((part.max(1), part.mean(1)) for part in parts), strict=True))
    eta = variance_explained(flat[:, real], cells.y, cells)
    p = permutation_p(eta, largest)
    means = np.stack([flat[y == c].mean(0) for c in range(len(categories))])[:, real]  # (C, D)
    overall = flat.mean(0)[real]
    lift = np.divide(means, overall, out=np.ones(means.shape), where=overall > 0)
    best = lift.argmax(0)
    rows = [
        {
            "layer": signatures.layers[at // width],
            "expert": int(at % width),
            "share": float(overall[i]),
            "eta2": float(eta[i]),
            "p_family": float(p[i]),
            "category": categories[best[i]],
            "lift": float(lift[best[i], i]),
            **{f"share_{c}": float(means[n, i]) for n, c in enumerate(categories)},
        }
        for i, at in enumerate(real)
    ]
    return pd.DataFrame(rows), mean


def layer_table(signatures: Signatures, cells: Cells, labels: np.ndarray) -> tuple[pd.DataFrame, np.ndarray]:
    """Table ``routing_layers``; ``p_family`` is of the d that is largest over all layers when cells are permuted.

    Args:
        labels: (P, G) permuted categories of the cells.

    Returns:
        the table, and (L, U) d when each block of cells is left out in turn.
    """
    pairs = [pairs_between(similarity(signatures.flat(layer)), cells) for layer in signatures.layers]
    found = [estimates(p, cells) for p in pairs]
    null = np.array([separated(p, labels)["d"] for p in pairs])  # (L, P)
    d = np.array([f["d"].value for f in found])
    known = not (np.isnan(null).any() or np.isnan(d).any())
    p = permutation_p(d, null.max(0)) if known else np.full(len(d), np.nan)
    rows = [
        {
            "layer": layer,
            **{name: f[name].value for name in MEASURED},
            "d_low": f["d"].low,
            "d_high": f["d"].high,
            "null_d_95": float(np.quantile(null[i], 0.95)),
            "p_family": float(p[i]),
        }
        for i, (layer, f) in enumerate(zip(signatures.layers, found, strict=True))
    ]
    return pd.DataFrame(rows), np.array([without_each(p, cells)["d"] for p in pairs])
