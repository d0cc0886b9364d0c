"""Does a circuit speak one language? Fit on one, test on another (tasks whose examples name a language)."""

from __future__ import annotations

from typing import Any

import numpy as np

from moescope.errors import InputError
from moescope.select.nested import fit_classifier
from moescope.studies.circuits.features import Features, own_cv
from moescope.studies.circuits.scorer import Scorer
from moescope.studies.circuits.settings import CircuitSettings
from moescope.studies.circuits.single import rank_columns


def language_rows(features: Features, settings: CircuitSettings) -> list[dict[str, Any]]:
    """Rows of the table ``language`` for every ordered pair of languages.

    On the diagonal the circuit is selected and tested by nested cross-validation inside the language; off it, selected and
    fitted on all rows of one language and tested on the other's. Groups that occur in both languages (translations of one
    text) are left out of the fit, or the test would have been seen. Empty when fewer than two languages are named.
    """
    languages = np.asarray([example.language or "" for example in features.task.examples])
    names = sorted(set(languages.tolist()) - {""})
    if len(names) < 2:
        return []
    rows: list[dict[str, Any]] = []
    for train in names:
        for test in names:
            testing = languages == test
            if train == test:
                try:
                    part = features.subset(np.flatnonzero(testing), n_folds=settings.n_folds)
                except InputError as error:
                    raise InputError(f"task {features.task.name!r}, language {test!r}: {error}") from error
                correct = own_cv(part, settings, selection="nested").even[0]
                judge = Scorer(part.y, part.groups, features.seed)
            else:
                judge = Scorer(features.y[testing], features.groups[testing], features.seed)
                fitting = (languages == train) & ~np.isin(features.groups, judge.groups)
                if len(np.unique(features.y[fitting])) < features.n_classes:
                    # All training texts are translations of test texts: nothing is left to fit on, so say nothing.
                    continue
                chosen = rank_columns(features.x[fitting], features.y[fitting], settings.sigma)[: settings.k]
                model = fit_classifier(features.x[np.ix_(fitting, chosen)], features.y[fitting], settings.classifier)
                read = features.x[np.ix_(testing, chosen)].astype(np.float64)
                # a class that is rare in the texts fitted on is named as readily as a common one
                shares = np.bincount(features.y[fitting], minlength=features.n_classes) / fitting.sum()
                correct = (model.predict_proba(read) / shares).argmax(1) == judge.y
            beyond = judge.gap(correct, judge.chance)
            rows.append(
                {
                    "task": features.task.name,
                    "train_language": train,
                    "test_language": test,
                    "accuracy": beyond.value + judge.chance,
                    "low": max(beyond.low + judge.chance, 0.0),
                    "high": min(beyond.high + judge.chance, 1.0),
                    "chance": judge.chance,
                    "p": beyond.p,
                    "n": len(correct),
                }
            )
    return rows
