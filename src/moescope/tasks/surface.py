"""What trivial cues alone score on a task, and tasks in which those cues are gone.

The cues are those of the *slot*: the content that the template holds (the answer, the review), because the template's
own words are the same in every row. Only the final token is read off the rendered text, since that is the token at
which a final-token probe reads the model.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import MaxAbsScaler, OneHotEncoder

from moescope.errors import InputError
from moescope.stats.intervals import group_bootstrap, wilson
from moescope.tasks.answered import answer_cues
from moescope.tasks.bare import BareTask
from moescope.tasks.build import RenderedTask, slots, task_sha256
from moescope.tasks.images.surface import image_cues, image_matched
from moescope.tasks.images.task import ImageTask
from moescope.tasks.predictors import Predictor, by_threshold, by_value
from moescope.types import Task

WRAP = 'Text: "{text}"\nThe text above ends here.'
_FULL_STOPS = (".", "。", "।", "۔")
_PUNCTUATION = (*_FULL_STOPS, "!", "?", "…", "！", "？")
WORD = r"(?u)\b\w+\b"
_PIECE = re.compile(r"\w+|[^\w\s]")


def surface_features(task: Task, tokenizer: Any = None) -> pd.DataFrame:
    """The trivial cues of each row.

    Columns: ``chars`` and ``words`` (length of the slot), ``ends_full_stop``, ``ends_punctuation`` (a full stop,
    question or exclamation mark, also before closing quotes and brackets), ``final_char``; with a tokenizer also
    ``tokens`` (of the slot, without special tokens) and ``final_token`` (id of the rendered text's last token, without
    special tokens).
    """
    content = [s.rstrip() for s in slots(task)]
    bare = [s.rstrip("\"'”’»)]") for s in content]
    frame = pd.DataFrame(
        {
            "chars": [len(s) for s in content],
            "words": [len(s.split()) for s in content],
            "ends_full_stop": [s.endswith(_FULL_STOPS) for s in content],
            "ends_punctuation": [s.endswith(_PUNCTUATION) for s in bare],
            "final_char": [s[-1:] for s in content],
        }
    )
    if tokenizer is not None:
        frame["tokens"] = [len(ids) for ids in _token_ids(tokenizer, content)]
        rendered = _token_ids(tokenizer, [e.text for e in task.examples])
        frame["final_token"] = [ids[-1] if len(ids) else -1 for ids in rendered]
    return frame


def _token_ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return list(tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"])


def _logistic(train: Any, held: Any, y: np.ndarray) -> np.ndarray:
    model = LogisticRegression(C=10.0, max_iter=300, tol=1e-3).fit(train, y)
    return np.asarray(model.predict(held))


def _by_words(texts: list[str], ngrams: int) -> Predictor:
    """Logistic regression on tf-idf weights; the vocabulary is that of the training rows."""

    def predict(train: np.ndarray, held: np.ndarray, y: np.ndarray) -> np.ndarray:
        words = TfidfVectorizer(token_pattern=WORD, ngram_range=(1, ngrams), sublinear_tf=True)
        try:
            a = words.fit_transform([texts[i] for i in train])
        except ValueError:  # no row has a word: nothing to learn from, so the majority
            return np.full(len(held), np.bincount(y[train]).argmax())
        return _logistic(a, words.transform([texts[i] for i in held]), y[train])

    return predict


def _by_all(texts: list[str], features: pd.DataFrame) -> Predictor:
    """Logistic regression on all cues together: lengths and their logarithms, endings, final token, 1- and 2-grams."""
    numbers = features[[c for c in ("chars", "words", "tokens") if c in features]].to_numpy(float)
    flags = features[["ends_full_stop", "ends_punctuation"]].to_numpy(float)
    dense = np.column_stack([numbers, np.log1p(numbers), flags])
    marks = features[[c for c in ("final_char", "final_token") if c in features]].astype(str).to_numpy()

    def predict(train: np.ndarray, held: np.ndarray, y: np.ndarray) -> np.ndarray:
        scale = MaxAbsScaler().fit(dense[train])
        onehot = OneHotEncoder(handle_unknown="ignore").fit(marks[train])
        parts = [[sparse.csr_matrix(scale.transform(dense[rows])), onehot.transform(marks[rows])] for rows in (train, held)]
        words = TfidfVectorizer(token_pattern=WORD, ngram_range=(1, 2), sublinear_tf=True)
        try:
            parts[0].append(words.fit_transform([texts[i] for i in train]))
            parts[1].append(words.transform([texts[i] for i in held]))
        except ValueError:  # no row has a word
            pass
        return _logistic(sparse.hstack(parts[0]).tocsr(), sparse.hstack(parts[1]).tocsr(), y[train])

    return predict


def surface_cues(task: Task, tokenizer: Any = None) -> dict[str, Predictor]:
    """Each trivial cue of a task by name: a function of training rows, held-out rows and the labels that learns and predicts.

    A training row that is given several times counts so often. Of images the cues are those of
    :func:`~moescope.tasks.images.surface.image_cues`; where labels alone are known there is the majority class.
    """
    if task.kind == "tokens":
        return word_cues(task)
    if isinstance(task, ImageTask):
        return image_cues(task)
    if isinstance(task, BareTask):
        return {"majority class": by_value(np.zeros(len(task)))}
    features = surface_features(task, tokenizer)
    texts = slots(task)
    n_classes = len(task.classes)
    cues = {
        "majority class": by_value(np.zeros(len(task))),
        "length in characters": by_threshold(features["chars"].to_numpy(), n_classes),
        "length in words": by_threshold(features["words"].to_numpy(), n_classes),
    }
    if tokenizer is not None:
        cues["length in tokens"] = by_threshold(features["tokens"].to_numpy(), n_classes)
    cues["ends with a full stop"] = by_value(features["ends_full_stop"].to_numpy())
    cues["ends with punctuation"] = by_value(features["ends_punctuation"].to_numpy())
    cues["final character"] = by_value(features["final_char"].to_numpy(str))
    if tokenizer is not None:
        cues["final token"] = by_value(features["final_token"].to_numpy())
    return cues | {
        "bag of words": _by_words(texts, 1),
        "words and bigrams": _by_words(texts, 2),
        "all surface cues": _by_all(texts, features),
        **answer_cues(task),
    }


def word_cues(task: Task) -> dict[str, Predictor]:
    """The trivial cues of labelled words. The usual leak is the word itself: most words have one label wherever they stand."""
    words, texts = slots(task), [e.text for e in task.examples]
    spans = [e.span or (0, len(e.text)) for e in task.examples]
    # a mark is a word here: what stands before a name in code is a dot or a bracket
    before = [["", *_PIECE.findall(text[:start])][-1] for text, (start, _) in zip(texts, spans, strict=True)]
    lower = np.asarray([word.casefold() for word in words])
    place = np.asarray([len(text[:start].split()) for text, (start, _) in zip(texts, spans, strict=True)])
    shape = np.asarray([re.sub(r"\d+", "0", re.sub(r"[^\W\d_]+", lambda m: _cased(m[0]), word)) for word in words])
    cues = {
        "majority class": by_value(np.zeros(len(task))),
        "the word itself": by_value(lower),
        "its last three characters": by_value(np.asarray([word[-3:] for word in lower])),
        "its shape": by_value(shape),
        "its length": by_threshold(np.asarray([len(word) for word in words]), len(task.classes)),
        "its place in the text": by_threshold(place, len(task.classes)),
        "the word before it": by_value(np.asarray([word.casefold() for word in before])),
    }
    marked = [
        " ".join([f"w={a}", f"e={a[-3:]}", f"b={b.casefold()}", f"s={c}", f"wb={a}|{b.casefold()}"]).replace("\n", "")
        for a, b, c in zip(lower, before, shape, strict=True)
    ]
    return cues | {"the word, its shape and the word before": _by_marks(marked)}


def _cased(word: str) -> str:
    """Its letters as their case alone: ``A``, ``a`` or ``Aa``."""
    return "A" if word.isupper() else "a" if word.islower() else "Aa"


def _by_marks(marks: list[str]) -> Predictor:
    """Logistic regression on marks that a space parts; those of the training rows alone are known."""

    def predict(train: np.ndarray, held: np.ndarray, y: np.ndarray) -> np.ndarray:
        known = CountVectorizer(token_pattern=r"\S+", lowercase=False, binary=True)
        return _logistic(known.fit_transform([marks[i] for i in train]), known.transform([marks[i] for i in held]), y[train])

    return predict


def surface_baselines(
    task: Task, folds: np.ndarray, tokenizer: Any = None, *, n_boot: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Held-out accuracy of each trivial cue; whatever is learned (threshold, table, vocabulary) is learned in the fold.

    Parameters
    ----------
    task : N rows
    folds : int array of shape (N,), from :func:`~moescope.tasks.group_folds`
    tokenizer : a Hugging Face tokenizer, for the two token cues; None leaves them out

    Returns
    -------
    One row a control: ``control``, ``accuracy``, ``low``, ``high`` (95 %), ``n``. The interval is Wilson's where every
    group is one row, otherwise a bootstrap over groups.
    """
    folds = np.asarray(folds)
    if folds.shape != (len(task),):
        raise InputError(f"task {task.name}: {folds.size} fold ids for {len(task)} rows; make them with group_folds")
    y = np.array([e.label for e in task.examples])
    groups = np.array([e.group for e in task.examples])
    single = len(np.unique(groups)) == len(groups)
    rows = []
    for control, predict in surface_cues(task, tokenizer).items():
        correct = np.zeros(len(y), dtype=bool)
        for f in np.unique(folds):
            train, held = np.flatnonzero(folds != f), np.flatnonzero(folds == f)
            correct[held] = predict(train, held, y) == y[held]
        if single:
            low, high = wilson(int(correct.sum()), len(y))
        else:
            low, high = group_bootstrap(correct.astype(float), groups, n_boot=n_boot, seed=seed)
        rows.append((control, float(correct.mean()), float(low), float(high), len(y)))
    return pd.DataFrame(rows, columns=["control", "accuracy", "low", "high", "n"])


def surface_predictions(task: Task, train: np.ndarray, held: np.ndarray, tokenizer: Any = None) -> dict[str, np.ndarray]:
    """What each trivial cue, learnt on the rows ``train``, says of the rows ``held``: control -> int array (len(held),).

    The controls are those of :func:`surface_baselines`.
    """
    y = np.array([e.label for e in task.examples])
    return {control: predict(train, held, y) for control, predict in surface_cues(task, tokenizer).items()}


def chosen_cue(
    task: Task, fit: np.ndarray, judge: np.ndarray, folds: np.ndarray, tokenizer: Any = None
) -> tuple[str, np.ndarray]:
    """The trivial cue that does best within the rows ``fit``, and what it says of the rows ``judge``, int (len(judge),).

    Every cue is learnt on each part of ``fit`` but one, ``folds`` (len(fit),), and scored on that one by balanced accuracy;
    the rows that judge have no say in which is the best.
    """
    y = np.array([e.label for e in task.examples])
    right: dict[str, np.ndarray] = {}
    for fold in np.unique(folds):
        train, held = fit[folds != fold], fit[folds == fold]
        for cue, said in surface_predictions(task, train, held, tokenizer).items():
            right.setdefault(cue, np.zeros(len(fit)))[folds == fold] = said == y[held]
    code, counts = np.unique(y[fit], return_inverse=True, return_counts=True)[1:]
    best = max(right, key=lambda cue: float((np.bincount(code, right[cue]) / counts).mean()))
    return best, surface_predictions(task, fit, judge, tokenizer)[best]


def matched_subset(task: Task, seed: int = 0, *, length_bins: int = 8) -> np.ndarray:
    """Indices (sorted, int64) of a subset in which ending and length say nothing about the class.

    Rows are put into cells by (slot ends with a full stop, slot length in characters in one of ``length_bins`` quantile
    bins); from each cell the same number of rows of every class is drawn with ``seed``. The result is class-balanced,
    and exactly matched on the cells; it is empty when no cell holds all classes. Groups are not kept whole: a row whose
    cell has no partner left goes alone. Images are matched by :func:`~moescope.tasks.images.surface.image_matched`.
    """
    if isinstance(task, ImageTask):
        return image_matched(task, seed)
    features = surface_features(task)
    y = np.array([e.label for e in task.examples])
    chars = features["chars"].to_numpy()
    edges = np.unique(np.quantile(chars, np.linspace(0, 1, length_bins + 1)[1:-1]))
    cell = np.searchsorted(edges, chars) * 2 + features["ends_full_stop"].to_numpy(int)
    rng = np.random.default_rng(seed)
    chosen: list[np.ndarray] = []
    for c in np.unique(cell):
        members = [np.flatnonzero((cell == c) & (y == label)) for label in range(len(task.classes))]
        take = min(len(m) for m in members)
        chosen += [rng.choice(m, take, replace=False) for m in members if take]
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, dtype=np.int64)


def fixed_wrap(task: Task) -> RenderedTask:
    """The task with every text inside one fixed sentence, so that all rows end in the same tokens.

    The final token then carries no cue of its own: what a final-token probe reads there, attention has brought from the
    text. The sentence (:data:`WRAP`) neither asks for nor hints at a class, and starts its ending on a new line, which
    byte-pair tokenizers split before, so that the text's last token cannot merge with it. Answers are dropped: the text
    no longer ends in a question. Labels, groups and slots stay.
    """
    content = slots(task)
    examples = tuple(replace(e, text=WRAP.format(text=e.text)) for e in task.examples)
    template = task.template if isinstance(task, RenderedTask) else "{text}"
    return RenderedTask(
        f"{task.name} (fixed template)", examples, task.classes, task.source, task.licence, (), task_sha256(examples),
        kind=task.kind, template=WRAP.replace("{text}", template),
        slot_of={e.text: s for e, s in zip(examples, content, strict=True)},
    )  # fmt: skip
