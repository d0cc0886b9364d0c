"""When does a circuit form? The same task over a series of checkpoints of one model."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from moescope.errors import InputError
from moescope.models import LoadedModel, load
from moescope.select.nested import nested_cv
from moescope.select.ranking import divergence, fold_class_sums
from moescope.stats import group_bootstrap
from moescope.studies.circuits.depth import best_layer_correct, layer_probes
from moescope.studies.circuits.features import capture_features, columns_of
from moescope.studies.circuits.settings import CircuitSettings
from moescope.study.provenance import provenance
from moescope.study.result import StudyResult
from moescope.tasks import group_folds, load_task, surface_baselines
from moescope.types import Claim, Task


def formation(
    checkpoints: Sequence[str | Path],
    tasks: Sequence[Task | str],
    *,
    revisions: Sequence[str] | None = None,
    settings: CircuitSettings | None = None,
    report: Callable[[str, int, int], None] | None = None,
    load_options: dict[str, Any] | None = None,
    **options: Any,
) -> StudyResult:
    """Circuit and probe accuracy of each task at each checkpoint, in the order of training.

    Args:
        checkpoints: folders, embedded names or Hub ids; the training step is read from the last number in each name.
        revisions: with exactly one checkpoint, its Hub revisions instead.

    Returns:
        A result of kind ``"dynamics"`` with the table ``dynamics`` [checkpoint, step, task, accuracy, low, high,
        probe_accuracy, max_divergence, overlap_with_last] and one claim per task.

    Raises:
        InputError: fewer than two checkpoints, or input that cannot be used.
    """
    settings = dataclasses.replace(settings or CircuitSettings(), **options)
    began = time.time()
    series = _series(checkpoints, revisions)
    loaded_tasks = [load_task(task, seed=settings.seed) if isinstance(task, str) else task for task in tasks]
    rows: list[dict[str, Any]] = []
    tops: dict[tuple[int, str], np.ndarray] = {}
    model: LoadedModel | None = None
    for i, (name, step, arguments) in enumerate(series):
        model = load(**arguments, **(load_options or {}))
        for task in loaded_tasks:
            if report:
                report(f"{name}: {task.name}", i, len(series))
            row, tops[i, task.name] = _at_checkpoint(model, task, settings)
            rows.append({"checkpoint": name, "step": step, "task": task.name, **row})
    assert model is not None
    table = pd.DataFrame(rows)
    last = len(series) - 1
    table["overlap_with_last"] = [
        len(np.intersect1d(tops[i, task.name], tops[last, task.name])) for i in range(len(series)) for task in loaded_tasks
    ]
    meta = provenance(model, loaded_tasks, seed=settings.seed, settings=dataclasses.asdict(settings))
    meta |= {"title": f"Circuit formation over {len(series)} checkpoints", "seconds": round(time.time() - began, 1)}
    claims = tuple(_formation_claim(table, task, model, settings) for task in loaded_tasks)
    if report:
        report("done", 1, 1)
    return StudyResult("dynamics", meta, claims, {}, {"dynamics": table})


def _series(checkpoints: Sequence[str | Path], revisions: Sequence[str] | None) -> list[tuple[str, int, dict[str, Any]]]:
    if revisions:
        if len(checkpoints) != 1:
            raise InputError("--revision: give exactly one model with revisions, not several checkpoints")
        found = [(revision, {"model": str(checkpoints[0]), "revision": revision}) for revision in revisions]
    else:
        found = [(Path(checkpoint).name, {"model": str(checkpoint)}) for checkpoint in checkpoints]
    if len(found) < 2:
        raise InputError("checkpoints: a series needs at least two (folders, or --revision twice)")
    steps = []
    for name, arguments in found:
        numbers = re.findall(r"\d+", name)
        if not numbers:
            raise InputError(f"checkpoint {name!r}: no training step in its name; rename it, e.g. step-1000")
        steps.append((name, int(numbers[-1]), arguments))
    return sorted(steps, key=lambda item: item[1])


def _at_checkpoint(model: LoadedModel, task: Task, settings: CircuitSettings) -> tuple[dict[str, Any], np.ndarray]:
    features = capture_features(
        model,
        task,
        columns_of(model, settings.site),
        settings,
        batch_tokens=settings.batch_tokens,
        max_tokens=settings.max_tokens,
    )
    sums = fold_class_sums(features.x, features.y, features.folds)
    scores = divergence(*sums.total(), sigma=settings.sigma)
    correct = nested_cv(
        features.x,
        features.y,
        features.folds,
        (settings.k,),
        sigma=settings.sigma,
        classifier=settings.classifier,
        selection=settings.selection,
        sums=sums,
    ).correct[0]
    low, high = group_bootstrap(correct, features.groups, seed=settings.seed)
    probe, _ = best_layer_correct(layer_probes(features), features.folds)
    row = {
        "accuracy": float(correct.mean()),
        "low": low,
        "high": high,
        "probe_accuracy": float(probe.mean()),
        "max_divergence": float(scores.max()),
    }
    return row, np.argsort(-scores, kind="stable")[: settings.k]


def _formation_claim(table: pd.DataFrame, task: Task, model: LoadedModel, settings: CircuitSettings) -> Claim:
    rows = table[table["task"] == task.name]
    first, last = rows.iloc[0], rows.iloc[-1]
    half = (float(first["accuracy"]) + float(last["accuracy"])) / 2
    formed = rows.loc[rows["accuracy"] >= half, "step"].iloc[0]
    surface = _best_surface(task, settings, model)
    gained = float(last["low"]) > float(first["high"])
    return Claim(
        name=f"{task.name}: the circuit forms in training",
        measured=float(last["accuracy"]),
        interval=(float(last["low"]), float(last["high"])),
        null=surface,
        verdict="measured",
        note=f"step {int(first['step'])}: {float(first['accuracy']):.1%}; "
        + (
            f"half of the gain is there at step {int(formed)}"
            if gained
            else "the last checkpoint is not better than the first beyond the interval: no formation seen"
        )
        + "; the null is the best surface baseline",
    )


def _best_surface(task: Task, settings: CircuitSettings, model: LoadedModel) -> float:
    """Accuracy of the best surface baseline, which no checkpoint changes."""
    y = np.asarray([example.label for example in task.examples])
    groups = np.asarray([example.group for example in task.examples])
    folds = group_folds(y, groups, n_folds=settings.n_folds, seed=settings.seed)
    return float(surface_baselines(task, folds, tokenizer=model.tokenizer)["accuracy"].max())
