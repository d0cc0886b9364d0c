"""How many layers does a task need? A study with a classifier that stops as its outcome."""

from __future__ import annotations

import numpy as np
import pandas as pd

from moescope.errors import InputError
from moescope.runtime.exit.classifier import check_layers
from moescope.runtime.exit.heads import check_k
from moescope.stats.conformal import crc_size, ltt_size
from moescope.studies.exit.claims import exit_claims
from moescope.studies.exit.settings import ExitSettings
from moescope.studies.exit.task import exit_task
from moescope.study.names import slug
from moescope.study.protocol import Context, ModelLike, TasksLike
from moescope.study.repeat import verb
from moescope.study.result import StudyResult
from moescope.study.rows import Rows, calibrated
from moescope.study.run import Run

_SETTINGS, _RUN = ExitSettings(), Run()


@verb
def exit(model: ModelLike, tasks: TasksLike, settings: ExitSettings = _SETTINGS, *, run: Run = _RUN) -> StudyResult:
    """Find how early a text may leave a model with a bound on what that costs, and whether it pays.

    Two fifths of a task's groups fit the heads, two calibrate the confidence asked for, one judges.

    Args:
        model: any whose rows can leave a batch; its head is not needed.
        tasks: tasks, or specifications (``"certainty=halueval"``); names must differ.

    Returns:
        A result of kind ``"exit"``: tables ``frontier``, ``heads``, ``speed``, ``depth`` and ``surface``; artifacts
        ``exit/TASK``, an :class:`~moescope.runtime.exit.classifier.ExitClassifier` for each task.

    Raises:
        InputError: too few rows for the risk (said before the model is loaded), a layer out of range, K too large, or a
            model whose rows cannot leave a batch.

    >>> import moescope
    >>> result = moescope.exit("dense-tiny", ["certainty=halueval"])  # doctest: +SKIP
    >>> result.artifacts["exit/certainty"].predict(["Question: Who?\\nAnswer: Me."])  # doctest: +SKIP
    """
    context = Context("exit", settings, run, of=ExitSettings, spread=True)
    loaded_tasks = context.tasks(tasks)
    places = [f"exit/{slug(task.name)}" for task in loaded_tasks]
    double = next((place for place in places if places.count(place) > 1), None)
    if double:
        raise InputError(f"two would be saved in {double}; name them apart, e.g. b=SOURCE", "tasks")
    rows = [context.rows(calibrated(task.name, task, run.seed)) for task in loaded_tasks]
    for part in rows:
        _check_size(part, settings)
    loaded = context.load(model)
    if settings.layers is not None:
        check_layers(settings.layers, loaded.n_layers)
    check_k(settings.k, loaded.d_model)
    found = [exit_task(context, loaded, task, part, settings) for task, part in zip(loaded_tasks, rows, strict=True)]
    claims = [exit_claims(f, settings, run) for f in found]
    for f, (advice, *_) in zip(found, claims, strict=True):
        context.note(f"{f.task.name}: {advice.measured} ({advice.words.partition('; a decision')[0]})")
    return context.result(
        model=loaded,
        tasks=loaded_tasks,
        title=f"Early exit from {loaded.name}",
        claims=[claim for of_task in claims for claim in of_task],
        tables={name: pd.concat([f.tables[name] for f in found], ignore_index=True) for name in found[0].tables},
        artifacts={place: f.classifier for place, f in zip(places, found, strict=True)},
        guarantees={f.task.name: f.guarantee.text() for f in found},
    )


def _check_size(rows: Rows, settings: ExitSettings) -> None:
    """Calibration too small is said before minutes of work, with the number of groups that would do."""
    need = crc_size(settings.risk) if settings.method == "crc" else ltt_size(settings.risk, settings.delta)
    groups = len(np.unique(rows.groups[rows.calibrate]))
    if groups < need:
        promise = f"risk {settings.risk:g}" + (f" at delta {settings.delta:g}" if settings.method == "ltt" else "")
        raise InputError(
            f"task {rows.name}: {promise} needs at least {need} calibration groups, two fifths of the task's are {groups}; "
            "ask for more risk or delta, or give more rows"
        )
