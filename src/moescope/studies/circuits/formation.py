"""When does a circuit form? The same task over a series of checkpoints of one model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from moescope.errors import InputError
from moescope.models import LoadedModel
from moescope.models.forward_tokens import ForwardTokens
from moescope.select.ranking import divergence, fold_class_sums
from moescope.stats import group_bootstrap
from moescope.studies.circuits.claims_formation import formation_claim
from moescope.studies.circuits.depth import best_layer_correct, layer_probes
from moescope.studies.circuits.features import capture_features, columns_of, own_cv
from moescope.studies.circuits.settings import SearchSettings
from moescope.study.protocol import Context, TasksLike
from moescope.study.result import StudyResult
from moescope.study.rows import FoldRows
from moescope.study.run import Run
from moescope.tasks import group_folds, surface_baselines
from moescope.types import Task

_SETTINGS, _RUN = SearchSettings(), Run()


def dynamics(
    checkpoints: Sequence[str | Path],
    tasks: TasksLike,
    revisions: Sequence[str] | None = None,
    settings: SearchSettings = _SETTINGS,
    *,
    run: Run = _RUN,
) -> StudyResult:
    """Circuit and probe accuracy of each task at each checkpoint, in the order of training.

    Args:
        checkpoints: folders, embedded names or Hub ids; the training step is read from the last number in each name.
        revisions: with exactly one checkpoint, its Hub revisions instead.

    Returns:
        A result of kind ``"dynamics"`` with the table ``dynamics`` and one claim per task.

    Raises:
        InputError: fewer than two checkpoints, or input that cannot be used.

    >>> import moescope
    >>> result = moescope.dynamics(["out/step-0", "out/step-1000"], ["certainty=halueval"])  # doctest: +SKIP
    """
    context = Context("circuits", settings, run)
    series = _series(checkpoints, revisions)
    loaded_tasks = context.tasks(tasks)
    tokens = ForwardTokens()
    rows: list[dict[str, Any]] = []
    tops: dict[tuple[int, str], np.ndarray] = {}
    # Folds are drawn from labels, groups and seed, so that every checkpoint is judged by the same ones.
    folds = {task.name: context.rows(_folds(task, settings, run)) for task in loaded_tasks}
    model: LoadedModel | None = None
    for i, (name, step, arguments) in enumerate(series):
        model = context.load(**arguments)
        for task in loaded_tasks:
            context.tell(f"{name}: {task.name}", i, len(series))
            with tokens.of(model, "main"):
                row, tops[i, task.name] = _at_checkpoint(model, task, settings, run, folds[task.name].folds)
            rows.append({"checkpoint": name, "step": step, "task": task.name, **row})
    assert model is not None
    table = pd.DataFrame(rows)
    last = len(series) - 1
    table["overlap_with_last"] = [
        len(np.intersect1d(tops[i, task.name], tops[last, task.name])) for i in range(len(series)) for task in loaded_tasks
    ]
    surfaces = {
        task.name: float(surface_baselines(task, folds[task.name].folds, tokenizer=model.tokenizer)["accuracy"].max())
        for task in loaded_tasks
    }
    return context.result(
        model=model,
        tasks=loaded_tasks,
        title=f"Circuit formation over {len(series)} checkpoints",
        claims=[formation_claim(table, task.name, surfaces[task.name]) for task in loaded_tasks],
        tables={"dynamics": table},
        kind="dynamics",
        forward_tokens=tokens.totals(),
    )


def _series(checkpoints: Sequence[str | Path], revisions: Sequence[str] | None) -> list[tuple[str, int, dict[str, Any]]]:
    if revisions:
        if len(checkpoints) != 1:
            raise InputError("give exactly one model with revisions, not several checkpoints", "revisions")
        found = [(revision, {"model": str(checkpoints[0]), "revision": revision}) for revision in revisions]
    else:
        found = [(Path(checkpoint).name, {"model": str(checkpoint)}) for checkpoint in checkpoints]
    if len(found) < 2:
        raise InputError("a series needs at least two (folders, or two revisions)", "checkpoints")
    steps = []
    for name, arguments in found:
        numbers = re.findall(r"\d+", name)
        if not numbers:
            raise InputError(f"checkpoint {name!r}: no training step in its name; rename it, e.g. step-1000")
        steps.append((name, int(numbers[-1]), arguments))
    return sorted(steps, key=lambda item: item[1])


def _at_checkpoint(
    model: LoadedModel, task: Task, settings: SearchSettings, run: Run, folds: np.ndarray
) -> tuple[dict[str, Any], np.ndarray]:
    features = capture_features(
        model,
        task,
        columns_of(model, settings.site),
        settings,
        seed=run.seed,
        folds=folds,
        batch_tokens=run.batch_tokens,
        max_tokens=run.max_tokens,
    )
    sums = fold_class_sums(features.x, features.y, features.folds)
    scores = divergence(*sums.total(), sigma=settings.sigma)
    correct = own_cv(features, settings, sums=sums).correct[0]
    low, high = group_bootstrap(correct, features.groups, seed=run.seed)
    probe, _ = best_layer_correct(layer_probes(features), features.folds)
    row = {
        "accuracy": float(correct.mean()),
        "low": low,
        "high": high,
        "probe_accuracy": float(probe.mean()),
        "max_divergence": float(scores.max()),
    }
    return row, np.argsort(-scores, kind="stable")[: settings.k]


def _folds(task: Task, settings: SearchSettings, run: Run) -> FoldRows:
    y = np.asarray([example.label for example in task.examples])
    groups = np.asarray([example.group for example in task.examples])
    return FoldRows(f"{task.name}: circuit", groups, group_folds(y, groups, n_folds=settings.n_folds, seed=run.seed))
