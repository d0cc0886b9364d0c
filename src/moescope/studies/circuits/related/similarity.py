"""Which tasks have like circuits, corrected for chance and for how far each repeats itself, beside likeness of texts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from moescope.errors import InputError
from moescope.stats.matrices import semi_partialled
from moescope.studies.circuits.overlap import overlap_row, shared
from moescope.studies.circuits.pairs import Ranked, map_k
from moescope.studies.circuits.single import TaskFindings
from moescope.study.verdicts import beyond_draws
from moescope.tasks.build import normalise
from moescope.tasks.likeness import LIKENESS, text_likeness

MEASURES = ("circuit", "transfer")
"""How alike two tasks are to the model."""
_ORDERS = 999
"""Random orders of the tasks at most: fewer where there are not so many."""
_REPEATS = 0.95
"""Share of permuted labels that a circuit must exceed in what it shares with itself, or its likeness cannot be corrected."""
_COMMON = 0.05
"""Share of the smaller task's texts that two may have in common, or they are like each other in that alone."""
_REGRESSIONS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("circuit", LIKENESS, LIKENESS),
    ("transfer", LIKENESS, LIKENESS),
    ("transfer", ("circuit", *LIKENESS), ("circuit",)),
)
"""Response, the terms of the regression, and those of them that are tested in it."""


def similarity_tables(
    found: Sequence[TaskFindings], ranked: Mapping[str, Ranked], cross: pd.DataFrame
) -> dict[str, pd.DataFrame]:
    """The tables ``similarity``, one row for every two tasks, and ``similarity_regression``, one for every term.

    Args:
        cross: the rows of the table ``cross_task``.
    """
    k = map_k(len(found[0].ranking))
    transferred = cross[cross["method"] == "transfer_auroc"].set_index(["source", "target"])["value"]
    texts = text_likeness([task.features.task for task in found])
    known = [{normalise(e.text) for e in task.features.task.examples} for task in found]
    rows = []
    for i, a in enumerate(found):
        for j, b in enumerate(found[i + 1 :], i + 1):
            row = _circuits_alike(ranked[a.features.task.name], ranked[b.features.task.name], k)
            row["transfer"] = float(np.mean([_carried(a, b, transferred), _carried(b, a, transferred)]))
            row["same_texts"] = len(known[i] & known[j])
            if row["same_texts"] > _COMMON * min(len(known[i]), len(known[j])):
                row |= dict.fromkeys(MEASURES, math.nan)
            row |= {name: float(matrix[i, j]) for name, matrix in texts.items()}
            rows.append({"task_a": a.features.task.name, "task_b": b.features.task.name, "k": k, **row})
    pairs = pd.DataFrame(rows)
    return {"similarity": pairs, "similarity_regression": regression_table(pairs, seed=found[0].features.seed)}


def _circuits_alike(a: Ranked, b: Ranked, k: int) -> dict[str, float]:
    """What two tasks share across halves of their texts beyond chance, of what each so shares with itself (Spearman 1904)."""
    row = overlap_row(a.all, b.all, a.halves, b.halves, a.drawn, b.drawn, k)
    own, reliable = [], True
    for side, one in (("a", a), ("b", b)):
        drawn = [shared(one.all, other, k) for other in one.drawn]
        own.append(row[f"split_half_{side}"] - float(np.mean(drawn)))
        reliable &= own[-1] >= 1 and row[f"split_half_{side}"] > np.quantile(drawn, _REPEATS)
    across = row["split_half_cross"] - row["expected"]
    return {
        "shared": row["split_half_cross"],
        "own_a": row["split_half_a"],
        "own_b": row["split_half_b"],
        "chance": row["expected"],
        "circuit": across / math.sqrt(own[0] * own[1]) if reliable else math.nan,
    }


def _carried(source: TaskFindings, target: TaskFindings, transferred: pd.Series) -> float:
    """2 AUROC - 1 of the source's classifier on the target's texts with the better sign, less what chance so gives."""
    key = (source.features.task.name, target.features.task.name)
    if key not in transferred.index:
        return math.nan
    n0, n1 = np.bincount(target.features.y, minlength=2)[:2]
    # Mann and Whitney's: the AUROC of no knowledge is about normal around a half
    chance = 2 * math.sqrt((n0 + n1 + 1) / (12 * n0 * n1)) * math.sqrt(2 / math.pi)
    return 2 * float(transferred[key]) - 1 - chance


def regression_table(pairs: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """What likeness of texts says of likeness of circuits and of what a classifier carries over, and circuits beyond texts.

    Every term is tested with the others of its regression given, by double semi-partialling. A task of which a value is
    missing (a circuit that does not repeat itself, texts of another task, more than two classes) is left out of that
    regression.
    """
    names = list(dict.fromkeys([*pairs["task_a"], *pairs["task_b"]]))
    matrices = {name: _matrix(pairs, names, name) for name in (*MEASURES, *LIKENESS)}
    rows = []
    for response, terms, tested in _REGRESSIONS:
        kept = _complete([matrices[name] for name in (response, *terms)])
        square = {name: matrices[name][np.ix_(kept, kept)] for name in (response, *terms)}
        for turn, term in enumerate(tested):
            head = {"response": response, "term": term, "tasks": len(kept), "left_out": len(names) - len(kept)}
            others = [square[name] for name in terms if name != term]
            try:
                fit = semi_partialled(square[response], square[term], others, n=_ORDERS, seed=seed + 7919 * (turn + 1))
            except InputError:
                rows.append(head | _nothing(len(kept)))
                continue
            effect = beyond_draws(fit.partial, fit.draws, "", 0.0)
            low, high = (fit.partial + end - effect.value for end in (effect.low, effect.high))
            drawn = {"pairs": fit.pairs, "n_permutations": len(fit.draws), "chance": float(fit.draws.mean())}
            rows.append(head | {"partial": fit.partial, "low": max(low, -1.0), "high": min(high, 1.0), "p": effect.p, **drawn})
    return pd.DataFrame(rows)


def _nothing(tasks: int) -> dict[str, Any]:
    nothing = dict.fromkeys(("partial", "low", "high", "p", "chance"), math.nan)
    return {**nothing, "pairs": tasks * (tasks - 1) // 2, "n_permutations": 0}


def _matrix(pairs: pd.DataFrame, names: list[str], column: str) -> np.ndarray:
    values = np.full((len(names), len(names)), np.nan)
    for a, b, value in zip(pairs["task_a"], pairs["task_b"], pairs[column], strict=True):
        i, j = names.index(a), names.index(b)
        values[i, j] = values[j, i] = value
    return values


def _complete(matrices: Sequence[np.ndarray]) -> np.ndarray:
    """(M,) members without a missing pair: those with the most of them are left out first."""
    missing = np.any([np.isnan(m) for m in matrices], axis=0)
    np.fill_diagonal(missing, False)
    kept = np.arange(len(missing))
    while missing[np.ix_(kept, kept)].any():
        kept = np.delete(kept, int(missing[np.ix_(kept, kept)].sum(1).argmax()))
    return kept
