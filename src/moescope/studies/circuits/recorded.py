"""Circuits of any module of any torch model: of what was recorded while the user's own loop ran it, and the documents' labels.

A document is one row: the mean of its vectors. All that is computed from activations and labels is as it is for a model's
sites. What needs the running model (a template read anew, interventions, examples by token) is not there, and the result says
so; a twin is there where the same module of an untrained model was recorded too (``store.twin``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from moescope.capture.record import Recorded
from moescope.errors import InputError
from moescope.studies.circuits.claims import circuit_claims
from moescope.studies.circuits.each_task import across_tasks, check_sizes, of_task
from moescope.studies.circuits.features import Columns, Features
from moescope.studies.circuits.reread import Reread
from moescope.studies.circuits.settings import CircuitSettings
from moescope.studies.circuits.single import TaskFindings
from moescope.study.protocol import Context, TasksLike
from moescope.study.result import StudyResult
from moescope.study.rows import FoldRows
from moescope.tasks import subset
from moescope.tasks.bare import BareTask
from moescope.tasks.build import task_sha256
from moescope.tasks.kinds import KINDS, groups_of
from moescope.types import MODULE, Example, Site, Task

_SIDES = {"resid": "output", "output": "output", "input": "input"}
_NOTHING_READ = "not applicable: what was recorded is not read anew"
_NOT_RUN = {"template": _NOTHING_READ, "twin": "an untrained twin (none was recorded: store.twin)"}
_BARE = {
    "cue": "trivial cues (labels alone were given, neither texts nor images)",
    "matched": "not applicable: labels alone were given, neither texts nor images",
}


def study_recorded(context: Context, store: Recorded, tasks: TasksLike, settings: CircuitSettings) -> StudyResult:
    """The study of what was recorded of one module."""
    store.check_run()
    settings = context.settings = _settled(settings, context)
    context.stages.read(store.documents, store.x, store.y, None if store.twin is None else (store.twin.x, store.twin.y))
    found: dict[str, TaskFindings] = {}
    parts: dict[str, list[pd.DataFrame]] = {}
    loaded = _tasks(store, tasks, context)
    for task in loaded:
        here = _features(store, task, settings, context.run.seed)
        check_sizes(here.columns, settings)
        context.rows(FoldRows(f"{task.name}: circuit", here.groups, here.folds))

        def beside(here: Features = here) -> Reread:
            return _beside(store, here, settings, context)

        one, own = of_task(context, here, settings, tokenizer=None, n_layers=1, read_anew=beside)
        assert isinstance(one, TaskFindings)
        found[task.name] = one
        for name, frame in own.items():
            parts.setdefault(name, []).append(frame)
    tables = {name: pd.concat(frames, ignore_index=True) for name, frames in parts.items()}
    tables |= context.stage("comparing tasks", lambda: across_tasks(found, settings, context))
    return context.result(
        model=store.model,
        tasks=loaded,
        title=f"Task circuits of {store.name} of {store.model}",
        claims=circuit_claims(found, tables, settings),
        tables=tables,
        circuits={name: one.circuit for name, one in found.items()},
        module=store.name,
        recorded={"documents": len(store.means()[0]), "vectors": len(store), "seen": store.seen},
    )


def _settled(settings: CircuitSettings, context: Context) -> CircuitSettings:
    """The settings, where they can be had of what was recorded.

    Raises:
        InputError: something is asked for that needs the running model; names it.
    """
    for name in ("ablate", "keep_only", "paths", "few_shot", "crossed"):
        if getattr(settings, name) is not None:
            raise InputError("needs the running model, and what was recorded is of one that ran; leave it out", name)
    if settings.site not in _SIDES:
        raise InputError(f"{settings.site!r}: of what was recorded there is output or input", "site")
    if settings.position not in ("final", "mean"):
        raise InputError("a document of what was recorded is the mean of its vectors; leave it out", "position")
    if context.run.limit is not None:
        raise InputError("documents are those that were recorded; record fewer", "limit")
    context.note("Each document is read as the mean of its vectors that were kept.")
    return replace(settings, position="mean", examples=0)


def _tasks(store: Recorded, tasks: Any, context: Context) -> list[Task]:
    """The tasks, row i of each for document number i of the store.

    Args:
        tasks: by name the labels of documents: a list or an array of which entry i is that of document i, or a mapping from
            numbers to labels; or tasks as elsewhere, whose row i is document i: their texts or images give the trivial cues.

    Raises:
        InputError: a document that was recorded has no label.
    """
    given = dict(tasks) if isinstance(tasks, Mapping) else {}
    bare = {str(name): _labels(value) for name, value in given.items() if _is_bare(value)}
    others = {name: value for name, value in given.items() if not _is_bare(value)} if given else tasks
    found = [*context.tasks(others)] if others else []
    number = store.means()[0]
    return [_of_documents(task, number) for task in found] + [_bare_task(n, labels, number) for n, labels in bare.items()]


def _features(store: Recorded, task: Task, settings: CircuitSettings, seed: int) -> Features:
    """One row a document of ``task``, which is of the store's documents in ascending order."""
    side = _SIDES[settings.site]
    x = store.means(side)[1]
    suffix = ".input" if side == "input" else ""
    name = re.sub(r"[^\w.-]", "_", store.name) + suffix
    columns = Columns((Site(MODULE + name, 0),), (x.shape[1],))
    kind = KINDS[task.kind]
    missing = {**_NOT_RUN, **(_BARE if isinstance(task, BareTask) else {})}
    if store.twin is not None:
        missing.pop("twin")
    y, groups, folds = kind.y(task), groups_of(task), kind.folds(task, settings.n_folds, seed)
    return Features(task, columns, np.ascontiguousarray(x), None, y, groups, folds, seed, not_run=missing)


def _beside(store: Recorded, features: Features, settings: CircuitSettings, context: Context) -> Reread:
    """The twin's activations on the same documents, put on record as another module's; no template.

    Raises:
        InputError: the twin is of other documents, or of another width.
        ControlFault: it gives what the module itself gives.
    """
    rows = np.arange(len(features.y))
    if store.twin is None or not settings.twin:
        return Reread(rows, features, None, None, "")
    side = _SIDES[settings.site]
    own, (number, x) = store.means(side)[0], store.twin.means(side)
    if not np.array_equal(own, number) or x.shape != features.x.shape:
        raise InputError(
            f"{len(number)} documents of width {x.shape[-1]} beside {len(own)} of {features.x.shape[1]}: record the same "
            "module of an untrained model on the same documents",
            "store.twin",
        )
    apart = float((x != features.x).mean())
    context.control(
        f"{features.task.name}: random twin", differs=apart > 0.5, evidence=f"{apart:.1%} of the documents' means differ"
    )
    return Reread(rows, features, None, replace(features, x=np.ascontiguousarray(x)), "")


def _is_bare(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, int | np.integer) for key in value)
    if isinstance(value, np.ndarray | torch.Tensor):
        return True
    return isinstance(value, list | tuple) and all(isinstance(v, str | int | np.integer | bool) for v in value)


def _labels(value: Any) -> dict[int, str]:
    entries = value.items() if isinstance(value, Mapping) else enumerate(np.asarray(value).tolist())
    return {int(number): str(label) for number, label in entries}


def _bare_task(name: str, labels: dict[int, str], number: np.ndarray) -> BareTask:
    lacking = next((int(n) for n in number if int(n) not in labels), None)
    if lacking is not None:
        raise InputError(f"{name}: document {lacking} was recorded and has no label; give one for each document", "tasks")
    known = sorted({labels[int(n)] for n in number}, key=lambda label: (len(label), label) if label.isdigit() else (0, label))
    if len(known) < 2:
        raise InputError(f"{name}: all documents have the label {known[0]!r}; two classes are needed", "tasks")
    at = {label: i for i, label in enumerate(known)}
    examples = tuple(Example(str(int(n)), at[labels[int(n)]], str(int(n))) for n in number)
    return BareTask(name, examples, tuple(known), "labels of what was recorded", sha256=task_sha256(examples))


def _of_documents(task: Task, number: np.ndarray) -> Task:
    """The rows of ``task`` that were recorded."""
    if len(number) and int(number.max()) >= len(task):
        raise InputError(f"{task.name}: document {number.max()} was recorded, and there are {len(task)} rows", "tasks")
    chosen = subset(task, number)
    missing = sorted(set(range(len(task.classes))) - {e.label for e in chosen.examples})
    if missing:
        raise InputError(f"{task.name}: no document of class {task.classes[missing[0]]!r} was recorded", "tasks")
    return chosen
