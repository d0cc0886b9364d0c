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
        y: the labels of a task (N,), as numbers to learn.
        folds: of a task, a number of folds and a seed: the fold of each row (N,), groups whole.
    """

    said: str
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
    "classes": Labels("classes of texts", _classes, _stratified),
    "graded": Labels("graded labels", _values, _levelled),
    "tokens": Labels("labels for words", _classes, _stratified),
    "answers": Labels("questions for a model to answer", _classes, _stratified),  # its classes once a model has answered
}
