"""What a study asks of a task's labels, by their kind: one object each, so that no study asks twice what kind they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from moescope.tasks.folds import graded_folds, group_folds
from moescope.types import LabelKind, Task


@dataclass(frozen=True)
class Labels:
    """One kind of labels.

    Attributes:
        said: what a task of this kind has, in words.
        divergence: what a neuron is ranked by; reader: what is fitted on K of them; score: what judges; chance: its value
            without knowledge; cues: the trivial cues that stand beside it.
        y: the labels of a task (N,), as numbers to learn.
        folds: of a task, a number of folds and a seed: the fold of each row (N,), groups whole.
    """

    said: str
    divergence: str
    reader: str
    score: str
    chance: str
    cues: str
    y: Callable[[Task], np.ndarray]
    folds: Callable[[Task, int, int], np.ndarray]


def _classes(task: Task) -> np.ndarray:
    return np.asarray([e.label for e in task.examples])


def _values(task: Task) -> np.ndarray:
    return np.asarray([e.value for e in task.examples], dtype=np.float64)


def groups_of(task: Task) -> np.ndarray:
    """(N,) str."""
    return np.asarray([e.group for e in task.examples])


def _stratified(task: Task, n_folds: int, seed: int) -> np.ndarray:
    return group_folds(_classes(task), groups_of(task), n_folds=n_folds, seed=seed)


def _levelled(task: Task, n_folds: int, seed: int) -> np.ndarray:
    return graded_folds(_values(task), groups_of(task), n_folds, np.random.default_rng(seed))


KINDS: Mapping[LabelKind, Labels] = {
    "classes": Labels(
        "classes of texts",
        "largest difference of two class means, in standard deviations",
        "linear discriminant analysis or logistic regression",
        "balanced accuracy",
        "1 / number of classes",
        "majority, length, ending, final token, words, all of them",
        _classes,
        _stratified,
    ),
    "graded": Labels(
        "graded labels",
        "absolute correlation with the label",
        "ridge regression",
        "R², the share of variance explained on held-out rows",
        "0",
        "length, ending, final character, words, all of them",
        _values,
        _levelled,
    ),
    "tokens": Labels(
        "labels for words",
        "as for classes",
        "as for classes",
        "balanced accuracy over labelled words",
        "1 / number of classes",
        "the word itself, its ending and length, the word before it, its place",
        _classes,
        _stratified,
    ),
}
