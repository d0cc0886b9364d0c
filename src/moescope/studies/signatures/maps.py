"""Where the prompts lie beside each other: two-dimensional maps of their signatures, and the similarity matrix."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from moescope.errors import InputError
from moescope.routing.signatures import Signatures
from moescope.routing.similarity import by_category, similarity
from moescope.routing.subject import Subject

SHOWN = 160  # prompts of the similarity matrix
_SHOWN_TEXT = 160  # characters of a prompt


def map_table(signatures: Signatures, subject: Subject, *, seed: int) -> pd.DataFrame:
    """Table ``signature_map``.

    t-SNE shows neighbourhoods only: distances between its clusters and their sizes mean nothing (Wattenberg, Viégas & Johnson
    2016).
    """
    x = signatures.flat()
    if len(np.unique(x, axis=0)) < 3:
        raise InputError(
            "fewer than 3 differ in how they are routed, so there is nothing to compare: give texts that differ",
            "prompts",
        )
    pca = PCA(n_components=2, random_state=seed)
    plane = pca.fit_transform(x)
    perplexity = min(30.0, (len(x) - 1) / 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own notices about threads and initial scale
        neighbours = TSNE(n_components=2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(x)
    texts = {} if subject.texts is None else {"text": [" ".join(text.split())[:_SHOWN_TEXT] for text in subject.texts]}
    explained = np.nan_to_num(pca.explained_variance_ratio_)
    return pd.DataFrame(
        {
            "id": [s.id for s in subject.trace.sequences],
            "category": [subject.categories[c] for c in subject.y],
            "topic": _strings(subject.topics, len(x)),
            "template": _strings(subject.templates, len(x)),
            **texts,
            "tokens": signatures.tokens,
            "pc1": plane[:, 0],
            "pc2": plane[:, 1],
            "pc1_explained": float(explained[0]),
            "pc2_explained": float(explained[1]),
            "tsne1": neighbours[:, 0].astype(float),
            "tsne2": neighbours[:, 1].astype(float),
        }
    )


def _strings(values: np.ndarray | None, n: int) -> list[str | None]:
    return [None] * n if values is None else [str(v) for v in values]


def matrix_tables(signatures: Signatures, subject: Subject) -> dict[str, pd.DataFrame]:
    """Tables ``category_similarity`` and ``similarity_matrix``."""
    s = similarity(signatures.flat())
    means = by_category(s, subject.y, len(subject.categories))
    rows: list[dict[str, Any]] = [
        {"category": a, "other": b, "cosine": float(means[i, j])}
        for i, a in enumerate(subject.categories)
        for j, b in enumerate(subject.categories)
    ]
    order = np.argsort(subject.y, kind="stable")[:: max(1, -(-len(subject) // SHOWN))]
    matrix = pd.DataFrame(
        {
            "id": [subject.trace.sequences[i].id for i in order],
            "category": [subject.categories[subject.y[i]] for i in order],
            "cosine": [np.round(s[i, order], 4).tolist() for i in order],
        }
    )
    return {"category_similarity": pd.DataFrame(rows), "similarity_matrix": matrix}
