"""How many layers does a task need? A study with a classifier that stops as its outcome."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from moescope.errors import InputError
from moescope.models import LoadedModel, load
from moescope.runtime.exit.classifier import ExitClassifier
from moescope.runtime.exit.store import save_exit
from moescope.studies.exit.settings import ExitSettings
from moescope.studies.exit.task import exit_task
from moescope.studies.exit.verdicts import exit_claims, recommend
from moescope.study.names import slug
from moescope.study.provenance import provenance
from moescope.study.result import StudyResult
from moescope.tasks import load_task
from moescope.types import Task

Report = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class ExitStudy:
    """The result, and the classifier of each task."""

    result: StudyResult
    classifiers: dict[str, ExitClassifier]

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """The result as :meth:`StudyResult.save` writes it, and each classifier in ``folder/exit/TASK``."""
        saved = self.result.save(folder, overwrite=overwrite)
        for name, classifier in self.classifiers.items():
            save_exit(classifier, saved / "exit" / slug(name))
        return saved


def early_exit(
    model: str | LoadedModel,
    tasks: Sequence[Task | str],
    *,
    settings: ExitSettings | None = None,
    report: Report | None = None,
    **options: Any,
) -> ExitStudy:
    """Find how early a text may leave a model with a bound on what that costs, and whether it pays.

    Args:
        model: Hub id, local folder, embedded name, or a loaded model.
        tasks: tasks, or specifications (``"certainty=halueval"``); names must differ.
        settings: see :class:`ExitSettings`; or give its fields as keyword options.
        report: called with (stage, done, total) for progress.

    Returns:
        The result of kind ``"exit"`` (tables ``frontier``, ``heads``, ``speed``, ``depth``, ``surface``) and the classifiers.

    Raises:
        InputError: too few rows for the risk, a layer out of range, a model whose rows cannot leave a batch; one line.
    """
    settings = dataclasses.replace(settings or ExitSettings(), **options)
    began = time.time()
    loaded_tasks = [load_task(task, seed=settings.seed) if isinstance(task, str) else task for task in tasks]
    names = [slug(task.name) for task in loaded_tasks]
    if not names:
        raise InputError("--task: at least one task is needed, e.g. --task certainty=halueval")
    double = next((name for name in names if names.count(name) > 1), None)
    if double:
        raise InputError(f"--task: two tasks are called {double!r}; name them apart, e.g. --task {double}2=SOURCE")
    loaded = load(model) if isinstance(model, str) else model

    def tell(stage: str, done: int, total: int) -> None:
        if report is not None:
            report(stage, done, total)

    found = [exit_task(loaded, task, settings, tell) for task in loaded_tasks]
    tell("done", 1, 1)
    tables = {name: pd.concat([f.tables[name] for f in found], ignore_index=True) for name in found[0].tables}
    meta = provenance(loaded, loaded_tasks, seed=settings.seed, settings=dataclasses.asdict(settings))
    meta["title"] = f"Early exit from {loaded.name}"
    meta["guarantees"] = {f.task.name: f.guarantee.text() for f in found}
    meta["notes"] = [f"{f.task.name}: {what} ({why})" for f in found for what, why in [recommend(f)]]
    meta["seconds"] = round(time.time() - began, 1)
    claims = tuple(claim for f in found for claim in exit_claims(f, settings))
    return ExitStudy(StudyResult("exit", meta, claims, {}, tables), {f.task.name: f.classifier for f in found})
