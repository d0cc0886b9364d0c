"""Which rows of a study fit, select, calibrate and judge: said once, kept apart by group, written to the result.

A study takes the rows that it works with from these objects and from nowhere else, so what the result says of them is what
was done.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from moescope.errors import StudyFault
from moescope.tasks.folds import group_folds
from moescope.types import Task

ROLES = ("fit", "select", "calibrate", "judge")
_APART = [pair for pair in combinations(ROLES, 2) if pair != ("fit", "select")]
FOLDS = 5
"""into which groups are dealt, where no settings say how many"""
_NONE = np.empty(0, dtype=np.int64)


class RowsOverlap(StudyFault):
    """Two roles share a group: a fault of the study, not of its input."""


@dataclass(frozen=True)
class Rows:
    """The rows of one measurement, int64 numbers into the groups (N,) of its data.

    ``fit`` and ``select`` may be the same rows; otherwise no group is in two roles.

    Raises:
        RowsOverlap: a group is in two roles that must be apart.
    """

    name: str
    groups: np.ndarray = field(repr=False)
    fit: np.ndarray = field(default_factory=lambda: _NONE)
    select: np.ndarray = field(default_factory=lambda: _NONE)
    calibrate: np.ndarray = field(default_factory=lambda: _NONE)
    judge: np.ndarray = field(default_factory=lambda: _NONE)

    def __post_init__(self) -> None:
        for first, second in _APART:
            shared = np.intersect1d(self.groups[getattr(self, first)], self.groups[getattr(self, second)])
            if len(shared):
                raise RowsOverlap(f"{self.name}: group {shared[0]!r} is among the rows that {first} and those that {second}")

    def record(self) -> dict[str, Any]:
        """For results.json: of each role that has rows, how many rows and groups, and the sha256 of their numbers."""
        roles = {role: getattr(self, role) for role in ROLES}
        return {
            "name": self.name,
            **{
                role: {
                    "rows": len(rows),
                    "groups": len(np.unique(self.groups[rows])),
                    "sha256": hashlib.sha256(np.sort(np.asarray(rows, np.int64)).tobytes()).hexdigest()[:16],
                }
                for role, rows in roles.items()
                if len(rows)
            },
        }


@dataclass(frozen=True)
class FoldRows:
    """Cross-validation as rows: fold ``f`` judges what the other folds have fitted and selected.

    Raises:
        RowsOverlap: a group straddles two folds.
    """

    name: str
    groups: np.ndarray = field(repr=False)
    folds: np.ndarray = field(repr=False)

    def __post_init__(self) -> None:
        for _ in self:
            pass

    def __iter__(self) -> Iterator[Rows]:
        for fold in np.unique(self.folds):
            train, judge = np.flatnonzero(self.folds != fold), np.flatnonzero(self.folds == fold)
            yield Rows(f"{self.name}, fold {int(fold)}", self.groups, fit=train, select=train, judge=judge)

    def record(self) -> dict[str, Any]:
        """For results.json: the folds' sizes and groups, and the sha256 of the folds' numbers."""
        numbers = np.unique(self.folds)
        return {
            "name": self.name,
            "folds": len(numbers),
            "judge": {"rows": len(self.folds), "groups": len(np.unique(self.groups))},
            "rows_by_fold": [int((self.folds == f).sum()) for f in numbers],
            "sha256": hashlib.sha256(np.asarray(self.folds, np.int64).tobytes()).hexdigest()[:16],
        }


def halves(name: str, groups: np.ndarray, chosen: np.ndarray) -> Rows:
    """Rows where ``chosen`` (N,) bool holds fit and select; the others judge."""
    first = np.flatnonzero(chosen)
    return Rows(name, groups, fit=first, select=first, judge=np.flatnonzero(~chosen))


def calibrated(name: str, task: Task, seed: int) -> Rows:
    """Two fifths of a task's groups fit and select, two calibrate, one judges; classes as balanced as groups allow.

    Raises:
        InputError: the groups do not suffice.
    """
    groups = np.array([e.group for e in task.examples])
    folds = group_folds([e.label for e in task.examples], groups, n_folds=FOLDS, seed=seed)
    fit, calibrate, judge = (np.flatnonzero(np.isin(folds, part)) for part in ((0, 1), (2, 3), (4,)))
    return Rows(name, groups, fit=fit, select=fit, calibrate=calibrate, judge=judge)
