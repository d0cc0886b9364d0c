"""What trivial cues alone say of a graded label: length, ending and words, each a regression learnt in the training rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from moescope.tasks.build import slots
from moescope.tasks.surface import WORD, Predictor, surface_features
from moescope.types import Task

_PENALTY = 1.0  # of tf-idf rows, whose norm is one; fixed, not tuned


def graded_cues(task: Task, tokenizer: Any = None) -> dict[str, Predictor]:
    """Each trivial cue by name: a function of training rows, held-out rows and the values that gives the values held out.

    The length is a regression on characters, words and tokens and their logarithms (the usual leak of a graded label); endings and
    final characters have the mean of their training rows, shrunk to that of all.
    """
    features, texts = surface_features(task, tokenizer), slots(task)
    numbers = features[[c for c in ("chars", "words", "tokens") if c in features]].to_numpy(float)
    lengths = np.column_stack([numbers, np.log1p(numbers)])
    ends = features[["ends_full_stop", "ends_punctuation"]].astype(str).to_numpy()
    finals = features[[c for c in ("final_char", "final_token") if c in features]].astype(str).to_numpy()
    return {
        "length": _by_parts(lengths, None, None),
        "ending": _by_parts(None, ends, None),
        "final character and token": _by_parts(None, finals, None),
        "bag of words": _by_parts(None, None, texts),
        "words and bigrams": _by_parts(None, None, texts, ngrams=2),
        "all surface cues": _by_parts(lengths, np.hstack([ends, finals]), texts, ngrams=2),
    }


def _by_parts(numbers: np.ndarray | None, marks: np.ndarray | None, texts: list[str] | None, *, ngrams: int = 1) -> Predictor:
    def predict(train: np.ndarray, held: np.ndarray, y: np.ndarray) -> np.ndarray:
        parts: list[list[Any]] = [[], []]
        if numbers is not None:
            scale = StandardScaler().fit(numbers[train])
            for part, rows in zip(parts, (train, held), strict=True):
                part.append(sparse.csr_matrix(scale.transform(numbers[rows])))
        if marks is not None:
            onehot = OneHotEncoder(handle_unknown="ignore").fit(marks[train])
            for part, rows in zip(parts, (train, held), strict=True):
                part.append(onehot.transform(marks[rows]))
        if texts is not None:
            words = TfidfVectorizer(token_pattern=WORD, ngram_range=(1, ngrams), sublinear_tf=True)
            try:
                fitted = words.fit_transform([texts[i] for i in train])
                parts[0].append(fitted)
                parts[1].append(words.transform([texts[i] for i in held]))
            except ValueError:  # no row has a word
                if not parts[0]:
                    return np.full(len(held), y[train].mean())
        model = Ridge(alpha=_PENALTY).fit(sparse.hstack(parts[0]).tocsr(), y[train])
        return np.asarray(model.predict(sparse.hstack(parts[1]).tocsr()))

    return predict
