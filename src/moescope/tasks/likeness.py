"""How alike the texts of several tasks are, before any model has read them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from moescope.tasks.surface import surface_features
from moescope.types import Task

LIKENESS = ("vocabulary", "class_words", "surface")
"""By which words the texts are written; by which words the classes differ; how long the texts are and how they end."""


def text_likeness(tasks: Sequence[Task]) -> dict[str, np.ndarray]:
    """Similarity (T, T) of every two tasks by each of :data:`LIKENESS`, symmetric.

    ``vocabulary`` is the cosine of the tasks' mean tf-idf weights, ``class_words`` the absolute cosine of the difference
    between the two classes that lie furthest apart in them, ``surface`` the negative distance between mean length in
    characters and words (logarithms) and shares of texts with a full stop or other punctuation at their end, each in standard
    deviations over tasks. Words are those of the rendered texts, for these are what a model reads; length and ending are those
    of the content.
    """
    texts = [[example.text for example in task.examples] for task in tasks]
    weights = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b", sublinear_tf=True).fit_transform([t for own in texts for t in own])
    ends = np.cumsum([0, *map(len, texts)])
    means, contrasts = [], []
    for i, task in enumerate(tasks):
        own = weights[ends[i] : ends[i + 1]]
        y = np.array([example.label for example in task.examples])
        classes = np.stack([np.asarray(own[y == c].mean(axis=0)).ravel() for c in np.unique(y)])
        gaps = classes[:, None] - classes[None]
        far = np.unravel_index(np.argmax((gaps**2).sum(-1)), gaps.shape[:2])
        means.append(np.asarray(own.mean(axis=0)).ravel())
        contrasts.append(gaps[far])
    shapes = np.stack([_shape(task) for task in tasks])
    shapes = (shapes - shapes.mean(0)) / np.where(shapes.std(0) > 1e-12, shapes.std(0), 1.0)
    apart = np.linalg.norm(shapes[:, None] - shapes[None], axis=-1)
    found = (_cosines(np.stack(means)), np.abs(_cosines(np.stack(contrasts))), -apart)
    return dict(zip(LIKENESS, found, strict=True))


def _shape(task: Task) -> np.ndarray:
    cues = surface_features(task)
    numbers = np.log1p(cues[["chars", "words"]].to_numpy(float))
    return np.concatenate([numbers.mean(0), cues[["ends_full_stop", "ends_punctuation"]].to_numpy(float).mean(0)])


def _cosines(rows: np.ndarray) -> np.ndarray:
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    found = unit @ unit.T
    return np.asarray((found + found.T) / 2)
