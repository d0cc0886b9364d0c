"""What trivial cues alone say of a graded label: length, ending and words, each a regression learnt in the training rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from moescope.tasks.build import slots
from moescope.tasks.predictors import Predictor
from moescope.tasks.surface import WORD, surface_features
from moescope.types import Task

_PENALTIES = (1.0, 10.0, 100.0, 1000.0)
_APART = 3  # one group in so many tries the penalties


def graded_cues(task: Task, tokenizer: Any = None) -> dict[str, Predictor]:
    """Each trivial cue by name: a function of training rows, held-out rows and the values that gives the values held out.

    The length is a regression on characters, words and tokens and their logarithms (the usual leak of a graded label); endings
    and final characters have the mean of their training rows, shrunk to that of all. How strongly is chosen
    on a third of the training rows' groups.
    """
    features, texts = surface_features(task, tokenizer), slots(task)
    code = np.unique([e.group for e in task.examples], return_inverse=True)[1]
    numbers = features[[c for c in ("chars", "words", "tokens") if c in features]].to_numpy(float)
    lengths = np.column_stack([numbers, np.log1p(numbers)])
    ends = features[["ends_full_stop", "ends_punctuation"]].astype(str).to_numpy()
    finals = features[[c for c in ("final_char", "final_token") if c in features]].astype(str).to_numpy()
    return {
        "length": _by_parts(lengths, None, None, code),
        "ending": _by_parts(None, ends, None, code),
        "final character and token": _by_parts(None, finals, None, code),
        "bag of words": _by_parts(None, None, texts, code),
        "words and bigrams": _by_parts(None, None, texts, code, ngrams=2),
        "all surface cues": _by_parts(lengths, np.hstack([ends, finals]), texts, code, ngrams=2),
    }


def _by_parts(
    numbers: np.ndarray | None, marks: np.ndarray | None, texts: list[str] | None, code: np.ndarray, *, ngrams: int = 1
) -> Predictor:
    def design(train: np.ndarray, held: np.ndarray) -> tuple[Any, Any]:
        """Both as sparse matrices, by what the rows ``train`` tell of scales, values and words."""
        pairs: list[tuple[Any, Any]] = []
        if numbers is not None:
            scale = StandardScaler().fit(numbers[train])
            pairs.append(
                (sparse.csr_matrix(scale.transform(numbers[train])), sparse.csr_matrix(scale.transform(numbers[held])))
            )
        if marks is not None:
            onehot = OneHotEncoder(handle_unknown="ignore").fit(marks[train])
            pairs.append((onehot.transform(marks[train]), onehot.transform(marks[held])))
        if texts is not None:
            words = TfidfVectorizer(token_pattern=WORD, ngram_range=(1, ngrams), sublinear_tf=True)
            try:
                pairs.append((words.fit_transform([texts[i] for i in train]), words.transform([texts[i] for i in held])))
            except ValueError:  # no row has a word
                pairs.append((sparse.csr_matrix((len(train), 1)), sparse.csr_matrix((len(held), 1))))
        first, second = zip(*pairs, strict=True)
        return sparse.hstack(first).tocsr(), sparse.hstack(second).tocsr()

    def fitted(train: np.ndarray, held: np.ndarray, y: np.ndarray, penalties: tuple[float, ...]) -> list[np.ndarray]:
        a, b = design(train, held)
        return [np.asarray(Ridge(alpha=penalty).fit(a, y[train]).predict(b)) for penalty in penalties]

    def predict(train: np.ndarray, held: np.ndarray, y: np.ndarray) -> np.ndarray:
        apart = np.unique(code[train], return_inverse=True)[1] % _APART == 0
        best = _PENALTIES[-1]
        if not apart.all():
            # words and all anew: a word that was not met makes a row's others count for more
            tried = fitted(train[~apart], train[apart], y, _PENALTIES)
            best = _PENALTIES[int(np.argmin([np.square(y[train[apart]] - said).sum() for said in tried]))]
        return fitted(train, held, y, (best,))[0]

    return predict
