"""Splits that keep groups whole (STATISTICS: the two answers to one question never straddle a split)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from moescope.errors import InputError


def group_folds(
    labels: Sequence[int] | np.ndarray, groups: Sequence[Any] | np.ndarray, n_folds: int = 5, seed: int = 0
) -> np.ndarray:
    """Fold of each row: stratified by class, groups whole, shuffled by ``seed``.

    Parameters
    ----------
    labels : int array of shape (N,)
    groups : array of shape (N,), any hashable kind
    n_folds : at least 2
    seed : the same seed gives the same folds

    Returns
    -------
    int64 array of shape (N,), values 0..n_folds-1; every fold has a row and every training part (the rows outside a
    fold) has all classes.

    Raises
    ------
    InputError
        When the groups do not suffice for that.
    """
    y = np.asarray(labels)
    if y.ndim != 1 or len(y) != len(groups):
        raise InputError(f"labels and groups differ in length ({len(y)} and {len(groups)}); give one group for each row")
    if n_folds != int(n_folds):
        raise InputError(f"folds={n_folds} is not a whole number")
    if n_folds < 2:
        raise InputError(f"folds={n_folds}: cross-validation needs at least 2 folds")
    keys = [str(g) for g in groups]
    codes = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    g = np.array([codes[key] for key in keys], dtype=np.int64)
    classes = np.unique(y)
    if len(classes) < 2:
        raise InputError("the rows have one class only; a split needs at least two classes")
    if len(codes) < n_folds:
        have = "one group" if len(codes) == 1 else f"{len(codes)} groups"
        raise InputError(f"{have} cannot form {n_folds} folds; use fewer folds, or a group= column with more values")
    for c in classes:
        spread = len(np.unique(g[y == c]))
        if spread < 2:
            raise InputError(
                f"class {c} has all its rows in one group, so a fold would train without it; "
                "use a finer group= column or drop the class"
            )
    folds = _assign(y, g, n_folds, seed)
    for f in range(n_folds):
        held = folds == f
        if not held.any():
            raise InputError(f"fold {f} of {n_folds} is empty: a few large groups hold most rows; use fewer folds")
        missing = sorted(set(classes.tolist()) - set(y[~held].tolist()))
        if missing:
            raise InputError(f"fold {f} of {n_folds} would train without class {missing[0]}; use fewer folds or finer groups")
    return folds


def _assign(y: np.ndarray, g: np.ndarray, n_folds: int, seed: int) -> np.ndarray:
    """Fold ids from scikit-learn; where each group is one row, the faster plain stratified split."""
    folds = np.full(len(y), -1, dtype=np.int64)
    single = len(np.unique(g)) == len(g) and np.bincount(np.unique(y, return_inverse=True)[1]).min() >= n_folds
    kind = StratifiedKFold if single else StratifiedGroupKFold
    with warnings.catch_warnings():
        # "The least populated class has fewer members than n_splits": allowed here; the caller checks what matters.
        warnings.simplefilter("ignore", UserWarning)
        try:
            splits = list(kind(n_splits=n_folds, shuffle=True, random_state=seed).split(np.zeros(len(y)), y, g))
        except ValueError as error:
            raise InputError(f"cannot form {n_folds} folds: {error}; use fewer folds") from error
    for f, (_, held) in enumerate(splits):
        folds[held] = f
    return folds


def split_half(labels: Sequence[int] | np.ndarray, groups: Sequence[Any] | np.ndarray, seed: int = 0) -> np.ndarray:
    """A bool mask of shape (N,) that is True for one half: groups whole, stratified, both halves with all classes.

    Raises
    ------
    InputError
        When the groups cannot be halved so.
    """
    return np.asarray(group_folds(labels, groups, n_folds=2, seed=seed) == 0)


def graded_folds(values: np.ndarray, groups: Sequence[Any] | np.ndarray, n_folds: int, rng: np.random.Generator) -> np.ndarray:
    """Fold of each row, int64 (N,), for a graded label: groups whole, dealt out at random among those of a like mean value.

    Raises
    ------
    InputError
        Fewer groups than folds.
    """
    code = np.unique(np.asarray(groups), return_inverse=True)[1]
    n_groups = int(code.max()) + 1
    if n_groups < n_folds:
        raise InputError(f"{n_groups} groups cannot form {n_folds} folds; use fewer folds, or a group= column with more values")
    mean = np.bincount(code, values) / np.bincount(code)
    order = np.lexsort((rng.random(n_groups), mean))
    fold = np.empty(n_groups, dtype=np.int64)
    for begin in range(0, n_groups, n_folds):
        some = order[begin : begin + n_folds]
        fold[some] = rng.permutation(n_folds)[: len(some)]
    return np.asarray(fold[code])


def dealt_folds(labels: np.ndarray, groups: np.ndarray, n_folds: int, rng: np.random.Generator) -> np.ndarray:
    """Fold of each row, int64 (N,): groups whole and, in a random order, dealt out among those of one make-up.

    Far quicker than :func:`group_folds`, for procedures that need hundreds of divisions; classes are as balanced where groups
    are of few make-ups (numbers of rows of each class). It promises nothing of what training parts hold.
    """
    code = np.unique(groups, return_inverse=True)[1]
    made = np.zeros((int(code.max()) + 1, int(np.max(labels)) + 1), dtype=np.int64)
    np.add.at(made, (code, labels), 1)
    order = np.lexsort((rng.random(len(made)), *made.T))
    fold = np.empty(len(made), dtype=np.int64)
    fold[order] = (np.arange(len(made)) + rng.integers(n_folds)) % n_folds
    return np.asarray(rng.permutation(n_folds)[fold[code]])
